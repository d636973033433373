"""The optimizer of the rows that a rank owns, and how gradients of all ranks' rows of a batch come to it.

Norms for clipping, and what is said of a step, are those of whole tensors. Vectors are on every rank, which steps them
all by the same gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fgod.train.device.ops import Ops
from fgod.train.device.weights import Masters
from fgod.train.efficiency import group_of
from fgod.train.optimizer import TensorOptimizer, TookPart, as_matrix
from fgod.train.ranks.group import Pending, Ranks
from fgod.train.ranks.shards import TABLES, Shards
from fgod.train.ranks.sums import squares_of, summed
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import as_matrix_shape
from fgod.train.update import AMAX, CLIP, LARGEST, NUM_STATS, SQUARES, Factors

MAXIMA = (LARGEST, AMAX)
"""Statistics of which the largest of all ranks counts, not the sum."""


class RankOptimizer(TensorOptimizer):
    """Steps a rank's rows; its facts are of whole tensors, on every rank the same."""

    _complete = False
    """Whether it is set up, beyond what the base sets up and measures."""

    def __init__(
        self,
        masters: Masters,
        shards: Shards,
        ranks: Ranks,
        recipe: TrainRecipe,
        factors: Mapping[str, float],
        seed: int,
        ops: Ops,
    ) -> None:
        """`masters`: those of this rank; `factors`: of all tensors."""
        elements = {
            name: shards.rows(name, ranks.rank).start * tensor.shape[1]
            for name, tensor in masters.tensors.items()
            if tensor.ndim > 1
        }
        banks = {str(width): bank for width, bank in masters.banks.items()}
        super().__init__(masters.tensors, recipe, factors, seed, banks, ops.advance, elements)
        self.ranks, self.shards = ranks, shards
        whole = shards.whole.tensors
        banked = [name for bank in masters.banks.values() for name in bank.names]
        self._all_names = [name for name in whole if name not in set(banked)] + banked
        self.took_part = {name: TookPart(group_of(name), whole[name].numel()) for name in self._all_names}
        device = self.step_stats.device
        self._places = torch.tensor([self._all_names.index(name) for name in self.names], device=device)
        self._counted = torch.tensor([name not in set(banked) or ranks.first for name in self.names], device=device)
        self._all_stats = torch.zeros(len(self._all_names), NUM_STATS, device=device)
        self._all_amaxes = torch.zeros(len(self._all_names), device=device)
        self._complete = True
        self.share_amaxes()

    @property
    def whole_names(self) -> list[str]:
        return self._all_names

    @property
    def whole_stats(self) -> Tensor:
        return self._all_stats

    @property
    def whole_amaxes(self) -> Tensor:
        return self._all_amaxes

    def stored(self) -> RankTensors:
        local = {name: self._parts(name) for name in self.tensors}
        return RankTensors(self.ranks, self.shards, local, self._stored_like())

    def _parts(self, name: str) -> dict[str, Tensor]:
        tensor = self.tensors[name]
        states = {f"{part}{i}": one for part, s in tensor.states.items() for i, one in enumerate(s.tensors)}
        return {"w": tensor.weight, **states}

    def _stored_like(self) -> dict[str, dict[str, Tensor]]:
        """Of each tensor all that is stored of it whole, on the device `meta`."""
        out = {}
        for name, whole in self.shards.whole.tensors.items():
            out[name] = {"w": as_matrix(whole)}
            for part, kept in self.method.states.items():
                made = kept.formats[kept.format_of(self.recipe, whole.shape)]
                stored = made.allocate(as_matrix_shape(whole.shape), torch.device("meta"))
                out[name] |= {f"{part}{i}": one for i, one in enumerate(stored)}
        return out

    @torch.no_grad()
    def measure(self) -> None:
        super().measure()
        if self._complete:
            self.share_amaxes()

    def share_amaxes(self) -> None:
        """Largest magnitudes of whole tensors, from those of all ranks' rows."""
        own = torch.zeros_like(self._all_amaxes).index_copy_(0, self._places, self.amaxes)
        self._all_amaxes.copy_(self.ranks.largest(own))

    # ---------------------------------------------------------------------------------------------------------- a step

    @torch.no_grad()
    def step_rows(self, name: str, grad: Tensor, own: Tensor, whole: Tensor) -> None:
        """Step this rank's rows of a tensor by their gradient.

        Args:
            own: Σ g² of these rows.
            whole: float32 [1], Σ g² of the whole tensor, by which it is clipped.
        """
        unit = self._units[name]
        if self.kernels is not None:
            self.kernels.step_measured(unit.rows.start, grad, whole)
            return
        self.step_stats[unit.rows, SQUARES] = own
        if self.recipe.grad_clip is not None:
            self.numbers[unit.rows, CLIP] = self._clip_factor(whole.sqrt())
        self._step_unit(unit, grad)

    def _all_squares(self) -> Tensor:
        own = (self.step_stats[:, SQUARES] * self._counted).sum()
        return self.ranks.sums(own[None]).wait()

    def finish_step(self) -> None:
        super().finish_step()
        own = torch.where(self._counted[:, None], self.step_stats, 0.0)
        mine = torch.zeros_like(self._all_stats).index_copy_(0, self._places, own)
        stats = self.ranks.gather(mine).wait()
        self._all_stats.copy_(stats.sum(0))
        for column in MAXIMA:
            self._all_stats[:, column] = stats[:, :, column].amax(0)
        amaxes = self._all_stats[:, AMAX]
        self._all_amaxes.copy_(torch.where(amaxes != 0, amaxes, self._all_amaxes))


class RankTensors:
    """What is stored of all tensors, whole: a `StoredTensors` of `NAME|PART`, or of names where there is one part."""

    def __init__(
        self,
        ranks: Ranks,
        shards: Shards,
        local: Mapping[str, Mapping[str, Tensor]],
        like: Mapping[str, Mapping[str, Tensor]],
        alone: bool = False,
    ) -> None:
        """`local`: parts of each tensor of which this rank has rows; `like`: of all, whole, on the device `meta`."""
        self.ranks, self.shards, self.local, self._like = ranks, shards, local, like
        every = [(name, part) for name, parts in like.items() for part in parts]
        self._keys = {name if alone else f"{name}|{part}": (name, part) for name, part in every}

    @property
    def writes(self) -> bool:
        return self.ranks.first

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    def names(self) -> list[str]:
        return list(self._keys)

    def like(self, name: str) -> Tensor:
        tensor, part = self._keys[name]
        return self._like[tensor][part]

    def whole(self, name: str) -> Tensor:
        tensor, part = self._keys[name]
        if tensor not in self.shards.spans:
            return self.local[tensor][part]
        like = self.like(name)
        out = torch.empty(like.shape, dtype=like.dtype, device=self.ranks.device)
        for rank, (low, high) in enumerate(self.shards.spans[tensor]):
            if high == low:
                continue
            if rank == self.ranks.rank:
                out[low:high] = self.local[tensor][part]
            else:
                self.ranks.receive(out[low:high], rank)
        return out

    def help_read(self) -> None:
        for tensor, part in self._keys.values():
            low, high = self.shards.spans.get(tensor, ((0, 0),) * self.ranks.count)[self.ranks.rank]
            if high > low:
                self.ranks.send(self.local[tensor][part], 0)

    def put(self, name: str, value: Tensor) -> None:
        tensor, part = self._keys[name]
        if tensor in self.local:
            self.local[tensor][part].copy_(value[self.shards.rows(tensor, self.ranks.rank)])


def factors_are_less(tokens: int, height: int, width: int) -> bool:
    """Whether the factors of a gradient [height, width], of so many tokens in all, are fewer numbers than it has."""
    return tokens * (height + width) < height * width


class _Sent(NamedTuple):
    """A group's gradient under way to its owners."""

    group: str
    pending: Pending
    height: int
    """Rows of the group where factors travel, of which this rank takes its own; 0: its rows of the gradient."""


@dataclass
class _Measured:
    """Gradients of this rank's rows, whose squares are added up over ranks."""

    names: tuple[str, ...]
    """Of the tensors of the group, whose squares `whole` has."""
    grads: dict[str, Tensor]
    own: dict[str, Tensor]
    whole: Pending


class RankGradients:
    """Hands gradients of groups to their owners, a group after the other while the backward pass goes on.

    A gradient goes three ways through it: to its owners; its squares to all; the step. Each call of `on_grad` moves
    those before it by one, so that nothing waits for what was sent just now.
    """

    def __init__(self, optimizer: RankOptimizer, masters: Masters) -> None:
        self.optimizer, self.masters, self.ranks = optimizer, masters, optimizer.ranks
        self.waiting: dict[str, Tensor] = {}
        self._sent: deque[_Sent] = deque()
        self._measured: deque[_Measured] = deque()

    def on_grad(self, group: str, grad: Tensor | Factors) -> None:
        """The gradient of a group by this rank's rows of the batch; of a table the whole gradient of its own rows."""
        self._move()
        if group not in self.masters.groups:
            assert isinstance(grad, Tensor)
            self._vectors(group, self.ranks.sums(grad).wait())
        elif group in TABLES:
            assert isinstance(grad, Tensor)
            self._arrived(group, grad)
        elif isinstance(grad, Factors):
            self._sent.append(self._send(group, grad))
        else:
            self._sent.append(_Sent(group, self.ranks.parts(grad), 0))

    def _send(self, group: str, factors: Factors) -> _Sent:
        """Factors where they are less than what they give: at few tokens, whatever the matrix."""
        height, width = factors.outputs.shape[1], factors.inputs.shape[1]
        if factors_are_less(len(factors.inputs) * self.ranks.count, height, width):
            return _Sent(group, self.ranks.gather(torch.cat((factors.outputs, factors.inputs), 1)), height)
        return _Sent(group, self.ranks.parts(factors.product()), 0)

    def _move(self) -> None:
        if self._measured:
            self._step(self._measured.popleft())
        if self._sent:
            group, pending, height = self._sent.popleft()
            got = pending.wait()
            if height:
                both, rows = got.flatten(0, 1), len(self.masters.groups[group])
                first = self.ranks.rank * rows
                self._arrived(group, both[:, first : first + rows].t() @ both[:, height:])
            else:
                self._arrived(group, *summed(got, [len(self.masters.tensors[name]) for name in self._own(group)]))

    def _own(self, group: str) -> list[str]:
        """The tensors of a group of which this rank has rows."""
        return [name for name in self.masters.members[group] if name in self.masters.tensors]

    def _arrived(self, group: str, grad: Tensor, squares: Tensor | None = None) -> None:
        """The gradient of this rank's rows of a group, and Σ g² of each of its tensors if that is known."""
        own = self._own(group)
        parts = grad.split([len(self.masters.tensors[name]) for name in own])
        grads = dict(zip(own, parts, strict=True))
        if not self.optimizer.recipe.step_in_backward:
            for name, part in grads.items():
                self._wait(name, part)
            return
        names = self.masters.members[group]
        found = squares if squares is not None else [squares_of(part) for part in parts]
        squares_by = dict(zip(own, found, strict=True))
        none = torch.zeros((), device=grad.device)
        whole = self.ranks.sums(torch.stack([squares_by.get(name, none) for name in names]))
        self._measured.append(_Measured(names, grads, squares_by, whole))

    def _step(self, measured: _Measured) -> None:
        whole = measured.whole.wait()
        for place, name in enumerate(measured.names):
            if name in measured.grads:
                self.optimizer.step_rows(name, measured.grads[name], measured.own[name], whole[place : place + 1])

    def _vectors(self, key: str, grad: Tensor) -> None:
        if self.optimizer.recipe.step_in_backward:
            self.optimizer.on_grad(key, grad)
        else:
            self._wait(key, grad)

    def _wait(self, key: str, grad: Tensor) -> None:
        if key in self.waiting:
            self.waiting[key] += grad
        else:
            self.waiting[key] = grad.to(torch.float32, copy=True)

    def finish_piece(self) -> None:
        """After the last gradient of a piece: nothing is under way any more."""
        while self._sent or self._measured:
            self._move()

    def finish_step(self) -> None:
        """After the last gradient of a step."""
        self.finish_piece()
        if self.waiting:
            self.optimizer.step_together(self.waiting)
            self.waiting.clear()
        self.optimizer.finish_step()
