"""AdamW on a device: every number that a step needs is sent beforehand, and what became of it is read when it is there.

A matrix is stepped when its group's gradient is complete (`take`), or kept until all are (`step_in_backward: false`).
All vectors of one width are stepped as one matrix whose rows are tensors: one launch instead of a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fgod.nvfp4.codec import device_global_scale
from fgod.nvfp4.rounding import key_words, step_key, stream
from fgod.train.codecs import segment_width
from fgod.train.device.advance import AMAX, CLAMPED, INTENDED, LARGEST, M_SHARE, MOVED, NUMBERS, REALISED, TOLD, Modes
from fgod.train.device.fused import Fused, serves
from fgod.train.device.ops import Ops
from fgod.train.device.weights import Bank, Masters, in_banks, split_rows
from fgod.train.efficiency import Projection
from fgod.train.optimizer import AdamW, StepFacts
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import M_KINDS, MASTERS, V_KINDS

SQUARES = TOLD
"""Column of a tensor's squared gradient norm, beside what `advance` tells."""

COLUMNS = ("realised", "intended", "moved", "largest", "clamped", "amax", "squares")
"""All of them, by the names that the kernels' sums have."""


@dataclass(frozen=True)
class _Piece:
    """What is stepped at once, seen as [R, W]: one matrix (`places` is its row of numbers), or vectors of one width."""

    weight: Tensor
    m: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    start: Tensor | None
    modes: Modes
    places: slice


def _kind_name(kinds: Mapping[str, type], kind: type) -> str:
    return next(name for name, one in kinds.items() if one is kind)


class DeviceAdamW(AdamW):
    """Steps masters by gradients of whole groups, without asking the device for anything.

    `begin_step`, then the backward pass with `take`, `finish_step`, and `receive` of what `told` then holds.
    """

    def __init__(
        self, masters: Masters, recipe: TrainRecipe, factors: Mapping[str, float], seed: int, ops: Ops
    ) -> None:
        parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in in_banks(masters).items()}
        super().__init__(parameters, replace(recipe, step_in_backward=False), factors, seed)  # no hooks: see `take`
        self.recipe, self.masters, self.ops, self.factors = recipe, masters, ops, factors
        self.names = list(self.tensors)
        device = masters.device
        count = len(self.names)
        self.numbers = torch.zeros(count, NUMBERS, device=device)
        self.keys = torch.zeros(count, 2, dtype=torch.int32, device=device)
        self.told = torch.zeros(count, TOLD + 1, device=device)
        self.scales = torch.ones(count, device=device)
        self._place = {name: place for place, name in enumerate(self.names)}
        self._streams = [stream(seed, name) for name in self.names]
        self.pieces = {name: self._piece(name) for name in self.names if self.tensors[name].parameter.ndim > 1}
        self.pieces |= {str(width): self._vector_piece(bank) for width, bank in masters.banks.items()}
        trained = list(self.tensors.values())
        self.kernels = Fused(trained, recipe) if recipe.step_in_backward and serves(trained, recipe) else None
        matrices = [tensor.parameter.ndim > 1 for tensor in self.tensors.values()]
        self._by_kernel = torch.tensor(matrices, device=device)[:, None]
        self.waiting: dict[str, Tensor] = {}
        self.amaxes = torch.zeros(count, device=device)
        self.measure()

    # ----------------------------------------------------------------------------------------------------- set up

    def measure(self) -> None:
        """The largest magnitude of each tensor, of masters that were written by others than a step."""
        magnitudes = [torch.aminmax(tensor.master.weight) for tensor in self.tensors.values()]
        self.amaxes.copy_(torch.stack([torch.maximum(-low, high).float() for low, high in magnitudes]))

    def _modes(self, name: str) -> Modes:
        tensor, recipe = self.tensors[name], self.recipe
        return Modes(
            _kind_name(MASTERS, type(tensor.master)),
            _kind_name(M_KINDS, type(tensor.m)),
            _kind_name(V_KINDS, type(tensor.v)),
            recipe.betas,
            recipe.eps,
            recipe.update_clip,
        )

    def _piece(self, name: str) -> _Piece:
        tensor, place = self.tensors[name], self._place[name]
        rows, columns = tensor.master.weight.shape
        width = segment_width(columns)
        height = rows * columns // width

        def seen(stored: Tensor) -> Tensor:
            return stored.view(height, stored.numel() // height)

        start = None if tensor.start is None else seen(tensor.start)
        m, v = (tuple(map(seen, moment.tensors)) for moment in (tensor.m, tensor.v))
        return _Piece(seen(tensor.master.weight), m, v, start, self._modes(name), slice(place, place + 1))

    def _vector_piece(self, bank: Bank) -> _Piece:
        """The vectors of a bank, whose moments move to one piece of memory too."""
        first = self._place[bank.names[0]]
        modes = replace(self._modes(bank.names[0]), row_is_tensor=True)
        m, v = (torch.zeros_like(bank.rows) for _ in range(2))
        start = bank.rows.clone() if self.recipe.l2_sp else None
        for row, name in enumerate(bank.names):
            tensor = self.tensors[name]
            tensor.m.tensors, tensor.v.tensors = (m[row : row + 1],), (v[row : row + 1],)
            tensor.start = None if start is None else start[row : row + 1]
        return _Piece(bank.rows, (m,), (v,), start, modes, slice(first, first + len(bank.names)))

    # ------------------------------------------------------------------------------------------------------- steps

    @property
    def sent(self) -> tuple[Tensor, ...]:
        """Where `host_numbers` belong on the device."""
        return (self.numbers, self.keys, *(() if self.kernels is None else (self.kernels.numbers,)))

    def host_numbers(self, lr: float) -> tuple[Tensor, ...]:
        """Numbers and keys of the next step, on the host; counts the step."""
        self.steps_done += 1
        beta1, beta2 = self.recipe.betas
        m_share, v_share = 1 - beta1**self.steps_done, 1 - beta2**self.steps_done
        rows = []
        for name, tensor in self.tensors.items():
            rate = lr * self.factors[name]
            rows.append([-rate / m_share, rate * tensor.decay, rate * self.recipe.l2_sp, m_share, v_share, 1.0])
        words = [key_words(step_key(one, self.steps_done)) for one in self._streams]
        sent = torch.tensor(rows), torch.tensor(words, dtype=torch.int32)
        if self.kernels is None:
            return sent
        return *sent, self.kernels.kernel.numbers_of(lr, self.steps_done, self.recipe.betas, self.recipe.update_clip)

    def take(self, group: str, grad: Tensor) -> None:
        """A complete gradient of a scale group [N, K], or of a bank of vectors: step it now, or keep it."""
        if group not in self.masters.groups:
            self._take_one(group, grad)
            return
        for name, part in split_rows(grad, self.masters.members[group], self.masters):
            self._take_one(name, part)

    def _take_one(self, name: str, grad: Tensor) -> None:
        if not self.recipe.step_in_backward:
            kept = self.waiting.get(name)
            if kept is None:
                self.waiting[name] = grad.float() if grad.dtype != torch.float32 else grad.clone()
            else:
                kept += grad
            return
        piece = self.pieces[name]
        if self.kernels is not None and not piece.modes.row_is_tensor:
            self.kernels.step(piece.places.start, grad)
            return
        self._note_squares(piece, grad)
        if self.recipe.grad_clip is not None:
            norms = self.told[piece.places, SQUARES].sqrt()
            self.numbers[piece.places, NUMBERS - 1] = self._clip_factor(norms)
        self._advance(piece, grad)

    def _note_squares(self, piece: _Piece, grad: Tensor) -> None:
        dim = 1 if piece.modes.row_is_tensor else None
        self.told[piece.places, SQUARES] = torch.linalg.vector_norm(grad, dim=dim, dtype=torch.float32).square()

    def _clip_factor(self, norms: Tensor) -> Tensor:
        """1 where a norm is within the recipe's clip or not finite, else what brings it there."""
        assert self.recipe.grad_clip is not None
        return (self.recipe.grad_clip / norms).clamp(max=1.0).nan_to_num(nan=1.0)

    def _advance(self, piece: _Piece, grad: Tensor) -> None:
        row = piece.places if piece.modes.row_is_tensor else piece.places.start
        told = self.ops.advance(
            piece.weight,
            grad.reshape(piece.weight.shape),
            piece.m,
            piece.v,
            piece.start,
            self.numbers[row],
            self.keys[piece.places.start],
            self.scales[piece.places.start],
            0,
            piece.modes,
        )
        self.told[row, :TOLD] = told

    def begin_step(self) -> None:
        """First of what a step computes: nothing is told yet; NVFP4 masters' own scales."""
        self.told.zero_()
        if self.kernels is not None:
            self.kernels.sums.zero_()
        if self.recipe.master_dtype.startswith("nvfp4"):
            self.scales.copy_(device_global_scale(self.amaxes))

    def finish_step(self) -> None:
        """Last: gradients that waited are stepped, clipped by the norm of all; magnitudes become the new weights'."""
        if not self.recipe.step_in_backward:
            for name, grad in self.waiting.items():
                self._note_squares(self.pieces[name], grad)
            if self.recipe.grad_clip is not None:
                self.numbers[:, NUMBERS - 1] = self._clip_factor(self.told[:, SQUARES].sum().sqrt())
            for name, grad in self.waiting.items():
                self._advance(self.pieces[name], grad)
            self.waiting.clear()
        if self.kernels is not None:
            self._tell_of_kernels(self.kernels)
        self.amaxes.copy_(torch.where(self.told[:, SQUARES] > 0, self.told[:, AMAX], self.amaxes))

    def _tell_of_kernels(self, fused: Fused) -> None:
        """What the kernels summed up, in the columns of `told`; vectors, which they do not step, keep theirs."""
        added, most = fused.sums.sum(-1), fused.sums.amax(-1)
        slots = fused.kernel.SLOTS
        by_name = {slot: added[:, place] for place, slot in enumerate(slots)}
        by_name["amax"] = most[:, slots.index("amax")]
        by_name["largest"] = most[:, slots.index("largest")] / self.numbers[:, M_SHARE]
        told = torch.stack([by_name[slot] for slot in COLUMNS], 1)
        self.told.copy_(torch.where(self._by_kernel, told, self.told))

    # ----------------------------------------------------------------------------------------------------- reading

    def receive(self, told: Tensor) -> StepFacts:
        """What became of a step, from `told` on the host."""
        groups: dict[str, Projection] = {}
        whole = Projection()
        rows = told.tolist()
        for tensor, row in zip(self.tensors.values(), rows, strict=True):
            one = Projection()
            one.realised, one.intended, one.moved = row[REALISED], row[INTENDED], row[MOVED]
            one.largest, one.clamped = row[LARGEST], int(row[CLAMPED]) if math.isfinite(row[CLAMPED]) else 0
            one.elements = tensor.parameter.numel()
            tensor.got_gradient |= row[SQUARES] != 0
            tensor.changed |= one.moved != 0
            groups.setdefault(tensor.group, Projection()).merge(one)
            whole.merge(one)
        squares = sum(row[SQUARES] for row in rows)
        return StepFacts(math.sqrt(squares) if squares >= 0 else math.nan, groups, whole)
