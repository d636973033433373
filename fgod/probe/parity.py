"""Does the training forward compute what the reloaded export computes? Measured, not assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Gap:
    """How far two models' logits are apart on the tokens of one chat; places count from its first token."""

    prompt: str
    tokens: int
    """Compared: those of the prompt and of the reply."""

    largest: float
    """Of the absolute differences; infinite where a logit is not finite."""

    largest_at: int
    mean: float
    """Of the absolute differences."""

    cosine: float
    """The least of all places, of the two vectors of logits there."""

    differs_at: int | None
    """The first token of the reply, from 0, that is another one; None if all are the same."""

    token_ids: tuple[int, int] | None
    """Those two tokens."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.largest)

    def facts(self) -> dict[str, Any]:
        """For people's programs; None stands for what is not finite."""
        numbers = {"largest": self.largest, "mean": self.mean, "cosine": self.cosine}
        return {
            "prompt": self.prompt,
            "tokens": self.tokens,
            **{name: value if self.finite else None for name, value in numbers.items()},
            "largest_at": self.largest_at,
            "differs_at": self.differs_at,
            "token_ids": self.token_ids and list(self.token_ids),
        }


def gap(prompt: str, ours: Tensor, theirs: Tensor, start: int) -> Gap:
    """Compare two models' logits [T, V] on the same tokens.

    Args:
        start: tokens before the reply.
    """
    a, b = ours.double(), theirs.double()
    finite = bool(a.isfinite().all() and b.isfinite().all())
    apart = (a - b).abs() if finite else torch.full_like(a, math.inf)
    largest, place = apart.amax(-1).max(0)
    cosine = torch.cosine_similarity(a, b, dim=-1).min() if finite else torch.tensor(math.nan)
    here, there = ours[start - 1 :].argmax(-1), theirs[start - 1 :].argmax(-1)
    differing = (here != there).nonzero().flatten().tolist()
    first = differing[0] if differing else None
    tokens = None if first is None else (int(here[first]), int(there[first]))
    return Gap(prompt, len(ours), float(largest), int(place), float(apart.mean()), float(cosine), first, tokens)


def table(gaps: Sequence[Gap], spelled: Sequence[str]) -> str:
    """Gaps as a table for people, with a line of all of them.

    Args:
        spelled: the two tokens of each gap, in words; "" where none differs.
    """
    rows = [("prompt", "tokens", "largest", "at", "mean", "cosine", "first differing token")]
    rows += [
        (str(number), str(g.tokens), f"{g.largest:.3g}", str(g.largest_at), f"{g.mean:.3g}", f"{g.cosine:.7f}",
         "none" if g.differs_at is None else f"{g.differs_at}: {words}")
        for number, (g, words) in enumerate(zip(gaps, spelled, strict=True), start=1)
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[6]]) for row in rows
    ]
    names = [f"  {number}: {g.prompt}" for number, g in enumerate(gaps, start=1)]
    return "\n".join([*lines, "", *names, "", summary(gaps)])


def summary(gaps: Sequence[Gap]) -> str:
    """All gaps in one sentence."""
    widest = max(range(len(gaps)), key=lambda i: gaps[i].largest)
    total = sum(g.tokens for g in gaps)
    mean = sum(g.mean * g.tokens for g in gaps) / total
    cosine = min(g.cosine for g in gaps)
    differing = [(number, g.differs_at) for number, g in enumerate(gaps, start=1) if g.differs_at is not None]
    where = f"prompt {differing[0][0]}, token {differing[0][1]} of its reply" if differing else "nowhere"
    same = "; equal to the bit" if all(g.largest == 0 for g in gaps) else ""
    return (
        f"largest difference {gaps[widest].largest:.3g} (prompt {widest + 1}, token {gaps[widest].largest_at}), "
        f"mean {mean:.3g}, least cosine {cosine:.7f}, first differing greedy token: {where}{same}"
    )
