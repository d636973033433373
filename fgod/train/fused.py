"""AdamW's steps by kernels, one pass over each tensor, and no wait for the GPU between `begin` and `finish`.

`begin` writes the step's numbers to the device and `finish` reads the sums back; between them `step` only launches, so
that a backward pass with its steps can be captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fgod.nvfp4 import kernels
from fgod.train import codecs
from fgod.train.efficiency import Projection
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import (
    Bf16Moment,
    Bf16Root,
    Int8Moment,
    Master,
    Moment,
    Nvfp4Moment,
    Nvfp4Root,
    StochasticBf16,
    Uint8Root,
)

if TYPE_CHECKING:
    from fgod.nvfp4.kernels import adamw

MASTERS: dict[type[Master], str] = {Master: "fp32", StochasticBf16: "bf16"}
MOMENTS: dict[type[Moment], str] = {
    Moment: "fp32",
    Bf16Moment: "bf16",
    Int8Moment: "int8",
    Nvfp4Moment: "nvfp4",
    Bf16Root: "bf16",
    Uint8Root: "uint8",
    Nvfp4Root: "nvfp4",
}
"""What kernels exist for, by their names there."""


@dataclass(frozen=True)
class Part:
    """A trained tensor as a matrix: its formats, the factor on its learning rate, and its decay."""

    master: Master
    m: Moment
    v: Moment
    factor: float
    decay: float
    start: Tensor | None


@dataclass(frozen=True)
class Done:
    """What a step did to one tensor; `squares` is Σ g² of its gradient."""

    projection: Projection
    squares: float


def serves(parts: Sequence[Part], recipe: TrainRecipe) -> bool:
    """Whether kernels step these tensors. Says once on stderr why not, where they could but for a format."""
    if not parts or not all(kernels.run_on(part.master.weight.device) for part in parts):
        return False
    for part in parts:
        if type(part.master) not in MASTERS:
            kernels.say_once(
                f"train.master_dtype: {recipe.master_dtype} has no fused optimizer kernel; plain torch steps on the "
                "GPU, many times slower; expected fp32 or bf16 for speed"
            )
            return False
    return True


class Fused:
    """Steps tensors, known by their place in `parts`."""

    def __init__(self, parts: Sequence[Part], recipe: TrainRecipe) -> None:
        from fgod.nvfp4.kernels import adamw

        self.kernel, self.parts, self.recipe = adamw, parts, recipe
        device = parts[0].master.weight.device
        self.modes = [self._modes(part) for part in parts]
        self.tunings = [adamw.FASTEST.get(modes.m, adamw.ADAMW) for modes in self.modes]
        sizes = [part.master.weight.numel() for part in parts]
        self.programs = [adamw.programs(size, tuning) for size, tuning in zip(sizes, self.tunings, strict=True)]
        self.sums = torch.zeros(len(parts), len(adamw.SLOTS), max(self.programs), device=device)
        self.numbers = torch.zeros(len(adamw.NUMBERS), device=device)
        self.squares = torch.zeros(adamw.NORM_PROGRAMS, device=device)
        self.tensors = [adamw.Tensors(p.master.weight, p.m.tensors, p.v.tensors, p.start) for p in parts]
        self.settings = [self._settings(part) for part in parts]

    def _modes(self, part: Part) -> adamw.Modes:
        columns = part.master.weight.shape[1]
        return self.kernel.Modes(
            MASTERS[type(part.master)],
            MOMENTS[type(part.m)],
            MOMENTS[type(part.v)],
            codecs.block_width(columns),
            codecs.segment_width(columns),
        )

    def _settings(self, part: Part) -> adamw.Settings:
        recipe = self.recipe
        return self.kernel.Settings(
            *recipe.betas, recipe.eps, part.decay, recipe.pull, recipe.grad_clip, part.factor, part.master.stream
        )

    def begin(self, lr: float, step: int) -> None:
        """Before the gradients of a step (from 1). Not to be captured: it writes what a graph's replay reads."""
        told = self.kernel.numbers_of(lr, step, self.recipe.betas, self.recipe.update_clip)
        self.numbers.copy_(told, non_blocking=True)  # pageable memory: staged before the call returns
        self.sums.zero_()

    def step(self, place: int, grad: Tensor, norm: float | None = None) -> None:
        """Step a tensor by its gradient, clipped by its own norm, or by that of all gradients if `norm` is given.

        A gradient that is not finite steps nothing, where the recipe clips; without a clip it makes the sums so.
        """
        grad = grad.contiguous()
        squares = self.squares
        if self.recipe.grad_clip is not None:
            if norm is None:
                self.kernel.sum_squares(grad, squares)
            else:
                squares.zero_()[:1].fill_(norm * norm)
        sums = self.sums[place, :, : self.programs[place]]
        of_it = self.modes[place], self.settings[place]
        self.kernel.step(self.tensors[place], grad, *of_it, self.numbers, squares, sums, self.tunings[place])

    def finish(self, step: int) -> list[Done | None]:
        """What became of each tensor since `begin`; None if it had no gradient. Waits for the GPU."""
        correction = 1 - self.recipe.betas[0] ** step
        return [self._done(row, correction) for row in self.kernel.totals(self.sums)]

    def _done(self, row: dict[str, float], correction: float) -> Done | None:
        if row["elements"] == 0 and row["squares"] == 0:
            return None
        sums = Projection()
        sums.realised, sums.intended, sums.moved = row["realised"], row["intended"], row["moved"]
        sums.clamped, sums.elements = int(row["clamped"]), int(row["elements"])
        sums.largest = row["largest"] / correction
        return Done(sums, row["squares"] if math.isfinite(row["squares"]) else math.inf)
