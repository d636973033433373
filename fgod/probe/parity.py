"""Does the training forward compute what the reloaded export computes? Measured, not assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

PROMPTS = 4
"""Prompts that parity is measured on: every one gives logits for all of its tokens and its reply's."""


@torch.inference_mode()
def logits_of(model: PreTrainedModel, chats: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [T, V] in float32 on the CPU of each token sequence [T], one at a time: no padding takes part."""
    batches = (torch.tensor([list(ids)], device=model.device) for ids in chats)
    return [model(batch, use_cache=False).logits[0].float().cpu() for batch in batches]


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], prompt_lengths: Sequence[int]) -> dict[str, Any]:
    """Differences of two models' logits [T, V] on the same tokens.

    Args:
        prompt_lengths: tokens before each answer; the greedy tokens from there on are compared.

    Returns:
        {prompts, max_abs, mean_abs, first_differing_token}: the last is the earliest place in an answer, from 0, at
        which the greedy tokens differ, None if they never do. Differences are None where one is not finite.
    """
    gaps = [(a - b).abs().double() for a, b in zip(ours, theirs, strict=True)]
    places = [
        place
        for a, b, start in zip(ours, theirs, prompt_lengths, strict=True)
        for place in (a[start - 1 :].argmax(-1) != b[start - 1 :].argmax(-1)).nonzero().flatten().tolist()
    ]
    largest = max((float(g.max()) for g in gaps), default=0.0)
    mean = sum(float(g.sum()) for g in gaps) / max(1, sum(g.numel() for g in gaps))
    return {
        "prompts": len(gaps),
        "max_abs": largest if math.isfinite(largest) else None,
        "mean_abs": mean if math.isfinite(mean) else None,
        "first_differing_token": min(places, default=None),
    }
