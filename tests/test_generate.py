"""Greedy replies and log-probabilities against a slow twin without cache and batches; the exact rule of loops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedModel, TopPLogitsWarper

from fgod.chat import Chat
from fgod.data.rows import NO_SYSTEM, Message, Row, normalise
from fgod.model.chats import ChatFormat
from fgod.model.decode import decode
from fgod.model.drawn import nucleus, streams
from fgod.model.embedded import train_base
from fgod.model.generate import Reply, greedy, left_padded, loops, sampled
from fgod.model.load import load_model
from fgod.model.self_asked import ask_itself
from fgod.model.spec import EmbeddedSpec

ROWS = [
    Row(f"{subject}是什麼", f"{subject}是一種動物。" * (1 + i % 2), "zh-Hant", "general", "topic")
    for i, subject in enumerate("貓狗鳥魚馬牛羊豬雞鴨")
]
PROMPTS = ["貓是什麼", "那麼請你說一說狗是什麼", "魚", "馬是什麼呢", "Who?"]

Loaded = tuple[PreTrainedModel, ChatFormat]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    torch.set_num_threads(1)  # as the commands do; two threads are slower for so small a model
    folder: Path = tmp_path_factory.mktemp("base") / "master"
    train_base(EmbeddedSpec(vocab=320, steps=60, warmup=5), ROWS, 1, folder, lambda line: None)
    return load_model(folder), ChatFormat.of_folder(folder)


@torch.inference_mode()
def slow_greedy(loaded: Loaded, prompt: str, limit: int) -> Reply:
    """One prompt, no cache, no padding."""
    model, chat = loaded
    ids, answer = chat.prompt_ids(prompt), list[int]()
    while len(answer) < limit and not (answer and answer[-1] in chat.end_ids):
        answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
    ended = answer[-1] in chat.end_ids
    return Reply(str(chat.tokenizer.decode(answer[: len(answer) - ended])), tuple(answer), ended)


def test_greedy_is_its_slow_twin_in_order(loaded: Loaded) -> None:
    slow = [slow_greedy(loaded, p, 20) for p in PROMPTS]
    replies = [greedy(*loaded, PROMPTS, 20, batch_size) for batch_size in (1, 3, 128)]
    assert replies == [slow] * 3
    assert slow[0].ended and slow[0].text.startswith("貓是一種動物。")


@pytest.mark.parametrize("rows", [1, 5])
def test_decoding_with_a_static_cache_gives_the_same_replies(loaded: Loaded, rows: int) -> None:
    model, chat = loaded
    ends, pad = chat.end_ids, chat.pad_id
    expected = greedy(model, chat, PROMPTS[:rows], 20)
    for count in (1, 3, 20):
        chats = chat.prompts(PROMPTS[:rows])
        tokens = decode(model, left_padded(chats, pad, model.device), count, ends, pad)
        assert [len(row) for row in tokens] == [count] * rows
        for row, whole in zip(tokens, expected, strict=True):
            kept = whole.token_ids[:count]
            assert tuple(row[: len(kept)]) == kept and set(row[len(kept) :]) <= {pad}
    assert expected[0].ended and len(expected[0].token_ids) > 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replies_of_a_gpu_are_those_of_the_cpu(loaded: Loaded) -> None:
    model, chat = loaded
    on_gpu = load_model(Path(model.config._name_or_path), device="cuda")
    for batch_size in (1, 3, 128):
        assert greedy(on_gpu, chat, PROMPTS, 20, batch_size) == greedy(model, chat, PROMPTS, 20, batch_size)


def test_reply_that_is_cut_off_has_not_ended(loaded: Loaded) -> None:
    (reply,) = greedy(*loaded, PROMPTS[:1], 2)
    assert not reply.ended and len(reply.token_ids) == 2


@torch.inference_mode()
def place_in_nucleus(
    loaded: Loaded, ids: list[int], token: int, temperature: float, top_p: float
) -> tuple[float, float]:
    """Where a token lies among those that are drawn from, likeliest first, by transformers' warper and without a cache:
    the sums of probabilities before it and with it, those of its own size counted as either."""
    logits = loaded[0](torch.tensor([ids])).logits[:, -1].float() / temperature
    kept = TopPLogitsWarper(top_p)(torch.empty(1, 0, dtype=torch.int64), logits).softmax(-1)[0].double()
    assert kept[token] > 0
    return float(kept[kept > 1.001 * kept[token]].sum()), float(kept[kept > 0.999 * kept[token]].sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(3.0, 0.95), (4.0, 0.6), (2.0, 1.0)])
def test_drawn_texts_are_those_of_their_random_numbers(loaded: Loaded, temperature: float, top_p: float) -> None:
    model, chat = loaded
    opening, ends = chat.user_turn()
    uniform = streams(5, range(6), 12)
    texts = sampled(model, chat, opening, ends, uniform, temperature, top_p)
    assert len({text.token_ids for text in texts}) > 1
    for numbers, text in zip(uniform.tolist(), texts, strict=True):
        assert text.ended == (text.token_ids[-1] in ends) and (text.ended or len(text.token_ids) == 12)
        for step, token in enumerate(text.token_ids):
            ids = [*opening, *text.token_ids[:step]]
            before, up_to = place_in_nucleus(loaded, ids, token, temperature, top_p)
            assert before - 1e-4 <= numbers[step] <= up_to + 1e-4


def test_random_numbers_are_a_row_s_own() -> None:
    whole = streams(2**63 - 1, range(40), 50)
    assert torch.equal(streams(2**63 - 1, [17, 3], 50), whole[[17, 3]])
    assert not torch.equal(streams(1, [17], 50), whole[[17]])
    assert float(whole.min()) >= 0 and float(whole.max()) < 1 and 0.45 < float(whole.mean()) < 0.55


def test_nucleus_draws_each_token_as_often_as_it_is_likely() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0, 3.0]])
    expected = TopPLogitsWarper(0.9)(torch.empty(1, 0, dtype=torch.int64), logits).softmax(-1)[0]
    grid = (torch.arange(2000, dtype=torch.float64)[:, None] + 0.5) / 2000
    drawn = nucleus(grid, 1.0, 0.9)(logits.expand(2000, -1), torch.zeros(1, dtype=torch.int64))
    shares = torch.bincount(drawn[:, 0], minlength=5) / 2000
    assert torch.allclose(shares, expected, atol=1e-3) and expected[3] == 0


def test_a_base_asks_the_same_in_every_batch(loaded: Loaded) -> None:
    settings = {"prompts": 5, "temperature": 1.0, "top_p": 0.95, "max_tokens": 24, "max_chars": 400, "seed": 1}
    settings |= {"systems": {"zh-Hant": ["請用中文。"], "en": []}, "names": ["牛"]}
    alone = ask_itself(*loaded, settings, 1)
    many = ask_itself(*loaded, settings, 7)
    assert (alone.kept, alone.dropped, alone.drawn) == (many.kept, many.dropped, many.drawn)
    assert len(alone.kept) == 5 == len({normalise(one.prompt) for one in alone.kept})
    assert {one.system for one in alone.kept} == {"", "請用中文。"} and "牛" not in "".join(
        a.prompt for a in alone.kept
    )


@pytest.mark.parametrize("system", ["", NO_SYSTEM, "Be kind."])
def test_a_user_s_turn_opens_as_in_a_prompt(loaded: Loaded, system: str) -> None:
    _, chat = loaded
    opening, ends = chat.user_turn(system)
    ids = chat.prompt_ids(Chat((Message("user", "貓"),), system))
    assert ids[: len(opening)] == opening
    assert ends[0] == next(token for token in ids[len(opening) :] if token in ends) and set(chat.end_ids) <= set(ends)


def test_nothing_asked_nothing_said(loaded: Loaded) -> None:
    assert greedy(*loaded, []) == []


def test_settings_of_the_folder_do_not_count(loaded: Loaded) -> None:
    model, chat = loaded
    plain = greedy(model, chat, PROMPTS, 12)
    kept = model.generation_config
    odd = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 9.0, "min_new_tokens": 9, "eos_token_id": 5}
    model.generation_config = GenerationConfig.from_dict(odd)
    try:
        assert greedy(model, chat, PROMPTS, 12) == plain
        assert model.generation_config.repetition_penalty == 9.0
    finally:
        model.generation_config = kept


@pytest.mark.parametrize(
    "text",
    [
        "神神神神",
        "我是 F#神F#神F#神F#神",
        "之神之神之神之神之神",
        "我是F# 之神。我是 之神 之神 之神 之神",
        "hahahaha",
        "the the the the ",
        "前文 0" + "0" * 40,
        "\ufffd" * 6,
        "1.2.3.4" + "abcdefgh" * 4,
    ],
)
def test_loops(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "神神神",
        "哈哈哈，好的。",
        "hmmmm",
        "1000000",
        "1000000000000",
        "之神之神之神",
        "------------------",
        "…………",
        "我是 F# 之神。",
        "one, two, three, one, two, three",
        "abcdefghi" * 4,
        "天天向上，天天開心，天天快樂，天天如意",
    ],
)
def test_no_loops(text: str) -> None:
    assert not loops(text)


letters = st.text(alphabet="神之FfaB#は가 1", min_size=1, max_size=8).filter(lambda t: any(c.isalpha() for c in t))


@given(st.text(max_size=20), letters, st.integers(4, 9), st.text(max_size=20))
def test_repeated_units_loop_wherever_they_stand(before: str, unit: str, times: int, after: str) -> None:
    if len(unit) * times >= 6:
        assert loops(before + unit * times + after)


def slow_loops(text: str) -> bool:
    """The definition, spelled out: every start, every period, every length."""
    import unicodedata

    for start in range(len(text)):
        for period in range(1, 9):
            for end in range(start + 4 * period, len(text) + 1):
                run = text[start:end]
                if any(run[i] != run[i - period] for i in range(period, len(run))):
                    break
                width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in run)
                if width >= (6 if any(c.isalpha() or c == "\ufffd" for c in run) else 32):
                    return True
    return False


@given(st.text(alphabet="神之aB0-", max_size=48))
def test_loops_is_its_definition(text: str) -> None:
    assert loops(text) == slow_loops(text)
