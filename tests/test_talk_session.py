"""The cache of a conversation against transformers' own forward pass without one; a replay gives the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, PreTrainedModel

from fgod.cli import parse
from fgod.errors import UsageError
from fgod.model.attention import one_kernel_norms
from fgod.model.decode import decode
from fgod.model.generate import left_padded
from fgod.model.load import load_model
from fgod.plugins import load_plugins
from fgod.system.files import read_json, write_json
from fgod.talk import session as module
from fgod.talk.sampling import Chooser, Sampling
from fgod.talk.session import Pass, Session, bucket, cut, shared
from fgod.talk.stream import Stream
from tests.families import FAMILIES, family_folder
from tests.tiny_model import tiny_tokenizer

KINDS = ("qwen3", "qwen2", "llama3", "mistral", "gemma")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[*KINDS, "mistral, windows", "qwen2, windows"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    torch.set_num_threads(1)  # two are slower for so small a model
    load_plugins([Path(__file__).parent / "plugins" / "gemma.py"])
    family, _, windows = request.param.partition(", ")
    folder = family_folder(family, tmp_path_factory.mktemp("family") / "base")
    if windows:
        config = read_json(folder / "config.json")
        kinds = {"layer_types": ["full_attention", "sliding_attention"], "max_window_layers": 1}
        more = kinds if family == "qwen2" else {}
        write_json(folder / "config.json", {**config, **more, "sliding_window": 7, "use_sliding_window": True})
    return load_model(folder)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short conversations need several."""
    monkeypatch.setattr(module, "LEAST_KEYS", 16)
    monkeypatch.setattr(module, "MOST_TOKENS", 12)


def conversation(turns: int) -> list[Pass]:
    """Prompts of differing lengths, each with a reply."""
    passes: list[Pass] = []
    for turn in range(turns):
        passes += cut([(7 * turn + 3 * i) % 290 + 5 for i in range(5 + 13 * (turn % 2))])
        passes += [((11 * turn + i) % 290 + 5,) for i in range(9)]
    return passes


@torch.inference_mode()
def uncached(model: PreTrainedModel, passes: list[Pass]) -> torch.Tensor:
    """By transformers, in one pass, with its own masks."""
    ids = torch.tensor([[token for one in passes for token in one]])
    cache = DynamicCache(config=model.config)  # windows too: transformers leaves them out of masks without a cache
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()


def test_logits_are_those_of_transformers_without_a_cache(model: PreTrainedModel) -> None:
    stock = load_model(Path(model.config._name_or_path))
    session = Session(model, 128)
    passes = conversation(3)
    for count in range(1, len(passes) + 1):
        logits, _ = session.read(passes[:count])
        torch.testing.assert_close(logits, uncached(stock, passes[:count]), atol=2e-4, rtol=1e-4)
    assert session.tokens == sum(map(len, passes)) > 3 * 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_gives_the_same_bits(model: PreTrainedModel, dtype: torch.dtype) -> None:
    model = load_model(Path(model.config._name_or_path), dtype)
    session, passes = Session(model, 128), conversation(4)
    kept = [session.read(passes[:count])[0] for count in range(1, len(passes) + 1)]
    for count in (1, 2, 10, 11, 12, len(passes) - 1, len(passes)):
        fresh, there = Session(model, 128).read(passes[:count])
        assert there == 0 and torch.equal(fresh, kept[count - 1]), count
    session.reset()
    assert torch.equal(session.read(passes)[0], kept[-1])


def test_what_was_cached_is_not_computed_again(model: PreTrainedModel) -> None:
    session, passes = Session(model, 128), conversation(3)
    computed: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    session.read(passes[:8])
    session.read(passes)
    assert computed == [len(one) for one in passes]
    other = [*passes[:5], (9, 9, 9)]
    computed.clear()
    logits, there = session.read(other)
    handle.remove()
    assert there == sum(map(len, passes[:5])) and computed == [3]
    assert torch.equal(logits, Session(model, 128).read(other)[0])


def test_a_conversation_that_is_read_again_computes_its_last_pass(model: PreTrainedModel) -> None:
    session, passes = Session(model, 128), conversation(1)
    before, _ = session.read(passes)
    again, there = session.read(passes)
    assert torch.equal(before, again) and there == sum(map(len, passes[:-1]))


def test_nothing_goes_beyond_the_context(model: PreTrainedModel) -> None:
    session = Session(model, 20)
    session.read(cut(range(20)))
    with pytest.raises(ValueError, match="a pass of 1 tokens after 20, expected 1 up to 20 in all"):
        session.feed((1,))
    assert session.tokens == 20


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 9))
def test_passes_are_all_tokens_in_order(ids: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_TOKENS", most)
        passes = cut(ids)
    assert [token for one in passes for token in one] == ids and all(0 < len(one) <= most for one in passes)


def test_a_shared_beginning_is_one_of_whole_passes() -> None:
    assert shared([(1, 2), (3,)], [(1, 2), (3,), (4,)]) == 2
    assert shared([(1, 2), (3,)], [(1,), (2,), (3,)]) == 0 and shared([], [(1,)]) == 0


@given(st.integers(1, 5000))
def test_a_bucket_holds_what_it_must_and_less_than_twice_that(tokens: int) -> None:
    assert tokens <= bucket(tokens) and (bucket(tokens) < 2 * tokens or bucket(tokens) == module.LEAST_KEYS)


# Streaming


@settings(deadline=None)
@given(st.lists(st.integers(3, 299), max_size=30))
def test_pieces_are_together_the_whole_text(ids: list[int]) -> None:
    tokenizer = tiny_tokenizer()
    stream = Stream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.rest() == tokenizer.decode(ids, skip_special_tokens=False)


@settings(deadline=None)
@given(st.text(max_size=12))
def test_no_piece_ends_within_a_character(text: str) -> None:
    tokenizer = tiny_tokenizer()
    stream = Stream(tokenizer)
    ids = tokenizer.encode(text.replace("\ufffd", ""), add_special_tokens=False, split_special_tokens=True)
    pieces = [stream.add(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces) and stream.rest() == ""


def test_a_broken_end_is_shown_in_the_end() -> None:
    tokenizer = tiny_tokenizer()
    stream = Stream(tokenizer)
    [*whole, last] = tokenizer.encode("aあ", add_special_tokens=False)
    assert "".join(map(stream.add, whole)) == "a" and stream.rest() == "\ufffd"
    assert last not in whole


# Sampling


def test_the_likeliest_token_is_chosen_where_nothing_is_drawn() -> None:
    assert Chooser(Sampling(), CPU).choose(torch.tensor([0.0, 3.0, 1.0])) == 1


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(1.0, seed=1), {0, 1, 2, 3}),
        (Sampling(1.0, top_k=2, seed=1), {0, 1}),
        (Sampling(1.0, top_p=0.6, seed=1), {0, 1}),
        (Sampling(1.0, top_p=0.4, seed=1), {0}),
        (Sampling(0.01, seed=1), {0}),
    ],
)  # probabilities .5, .25, .15, .1
def test_tokens_are_drawn_from_those_that_are_allowed(sampling: Sampling, allowed: set[int]) -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    chooser = Chooser(sampling, CPU)
    assert {chooser.choose(logits) for _ in range(300)} == allowed


def test_a_seed_gives_the_same_draws() -> None:
    def draws(seed: int) -> list[int]:
        chooser = Chooser(Sampling(1.0, seed=seed), CPU)
        return [chooser.choose(torch.zeros(50)) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


def test_what_is_said_of_draws_needs_a_temperature() -> None:
    with pytest.raises(UsageError, match="--top-p, --seed: without --temperature nothing is drawn"):
        Sampling(top_p=0.5, seed=3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("top-p", "0"),
        ("top-p", "1.1"),
        ("top-k", "-1"),
        ("seed", "-1"),
        ("seed", f"{2**63}"),
    ],
)
def test_what_cannot_be_sampled_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["ask", "models/a", "hi", f"--{option}={value}"])
    assert f"argument --{option}: Not of type " in capsys.readouterr().err


assert set(KINDS) <= set(FAMILIES)


@torch.inference_mode()
def test_grouped_attention_changes_no_forward_pass(model: PreTrainedModel) -> None:
    stock = load_model(Path(model.config._name_or_path))
    Session(model, 128)
    ids = torch.arange(5, 35)[None]
    for more in ({}, {"use_cache": False}, {"attention_mask": (torch.arange(30) > 3).long()[None]}):
        torch.testing.assert_close(
            model(input_ids=ids, **more).logits[:, 4:], stock(input_ids=ids, **more).logits[:, 4:], atol=2e-5, rtol=1e-4
        )


def test_batches_are_decoded_as_transformers_does(model: PreTrainedModel) -> None:
    """Rows of differing lengths, past the window where there is one."""
    stock = load_model(Path(model.config._name_or_path))
    rows = [[5, 6, 7], [9, 4, 33, 12, 11, 8, 40, 41, 42], [8]]
    inputs = left_padded(rows, 0, CPU)
    ours = decode(model, inputs, 12, (), 0)
    for row, ids in zip(ours, rows, strict=True):
        alone = Session(stock, 128)
        logits, _ = alone.read(cut(ids))
        for token in row:
            assert logits.max() - logits[token] < 1e-4
            logits = alone.feed((token,))


@torch.inference_mode()
def test_norms_of_one_kernel_are_those_of_transformers_and_are_put_back(model: PreTrainedModel) -> None:
    ids = torch.arange(5, 35)[None]
    before = model(input_ids=ids).logits
    with one_kernel_norms(model):
        within = model(input_ids=ids).logits
        changed = [module for module in model.modules() if "forward" in vars(module)]
    torch.testing.assert_close(within, before, atol=1e-4, rtol=1e-4)
    assert bool(changed) == (model.config.model_type != "gemma")
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_on_a_gpu_gives_the_logits_of_the_cpu(model: PreTrainedModel) -> None:
    on_gpu = Session(load_model(Path(model.config._name_or_path), device="cuda"), 128)
    session, passes = Session(model, 128), conversation(3)
    for count in range(1, len(passes) + 1):
        ours, theirs = on_gpu.read(passes[:count])[0].cpu(), session.read(passes[:count])[0]
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_a_mask_that_is_added_does_what_one_of_truths_does(model: PreTrainedModel) -> None:
    """As a GPU gets it, and a model that computes attention itself."""
    eager = load_model(Path(model.config._name_or_path))
    eager.set_attn_implementation("eager")
    ours, theirs = Session(eager, 128), Session(model, 128)
    for one in conversation(2):
        torch.testing.assert_close(ours.feed(one), theirs.feed(one), atol=2e-4, rtol=1e-4)
