"""A plugin: Lion (Chen et al. 2023), which steps by signs and keeps one state; decoupled weight decay is the recipe's.

d = sign(β₁·m + (1 - β₁)·g),   m ← β₂·m + (1 - β₂)·g
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fgod.registry import MEAN_FORMATS, OPTIMIZERS
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import StateKind
from fgod.train.update import Optimizer

STATES = {"m": StateKind("m_dtype", MEAN_FORMATS, "running mean of gradients")}


class Lion(Optimizer):
    states = STATES
    keys = ("betas",)

    def direction(
        self, grad: Tensor, states: Sequence[Tensor], numbers: Sequence[Tensor], recipe: TrainRecipe
    ) -> Tensor:
        beta1, beta2 = recipe.betas
        [m] = states
        signs = m.lerp(grad, 1 - beta1).sign_()
        m.lerp_(grad, 1 - beta2)
        return signs


OPTIMIZERS.register("lion", Lion())
