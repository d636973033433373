"""Bases of random weights: their replies are nonsense that does not repeat itself."""

from __future__ import annotations

import torch

from fgod.model.random import ATTENTION_STD, STD, is_text, random_tensor


def test_a_table_has_rows_for_texts_alone_and_attention_says_little() -> None:
    texts, others = [0, 3, 29], [1, 2, *range(4, 29), *range(30, 40)]
    table = random_tensor("model.embed_tokens.weight", (40, 64), 1, texts)
    assert bool((table[texts].abs().sum(1) > 0).all()) and not table[others].any()
    behind = random_tensor("model.layers.0.self_attn.o_proj.weight", (256, 256), 1, texts)
    before = random_tensor("model.layers.0.self_attn.q_proj.weight", (256, 256), 1, texts)
    assert abs(float(behind.float().std()) / ATTENTION_STD - 1) < 0.05
    assert abs(float(before.float().std()) / STD - 1) < 0.05
    assert torch.equal(random_tensor("model.norm.weight", (8,), 1, texts), torch.ones(8, dtype=torch.bfloat16))
    assert torch.equal(table, random_tensor("model.embed_tokens.weight", (40, 64), 1, texts))
    assert not torch.equal(table, random_tensor("model.embed_tokens.weight", (40, 64), 2, texts))


def test_tokens_of_a_reply_are_whole_printable_characters() -> None:
    assert is_text(" word") and is_text("神") and is_text("?")
    for token in ("\ufffd", "a\ufffd", "\n", "\x0f", "<|im_start|>"):
        assert not is_text(token), token
