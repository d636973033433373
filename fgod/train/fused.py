"""AdamW's steps by Triton kernels, one pass over each tensor. Nothing waits for the GPU: a CUDA graph can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fgod.nvfp4 import kernels
from fgod.train import codecs
from fgod.train.adamw import STATES, AdamW
from fgod.train.recipe import TrainRecipe
from fgod.train.update import DIVISOR, NUM_STATS, Factors

if TYPE_CHECKING:
    from fgod.nvfp4.kernels import adamw
    from fgod.train.optimizer import Trained

KNOWN = {"m": ("fp32", "bf16", "int8", "nvfp4"), "v": ("fp32", "bf16", "uint8", "nvfp4")}
"""Formats of states that the kernel packs and unpacks. It takes whatever else it is told for float32."""

COLUMNS = ("realised", "intended", "moved", "largest", "clamped", "amax", "squares")
"""Names that the kernels' sums have, in the order of the columns of `fgod.train.update`."""


def serves(tensors: Sequence[Trained], recipe: TrainRecipe) -> bool:
    """Whether kernels step these tensors. Says once on stderr why not, where they could but for a format."""
    if not all(kernels.run_on(tensor.weight.device) for tensor in tensors):
        return False
    for name, kept in STATES.items():
        if (found := getattr(recipe, kept.key)) not in KNOWN[name]:
            kernels.say_once(
                f"train.{kept.key}: {found} is not read by the fused optimizer kernel; plain torch steps on the GPU, "
                f"many times slower; expected one of {', '.join(KNOWN[name])} for speed"
            )
            return False
    if any(tensor.modes.master not in AdamW.kernel_masters for tensor in tensors):
        kernels.say_once(
            f"train.master_dtype: {recipe.master_dtype} has no fused optimizer kernel; plain torch steps on the "
            "GPU, many times slower; expected fp32 or bf16 for speed"
        )
        return False
    return True


class Fused:
    """Steps tensors, known by their rows in the optimizer's tables. Before a step `numbers` are sent, `sums` zeroed."""

    def __init__(self, tensors: Sequence[Trained], recipe: TrainRecipe) -> None:
        """`tensors`: all that are trained, in the order of their rows."""
        from fgod.nvfp4.kernels import adamw, product

        self.kernel, self.products, self.recipe = adamw, product, recipe
        device = tensors[0].weight.device
        self.modes = [self._modes(tensor) for tensor in tensors]
        self.tunings = [adamw.FASTEST.get(modes.m, adamw.ADAMW) for modes in self.modes]
        sizes = [tensor.weight.numel() for tensor in tensors]
        self.programs = [adamw.programs(size, tuning) for size, tuning in zip(sizes, self.tunings, strict=True)]
        self.sums = torch.zeros(len(tensors), len(adamw.SLOTS), max(self.programs), device=device)
        self.numbers = torch.zeros(len(adamw.NUMBERS), device=device)
        self.squares = torch.zeros(adamw.NORM_PROGRAMS, device=device)
        self.tensors = [adamw.Tensors(t.weight, t.states["m"].tensors, t.states["v"].tensors, t.start) for t in tensors]
        self.settings = [self._settings(tensor) for tensor in tensors]

    def _modes(self, tensor: Trained) -> adamw.Modes:
        columns, shape = tensor.weight.shape[1], tensor.parameter.shape
        m, v = (STATES[name].format_of(self.recipe, shape) for name in ("m", "v"))
        return self.kernel.Modes(tensor.modes.master, m, v, codecs.block_width(columns), codecs.segment_width(columns))

    def _settings(self, tensor: Trained) -> adamw.Settings:
        recipe = self.recipe
        return self.kernel.Settings(
            *recipe.betas,
            recipe.eps,
            tensor.decay,
            recipe.l2_sp,
            recipe.grad_clip,
            tensor.factor,
            tensor.stream,
            tensor.element,
        )

    def host_numbers(self, lr: float, step: int) -> Tensor:
        """What `numbers` must hold in a step (from 1), on the host."""
        return self.kernel.numbers_of(lr, step, self.recipe.betas, self.recipe.update_clip)

    def step(self, row: int, grad: Tensor) -> None:
        """Step a tensor by its gradient, clipped by its own norm.

        A gradient that is not finite steps nothing, where the recipe clips; without a clip it makes the sums so.
        """
        grad = grad.contiguous()
        clips = self.recipe.grad_clip is not None
        self._step(row, grad, self.kernel.sum_squares(grad, self.squares) if clips else self.squares)

    def step_measured(self, row: int, grad: Tensor, squares: Tensor) -> None:
        """`step` where the sum of the squares of the tensor's whole gradient is known: float32 [1]."""
        self._step(row, grad.contiguous(), squares)

    def takes_factors(self, row: int, factors: Factors) -> bool:
        """Where gradients are clipped, BF16 and of few tokens: the product's kernel then adds up their squares, too."""
        tokens, dtype = len(factors.inputs), factors.inputs.dtype
        few = tokens <= self.products.MOST_TOKENS and dtype == torch.bfloat16
        fits = self.products.makes_gradient(self.tensors[row].weight.shape)
        laid_out = factors.inputs.is_contiguous() and factors.outputs.stride(1) == 1
        return few and fits and laid_out and self.recipe.grad_clip is not None

    def step_factors(self, row: int, factors: Factors) -> None:
        """`step` by their product."""
        self._step(row, *self.products.gradient(*factors, self.squares))

    def _step(self, row: int, grad: Tensor, squares: Tensor) -> None:
        sums = self.sums[row, :, : self.programs[row]]
        of_it = self.modes[row], self.settings[row]
        self.kernel.step(self.tensors[row], grad, *of_it, self.numbers, squares, sums, self.tunings[row])

    def stats(self, numbers: Tensor) -> Tensor:
        """float32 [tensors, NUM_STATS] of the last step. `numbers`: the optimizer's step numbers."""
        added, most, slots = self.sums.sum(-1), self.sums.amax(-1), self.kernel.SLOTS
        by_name = {slot: added[:, place] for place, slot in enumerate(slots)}
        by_name["amax"] = most[:, slots.index("amax")]
        by_name["largest"] = most[:, slots.index("largest")] / numbers[:, DIVISOR]
        assert len(COLUMNS) == NUM_STATS
        return torch.stack([by_name[slot] for slot in COLUMNS], 1)
