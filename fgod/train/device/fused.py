"""AdamW's steps by kernels, one pass over each matrix. Nothing waits for the GPU: a CUDA graph can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fgod.nvfp4 import kernels
from fgod.train import codecs
from fgod.train.optimizer import Trained
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


def serves(tensors: Sequence[Trained], recipe: TrainRecipe) -> bool:
    """Whether kernels step these tensors. Says once on stderr why not, where they could but for a format."""
    if not all(kernels.run_on(tensor.master.weight.device) for tensor in tensors):
        return False
    if any(type(tensor.master) not in MASTERS for tensor in tensors):
        kernels.say_once(
            f"train.master_dtype: {recipe.master_dtype} has no fused optimizer kernel; plain torch steps on the "
            "GPU, many times slower; expected fp32 or bf16 for speed"
        )
        return False
    return True


class Fused:
    """Steps tensors, known by their places. Before a step `numbers` are to be sent, and `sums` to be zeroed."""

    def __init__(self, tensors: Sequence[Trained], recipe: TrainRecipe) -> None:
        from fgod.nvfp4.kernels import adamw

        self.kernel, self.recipe = adamw, recipe
        device = tensors[0].master.weight.device
        self.modes = [self._modes(tensor) for tensor in tensors]
        self.tunings = [adamw.FASTEST.get(modes.m, adamw.ADAMW) for modes in self.modes]
        sizes = [tensor.master.weight.numel() for tensor in tensors]
        self.programs = [adamw.programs(size, tuning) for size, tuning in zip(sizes, self.tunings, strict=True)]
        self.sums = torch.zeros(len(tensors), len(adamw.SLOTS), max(self.programs), device=device)
        self.numbers = torch.zeros(len(adamw.NUMBERS), device=device)
        self.squares = torch.zeros(adamw.NORM_PROGRAMS, device=device)
        self.tensors = [adamw.Tensors(t.master.weight, t.m.tensors, t.v.tensors, t.start) for t in tensors]
        self.settings = [self._settings(tensor) for tensor in tensors]

    def _modes(self, tensor: Trained) -> adamw.Modes:
        columns = tensor.master.weight.shape[1]
        return self.kernel.Modes(
            MASTERS[type(tensor.master)],
            MOMENTS[type(tensor.m)],
            MOMENTS[type(tensor.v)],
            codecs.block_width(columns),
            codecs.segment_width(columns),
        )

    def _settings(self, tensor: Trained) -> adamw.Settings:
        recipe = self.recipe
        return self.kernel.Settings(
            *recipe.betas, recipe.eps, tensor.decay, recipe.l2_sp, recipe.grad_clip, tensor.factor, tensor.master.stream
        )

    def step(self, place: int, grad: Tensor) -> None:
        """Step a tensor by its gradient, clipped by its own norm.

        A gradient that is not finite steps nothing, where the recipe clips; without a clip it makes the sums so.
        """
        grad = grad.contiguous()
        if self.recipe.grad_clip is not None:
            self.kernel.sum_squares(grad, self.squares)
        sums = self.sums[place, :, : self.programs[place]]
        of_it = self.modes[place], self.settings[place]
        self.kernel.step(self.tensors[place], grad, *of_it, self.numbers, self.squares, sums, self.tunings[place])
