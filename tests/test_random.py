"""Bases of random weights: their replies are nonsense that does not repeat itself."""

from __future__ import annotations

import pytest
import torch

from fgod.model.random import ADDED, LAST_ADDED, is_text, random_tensor


def drawn(name: str, shape: tuple[int, ...], texts: list[int], seed: int = 1) -> torch.Tensor:
    return random_tensor(name, shape, seed, texts, {"num_hidden_layers": 3, "hidden_size": 64})


def test_rows_of_a_table_that_are_no_texts_are_small_and_not_0() -> None:
    texts, others = [0, 3, 29], [1, 2, *range(4, 29), *range(30, 40)]
    table = drawn("model.embed_tokens.weight", (40, 64), texts)
    sizes = table.float().norm(dim=1)
    assert float(sizes[others].max()) < 0.2 * float(sizes[texts].min()) and bool((sizes[others] > 0).all())
    assert torch.equal(drawn("model.norm.weight", (8,), texts), torch.ones(8, dtype=torch.bfloat16))
    assert torch.equal(table, drawn("model.embed_tokens.weight", (40, 64), texts))
    assert not torch.equal(table, drawn("model.embed_tokens.weight", (40, 64), texts, seed=2))


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("0.self_attn.q_proj", 1),
        ("0.self_attn.o_proj", ADDED),
        ("1.mlp.down_proj", ADDED),
        ("2.self_attn.o_proj", LAST_ADDED["o_proj"]),
        ("2.mlp.down_proj", LAST_ADDED["down_proj"]),
        ("2.mlp.up_proj", 1),
    ],
)
def test_the_last_layer_adds_most_to_the_residual_stream(name: str, relative: float) -> None:
    matrix = drawn(f"model.layers.{name}.weight", (256, 256), [0])
    assert float(matrix.float().std()) == pytest.approx(relative / 8, rel=0.05)


def test_tokens_of_a_reply_are_whole_printable_characters() -> None:
    assert is_text(" word") and is_text("神") and is_text("?")
    for token in ("\ufffd", "a\ufffd", "\n", "\x0f", "<|im_start|>"):
        assert not is_text(token), token
