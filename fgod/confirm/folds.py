"""Which fold of the held-back wordings a candidate is asked. The record is written once, before any reply is read.

A walk that comes to a release a second time, with other weights, has been steered by what the first one showed. So each
candidate has a fold of its own, as long as there are any. Candidates of several chains may become due at once: who
decides about them reserves a fold for each (`Reservations`), and each is recorded when it is asked.

    folds.json      who was asked what: nothing leaves it
    reserved.json   who will be asked what. The snakemake that is alone at work here writes it, so that jobs on other
                    nodes, which decide by the records, decide the same

A reservation ends when its candidate is asked, or when a snakemake starts whose walks do not have it as a candidate.
What ends so decides nothing while the walks of that snakemake are made, before it may write. So one of the same config
takes no fold from a job that a snakemake before it left in a cluster's queue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fgod.documents import FoldOf, Folds, ReservedFolds
from fgod.errors import FgodError
from fgod.layout import all_confirmations, folds, reserved_folds
from fgod.system.lock import held

WAIT_SECS = 60.0
"""For as long another command that writes the record is waited for; it takes milliseconds."""


@dataclass(frozen=True)
class Assignment:
    """A candidate's fold. `asked_before`: the lineages that were asked it earlier: its figures are not held back."""

    fold: int
    asked_before: tuple[str, ...]


def own_fold(given: Sequence[FoldOf], lineage: str, available: Sequence[int]) -> int | None:
    """The fold that a candidate was given last, of those that the probes have."""
    own = [entry.fold for entry in given if entry.lineage == lineage and entry.fold in available]
    return own[-1] if own else None


def may_have(given: Sequence[FoldOf], lineage: str, fold: int, available: Sequence[int]) -> bool:
    """Whether a candidate may be asked a fold: its own; without one any that is no other's, or the last one."""
    own = own_fold(given, lineage, available)
    if own is not None:
        return fold == own
    fresh = fold not in {entry.fold for entry in given}
    return fold in available and (fresh or fold == max(available))


def holding(recorded: Sequence[FoldOf], reserved: Sequence[FoldOf], available: Sequence[int]) -> list[FoldOf]:
    """The reservations that hold beside the record: those of candidates that have no fold yet, if they may have it."""
    found: list[FoldOf] = []
    for entry in reserved:
        given = [*recorded, *found]
        new = own_fold(given, entry.lineage, available) is None
        if new and may_have(given, entry.lineage, entry.fold, available):
            found.append(entry)
    return found


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
    """The folds of the candidates that one process decides about: by what is recorded and reserved, and by what it gave
    out itself since. It remembers that for itself alone, until it is told to keep it for others too.

    Args:
        results: the folder of the record.
        available: the folds that the probes have; empty where no wordings are held back.
        candidates: the lineages of the candidates of all walks, as they are expected. Reservations of others decide
            nothing, but for a run that is asked about: jobs of a run that was met later decide as it was reserved.
        given: what this process gave out, in order.
        kept: whether what it gives out is written to reserved.json (see `keep`).
    """

    results: Path
    available: Sequence[int]
    candidates: Collection[str]
    given: list[FoldOf] = field(default_factory=list, init=False)
    kept: bool = field(default=False, init=False)

    def of(self, stage: str, lineage: str) -> Assignment:
        """A candidate's fold, which is its own from now on.

        Raises:
            FgodError: see `read_folds`; reserved.json was edited.
        """
        recorded, reserved = self._known(lineage)
        known = [*recorded, *reserved]
        if self.kept and own_fold(known, lineage, self.available) is None:
            found = self._reserve(stage, lineage)
        else:
            found = assign(known, lineage, self.available)
        self.given = with_assignment(self.given, stage, lineage, found.fold)
        return found

    def keep(self) -> None:
        """Let other processes know from now on what this one gives out, and what it gave out so far. Only the snakemake
        that is alone at work here may do so: it drops the reservations of runs that are no candidates.

        Raises:
            FgodError: see `of`; or another process reserved or recorded otherwise since this one decided.
        """
        if not self.available:
            return
        with _locked(self.results):
            recorded, reserved = self._known()
            for entry in self.given:
                if own_fold([*recorded, *reserved], entry.lineage, self.available) != entry.fold:
                    raise _refused(self.results, recorded, reserved, entry, self.available)
            _write_reserved(self.results, reserved)
        self.kept = True

    def _known(self, lineage: str = "") -> tuple[list[FoldOf], list[FoldOf]]:
        """What is recorded, and what is reserved beside for candidates, by this process, and for the run that is asked
        about: that last, so that it changes nothing that this process gave out."""
        kept = read_reserved(self.results)  # first: what moves from here to the record meanwhile is found there
        recorded = read_folds(self.results)
        expected = [entry for entry in kept if entry.lineage in self.candidates]
        asked = [entry for entry in kept if entry.lineage == lineage]
        return recorded, holding(recorded, [*expected, *self.given, *asked], self.available)

    def _reserve(self, stage: str, lineage: str) -> Assignment:
        """A fold for a run that has none, as others know it from then on."""
        with _locked(self.results):
            recorded, reserved = self._known(lineage)
            found = assign([*recorded, *reserved], lineage, self.available)
            _write_reserved(self.results, with_assignment(reserved, stage, lineage, found.fold))
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


def read_reserved(results: Path) -> list[FoldOf]:
    """The folds that are kept for candidates which are not asked yet, in the order of giving.

    Raises:
        FgodError: it was edited.
    """
    path = reserved_folds(results)
    return ReservedFolds.read(path).given if path.exists() else []


def _write_reserved(results: Path, entries: Sequence[FoldOf]) -> None:
    if [*entries] != read_reserved(results):
        ReservedFolds(given=[*entries]).write(reserved_folds(results))


@contextmanager
def _locked(results: Path) -> Iterator[None]:
    """Alone with both files."""
    folds(results).parent.mkdir(parents=True, exist_ok=True)
    with held(folds(results).with_suffix(".lock"), "the record of folds", WAIT_SECS):
        yield


def _refused(
    results: Path, recorded: Sequence[FoldOf], reserved: Sequence[FoldOf], wanted: FoldOf, available: Sequence[int]
) -> FgodError:
    """Why a candidate may not be asked a fold, with the file that says so."""
    name, own = f"{wanted.stage} {wanted.lineage}", own_fold([*recorded, *reserved], wanted.lineage, available)
    if own is None:
        is_recorded = wanted.fold in {entry.fold for entry in recorded}
        why = f"fold {wanted.fold} was given to another candidate while {name} was waiting"
    else:
        is_recorded = own_fold(recorded, wanted.lineage, available) is not None
        why = f"{name} was given fold {own}, expected {wanted.fold}"
    path = folds(results) if is_recorded else reserved_folds(results)
    return FgodError(f"{path}: {why}; run snakemake again")


def give_fold(results: Path, stage: str, lineage: str, fold: int, available: Sequence[int]) -> Assignment:
    """Record a candidate's fold, before it is asked: its own, one that no other was given, or the last one. It is
    reserved no longer then.

    Candidates that were decided at once may be asked in any order, so the first free fold may be another's.

    Args:
        fold: one of those available.
        available: the folds that the probes have.

    Raises:
        FgodError: see `read_folds`; reserved.json was edited; or another fold is its own, or this one is another's.
    """
    with _locked(results):
        recorded = read_folds(results)
        reserved = holding(recorded, read_reserved(results), available)
        if not may_have([*recorded, *reserved], lineage, fold, available):
            wanted = FoldOf(fold=fold, stage=stage, lineage=lineage)
            raise _refused(results, recorded, reserved, wanted, available)
        entries = with_assignment(recorded, stage, lineage, fold)
        Folds(given=entries).write(folds(results))
        _write_reserved(results, holding(entries, reserved, available))
        return assign(entries, lineage, available)
