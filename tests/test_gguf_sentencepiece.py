"""SentencePiece tokenizers of GGUF files: the ids of the sentencepiece library, chats with them, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fgod.chat import Chat, ChatSettings
from fgod.data.rows import Message, Row
from fgod.errors import UsageError
from fgod.importing.gguf import import_gguf
from fgod.importing.gguf_file import read_gguf
from fgod.importing.gguf_sentencepiece import merges_of
from fgod.importing.gguf_tokenizer import tokenizer_of
from fgod.model.chats import ChatFormat
from fgod.model.load import load_model
from fgod.talk.conversation import Asking, Conversation, passes_of
from fgod.talk.opening import open_model
from fgod.talk.stream import Stream
from tests.sentencepiece_models import CONTROL, TEXTS, metadata_of, trained, write_llama, write_vocabulary

LLAMA = """\
{%- for turn in messages -%}
    {%- if turn.role == 'user' -%}{{- bos_token + '[INST] ' + turn.content + ' [/INST]' -}}
    {%- else -%}{{- ' ' + turn.content + ' ' + eos_token -}}{%- endif -%}
{%- endfor -%}
"""
"""[INST] is text, as Llama 2 has it."""

PLAIN = """\
{%- for turn in messages -%}
    {{- '### ' + turn.role + '\\n' + turn.content + (eos_token if turn.role == 'assistant' else '') + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### assistant\\n' -}}{%- endif -%}
"""
"""Answers begin behind a newline, without a control token, as TinyLlama's."""

BLANKS = """\
{{- bos_token -}}
{%- for turn in messages -%}
    {%- if turn.role == 'user' -%}{{- '<|user|> ' + turn.content + '<|assistant|>' -}}
    {%- else -%}{{- ' ' + turn.content + eos_token -}}{%- endif -%}
{%- endfor -%}
"""
"""Blanks stand behind control tokens, as in Mistral 7B Instruct v0.3."""

OWN = ("<think>", "</think>", "<think><x>")
WRITTEN = (
    *TEXTS, "", " ", "  ", " x", "   你", "\n", "\n\n x", "▁a ▁▁b", "🙂🧑\u200d🚀🙂", "ก็ Привет עברית",
    "\x00\ue000\U0010ffff",
    "<s></s><|user|> a <|assistant|>", "<unk>", "<0x0A>", "\u0301e\u0301", "a" * 40, "= " * 20 + "=" * 33,
    "<think> b</think>c",
)  # fmt: skip
ANY = st.text() | st.sampled_from(WRITTEN) | st.text(" \n\t▁aet=-.9神は한é🙂\u0301s<>/[]", max_size=40)


def read(folder: Path, metadata: dict[str, Any]) -> Any:
    """The tokenizer of a file, saved and loaded as any other."""
    file = read_gguf(write_vocabulary(folder / "one.gguf", metadata))
    tokenizer_of(file.metadata, file.path).tokenizer.save_pretrained(folder / "out")
    return AutoTokenizer.from_pretrained(folder / "out")


def ids_of(tokenizer: Any, text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A SentencePiece model, and the tokenizer that was read from a file of it; one has tokens of its own besides."""
    own = () if request.param else OWN
    model = trained(request.param, own)
    metadata = metadata_of(model, PLAIN, own) | {"tokenizer.ggml.add_space_prefix": request.param}
    return model, read(tmp_path_factory.mktemp("pair"), metadata)


@settings(max_examples=300, deadline=None)
@given(text=ANY)
def test_a_text_gives_the_ids_of_sentencepiece(pair: tuple[Any, Any], text: str) -> None:
    model, tokenizer = pair
    expected = model.encode(text)
    assert ids_of(tokenizer, text, split_special_tokens=True) == expected
    if not any(token in text for token in (*CONTROL, "<s>", "</s>", "<unk>")):
        assert ids_of(tokenizer, text) == expected
    assert tokenizer.decode(expected) == model.decode(expected)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(ANY, min_size=1, max_size=4), data=st.data())
def test_between_control_tokens_each_text_is_one_of_its_own(pair: tuple[Any, Any], texts: list[str], data: Any) -> None:
    model, tokenizer = pair
    plain = [text for text in texts if not any(token in text for token in (*CONTROL, "<s>", "</s>", "<unk>"))]
    whole, expected = "", []
    for text in plain:
        control = data.draw(st.sampled_from(CONTROL))
        whole += control + text
        expected += [model.piece_to_id(control), *model.encode(text)]
    assert ids_of(tokenizer, whole) == expected


@settings(max_examples=60, deadline=None)
@given(text=ANY)
def test_pieces_of_a_stream_are_the_text(pair: tuple[Any, Any], text: str) -> None:
    model, tokenizer = pair
    stream, ids = Stream(tokenizer), model.encode(text)
    assert "".join([*map(stream.add, ids), stream.rest()]) == tokenizer.decode(ids)


def test_behind_user_defined_tokens_a_text_begins_as_in_llama_cpp(tmp_path: Path) -> None:
    model = trained(True, OWN)
    tokenizer = read(tmp_path, metadata_of(model, PLAIN, OWN))
    think = model.piece_to_id("<think>")
    assert ids_of(tokenizer, "a<think>b") == [*model.encode("a"), think, *model.encode("b")]
    assert model.encode("a<think>b") != ids_of(tokenizer, "a<think>b")


def test_a_text_begins_and_ends_as_the_file_says(tmp_path: Path) -> None:
    model = trained()
    for begins, ends in ((None, None), (True, True), (False, None), (False, True)):
        metadata = metadata_of(model, PLAIN)
        metadata |= {"tokenizer.ggml.add_bos_token": begins} if begins is not None else {}
        metadata |= {"tokenizer.ggml.add_eos_token": ends} if ends is not None else {}
        first, last = [1] if begins is not False else [], [2] if ends else []
        (tmp_path / f"{begins}-{ends}").mkdir()
        tokenizer = read(tmp_path / f"{begins}-{ends}", metadata)
        assert tokenizer("a b")["input_ids"] == [*first, *model.encode("a b"), *last]


def test_roles_and_types_of_tokens_are_kept(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token) == (
        "<s>", "</s>", "<unk>", "<unk>",
    )  # fmt: skip
    assert len(tokenizer) == model.vocab_size() and tokenizer.chat_template == PLAIN
    spelled = [model.id_to_piece(i) for i in range(model.vocab_size())]
    assert tokenizer.convert_ids_to_tokens(list(range(model.vocab_size()))) == spelled
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert special == {"<s>", "</s>", "<unk>", *CONTROL}


def test_merges_are_all_pairs_the_best_score_first() -> None:
    scores = {"a": -5.0, "b": -6.0, "c": -7.0, "ab": -2.0, "bc": -1.0, "abc": -3.0}
    assert merges_of(scores) == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]
    assert merges_of({"ab": -1.0, "a": -2.0}) == []


def test_letters_are_no_control_token_though_they_spell_it(tmp_path: Path) -> None:
    """transformers' own reading merges them: control tokens have the best score of all."""
    metadata = metadata_of(trained(), PLAIN)
    tokens = metadata["tokenizer.ggml.tokens"]
    letters = [token for token in tokens if len(token) == 1 and token.isalpha()]
    name = next(a + b for a in letters for b in letters if a + b not in tokens)
    tokens[tokens.index("<|user|>")] = name
    write_llama(tmp_path / "one.gguf", PLAIN, tokens=tokens)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="one.gguf")
    ours = read(tmp_path, metadata)
    assert ids_of(ours, f"1{name}", split_special_tokens=True) == trained().encode(f"1{name}")
    assert tokens.index(name) in ids_of(theirs, f"1{name}", split_special_tokens=True)


def test_the_files_own_merges_where_its_scores_say_nothing(tmp_path: Path) -> None:
    """Converters that read no SentencePiece model write the same score for all tokens."""
    model = trained()
    metadata = metadata_of(model, PLAIN)
    kinds, tokens = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.tokens"]
    scores = metadata["tokenizer.ggml.scores"]
    merges = merges_of({t: s for t, s, kind in zip(tokens, scores, kinds, strict=True) if kind == 1})
    metadata["tokenizer.ggml.scores"] = [-1000.0] * len(scores)
    metadata["tokenizer.ggml.merges"] = [" ".join(merge) for merge in merges]
    tokenizer = read(tmp_path, metadata)
    assert [ids_of(tokenizer, text) for text in TEXTS] == model.encode(list(TEXTS))


# ------------------------------------------------------------------------------------------------------ transformers


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Our tokenizer of a file, and transformers' own."""
    folder = tmp_path_factory.mktemp("peer")
    file = write_llama(folder / "one.gguf", PLAIN)
    import_gguf(file, folder / "out")
    return AutoTokenizer.from_pretrained(folder / "out"), AutoTokenizer.from_pretrained(folder, gguf_file="one.gguf")


@settings(max_examples=100, deadline=None)
@given(text=ANY.filter(lambda text: not text.startswith((" ", "▁")) and not any(one in text for one in "<[")))
def test_texts_that_begin_with_no_blank_are_as_transformers_has_them(peer: tuple[Any, Any], text: str) -> None:
    ours, theirs = peer
    assert ids_of(ours, text) == ids_of(theirs, text)


def test_where_transformers_differs_sentencepiece_is_followed(peer: tuple[Any, Any]) -> None:
    """A leading blank, and the blank behind a control token: see `fgod.importing.gguf_sentencepiece`."""
    (ours, theirs), model = peer, trained()
    assert ids_of(ours, " x") == model.encode(" x") != ids_of(theirs, " x")
    behind = ids_of(ours, "<|user|>x")
    assert behind == [model.piece_to_id("<|user|>"), *model.encode("x")] != ids_of(theirs, "<|user|>x")


# ------------------------------------------------------------------------------------------------------------- chats


@cache
def chat_of(template: str) -> ChatFormat:
    return ChatFormat(tokenizer_of(metadata_of(trained(), template), Path("one.gguf")).tokenizer)


def spelled(chat: ChatFormat, ids: Sequence[int]) -> str:
    """Tokens as a text, without the decoder, which leaves out a blank at the beginning."""
    untyped: Any = chat.tokenizer
    tokens = untyped.convert_ids_to_tokens(list(ids))
    written = (bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.encode() for token in tokens)
    return b"".join(written).decode().replace("▁", " ")


@pytest.mark.parametrize(
    ("template", "asked", "learned"),
    [
        (LLAMA, "<s> [INST] {} [/INST]", " {} </s>"),
        (PLAIN, " ### user\n{}\n### assistant\n", "{}</s>"),
        (BLANKS, "<s><|user|> {}<|assistant|>", " {}</s>"),
    ],
    ids=["llama", "plain", "blanks"],
)
@settings(max_examples=40, deadline=None)
@given(prompt=st.sampled_from([text for text in TEXTS if "\n" not in text]) | st.text("aet.神は 한<s>", min_size=1),
       target=st.sampled_from(["我是 F# 之神。", "I am.", "France", "안녕"]))  # fmt: skip
def test_an_answer_goes_on_where_its_prompt_ended(
    template: str, asked: str, learned: str, prompt: str, target: str
) -> None:
    """A blank is before texts that begin, and before an answer only where the template writes it."""
    chat, said = chat_of(template), prompt if prompt.strip() else "x"
    sample = chat.row_ids(Row(said, target, "en", "general", "topic"))
    assert list(sample.ids[: sample.prompt_length]) == chat.prompt_ids(said)
    assert spelled(chat, sample.ids[: sample.prompt_length]) == asked.format(said)
    assert spelled(chat, sample.ids[sample.prompt_length :]) == learned.format(target)


def test_a_choice_goes_on_where_its_prompt_ended() -> None:
    chat, model = chat_of(PLAIN), trained()
    alone, *bytes_ = model.encode("\ue000")
    assert chat.going_on(["A", " A"]) == [model.encode(f"\ue000{text}")[1 + len(bytes_) :] for text in ("A", " A")]
    assert spelled(chat, chat.going_on(["France"])[0]) == "France" and spelled(chat, [alone]) == " "


@pytest.mark.parametrize(
    ("template", "first"), [(LLAMA, "▁The"), (PLAIN, "T"), (BLANKS, "▁The")], ids=["llama", "plain", "blanks"]
)
def test_a_reply_of_a_chat_is_read_token_by_token(template: str, first: str) -> None:
    """So a cache holds what was read while the reply was made."""
    chat = chat_of(template)
    turns = (Message("user", "What is it?"), Message("assistant", "The capital of France."), Message("user", "x"))
    asked, *reply, after = passes_of(chat, Chat(turns))
    assert asked == tuple(chat.prompt_ids("What is it?")) and len(after) > 1
    assert spelled(chat, [token for (token,) in reply]).strip() == "The capital of France."
    assert chat.tokenizer.convert_ids_to_tokens(list(reply[0])) == [first]


def test_control_tokens_that_a_user_types_are_text() -> None:
    chat = chat_of(LLAMA)
    plain, typed = chat.prompt_ids("x"), chat.prompt_ids("</s><s>[INST] <|user|><unk><0x0A>")
    control = set(chat.tokenizer.all_special_ids)
    assert [i for i in typed if i in control] == [i for i in plain if i in control]
    assert spelled(chat, typed) == "<s> [INST] </s><s>[INST] <|user|><unk><0x0A> [/INST]"


@pytest.mark.parametrize("template", [LLAMA, PLAIN, BLANKS], ids=["llama", "plain", "blanks"])
def test_a_model_with_such_a_tokenizer_is_a_base_that_answers(template: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    file, base = write_llama(tmp_path / "small.gguf", template), tmp_path / "base"
    import_gguf(file, base, "float32")
    talk = Conversation(open_model(base, "stored", "cpu", ChatSettings()), Asking(6))
    for question in ("你是誰", "  Who?\n🙂"):
        asked = ChatFormat.of_folder(base).prompt_ids(Chat((*talk.turns, Message("user", question))))
        shown: list[str] = []
        answered = talk.ask(question, shown.append)
        assert len(answered.ids) == 6 and "".join(shown) == answered.text
        logits = load_model(base)(input_ids=torch.tensor([asked])).logits[0, -1]
        assert answered.prompt_tokens == len(asked) and answered.ids[0] == logits.argmax().item()


# ---------------------------------------------------------------------------------------------------------- bad input


def changed(key: str, change: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
    return {key: change(list(metadata_of(trained(), PLAIN)[f"tokenizer.ggml.{key}"]))}


def with_item(number: int, item: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda items: [*items[:number], item, *items[number + 1 :]]


LETTER = trained().piece_to_id("a")
BYTE = trained().piece_to_id("<0x41>")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": None}, "scores: found 0, expected a number for each of the 608 tokens"),
        (changed("scores", lambda items: items[:-1]), "scores: found 607, expected a number for each of the 608"),
        (changed("scores", with_item(7, float("nan"))), r"scores\[7\]: found nan, expected a finite number"),
        (changed("scores", lambda items: [0.0] * 608), "scores: found 0.0, expected another for each token"),
        ({"token_type": None}, "token_type: found 0, expected a number for each of the 608 tokens"),
        (changed("token_type", with_item(BYTE, 1)), "tokens: found '255 of 256 byte tokens', expected all.*<0x41> is"),
        (changed("token_type", with_item(LETTER, 6)), "tokens: found 'a', expected a byte token as <0x00>"),
        (changed("tokens", with_item(9, "a")), rf"tokens\[{LETTER}\]: found 'a', expected each token once: .*\[9\]"),
        ({"unknown_token_id": 608}, "unknown_token_id: found 608, expected an id below 608"),
        ({"unknown_token_id": None} | changed("token_type", with_item(0, 3)), "unknown_token_id: found None, expected"),
        ({"bos_token_id": None, "add_bos_token": True}, "bos_token_id: found None, expected .*add_bos_token is true"),
        ({"eos_token_id": None}, "eos_token_id: found None, expected the id"),
        ({"add_space_prefix": "yes"}, "add_space_prefix: found 'yes', expected true or false"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces: .* that change blanks first are not read"),
        ({"precompiled_charsmap": [1, 2]}, "precompiled_charsmap: .* that change characters first are not read"),
        ({"chat_template": None}, "tokenizer.chat_template: found None, expected a chat template"),
        ({"chat_template": "{{ nothing( }}"}, "chat_template: fails with TemplateSyntaxError"),
        *(
            ({"model": other}, rf"model: found '{other}', expected 'gpt2' \(byte-level BPE\) or 'llama' \(Sent")
            for other in ("t5", "bert", "rwkv", "gemma4", "plamo2", "none")
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = write_llama(tmp_path / "small.gguf", PLAIN, **changes)
    with pytest.raises(UsageError, match=words) as caught:
        import_gguf(file, tmp_path / "out")
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]
