"""AdamW (Loshchilov & Hutter 2019): d / divisor = m̂ / (√v̂ + ε), which is m / (√v̂ + ε) over 1 - β₁ᵗ.

`fgod.nvfp4.kernels.adamw` is its whole step as one kernel, which `fgod.train.fused` launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fgod.train.recipe import MEAN_FORMATS, OPTIMIZERS, SQUARE_FORMATS, TrainRecipe
from fgod.train.storage import StateKind
from fgod.train.update import Kernels, Optimizer

if TYPE_CHECKING:
    from fgod.train.optimizer import Trained

STATES = {
    "m": StateKind("m_dtype", MEAN_FORMATS, "running mean of gradients"),
    "v": StateKind("v_dtype", SQUARE_FORMATS, "running mean of squares"),
}


class AdamW(Optimizer):
    """Its own number of a step is 1 - β₂ᵗ."""

    states = STATES
    kernel_masters = ("fp32", "bf16")
    keys = ("betas", "eps", "offload_moments")

    def divisor(self, recipe: TrainRecipe, step: int) -> float:
        return float(1 - recipe.betas[0] ** step)

    def numbers(self, recipe: TrainRecipe, step: int) -> tuple[float, ...]:
        return (1 - recipe.betas[1] ** step,)

    def direction(
        self, grad: Tensor, states: Sequence[Tensor], numbers: Sequence[Tensor], recipe: TrainRecipe
    ) -> Tensor:
        beta1, beta2 = recipe.betas
        m, v = states
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        del grad  # its memory is that of the next line
        return m / (v / numbers[0]).sqrt_().add_(recipe.eps)

    def kernels(self, tensors: Sequence[Trained], recipe: TrainRecipe) -> Kernels | None:
        from fgod.train import fused

        return fused.Fused(tensors, recipe) if fused.serves(tensors, recipe) else None


OPTIMIZERS.register("adamw", AdamW())
