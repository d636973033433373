"""Which tensors took part in training: every one of a full-parameter run must, embeddings, norms and head too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from fgod.errors import FgodError
from fgod.exporters.nvfp4 import NVFP4
from fgod.models.architecture import Architecture
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.folders import Weights
from fgod.system.table import write_table

COLUMNS = ("stage", "lineage", "tensor", "alias_of", "trainable", "got_gradient", "changed_share", "exported_as")


@dataclass(frozen=True)
class Participant:
    """One tensor of the model. changed_share: share of its elements that differ from the stage's start."""

    tensor: str
    alias_of: str
    trainable: bool
    got_gradient: bool
    changed_share: float
    exported_as: str


class HoleError(FgodError):
    """A tensor of a full-parameter run was left out. The message names it."""


def participation(
    masters: Iterable[tuple[str, Tensor]],
    start: Weights,
    got_gradient: Mapping[str, bool],
    family: Architecture,
    tied: bool,
    dtype: str,
) -> list[Participant]:
    """The participants of a run; `start` holds what the masters were. A tied head is listed beside its embedding."""
    out = []
    for name, master in masters:
        changed = (start.read(name).to(master.device) != master).count_nonzero().item() / master.numel()
        stored = dtype if family.scale_group(name) is None else NVFP4.name
        out.append(Participant(name, "", name in got_gradient, got_gradient.get(name, False), changed, stored))
        if tied and name == EMBEDDING:
            one = out[-1]
            out.append(Participant(TIED_HEAD, name, one.trainable, one.got_gradient, changed, one.exported_as))
    return out


def write_participation(path: Path, participants: list[Participant], stage: str, lineage: str) -> None:
    """participation.tsv, one line for each tensor."""
    rows = [{"stage": stage, "lineage": lineage, **asdict(p)} for p in participants]
    write_table(path, COLUMNS, rows)


def check_holes(participants: list[Participant]) -> None:
    """Raises HoleError naming each tensor that is not trainable, got no gradient or did not change, and why."""
    holes = [f"{p.tensor} {why}" for p in participants if (why := _hole(p))]
    if holes:
        count = f"{len(holes)} of {len(participants)} tensors"
        raise HoleError(f"{count} had no part in a full-parameter run: {'; '.join(holes)}")


def _hole(p: Participant) -> str:
    if not p.trainable:
        return "is not trainable"
    if not p.got_gradient:
        return "got no gradient"
    if p.changed_share == 0:
        return "did not change"
    return "" if p.exported_as else "is not exported"
