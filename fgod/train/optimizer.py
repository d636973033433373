"""AdamW (Loshchilov & Hutter 2019) with a decoupled pull to the starting weights (L2-SP, Li et al. 2018).

    u = -lr · (m̂ / (√v̂ + ε) + decay·w - pull·(w₀ - w)),   w ← w + u

What is kept between steps lies behind `Storage`, the one piece to replace for other number formats; the arithmetic is
float32 in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fgod.errors import UsageError
from fgod.nvfp4.names import EMBEDDING, TIED_HEAD
from fgod.train.efficiency import Projection
from fgod.train.recipe import TrainRecipe


class Storage:
    """One tensor's master weight and moments between steps, here as they are: float32.

    `read` gives (w, m, v) in float32, which the optimizer may change; `write` stores them again.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.weight = parameter.data
        self.m = torch.zeros_like(self.weight)
        self.v = torch.zeros_like(self.weight)

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.m, self.v

    def write(self, weight: Tensor, m: Tensor, v: Tensor) -> None:
        self.weight.copy_(weight)  # m and v are the tensors that read gave: changed already


@dataclass(frozen=True)
class StepFacts:
    """grad_norm: before clipping; update_efficiency: None where no update was intended; finite: the update was."""

    grad_norm: float
    update_efficiency: float | None
    finite: bool


@dataclass
class _Tensor:
    """A trained tensor: its storage, its factor on the learning rate, and what it is pulled to."""

    parameter: nn.Parameter
    storage: Storage
    factor: float
    decay: float
    start: Tensor | None
    got_gradient: bool = False


def lr_factors(names: Iterable[str], lr_scale: Mapping[str, float], tied: bool) -> dict[str, float]:
    """Factor on the learning rate of each tensor: the product of all patterns that match its name.

    Raises:
        UsageError: a pattern matches no tensor, or on a tied model only the head, which is the embedding there.
    """
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in lr_scale.items():
        matched = [name for name in factors if fnmatchcase(name, pattern)]
        if not matched and tied and fnmatchcase(TIED_HEAD, pattern):
            raise UsageError(
                f"train.lr_scale.{pattern}: matches only {TIED_HEAD}, which on this tied model is {EMBEDDING}: "
                f"write {EMBEDDING} (it then holds for both uses)"
            )
        if not matched:
            some = ", ".join(list(factors)[:4])
            raise UsageError(f"train.lr_scale.{pattern}: matches no tensor; there are {some}, …")
        for name in matched:
            factors[name] *= factor
    return factors


class AdamW:
    """Steps named parameters by their `.grad`. Weight decay applies to matrices, the pull to every tensor."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        recipe: TrainRecipe,
        factors: Mapping[str, float],
        storage: Callable[[nn.Parameter], Storage] = Storage,
    ) -> None:
        self.recipe = recipe
        self.steps_done = 0
        self.tensors = {
            name: _Tensor(
                parameter,
                storage(parameter),
                factors[name],
                recipe.weight_decay if parameter.ndim > 1 else 0.0,
                parameter.detach().clone() if recipe.pull else None,
            )
            for name, parameter in parameters.items()
        }

    def got_gradient(self) -> dict[str, bool]:
        """By name: whether any step brought a gradient that was not zero."""
        return {name: tensor.got_gradient for name, tensor in self.tensors.items()}

    def masters(self) -> dict[str, Tensor]:
        """By name: the float32 weights as they are stored now."""
        return {name: tensor.storage.read()[0] for name, tensor in self.tensors.items()}

    def zero_grad(self) -> None:
        for tensor in self.tensors.values():
            tensor.parameter.grad = None

    @torch.no_grad()
    def grad_norm(self) -> float:
        """Euclidean norm over all gradients; NaN or infinite if one of them is."""
        squares = 0.0
        for tensor in self.tensors.values():
            if tensor.parameter.grad is not None:
                norm = torch.linalg.vector_norm(tensor.parameter.grad).item()
                tensor.got_gradient |= norm != 0
                squares += norm * norm
        return math.sqrt(squares)

    @torch.no_grad()
    def step(self, lr: float, grad_norm: float) -> StepFacts:
        """One step from the gradients, whose finite norm is `grad_norm`, clipped to the recipe's."""
        self.steps_done += 1
        clip = self.recipe.grad_clip
        scale = 1.0 if clip is None or grad_norm <= clip else clip / grad_norm
        projection = Projection()
        for tensor in self.tensors.values():
            self._step_tensor(tensor, lr * tensor.factor, scale, projection)
        return StepFacts(grad_norm, projection.ratio(), projection.finite())

    def _step_tensor(self, tensor: _Tensor, lr: float, scale: float, projection: Projection) -> None:
        if tensor.parameter.grad is None:
            return
        grad = tensor.parameter.grad.mul_(scale)
        weight, m, v = tensor.storage.read()
        update = self._update(tensor, grad, weight, m, v, lr)
        wanted = weight + update
        before = weight.clone()
        tensor.storage.write(wanted, m, v)
        projection.add(tensor.storage.read()[0] - before, update)

    def _update(self, tensor: _Tensor, grad: Tensor, weight: Tensor, m: Tensor, v: Tensor, lr: float) -> Tensor:
        """Advance m and v by the gradient; return u of the module's formula."""
        beta1, beta2 = self.recipe.betas
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (v / (1 - beta2**self.steps_done)).sqrt_().add_(self.recipe.eps)
        update = torch.div(m, root, out=root).mul_(-lr / (1 - beta1**self.steps_done))
        if tensor.decay:
            update.sub_(weight, alpha=lr * tensor.decay)
        if tensor.start is not None:
            update.add_(tensor.start - weight, alpha=lr * self.recipe.pull)
        return update
