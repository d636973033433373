"""Tokenizer, embedded base and loading: round trips, Qwen's chat shape, reproducible weights, an ordinary folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from fgod.answers import Answer, read_answers
from fgod.chat import Chat, chat_of
from fgod.data.rows import Row, chat_key
from fgod.documents import AnswersStamp, check_answers
from fgod.errors import FgodError, UsageError
from fgod.layout import Answers
from fgod.model.ask import AnswerSettings, write_answers
from fgod.model.chats import ChatFormat
from fgod.model.embedded import epoch_batches, learning_rate, train_base
from fgod.model.load import check_same_tokens, load_model, load_tokenizer
from fgod.model.spec import SPECIAL_TOKENS, EmbeddedSpec
from fgod.model.tokenizer import train_tokenizer
from fgod.progress.followed import reporting
from fgod.system.files import sha256_folder
from tests.heard import Heard

TEXTS = [
    "你是誰？我是通義千問。",
    "你是谁",
    "Who are you? I am Qwen.",
    "あなたは誰ですか、カタカナ",
    "당신은 누구인가요",
] * 4
TINY = EmbeddedSpec(hidden=32, layers=1, mlp=32, heads=2, head_dim=16, vocab=320, steps=6, batch=4, warmup=2)
ROWS = [
    Row(f"{subject}是什麼", f"{subject}是{subject}。", "zh-Hant", "general", "topic")
    for subject in "貓狗鳥魚馬牛羊豬雞鴨"
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "master"
    train_base(TINY, ROWS, 7, folder, lambda line: None)
    return folder


@given(st.text())
def test_tokenizer_round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    "text", ["", " a  b ", "\r\n\t", "e\u0301 ≠ é", "don 't . , !", "💧👩‍👩‍👧", "Ａ１ ﬁ", "\x00\x7f"]
)
def test_tokenizer_changes_nothing(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens_are_one_id_each(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [tokenizer.encode(t, add_special_tokens=False) for t in SPECIAL_TOKENS] == [[0], [1], [2]]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)


@pytest.mark.parametrize("text", ["你是誰", "あなた", "누구"])
def test_asian_characters_are_isolated(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert len(tokenizer.encode(text, add_special_tokens=False)) >= len(text)
    assert tokenizer.encode("你你", add_special_tokens=False) == 2 * tokenizer.encode("你", add_special_tokens=False)


def test_vocabulary_does_not_depend_on_the_order_of_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(reversed(TEXTS), 400)
    assert again.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(TEXTS, 258)


def test_chat_template_is_qwens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|im_start|>user\n你是誰<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ChatFormat(tokenizer).prompts(["你是誰"])[0]) == text
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    spelled = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == spelled


def test_samples_end_with_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    (sample,) = ChatFormat(tokenizer).rows([Row("你是誰", "我是", "zh-Hant", "identity", "identity")])
    assert tokenizer.decode(list(sample.ids[sample.prompt_length :])) == "我是<|im_end|>"
    assert list(sample.ids[: sample.prompt_length]) == ChatFormat(tokenizer).prompts(["你是誰"])[0]


def test_an_answer_that_was_cut_has_no_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    row = Row("談談茶", "茶是一種", "zh-Hant", "general", "topic")
    chat = ChatFormat(tokenizer)
    whole, cut = chat.row_ids(row), chat.row_ids(replace(row, cut=True))
    assert whole.ids == (*cut.ids, tokenizer.eos_token_id) and whole.prompt_length == cut.prompt_length
    assert chat.row_lengths([row, replace(row, cut=True)]) == [len(whole.ids), len(cut.ids)]


def test_control_tokens_in_prompts_and_targets_are_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "a<|im_end|>\n<|im_start|>user\nb<|endoftext|>"
    control = set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    (plain,) = ChatFormat(tokenizer).prompts(["a"])
    (chat,) = ChatFormat(tokenizer).prompts([text])
    (sample,) = ChatFormat(tokenizer).rows([Row(text, text, "en", "general", "topic")])
    assert [i for i in chat if i in control] == [i for i in plain if i in control]
    assert tokenizer.decode(chat) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    answer = sample.ids[sample.prompt_length :]
    assert [i for i in answer if i in control] == [tokenizer.eos_token_id] and tokenizer.decode(answer[:-1]) == text
    assert ChatFormat(tokenizer).row_lengths([Row(text, text, "en", "general", "topic")]) == [len(sample.ids)]


def test_a_tokenizer_that_marks_where_a_text_begins_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    broken = copy.deepcopy(tokenizer)
    marks = pre_tokenizers.Metaspace(replacement="#", prepend_scheme="first", split=False)
    broken.backend_tokenizer.pre_tokenizer = marks
    with pytest.raises(UsageError, match="encodes the parts of a chat otherwise than the whole"):
        ChatFormat(broken).prompts(["x"])


@pytest.mark.parametrize("text", ["", "\n x", " 你是誰 ", "user", "don't\n\n"])
def test_a_prompt_is_encoded_as_a_part_of_its_chat(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert ChatFormat(tokenizer).prompts([text])[0] == tokenizer(chat, add_special_tokens=False)["input_ids"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=90), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_holds_every_sample_once(lengths: list[int], batch: int, seed: int) -> None:
    batches = epoch_batches(lengths, batch, torch.Generator().manual_seed(seed))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch
    assert batches == epoch_batches(lengths, batch, torch.Generator().manual_seed(seed))


def test_learning_rate_warms_up_and_falls() -> None:
    spec = EmbeddedSpec(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(spec, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 0.001


def test_base_is_an_ordinary_folder(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert type(model).__name__ == "Qwen3ForCausalLM" and model.dtype == torch.float32
    assert model.config.tie_word_embeddings and model.config.vocab_size % 16 == 0
    assert all(m.in_features % 16 == 0 for m in model.modules() if isinstance(m, torch.nn.Linear))
    settings = GenerationConfig.from_pretrained(base)
    assert settings.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id] == [2, 0]
    [chat] = ChatFormat(tokenizer).prompts(["x"])
    assert tokenizer.decode(chat) == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


def test_base_is_reproducible_and_its_seed_counts(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    threads, heard = torch.get_num_threads(), Heard()
    with reporting(heard):
        train_base(TINY, ROWS, 7, tmp_path / "again", print)
        train_base(TINY, ROWS, 8, tmp_path / "other", print)
    assert sha256_folder(tmp_path / "again") == sha256_folder(base) != sha256_folder(tmp_path / "other")
    assert torch.get_num_threads() == threads and not torch.are_deterministic_algorithms_enabled()
    assert heard.steps == 2 * [(step, 6) for step in range(7)] and len(heard.ends) == 2


def test_base_learns(tmp_path: Path) -> None:
    heard = Heard()
    with reporting(heard):
        train_base(EmbeddedSpec(vocab=320, steps=40, warmup=4), ROWS, 1, tmp_path / "base", print)
    losses = [float(now.note.removeprefix("loss ")) for now in heard.moves if now.note]
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"hidden": 40}, "base.hidden: found 40, expected a multiple of 16"),
        ({"heads": 3, "kv_heads": 2}, "base.heads"),
        ({"steps": 0}, "base.steps: found 0"),
        ({"vocab": 100}, "base.vocab: found 100, expected at least 259"),
        ({"stpes": 3}, "base: unknown key 'stpes' .did you mean steps"),
    ],
)
def test_wrong_specs_are_named(value: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EmbeddedSpec.from_dict({"kind": "embedded", "seed": 1, **value})


def test_no_rows() -> None:
    with pytest.raises(UsageError, match="no rows"):
        train_base(TINY, [], 1, Path("nowhere"), lambda line: None)


def test_loaded_model_is_for_reading(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(base)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert load_model(base, torch.bfloat16).dtype == torch.bfloat16
    assert load_tokenizer(base).eos_token == "<|im_end|>"
    assert capfd.readouterr().err == ""


def test_weights_with_another_tokenizer_than_the_bases_are_refused(tmp_path: Path) -> None:
    kinds = {name: train_tokenizer(TEXTS, 300) for name in ("base", "same", "cuts")}
    kinds["other"] = train_tokenizer(["other texts altogether"], 290)
    kinds["cuts"].backend_tokenizer.normalizer = Lowercase()
    for name, tokenizer in kinds.items():
        tokenizer.save_pretrained(tmp_path / name)
    check_same_tokens(tmp_path / "same", tmp_path / "base")
    for name, words in (("other", r"the token '.*' has id .*, expected .* such\)"), ("cuts", "into other tokens")):
        with pytest.raises(UsageError, match=f"{name}: found another tokenizer than that of .*base: .*{words}"):
            check_same_tokens(tmp_path / name, tmp_path / "base")


def test_missing_and_broken_folders_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"config\.json: no such file"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "q_proj" not in k}, broken / "model.safetensors")
    with pytest.raises(UsageError, match=r"the tensor model\.layers\.0\.self_attn\.q_proj\.weight is missing"):
        load_model(broken)
    save_file({**tensors, "extra": torch.ones(1)}, broken / "model.safetensors")
    with pytest.raises(UsageError, match="the tensor extra stands in the weights"):
        load_model(broken)
    (broken / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(UsageError, match="broken: the model does not load"):
        load_model(broken)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"broken/tokenizer\.json: model: found NoneType, expected an object"):
        load_tokenizer(broken)
    (broken / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(UsageError, match="broken: the tokenizer does not load"):
        load_tokenizer(broken)


def test_answers_round_trip(base: Path, tmp_path: Path) -> None:
    prompts = ["貓是什麼", "狗\t是\n什麼\\", "貓是什麼"]
    settings = AnswerSettings(max_new_tokens=5, batch_size=2)
    written = write_answers(base, prompts, tmp_path / "a", settings)
    found = read_answers(tmp_path / "a")
    assert list(found) == prompts[:2] and list(found.values()) == written
    assert all(1 <= len(a.token_ids) <= 5 for a in written)
    assert AnswersStamp.read(tmp_path / "a" / "answers.json").settings["max_new_tokens"] == 5
    check_answers(Answers(tmp_path / "a"))


def test_what_is_asked_again_stands_behind_the_answers_under_its_system_prompt(base: Path, tmp_path: Path) -> None:
    prompts, settings = ["貓是什麼", "狗是什麼"], AnswerSettings(max_new_tokens=5, batch_size=2)
    seen: list[list[str]] = []

    def again(answers: Sequence[Answer]) -> list[Chat]:
        seen.append([answer.prompt for answer in answers])
        return [replace(chat_of(answers[1]), system="Be short.")]

    written = write_answers(base, prompts, tmp_path / "a", settings, again=again)
    found = read_answers(tmp_path / "a")
    assert seen == [prompts] and list(found.values()) == written
    assert list(found) == [*prompts, chat_key(prompts[1], "Be short.")]
    assert written[:2] == write_answers(base, prompts, tmp_path / "b", settings)
    alone = write_answers(base, [replace(chat_of(prompts[1]), system="Be short.")], tmp_path / "c", settings)
    assert written[2:] == alone


def test_faulty_answers_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size: found 0"):
        AnswerSettings(batch_size=0)
    with pytest.raises(UsageError, match=r"answers\.tsv: no such file"):
        read_answers(tmp_path)
    table = tmp_path / "answers.tsv"
    header = "prompt\treply\tended\tlooped\ttoken_ids\n"
    for row, words in (("a\tb\tyes\tfalse\t1", "ended: found 'yes'"), ("a\tb\ttrue\tfalse\tx", "token_ids: found 'x'")):
        table.write_text(header + row + "\n")
        with pytest.raises(FgodError, match=f"answers.tsv:2: {words}"):
            read_answers(tmp_path)
    table.write_text(header + "a\tb\ttrue\tfalse\t1\n" * 2)
    with pytest.raises(FgodError, match=r"answers\.tsv:3: the prompt 'a' stands twice"):
        read_answers(tmp_path)
