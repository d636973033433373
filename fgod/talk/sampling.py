"""Which token comes next: the likeliest, or one drawn as a person asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fgod.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the command line checks the range of each value (`fgod.cli.talk`).

    Args:
        temperature: divides the logits; 0: the likeliest token, and nothing is drawn.
        top_p: the likeliest tokens that have together at least this probability are drawn from.
        top_k: so many of the likeliest tokens are drawn from; 0: all.
        seed: of the draws, which are the same for it on the same device.

    Raises:
        UsageError: a value is given where nothing is drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        given = [name for name, there in (("--top-p", self.top_p < 1), ("--top-k", self.top_k > 0),
                                          ("--seed", self.seed is not None)) if there]  # fmt: skip
        if given and not self.temperature:
            raise UsageError(f"{', '.join(given)}: without --temperature nothing is drawn; give --temperature too")


class Chooser:
    """Draws tokens one after another from one stream of random numbers."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._greedy = sampling.temperature == 0
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._warpers = LogitsProcessorList()
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor) -> int:
        """A token by its logits [V], in float32."""
        if self._greedy:
            return int(logits.argmax())
        so_far: Any = torch.empty(1, 0, dtype=torch.int64, device=logits.device)  # the warpers do not look at it
        scores = self._warpers(so_far, cast(Any, logits[None]))
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
