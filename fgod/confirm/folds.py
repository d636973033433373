"""Which fold of the held-back wordings a candidate is asked. The record is written once, before any reply is read.

A walk that comes to a release a second time, with other weights, has been steered by what the first one showed. So each
candidate has a fold of its own, as long as there are any. Candidates of several chains may become due at once: who
decides about them reserves a fold for each (`Reservations`), in memory alone, and each is recorded when it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fgod.documents import FoldOf, Folds
from fgod.errors import FgodError
from fgod.layout import all_confirmations, folds
from fgod.system.lock import held

WAIT_SECS = 60.0
"""For as long another command that writes the record is waited for; it takes milliseconds."""


@dataclass(frozen=True)
class Assignment:
    """A candidate's fold. `asked_before`: the lineages that were asked it earlier: its figures are not held back."""

    fold: int
    asked_before: tuple[str, ...]


def assign(given: Sequence[FoldOf], lineage: str, available: Sequence[int]) -> Assignment:
    """The fold of a candidate: its own if it has one, else the first that no other was asked, else the last.

    Args:
        given: the record so far, in the order of giving.
        available: the folds that the probes have, in any order; not empty.
    """
    own = [place for place, entry in enumerate(given) if entry.lineage == lineage and entry.fold in available]
    earlier = given[: own[-1]] if own else given
    used = {entry.fold for entry in given}
    fold = given[own[-1]].fold if own else next((f for f in sorted(available) if f not in used), max(available))
    before = [entry.lineage for entry in earlier if entry.fold == fold and entry.lineage != lineage]
    return Assignment(fold, tuple(dict.fromkeys(before)))


@dataclass
class Reservations:
    """The folds of the candidates that one process decides about: by the record, and what it gave out itself since.

    Args:
        results: the folder of the record.
        available: the folds that the probes have; empty where no wordings are held back.
        given: what this process gave out, in order.
    """

    results: Path
    available: Sequence[int]
    given: list[FoldOf] = field(default_factory=list)

    def of(self, stage: str, lineage: str) -> Assignment:
        """A candidate's fold, which is its own from now on.

        Raises:
            FgodError: see `read_folds`.
        """
        recorded = read_folds(self.results)
        known = {entry.lineage for entry in recorded}
        reserved = [entry for entry in self.given if entry.lineage not in known]
        found = assign([*recorded, *reserved], lineage, self.available)
        self.given = with_assignment(self.given, stage, lineage, found.fold)
        return found


def with_assignment(given: Sequence[FoldOf], stage: str, lineage: str, fold: int) -> list[FoldOf]:
    """The record after a candidate was given a fold; as it was if that stands there already."""
    entry = FoldOf(fold=fold, stage=stage, lineage=lineage)
    return [*given] if entry in given else [*given, entry]


def read_folds(results: Path) -> list[FoldOf]:
    """The record; empty before any candidate was asked.

    Raises:
        FgodError: it was edited, or it is gone or lacks a candidate though the figures of one stand.
    """
    path = folds(results)
    given = Folds.read(path).given if path.exists() else []
    known = {(entry.stage, entry.lineage) for entry in given}
    for place in all_confirmations(results):
        if (place.folder.parent.name, place.folder.name) not in known:
            how = "it does not name" if path.exists() else "it is gone, though figures stand of"
            raise FgodError(
                f"{path}: {how} the candidate {place.folder.parent.name} {place.folder.name}; which wordings were "
                f"asked is not forgotten without their figures: bring it back, or delete {path.parent} as a whole"
            )
    return given


def give_fold(results: Path, stage: str, lineage: str, fold: int, available: Sequence[int]) -> Assignment:
    """Record a candidate's fold, before it is asked: its own, one that no other was asked, or the last one.

    Candidates that were decided at once may be asked in any order, so the first free fold may be another's.

    Raises:
        FgodError: see `read_folds`; or another fold is its own, or this one is another's.
    """
    folds(results).parent.mkdir(parents=True, exist_ok=True)
    with held(folds(results).with_suffix(".lock"), "the record of folds", WAIT_SECS):
        given = read_folds(results)
        found = assign(given, lineage, available)
        own = any(entry.lineage == lineage and entry.fold in available for entry in given)
        fresh = fold not in {entry.fold for entry in given}
        if found.fold != fold and (own or not (fresh or fold == max(available))):
            raise FgodError(
                f"{folds(results)}: found fold {found.fold} for {stage} {lineage}, expected {fold}: another candidate "
                "was asked meanwhile; run snakemake again"
            )
        entries = with_assignment(given, stage, lineage, fold)
        Folds(given=entries).write(folds(results))
        return assign(entries, lineage, available)
