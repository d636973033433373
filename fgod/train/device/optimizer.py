"""The optimizer of masters on a device, and how gradients of the network's groups reach it.

All vectors of one width are stepped as one matrix whose rows are tensors: one launch instead of a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from fgod.train.device.ops import Ops
from fgod.train.device.weights import Masters, split_rows
from fgod.train.optimizer import TensorOptimizer
from fgod.train.recipe import TrainRecipe
from fgod.train.update import Factors


def device_optimizer(
    masters: Masters, recipe: TrainRecipe, factors: Mapping[str, float], seed: int, ops: Ops
) -> TensorOptimizer:
    """An optimizer of all masters."""
    banks = {str(width): bank for width, bank in masters.banks.items()}
    return TensorOptimizer(masters.tensors, recipe, factors, seed, banks, ops.advance)


class Gradients(Protocol):
    """Where a step's gradients go."""

    def on_grad(self, group: str, grad: Tensor | Factors) -> None:
        """`fgod.train.device.network.OnGrad`."""

    def finish_piece(self) -> None:
        """After the last gradient of a piece of a step."""

    def finish_step(self) -> None:
        """After the last gradient of a step."""


class GroupGradients:
    """Hands complete gradients of scale groups [N, K] and of banks of vectors [R, K] to the optimizer.

    Each is stepped at once, or, without the recipe's `step_in_backward`, added up until all are stepped together.
    """

    def __init__(self, optimizer: TensorOptimizer, masters: Masters) -> None:
        self.optimizer, self.masters = optimizer, masters
        self.waiting: dict[str, Tensor] = {}

    def on_grad(self, group: str, grad: Tensor | Factors) -> None:
        if isinstance(grad, Factors):
            self._on_factors(group, grad)
            return
        if group not in self.masters.groups:
            self._add(group, grad)
            return
        for name, part in split_rows(grad, self.masters.members[group], self.masters):
            self._add(name, part)

    def _on_factors(self, group: str, factors: Factors) -> None:
        """The members step by their own factors, or by their rows of one product."""
        members = self.masters.members[group]
        parts = factors.split([len(self.masters.tensors[name]) for name in members])
        if not all(map(self.optimizer.takes_factors, members, parts)):
            self.on_grad(group, factors.product())
            return
        for name, part in zip(members, parts, strict=True):
            self.optimizer.on_grad(name, part)

    def _add(self, key: str, grad: Tensor) -> None:
        if self.optimizer.recipe.step_in_backward:
            self.optimizer.on_grad(key, grad)
        elif key in self.waiting:
            self.waiting[key] += grad
        else:
            self.waiting[key] = grad.to(torch.float32, copy=True)

    def finish_piece(self) -> None:
        """Nothing is under way: gradients are stepped or added up as they come."""

    def finish_step(self) -> None:
        """After the last gradient of a step."""
        if self.waiting:
            self.optimizer.step_together(self.waiting)
            self.waiting.clear()
        self.optimizer.finish_step()
