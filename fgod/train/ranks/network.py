"""The network of a rank: its own rows of a batch, weights that come from all ranks as they are needed.

Projections: quantised weights are gathered in NVFP4, `AHEAD` of them before they are needed, and forgotten after the
product. Tables of tokens stay where they are: each rank looks up and multiplies by its own tokens for all ranks' rows,
and hidden states travel instead, which are smaller than a table of 150,000 rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fgod.models.names import EMBEDDING
from fgod.train.device.attention import PackedRows
from fgod.train.device.head import Vocabulary
from fgod.train.device.network import Inputs, Network, OnGrad, SavePolicy
from fgod.train.device.ops import Ops
from fgod.train.device.weights import Masters
from fgod.train.ranks.group import Pending, Ranks
from fgod.train.ranks.packed import packed, unpacked
from fgod.train.ranks.shards import Shards, bounds
from fgod.train.recipe import TrainRecipe

AHEAD = 4
"""Weights that are under way while one is used: a layer's."""


class SharedVocabulary(Vocabulary):
    """The tokens of one rank. Hidden states are those of all ranks' labels, one rank's after the other's."""

    def __init__(self, ranks: Ranks, first: int) -> None:
        self.ranks, self.first = ranks, first

    def log_sum_exp(self, top: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        tops, totals = self.ranks.gather(torch.stack((top, total))).wait().unbind(1)
        most = tops.amax(0)
        return most, (totals * torch.exp(tops - most)).sum(0)

    def picked(self, logits: Tensor, absent: float) -> Tensor:
        found = self.ranks.gather(logits).wait()
        return found.sum(0) if absent == 0 else found.amax(0)

    def to_hidden(self, grad: Tensor) -> Tensor:
        return self.ranks.exchange(grad).wait()


class RankNetwork(Network):
    """Loss and gradients by one rank's rows of a batch; the loss of each label is that of all ranks' labels."""

    def __init__(
        self, masters: Masters, shards: Shards, ranks: Ranks, ops: Ops, dtype: torch.dtype, recipe: TrainRecipe
    ) -> None:
        """`masters`: those of this rank."""
        super().__init__(masters, replace(ops, products=None), dtype, recipe.block_scales, recipe.head_gradient)
        self.shards, self.ranks = shards, ranks
        self.vocab = len(shards.whole.tensors[EMBEDDING])
        self.tokens = SharedVocabulary(ranks, bounds(self.vocab, ranks.rank, ranks.count)[0])
        self._under_way: dict[str, Pending] = {}
        self._next: deque[str] = deque()

    # ------------------------------------------------------------------------------------------------------ projections

    def _will_use(self, groups: Iterable[str]) -> None:
        """Say which weights are used next, in about this order."""
        assert not self._under_way
        self._next = deque(groups)

    def _send_next(self) -> None:
        group = self._next.popleft()
        sent = packed(self.masters.groups[group], self.scales[group], self.block_scales)
        self._under_way[group] = self.ranks.gather(sent)

    def quantised(self, group: str) -> Tensor:
        while group not in self._under_way:
            self._send_next()
        pending = self._under_way.pop(group)
        while self._next and len(self._under_way) < AHEAD and self._next[0] not in self._under_way:
            self._send_next()
        columns = self.masters.groups[group].shape[1]
        return unpacked(pending.wait(), columns, self.scales[group], self.dtype)

    def _of_layer(self, layer: int, names: Sequence[str]) -> list[str]:
        return [f"model.layers.{layer}.{name}_proj" for name in names]

    def _forward_order(self) -> list[str]:
        names = ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")
        return [group for layer in range(self.layers) for group in self._of_layer(layer, names)]

    def _backward_order(self) -> list[str]:
        names = ("mlp.gate_up", "mlp.down", "self_attn.qkv", "self_attn.o")
        return [group for layer in reversed(range(self.layers)) for group in self._of_layer(layer, names)]

    # ----------------------------------------------------------------------------------------------------------- tables

    def _own(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of this rank's table for ids [T], any row where a token is another rank's; and which are its own."""
        table = self.masters.tensors[EMBEDDING]
        places = ids - self.tokens.first
        own = (places >= 0) & (places < len(table))
        spread = torch.arange(len(ids), device=ids.device) % len(table)  # many zeros for one row would be added in turn
        return torch.where(own, places, spread), own

    def embed(self, ids: Tensor) -> Tensor:
        places, own = self._own(self.ranks.gather(ids.flatten()).wait().flatten())
        found = F.embedding(places, self.masters.tensors[EMBEDDING]).to(self.dtype)
        mine: Tensor = self.ranks.exchange(torch.where(own[:, None], found, 0)).wait()  # one of them is not 0: exact
        return mine.to(self.dtype)

    def _table_gradient(self, ids: Tensor, grad: Tensor, to_head: Tensor | None) -> Tensor:
        places, own = self._own(self.ranks.gather(ids).wait().flatten())
        every = self.ranks.gather(grad).wait().flatten(0, 1)
        return super()._table_gradient(places, torch.where(own[:, None], every, 0), to_head)

    def _head_losses(self, hidden: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        return super()._head_losses(self.ranks.gather(hidden).wait().flatten(0, 1), inputs)

    # ---------------------------------------------------------------------------------------------------------- a step

    @torch.no_grad()
    def logits(self, ids: Tensor, packed: PackedRows | None = None) -> Tensor:
        """float32 [B, S, V] of the same ids on every rank."""
        self._will_use(self._forward_order())
        own = super().logits(ids, packed)
        each = -(-self.vocab // self.ranks.count)
        filled = F.pad(own, (0, each - own.shape[-1]))
        parts = self.ranks.gather(filled).wait()
        return parts.permute(1, 2, 0, 3).flatten(2)[..., : self.vocab]

    def label_losses(self, inputs: Inputs, policies: Sequence[SavePolicy], on_grad: OnGrad) -> Tensor:
        """As `Network`'s, of this rank's rows. Of the inputs ids and positions are this rank's, labels, weights and
        soft targets those of all ranks, one after the other."""
        self._will_use([*self._forward_order(), *self._backward_order()])
        return super().label_losses(inputs, policies, on_grad)
