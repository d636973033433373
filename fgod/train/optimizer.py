"""AdamW (Loshchilov & Hutter 2019) with a decoupled pull to the starting weights (L2-SP, Li et al. 2018).

    u = -lr · (m̂ / (√v̂ + ε) + decay·w - l2_sp·(w₀ - w)),   w ← w + u

What is kept between steps lies behind `Master` and `Moment` (fgod.train.storage); the arithmetic is float32 throughout.
A tensor is stepped by chunks of rows: temporaries are those of one chunk, and chunks of any size give the same bits.
fgod.train.device.optimizer steps the same tensors on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn

from fgod.errors import UsageError
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.rounding import stream
from fgod.train.efficiency import Projection, group_of
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import M_KINDS, V_KINDS, Master, Moment, master_kind, moment_kind


@dataclass(frozen=True)
class StepFacts:
    """grad_norm: over all gradients before clipping; groups: how updates landed, by group of tensors; whole: in all."""

    grad_norm: float
    groups: Mapping[str, Projection]
    whole: Projection

    @property
    def update_efficiency(self) -> float | None:
        return self.whole.ratio()


@dataclass
class Trained:
    """A trained tensor as a matrix: a vector is one row. `start`: what it is pulled to."""

    parameter: nn.Parameter
    group: str
    master: Master
    m: Moment
    v: Moment
    factor: float
    decay: float
    start: Tensor | None
    got_gradient: bool = False
    changed: bool = False

    def chunks(self, size: int | None) -> Iterator[slice]:
        """Its rows, `size` at a time; all at once without a size."""
        rows = len(self.master.weight)
        for first in range(0, rows, size or rows):
            yield slice(first, min(first + (size or rows), rows))


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


def as_matrix(tensor: Tensor) -> Tensor:
    """A matrix as it is, a vector as its one row; the same memory."""
    return tensor.view(1, -1) if tensor.ndim == 1 else tensor


class AdamW:
    """Steps named parameters by their `.grad`. Weight decay applies to matrices, L2-SP to every tensor.

    With `step_in_backward` a parameter is stepped as soon as its gradient is complete, clipped by its own norm, and the
    gradient is freed: `begin` before the backward pass, `finish` after it. Otherwise `step` does all of them.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], recipe: TrainRecipe, factors: Mapping[str, float], seed: int = 0
    ) -> None:
        """`parameters` must have the dtypes that the recipe's masters have (`fgod.model.masters.load_masters`)."""
        self.recipe = recipe
        self.steps_done = 0
        self.tensors = {name: self._tensor(name, p, factors[name], seed) for name, p in parameters.items()}
        self._lr = 0.0
        self._squares = 0.0
        self._groups: dict[str, Projection] = {}
        if recipe.step_in_backward:
            for tensor in self.tensors.values():
                tensor.parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, tensor))

    def _tensor(self, name: str, parameter: nn.Parameter, factor: float, seed: int) -> Trained:
        recipe, shape = self.recipe, parameter.shape
        weight = as_matrix(parameter.data)
        rows, columns = weight.shape
        m, v = moment_kind(M_KINDS, recipe.m_dtype, shape), moment_kind(V_KINDS, recipe.v_dtype, shape)
        return Trained(
            parameter,
            group_of(name),
            master_kind(recipe.master_dtype, shape)(weight, stream(seed, name)),
            m((rows, columns), weight.device),
            v((rows, columns), weight.device),
            factor,
            recipe.weight_decay if parameter.ndim > 1 else 0.0,
            weight.clone() if recipe.l2_sp else None,
        )

    def got_gradient(self) -> dict[str, bool]:
        """By name: whether any step brought a gradient that was not zero."""
        return {name: tensor.got_gradient for name, tensor in self.tensors.items()}

    def unchanged(self) -> list[str]:
        """Names of tensors that no step has changed."""
        return [name for name, tensor in self.tensors.items() if not tensor.changed]

    def zero_grad(self) -> None:
        for tensor in self.tensors.values():
            tensor.parameter.grad = None

    def grad_norm(self) -> float:
        """Euclidean norm over all gradients; NaN or infinite if one of them is."""
        return math.sqrt(sum(self._norm(tensor) ** 2 for tensor in self.tensors.values()))

    @torch.no_grad()
    def _norm(self, tensor: Trained) -> float:
        if tensor.parameter.grad is None:
            return 0.0
        norm = torch.linalg.vector_norm(tensor.parameter.grad, dtype=torch.float32).item()
        tensor.got_gradient |= norm != 0
        return norm

    def begin(self, lr: float) -> None:
        """Start a step at this learning rate."""
        self.steps_done += 1
        self._lr, self._squares, self._groups = lr, 0.0, {}

    def finish(self) -> StepFacts:
        """End a step: what became of it."""
        whole = Projection()
        for projection in self._groups.values():
            whole.merge(projection)
        return StepFacts(math.sqrt(self._squares), self._groups, whole)

    def step(self, lr: float, grad_norm: float) -> StepFacts:
        """One step from the gradients, whose finite norm is `grad_norm`, clipped to the recipe's."""
        self.begin(lr)
        scale = self._clip(grad_norm)
        for tensor in self.tensors.values():
            self._step_tensor(tensor, scale)
        facts = self.finish()
        return StepFacts(grad_norm, facts.groups, facts.whole)

    def _on_gradient(self, tensor: Trained, parameter: nn.Parameter) -> None:
        """Step one parameter in the middle of the backward pass. A gradient that is not finite steps nothing."""
        norm = self._norm(tensor)
        self._squares += norm * norm
        if math.isfinite(norm):
            self._step_tensor(tensor, self._clip(norm))
        parameter.grad = None

    def _clip(self, norm: float) -> float:
        """Factor that brings a gradient of this norm within the recipe's `grad_clip`."""
        clip = self.recipe.grad_clip
        return 1.0 if clip is None or norm <= clip else clip / norm

    @torch.no_grad()
    def _step_tensor(self, tensor: Trained, scale: float) -> None:
        if tensor.parameter.grad is None:
            return
        sums = Projection()
        grads = as_matrix(tensor.parameter.grad)
        tensor.master.begin(self.steps_done)
        for rows in tensor.chunks(self.recipe.step_chunk_rows):
            self._step_rows(tensor, rows, grads[rows].float().mul_(scale), sums)
        tensor.changed |= sums.moved != 0
        self._groups.setdefault(tensor.group, Projection()).merge(sums)

    def _step_rows(self, tensor: Trained, rows: slice, grad: Tensor, sums: Projection) -> None:
        """Advance rows by their gradient, which may be changed; what became of the update goes to `sums`."""
        master, lr = tensor.master, self._lr * tensor.factor
        weight, m, v = master.read(rows), tensor.m.read(rows), tensor.v.read(rows)
        update = self._normalised(grad, m, v, sums).mul_(-lr / (1 - self.recipe.betas[0] ** self.steps_done))
        if tensor.decay:
            update.sub_(weight, alpha=lr * tensor.decay)
        if tensor.start is not None:
            update.add_(tensor.start[rows].float() - weight, alpha=lr * self.recipe.l2_sp)
        tensor.m.write(rows, m)
        tensor.v.write(rows, v)
        master.write(rows, weight + update)
        sums.add(master.read(rows).sub_(weight), update)

    def _normalised(self, grad: Tensor, m: Tensor, v: Tensor, sums: Projection) -> Tensor:
        """Advance m and v by the gradient; return m / (√v̂ + ε) within the recipe's clip of m̂ / (√v̂ + ε)."""
        beta1, beta2 = self.recipe.betas
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (v / (1 - beta2**self.steps_done)).sqrt_().add_(self.recipe.eps)
        ratio = torch.div(m, root, out=root)
        correction = 1 - beta1**self.steps_done
        low, high = torch.aminmax(ratio)
        largest = max(-low.item(), high.item()) / correction
        sums.largest = max(sums.largest, largest)
        clip = self.recipe.update_clip
        if clip is not None and largest > clip:
            sums.clamped += int((ratio.abs() > clip * correction).sum())
            ratio.clamp_(-clip * correction, clip * correction)
        return ratio
