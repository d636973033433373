"""An optimizer of named tensors, on any device, stepped as each gradient completes or by all of them together.

    optimizer.begin(lr)                         # sends the step's numbers to the device
    optimizer.on_grad(name, gradient)           # for each tensor, once: steps it, clipped by its own norm; or instead
    optimizer.step_together(gradients)          # all by name, clipped by the norm of all
    facts = optimizer.finish()                  # reads what became of the step: waits for the device

A caller that must not wait (a CUDA graph) sends `host_numbers(lr)` to `on_device` itself, holds `begin_step`, the
gradients and `finish_step` in its graph, copies `step_stats` and gives it to `facts` when it has arrived. The
arithmetic is `fgod.train.update`'s with the recipe's `Optimizer`; where that has kernels and they run, theirs instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from fgod.errors import UsageError
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.codec import device_global_scale
from fgod.nvfp4.rounding import MAX_ELEMENTS, Key, key_words, step_key, stream
from fgod.train.codecs import segment_width
from fgod.train.efficiency import Projection, group_of
from fgod.train.recipe import OPTIMIZERS, TrainRecipe
from fgod.train.storage import MASTERS, State, master_format, new_state
from fgod.train.stored import OwnTensors, StoredTensors
from fgod.train.update import (
    AMAX,
    CHUNK,
    CLAMPED,
    CLIP,
    INTENDED,
    LARGEST,
    MOVED,
    NUM_STATS,
    REALISED,
    SHARED_NUMBERS,
    SQUARES,
    Factors,
    Modes,
    Stored,
    advance_in_chunks,
)


@dataclass(frozen=True)
class StepFacts:
    """grad_norm: over all gradients before clipping; groups: what became of updates, by group of tensors; whole: in
    all."""

    grad_norm: float
    groups: Mapping[str, Projection]
    whole: Projection

    @property
    def update_efficiency(self) -> float | None:
        return self.whole.ratio()


class Bank(Protocol):
    """Vectors of one width that lie in one piece of memory, [R, K] float32, and are stepped at once."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def rows(self) -> Tensor: ...


@dataclass
class Trained:
    """A trained tensor. `weight` is its memory as a matrix: a vector is one row. `start`: what L2-SP pulls it to."""

    parameter: Tensor
    weight: Tensor
    group: str
    stream: Key
    modes: Modes
    states: dict[str, State]
    factor: float
    decay: float
    start: Tensor | None
    element: int = 0
    """Index of its first element, where it is some rows of a tensor."""


@dataclass
class TookPart:
    """What became of a tensor in all steps so far, and what it counts as: its group and its elements."""

    group: str
    elements: int
    got_gradient: bool = False
    changed: bool = False


@dataclass(frozen=True)
class _Unit:
    """What is stepped at once, seen as [R, W]: one tensor (`rows` is its row in the tables), or a bank's vectors."""

    weight: Tensor
    states: Stored
    start: Tensor | None
    modes: Modes
    rows: slice
    element: int = 0


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


class TensorOptimizer:
    """The recipe's `Optimizer` at work. Weight decay applies to matrices, L2-SP to every tensor. Nothing is asked of
    the device but in `finish`.

    With the recipe's `step_in_backward`, parameters that require a gradient are stepped as soon as autograd has
    completed it, and the gradient is freed. A gradient that is not finite makes the step's statistics, and in plain
    torch its tensor, so.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        recipe: TrainRecipe,
        factors: Mapping[str, float],
        seed: int = 0,
        banks: Mapping[str, Bank] | None = None,
        advance: Callable[..., Tensor] = advance_in_chunks,
        elements: Mapping[str, int] | None = None,
    ) -> None:
        """Set up states on the parameters' device.

        Args:
            parameters: by name, in the dtypes that the recipe's masters have (`fgod.model.masters.load_masters`).
            factors: on the learning rate, by name (`lr_factors`).
            banks: vectors among the parameters that are stepped together; `on_grad` then takes the bank's key.
            advance: `fgod.train.update.advance`, perhaps compiled.
            elements: by name the index of the first element, of parameters that are some rows of a tensor.
        """
        self.recipe, self._advance = recipe, advance
        self._elements = elements or {}
        self.method = OPTIMIZERS[recipe.optimizer]
        self.steps_done = 0
        banks = banks or {}
        banked = [name for bank in banks.values() for name in bank.names]
        alone = [name for name in parameters if name not in set(banked)]
        self.names = alone + banked
        self.tensors = {name: self._tensor(name, parameters[name], factors[name], seed) for name in self.names}
        self.took_part = {name: TookPart(t.group, t.weight.numel()) for name, t in self.tensors.items()}
        self._allocate(parameters[self.names[0]].device)
        self._units = {name: self._unit(self.tensors[name], row) for row, name in enumerate(alone)}
        self._units |= {key: self._bank_unit(bank, self.names.index(bank.names[0])) for key, bank in banks.items()}
        trained = list(self.tensors.values())
        self.kernels = self.method.kernels(trained, recipe) if recipe.step_in_backward else None
        if self.kernels is None and recipe.offload_moments and trained[0].weight.is_cuda:
            raise UsageError(
                "train.offload_moments: found true, but this run does not use the optimizer's Triton kernel, and only "
                "that can read states from host memory; expected Triton and master_dtype fp32 or bf16, or "
                "offload_moments false"
            )
        self._by_kernel = torch.arange(len(self.names), device=self.numbers.device)[:, None] < len(alone)
        self.measure()
        if recipe.step_in_backward:
            self._attach_hooks()

    # ----------------------------------------------------------------------------------------------------- set up

    def _tensor(self, name: str, parameter: Tensor, factor: float, seed: int) -> Trained:
        recipe, shape = self.recipe, parameter.shape
        weight = as_matrix(parameter.detach())
        rows, columns = weight.shape
        if weight.numel() > MAX_ELEMENTS:
            raise UsageError(f"{name}: {weight.numel()} elements; stochastic rounding allows a tensor 2^32")
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        formats = {n: kept.formats[kept.format_of(recipe, shape)] for n, kept in self.method.states.items()}
        modes = Modes(
            self.method,
            recipe,
            master_format(recipe.master_dtype, shape),
            tuple(formats.values()),
            decay != 0,
            min((recipe.step_chunk_rows or rows) * columns, CHUNK.get(weight.device.type, CHUNK["cuda"])),
        )
        MASTERS[modes.master].begin(weight)
        pinned = recipe.offload_moments and parameter.ndim > 1 and weight.is_cuda
        states = {n: new_state(one, (rows, columns), weight.device, pinned) for n, one in formats.items()}
        start = weight.clone() if recipe.l2_sp else None
        key, element = stream(seed, name), self._elements.get(name, 0)
        return Trained(parameter, weight, group_of(name), key, modes, states, factor, decay, start, element)

    def _allocate(self, device: torch.device) -> None:
        """Tables with a row for each tensor."""
        count = len(self.names)
        own = len(self.method.numbers(self.recipe, 1))
        self.numbers = torch.zeros(count, SHARED_NUMBERS + own, device=device)
        self.keys = torch.zeros(count, 2, dtype=torch.int32, device=device)
        self.step_stats = torch.zeros(count, NUM_STATS, device=device)
        self.scales = torch.ones(count, device=device)
        self.amaxes = torch.zeros(count, device=device)

    def _unit(self, tensor: Trained, row: int) -> _Unit:
        columns = tensor.weight.shape[1]
        height = tensor.weight.numel() // segment_width(columns)

        def seen(stored: Tensor) -> Tensor:
            return stored.view(height, stored.numel() // height)

        start = None if tensor.start is None else seen(tensor.start)
        states = tuple(tuple(map(seen, state.tensors)) for state in tensor.states.values())
        return _Unit(seen(tensor.weight), states, start, tensor.modes, slice(row, row + 1), tensor.element)

    def _bank_unit(self, bank: Bank, first: int) -> _Unit:
        """The vectors of a bank, whose states move to one piece of memory too."""
        modes = replace(self.tensors[bank.names[0]].modes, row_is_tensor=True)
        states = {name: torch.zeros_like(bank.rows) for name in self.method.states}
        start = bank.rows.clone() if self.recipe.l2_sp else None
        for row, name in enumerate(bank.names):
            tensor = self.tensors[name]
            for key, rows in states.items():
                tensor.states[key].tensors = (rows[row : row + 1],)
            tensor.start = None if start is None else start[row : row + 1]
        stored = tuple((rows,) for rows in states.values())
        return _Unit(bank.rows, stored, start, modes, slice(first, first + len(bank.names)))

    def _attach_hooks(self) -> None:
        def step(name: str, parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.on_grad(name, parameter.grad)
                parameter.grad = None

        for name, tensor in self.tensors.items():
            if isinstance(tensor.parameter, nn.Parameter) and tensor.parameter.requires_grad:
                tensor.parameter.register_post_accumulate_grad_hook(partial(step, name))

    @torch.no_grad()
    def measure(self) -> None:
        """The largest magnitude of each tensor, of weights that were written by others than a step."""
        magnitudes = [torch.aminmax(tensor.weight) for tensor in self.tensors.values()]
        self.amaxes.copy_(torch.stack([torch.maximum(-low, high).float() for low, high in magnitudes]))

    @property
    def whole_names(self) -> list[str]:
        """Names of the rows of `whole_stats` and `whole_amaxes`: of all tensors, also where this has some rows of them
        alone (`fgod.train.ranks.optimizer`)."""
        return self.names

    @property
    def whole_stats(self) -> Tensor:
        """Statistics of the last step, for `facts`."""
        return self.step_stats

    @property
    def whole_amaxes(self) -> Tensor:
        """The largest magnitude of each tensor."""
        return self.amaxes

    def stored(self) -> StoredTensors:
        """All that a step depends on besides the recipe, for checkpoints."""
        out = {}
        for name, tensor in self.tensors.items():
            out[f"{name}|w"] = tensor.weight
            for part, state in tensor.states.items():
                out |= {f"{name}|{part}{i}": one for i, one in enumerate(state.tensors)}
        return OwnTensors(out)

    def got_gradient(self) -> dict[str, bool]:
        """By name: whether any step brought a gradient that was not zero."""
        return {name: one.got_gradient for name, one in self.took_part.items()}

    def unchanged(self) -> list[str]:
        """Names of tensors that no step has changed."""
        return [name for name, one in self.took_part.items() if not one.changed]

    def zero_grad(self) -> None:
        for tensor in self.tensors.values():
            tensor.parameter.grad = None

    # ------------------------------------------------------------------------------------------- a step, on the device

    @property
    def on_device(self) -> tuple[Tensor, ...]:
        """Where `host_numbers` belong."""
        return (self.numbers, self.keys, *(() if self.kernels is None else (self.kernels.numbers,)))

    def host_numbers(self, lr: float) -> tuple[Tensor, ...]:
        """Numbers and keys of the next step, on the host; counts the step."""
        self.steps_done += 1
        divisor = self.method.divisor(self.recipe, self.steps_done)
        own = self.method.numbers(self.recipe, self.steps_done)
        rows, words = [], []
        for tensor in self.tensors.values():
            rate = lr * tensor.factor
            rows.append([-rate / divisor, rate * tensor.decay, rate * self.recipe.l2_sp, 1.0, divisor, *own])
            words.append(key_words(step_key(tensor.stream, self.steps_done)))
        numbers = torch.tensor(rows), torch.tensor(words, dtype=torch.int32)
        return numbers if self.kernels is None else (*numbers, self.kernels.host_numbers(lr, self.steps_done))

    def begin_step(self) -> None:
        """First of what a step computes: no statistics yet; NVFP4 masters' global scales."""
        self.step_stats.zero_()
        if self.kernels is not None:
            self.kernels.sums.zero_()
        if self.recipe.master_dtype.startswith("nvfp4"):
            self.scales.copy_(device_global_scale(self.amaxes))

    def takes_factors(self, key: str, factors: Factors) -> bool:
        """Whether a kernel steps this tensor by these factors; else their product is made first."""
        return self.kernels is not None and self.kernels.takes_factors(self._units[key].rows.start, factors)

    @torch.no_grad()
    def on_grad(self, key: str, grad: Tensor | Factors) -> None:
        """Step a tensor [N, K] or [K], or a bank [R, K], by its complete gradient, clipped by its own norm."""
        unit = self._units[key]
        if isinstance(grad, Factors):
            if self.kernels is not None and self.takes_factors(key, grad):
                self.kernels.step_factors(unit.rows.start, grad)
                return
            grad = grad.product()
        if self.kernels is not None and not unit.modes.row_is_tensor:
            self.kernels.step(unit.rows.start, grad)
            return
        self._measure_grad(unit, grad)
        if self.recipe.grad_clip is not None:
            self.numbers[unit.rows, CLIP] = self._clip_factor(self.step_stats[unit.rows, SQUARES].sqrt())
        self._step_unit(unit, grad)

    @torch.no_grad()
    def step_together(self, grads: Mapping[str, Tensor]) -> None:
        """Step tensors and banks by their gradients, clipped by the norm of all."""
        for key, grad in grads.items():
            self._measure_grad(self._units[key], grad)
        if self.recipe.grad_clip is not None:
            self.numbers[:, CLIP] = self._clip_factor(self._all_squares().sqrt())
        for key, grad in grads.items():
            self._step_unit(self._units[key], grad)

    def _all_squares(self) -> Tensor:
        """Σ g² of all gradients of a step, also where this has some rows of the tensors alone; float32 [] or [1]."""
        return self.step_stats[:, SQUARES].sum()

    def finish_step(self) -> None:
        """Last: statistics are complete, and largest magnitudes become those of the new weights."""
        if self.kernels is not None:
            self.step_stats.copy_(torch.where(self._by_kernel, self.kernels.stats(self.numbers), self.step_stats))
        amaxes = self.step_stats[:, AMAX]
        self.amaxes.copy_(torch.where(amaxes != 0, amaxes, self.amaxes))

    def _measure_grad(self, unit: _Unit, grad: Tensor) -> None:
        dim = 1 if unit.modes.row_is_tensor else None
        self.step_stats[unit.rows, SQUARES] = torch.linalg.vector_norm(grad, dim=dim, dtype=torch.float32).square()

    def _clip_factor(self, norms: Tensor) -> Tensor:
        """1 where a norm is within the recipe's clip or not finite, else what brings it there."""
        assert self.recipe.grad_clip is not None
        return (self.recipe.grad_clip / norms).clamp(max=1.0).nan_to_num(nan=1.0)

    def _step_unit(self, unit: _Unit, grad: Tensor) -> None:
        rows = unit.rows if unit.modes.row_is_tensor else unit.rows.start
        first = unit.rows.start
        self.step_stats[rows, :SQUARES] = self._advance(
            unit.weight,
            grad.reshape(unit.weight.shape),
            unit.states,
            unit.start,
            self.numbers[rows],
            self.keys[first],
            self.scales[first],
            unit.element,
            unit.modes,
        )

    # ------------------------------------------------------------------------------------------- a step, from the host

    def begin(self, lr: float) -> None:
        """Start a step at this learning rate: before gradients are complete."""
        for target, numbers in zip(self.on_device, self.host_numbers(lr), strict=True):
            target.copy_(numbers)
        self.begin_step()

    def finish(self) -> StepFacts:
        """End a step: what became of it."""
        self.finish_step()
        return self.facts(self.step_stats.cpu())

    def step(self, lr: float) -> StepFacts:
        """One step from the `.grad` of the parameters that have one, clipped by the norm of all."""
        self.begin(lr)
        self.step_together({n: t.parameter.grad for n, t in self.tensors.items() if t.parameter.grad is not None})
        return self.finish()

    def facts(self, step_stats: Tensor) -> StepFacts:
        """What became of a step, from its `step_stats` on the host; notes who got a gradient and who changed."""
        groups: dict[str, Projection] = {}
        whole = Projection()
        rows = step_stats.tolist()
        for part, row in zip(self.took_part.values(), rows, strict=True):
            one = _projection(row, part.elements)
            part.got_gradient |= row[SQUARES] != 0
            part.changed |= one.moved != 0
            groups.setdefault(part.group, Projection()).merge(one)
            whole.merge(one)
        squares = sum(row[SQUARES] for row in rows)
        return StepFacts(math.sqrt(squares) if squares >= 0 else math.nan, groups, whole)


def _projection(row: list[float], elements: int) -> Projection:
    """A tensor's row of statistics."""
    out = Projection()
    out.realised, out.intended, out.moved = row[REALISED], row[INTENDED], row[MOVED]
    out.largest, out.clamped = row[LARGEST], int(row[CLAMPED]) if math.isfinite(row[CLAMPED]) else 0
    out.elements = elements
    return out
