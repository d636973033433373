"""What of a walk is promoted: the one place that decides it. Tables, release, summary and the plan ask here.

A fit whose gates all accepted is a candidate. Where wordings were held back, it is promoted when it is confirmed on
them; where none were, it is promoted as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgod.documents import Confirmation, confirmation_of
from fgod.layout import (
    ConfirmationRecords,
    RunRecords,
    RunWeights,
    at_alpha,
    confirmation_records,
    run_records,
    run_weights,
)


@dataclass(frozen=True)
class WalkEntry:
    """One run in one fit. Each fit lists all its runs in order, those shared with an earlier fit too.

    `starts_from` is the lineage of the run before it, or the base_id; `state` is the gate's decision, or `pending`;
    `candidate`: it is of the fit whose gates all accepted; `alpha` where an interpolated run lies between the start (0)
    and the end of its stage's training; `control`: it is an experiment's control.
    """

    fit: int
    stage: str
    lineage: str
    starts_from: str
    state: str
    candidate: bool = False
    alpha: float | None = None
    control: bool = False

    @property
    def name(self) -> str:
        """`B`, or `B at α 0.5`."""
        return at_alpha(self.stage, self.alpha)

    @property
    def key(self) -> tuple[str, str]:
        return self.stage, self.lineage

    def records(self, results: Path) -> RunRecords:
        return run_records(self.stage, self.lineage, results)

    def weights(self, artifacts: Path) -> RunWeights:
        return run_weights(self.stage, self.lineage, artifacts)

    def confirmation(self, results: Path) -> ConfirmationRecords:
        return confirmation_records(self.stage, self.lineage, results)


@dataclass(frozen=True)
class Promotion:
    """What became of a walk's candidate.

    Args:
        candidate: its runs in order; empty if no fit was accepted, or not yet.
        fold: that of the held-back wordings which it is asked; None where the probes have none.
        confirmation: what it said there; None where it was not asked yet, or `fold` is None.
    """

    candidate: tuple[WalkEntry, ...] = ()
    fold: int | None = None
    confirmation: Confirmation | None = None

    @property
    def pending(self) -> bool:
        """Whether a candidate is still to be asked."""
        return bool(self.candidate) and self.fold is not None and self.confirmation is None

    @property
    def unconfirmed(self) -> bool:
        """Whether a candidate was asked, and refused."""
        return self.confirmation is not None and not self.confirmation.confirmed

    @property
    def control(self) -> bool:
        """Whether the candidate is a control. It is never released: what it waives, that every tensor changed and that
        updates landed, is part of what a release says of itself."""
        return any(entry.control for entry in self.candidate)

    @property
    def promoted(self) -> tuple[WalkEntry, ...]:
        """The runs that are released, the last one's weights are the release; empty where there is none."""
        return () if self.pending or self.unconfirmed or self.control else self.candidate


def promotion(entries: Sequence[WalkEntry], fold: int | None, results: Path) -> Promotion:
    """What becomes of a walk by the records as they stand.

    Raises:
        FgodError: the confirmation of its candidate was edited; names the file.
    """
    candidate = tuple(entry for entry in entries if entry.candidate)
    if not candidate or fold is None:
        return Promotion(candidate)
    last = candidate[-1]
    found = confirmation_of(last.confirmation(results), last.records(results))
    return Promotion(candidate, fold, found if found and found.fold == fold else None)


def of_walk(walk: Mapping[str, Any], results: Path) -> Promotion:
    """The same of a walk in JSON (`fgod.records.walk_json`).

    Raises:
        FgodError: see `promotion`.
    """
    return promotion([WalkEntry(**visit) for visit in walk["visits"]], walk["fold"], results)
