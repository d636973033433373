"""Which rows of which tensors a rank owns: as many of each scale group and of each table of tokens as any other, in
order; vectors are on every rank. Rows are whole: no block of a quantised weight or of a packed state is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgod.errors import UsageError
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.train.device.weights import Bank, Masters, allocate, read_into

TABLES = (EMBEDDING, TIED_HEAD)


def bounds(rows: int, rank: int, count: int) -> tuple[int, int]:
    """The rows of a rank: the first one, and the one after the last; all have as many but the last ranks."""
    each = -(-rows // count)
    return min(rank * each, rows), min((rank + 1) * each, rows)


@dataclass(frozen=True)
class Shards:
    """How a model is split over so many ranks. `whole`: its masters, on the device `meta`."""

    whole: Masters
    count: int
    spans: dict[str, tuple[tuple[int, int], ...]] = field(init=False)
    """Of each matrix and rank the first of its rows and the one after the last; equal where it has none."""

    def __post_init__(self) -> None:
        spans: dict[str, tuple[tuple[int, int], ...]] = {}
        for group, names in self.whole.members.items():
            height, first = len(self.whole.groups[group]), 0
            if group not in TABLES and height % self.count:
                raise UsageError(
                    f"train.gpus: found {self.count}, which does not divide the {height} rows of {group}; expected a "
                    "number that divides the rows of all projections"
                )
            cuts = [bounds(height, rank, self.count) for rank in range(self.count)]
            for name in names:
                rows = len(self.whole.tensors[name])
                spans[name] = tuple(
                    (min(max(low - first, 0), rows), min(max(high - first, 0), rows)) for low, high in cuts
                )
                first += rows
        object.__setattr__(self, "spans", spans)

    def rows(self, name: str, rank: int) -> slice:
        """Of a tensor the rows that a rank owns; of a vector all of it."""
        return slice(*self.spans[name][rank]) if name in self.spans else slice(None)

    def own(self, rank: int, device: torch.device) -> Masters:
        """Memory for the masters of a rank, not yet written; tensors of which it owns no row are not among them."""
        tensors: dict[str, Tensor] = {}
        groups = {}
        for group, names in self.whole.members.items():
            whole = self.whole.groups[group]
            low, high = bounds(len(whole), rank, self.count)
            groups[group] = torch.empty(high - low, whole.shape[1], dtype=whole.dtype, device=device)
            heights = [end - begin for begin, end in (self.spans[name][rank] for name in names)]
            parts = groups[group].split(heights)
            tensors.update((name, part) for name, part in zip(names, parts, strict=True) if len(part))
        banks = {}
        for width, bank in self.whole.banks.items():
            banks[width] = Bank(bank.names, torch.empty(len(bank.names), width, device=device))
            tensors.update(zip(bank.names, banks[width].rows.unbind(), strict=True))
        ordered = {name: tensors[name] for name in self.whole.tensors if name in tensors}
        return Masters(self.whole.config, ordered, groups, self.whole.members, banks)


def split(config: Mapping[str, Any], master_dtype: str, count: int, where: str) -> Shards:
    """How a model of this config is split.

    Raises:
        UsageError: so many ranks do not divide the rows of a projection.
    """
    return Shards(allocate(config, master_dtype, torch.device("meta"), where), count)


def stream_shard(folder: Path, shards: Shards, rank: int, device: torch.device) -> Masters:
    """A rank's masters, of a folder of plain weights; raises what `fgod.train.device.weights.stream_in` does."""
    masters = shards.own(rank, device)
    targets = {name: (shards.rows(name, rank), tensor) for name, tensor in masters.tensors.items()}
    read_into(folder, shards.whole, targets)
    return masters
