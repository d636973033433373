"""Bases of random weights: their replies are nonsense that does not repeat itself."""

from __future__ import annotations

import torch

from fgod.model.random import ATTENTION_STD, STD, random_tensor


def test_a_table_ends_with_the_tokenizer_and_attention_says_little() -> None:
    table = random_tensor("model.embed_tokens.weight", (40, 64), 1, 30)
    assert bool((table[:30].abs().sum(1) > 0).all()) and not table[30:].any()
    behind = random_tensor("model.layers.0.self_attn.o_proj.weight", (256, 256), 1, 30)
    before = random_tensor("model.layers.0.self_attn.q_proj.weight", (256, 256), 1, 30)
    assert abs(float(behind.float().std()) / ATTENTION_STD - 1) < 0.05
    assert abs(float(before.float().std()) / STD - 1) < 0.05
    assert torch.equal(random_tensor("model.norm.weight", (8,), 1, 30), torch.ones(8, dtype=torch.bfloat16))
    assert torch.equal(table, random_tensor("model.embed_tokens.weight", (40, 64), 1, 30))
    assert not torch.equal(table[:30], random_tensor("model.embed_tokens.weight", (40, 64), 2, 30)[:30])
