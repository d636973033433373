"""One step of a tensor in plain torch, on any device: what an `Optimizer` says, and what all of them share.

    u = -lr · (d / divisor + decay·w - l2_sp·(w₀ - w)),   w ← w + u

d is the optimizer's direction. Clips, decoupled weight decay, L2-SP (Li et al. 2018), the rounding of masters and the
sums that say what became of an update are here, once.

Everything that changes from step to step lies in small tensors on the device, and nothing is read back: a CUDA graph
can hold a step. Arithmetic is float32. A tensor is seen as [R, W], W columns that no block of a packed state reaches
beyond; its elements keep their order, and so their random words.

A plugin file adds an optimizer (tests/plugins/lion.py):

    STATES = {"m": StateKind("m_dtype", MEAN_FORMATS, "running mean of gradients")}

    class Lion(Optimizer):
        states, keys = STATES, ("betas",)
        …

    OPTIMIZERS.register("lion", Lion())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from fgod.errors import UsageError
from fgod.nvfp4 import kernels
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import MASTERS, StateFormat, StateKind

if TYPE_CHECKING:
    from fgod.train.optimizer import Trained

RATE, DECAY, L2_SP, CLIP, DIVISOR = range(5)
"""Columns of a tensor's step numbers: -lr/divisor; lr·decay; lr·l2_sp; factor of the gradient; `Optimizer.divisor`.
`Optimizer.numbers` follow."""

SHARED_NUMBERS = 5

REALISED, INTENDED, MOVED, LARGEST, CLAMPED, AMAX, SQUARES = range(7)
"""Columns of a tensor's statistics of a step: see `fgod.train.efficiency.Projection`; the largest magnitude of its new
weights, 0 if it was not stepped; the gradient's squared norm before clipping, which `advance` does not compute."""

NUM_STATS = 7

CHUNK = {"cpu": 2**17, "cuda": 2**22}
"""Elements stepped at once by device type. Float32 temporaries are up to ten times as large: on a CPU they stay in its
caches; on a GPU launches are few."""


PARTS = (
    "weights", "l2_sp", "gradients", "quantised", "activations", "logits", "workspace", "process", "teacher", "asking",
    "pinned", "total",
)  # fmt: skip
"""Names in a prediction of memory that are no state's (`fgod.train.memory.Prediction`)."""


class Factors(NamedTuple):
    """The gradient outputsᵀ · inputs of a matrix [N, K], not yet made."""

    outputs: Tensor
    """[T, N]: the gradient of what the matrix gave, in the compute dtype."""
    inputs: Tensor
    """[T, K]: what it was given."""

    def product(self) -> Tensor:
        """[N, K] in the compute dtype."""
        return self.outputs.t() @ self.inputs

    def split(self, rows: Sequence[int]) -> tuple[Factors, ...]:
        """Of parts of the matrix that have so many rows each."""
        return tuple(Factors(part, self.inputs) for part in self.outputs.split(list(rows), 1))


class Kernels(Protocol):
    """An optimizer's own kernels: they step tensors by their rows in the optimizer's tables, and wait for nothing."""

    numbers: Tensor
    """Of a step, on the device: `host_numbers` are sent here."""
    sums: Tensor
    """What `stats` are made of; zeroed before each step."""

    def host_numbers(self, lr: float, step: int) -> Tensor:
        """What `numbers` must hold in a step (from 1), on the host."""

    def step(self, row: int, grad: Tensor) -> None:
        """Step a tensor by its gradient, clipped by its own norm."""

    def step_measured(self, row: int, grad: Tensor, squares: Tensor) -> None:
        """`step` of some rows of a tensor; `squares` float32 [1]: Σ g² of its whole gradient."""

    def takes_factors(self, row: int, factors: Factors) -> bool:
        """Whether `step_factors` serves a tensor and these factors."""

    def step_factors(self, row: int, factors: Factors) -> None:
        """`step` by their product."""

    def stats(self, numbers: Tensor) -> Tensor:
        """float32 [tensors, NUM_STATS] of the last step. `numbers`: the step numbers of `advance`."""


class Optimizer(ABC):
    """How a step follows from gradients. It keeps nothing itself: numbers are the recipe's, tensors the caller's.

    Registered in `fgod.registry.OPTIMIZERS` under its name, `train.optimizer`.
    """

    states: Mapping[str, StateKind]
    """What is kept of each element, by name; it begins as zero. Checkpoints and predictions of memory have these names,
    none of which may be one of `PARTS`."""
    kernel_masters: tuple[str, ...] = ()
    """Formats of masters (`train.master_dtype`) that its `kernels` step; none where it has no kernels."""
    keys: tuple[str, ...] = ()
    """Those of `fgod.train.recipe.OPTIMIZER_KEYS` that it reads, besides its states' formats. Others are refused where
    they are set."""

    def check(self, name: str) -> None:
        """Called when it is registered under a name.

        Raises:
            UsageError: a state has the name of another part of a prediction.
        """
        for state in self.states:
            if state in PARTS:
                raise UsageError(
                    f"train.optimizer {name!r}: found a state {state!r}, which names another part of a prediction of "
                    f"memory; expected a name that is none of {', '.join(PARTS)}"
                )

    @property
    def used_keys(self) -> frozenset[str]:
        """All of `OPTIMIZER_KEYS` that say something here."""
        return frozenset((*self.keys, *(kept.key for kept in self.states.values())))

    def divisor(self, recipe: TrainRecipe, step: int) -> float:
        """What a direction of this step (from 1) is too large by: AdamW's correction of the bias of m."""
        return 1.0

    def numbers(self, recipe: TrainRecipe, step: int) -> tuple[float, ...]:
        """What else `direction` needs and changes from step to step (from 1): always as many."""
        return ()

    @abstractmethod
    def direction(
        self, grad: Tensor, states: Sequence[Tensor], numbers: Sequence[Tensor], recipe: TrainRecipe
    ) -> Tensor:
        """Advance states by a gradient, in place; asks the device for nothing.

        Args:
            grad: float32 [R, W], clipped; may be changed.
            states: float32 [R, W] each, in the order of `states`.
            numbers: this step's `numbers`: no dimension, or [R, 1] where each row is a tensor.

        Returns:
            What weights step against, times `divisor`, in learning rates: float32 [R, W], no memory of a state's.
        """

    def kernels(self, tensors: Sequence[Trained], recipe: TrainRecipe) -> Kernels | None:
        """Kernels that step these tensors, in the order of their rows; None: plain torch steps them, which is said once
        on stderr where kernels would run.

        Raises:
            UsageError: kernels could, but for what the recipe asks.
        """
        if all(kernels.run_on(tensor.weight.device) for tensor in tensors):
            kernels.say_once(
                f"train.optimizer: {recipe.optimizer} has no fused kernel; plain torch steps on the GPU, many times "
                "slower"
            )
        return None


@dataclass(frozen=True)
class Modes:
    """What a tensor's step depends on besides step numbers."""

    optimizer: Optimizer
    recipe: TrainRecipe
    master: str
    formats: tuple[StateFormat, ...]
    """Of the states, for this tensor."""
    decays: bool
    """Whether it has weight decay."""
    chunk: int
    """Elements stepped at once."""
    row_is_tensor: bool = False
    """Each row is a tensor of its own, with its own step numbers."""


Stored = tuple[tuple[Tensor, ...], ...]
"""The parts of each state, in the order of `Optimizer.states`."""


def advance(
    weight: Tensor,
    grad: Tensor,
    states: Stored,
    start: Tensor | None,
    numbers: Tensor,
    key: Tensor,
    scale: Tensor,
    first: int,
    modes: Modes,
) -> Tensor:
    """Step weights [R, W] and their stored states in place.

    Args:
        grad: [R, W], any float dtype.
        start: [R, W], what L2-SP pulls to.
        numbers: float32 [SHARED_NUMBERS + the optimizer's own], or [R, …] where each row is a tensor.
        key: int32 [2], the tensor's key in this step (`fgod.nvfp4.rounding`).
        scale: float32, no dimension; the global scale of NVFP4 masters.
        first: index of the first element within its tensor.

    Returns:
        float32 [NUM_STATS - 1], or [R, NUM_STATS - 1]: all but `SQUARES`.
    """
    rows, update_clip = modes.row_is_tensor, modes.recipe.update_clip
    over = -1 if rows else None
    columns = [column.unsqueeze(-1) if rows else column for column in numbers.unbind(-1)]
    rate, decay, l2_sp, clip, divisor = columns[:SHARED_NUMBERS]
    old = weight.float()
    direction = _advance_states(grad, clip, states, columns[SHARED_NUMBERS:], modes)
    low, high = torch.aminmax(direction, dim=over)
    largest = torch.maximum(-low, high) / divisor.view(low.shape)
    clamped = torch.zeros_like(largest)
    if update_clip is not None:
        limit = divisor * update_clip
        within = torch.clamp(direction, -limit, limit)
        clamped = (within != direction).count_nonzero(over).float()
        direction = within
    update = direction.mul_(rate)
    if modes.decays:
        update.sub_(old * decay)
    if start is not None:
        update.add_((start.float() - old).mul_(l2_sp))
    new = MASTERS[modes.master].rounded(old + update, key, first, scale).to(weight.dtype)
    low, high = torch.aminmax(new, dim=over)
    change = new.float() - old
    weight.copy_(new)  # `old` may be this memory
    sums = [(change * update).sum(over), update.square_().sum(over), change.square_().sum(over)]
    return torch.stack([*sums, largest, clamped, torch.maximum(-low, high).float()], -1)


def _advance_states(grad: Tensor, clip: Tensor, states: Stored, numbers: Sequence[Tensor], modes: Modes) -> Tensor:
    """Advance stored states by a gradient; returns the direction, float32 [R, W]."""
    values = [format.decode(parts) for format, parts in zip(modes.formats, states, strict=True)]
    direction = modes.optimizer.direction(grad.float() * clip, values, numbers, modes.recipe)
    for format, parts, value in zip(modes.formats, states, values, strict=True):
        if not format.in_place:
            for stored, part in zip(parts, format.encode(value), strict=True):
                stored.copy_(part)
    return direction


def advance_in_chunks(
    weight: Tensor,
    grad: Tensor,
    states: Stored,
    start: Tensor | None,
    numbers: Tensor,
    key: Tensor,
    scale: Tensor,
    first: int,
    modes: Modes,
) -> Tensor:
    """The same, `modes.chunk` elements at a time: the same weights, with the temporaries of one chunk."""
    rows = max(1, modes.chunk // weight.shape[1])
    if modes.row_is_tensor or len(weight) <= rows:
        return advance(weight, grad, states, start, numbers, key, scale, first, modes)
    stats = []
    for at in range(0, len(weight), rows):
        part = slice(at, at + rows)
        stats.append(
            advance(
                weight[part],
                grad[part],
                tuple(tuple(stored[part] for stored in parts) for parts in states),
                None if start is None else start[part],
                numbers,
                key,
                scale,
                first + at * weight.shape[1],
                modes,
            )
        )
    return merged(torch.stack(stats))


def merged(stats: Tensor) -> Tensor:
    """Statistics [parts, columns] of the parts of a tensor, together: sums, and largest values."""
    out = stats.sum(0)
    for column in (LARGEST, AMAX):
        out[column] = stats[:, column].amax()
    return out
