"""Readings of a training's tables while another process writes them: lines that are not whole yet are left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgod import layout
from fgod.checkpoints import saved_step
from fgod.errors import FgodError, UsageError
from fgod.guard.phases import read_phase
from fgod.seal import read_object, read_sealed
from fgod.system.table import FLOAT, NUMBER, TEXT, columns_of, parse_table, whole_lines
from fgod.train.record import PARTIAL

RECENT = 20
"""Steps whose mean says how fast it goes."""

SHOWN = 240
"""Losses of a curve at most: as many as a wide terminal has columns."""


@dataclass(frozen=True)
class Step:
    """A row of train.tsv: loss in nats a label (not a number where it diverged), seconds of the step, MiB."""

    step: int
    loss: float
    lr: float
    tokens: float
    seconds: float
    memory_mib: float


@dataclass(frozen=True)
class Steps:
    """The steps that were made: the last ones, and losses evenly over all of them."""

    recent: tuple[Step, ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    """(step, loss), at most `SHOWN`."""

    @property
    def step(self) -> int:
        """How many were made."""
        return self.recent[-1].step if self.recent else 0

    @property
    def seconds_per_step(self) -> float | None:
        return sum(row.seconds for row in self.recent) / len(self.recent) if self.recent else None

    @property
    def tokens_per_second(self) -> float | None:
        seconds = sum(row.seconds for row in self.recent)
        return sum(row.tokens for row in self.recent) / seconds if seconds else None

    @property
    def mean_loss(self) -> float | None:
        """Of the last steps, as far as they are numbers."""
        known = [row.loss for row in self.recent if math.isfinite(row.loss)]
        return sum(known) / len(known) if known else None

    def until(self, step: int) -> Steps:
        """Those up to a step."""
        return Steps(
            tuple(row for row in self.recent if row.step <= step),
            tuple((made, loss) for made, loss in self.losses if made <= step),
        )


STEP = columns_of(Step)


def steps_of(text: str, path: Path) -> Steps:
    """The steps of a table of whole lines.

    Raises:
        FgodError: a column is missing, or a line is broken; names file and line.
    """
    count = text.count("\n") - 1
    if count < 1:
        return Steps()
    shown = set(spread_places(count, SHOWN))
    taken = sorted({*range(max(0, count - RECENT), count), *shown})
    made = [Step(**row) for row in parse_table(text, path, STEP, taken)]
    losses = tuple((row.step, row.loss) for place, row in zip(taken, made, strict=True) if place in shown)
    return Steps(tuple(made[-RECENT:]), losses)


def spread_places(count: int, most: int) -> list[int]:
    """At most `most` places of `count`, evenly spread, the last among them."""
    if count <= most:
        return list(range(count))
    return [(place + 1) * count // most - 1 for place in range(most)]


@dataclass(frozen=True)
class PoolUse:
    """What guard.tsv says of one pool of memory: the last reading, and the largest, in MiB."""

    source: str
    phase: str
    used_mib: float | None
    limit_mib: float
    peak_mib: float | None


READING = {"source": TEXT, "phase": TEXT, "used_mib": NUMBER, "limit_mib": FLOAT}


def pools_of(text: str, path: Path) -> list[PoolUse]:
    """The pools of a guard.tsv, each as it was read last.

    Raises:
        FgodError: a column is missing, or a line is broken; names file and line.
    """
    if not text:
        return []
    last: dict[str, dict[str, Any]] = {}
    peaks: dict[str, float] = {}
    for row in parse_table(text, path, READING):
        last[row["source"]] = row
        if row["used_mib"] is not None:
            peaks[row["source"]] = max(row["used_mib"], peaks.get(row["source"], 0.0))
    return [PoolUse(**row, peak_mib=peaks.get(source)) for source, row in last.items()]


@dataclass(frozen=True)
class Training:
    """How far the training of a run is. `steps` of its recipe, `made` of its table, `saved` of its newest checkpoint.

    `phase`, `heartbeat_at` (seconds since 1970): what the trainer said last; None: nothing yet, or no longer. `begun`:
    whether the steps are those of the training that runs, and not what an earlier one left.
    """

    stage: str
    lineage: str
    steps: int
    made: Steps
    saved: int
    pools: tuple[PoolUse, ...] = ()
    phase: str = ""
    heartbeat_at: float | None = None
    begun: bool = True
    status: str = ""
    """How it ended: trained, killed or diverged; empty while it has not."""


@dataclass
class Reader:
    """Reads records; what cannot be read is in `problems`, in words, and counts as not there."""

    problems: list[str] = field(default_factory=list)

    def sealed(self, path: Path) -> dict[str, Any] | None:
        return self._read(path, read_sealed)

    def object(self, path: Path) -> dict[str, Any] | None:
        return self._read(path, read_object)

    def _read(self, path: Path, read: Any) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = read(path)
            return found
        except UsageError:  # there is none, or no longer
            return None
        except FgodError as error:
            self.problems.append(str(error))
            return None

    @contextmanager
    def shape_of(self, path: Path) -> Iterator[None]:
        """Around what is taken of a record: another shape than fgod writes is a problem, and counts as not there."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self.problems.append(f"{path}: it has another shape than fgod writes ({type(error).__name__}: {error})")

    def training(self, stage: str, lineage: str, since: float | None = None) -> Training | None:
        """The training of a run; None where its recipe is not on record.

        Args:
            since: when the command that trains it now began (seconds since 1970); None: none does.
        """
        run, work = layout.run_records(stage, lineage), layout.work(lineage)
        recipe = self.object(run.recipe)
        if recipe is None:
            return None
        outcome = None if since is not None else self.sealed(run.outcome)
        if outcome is not None:
            table, guard = run.training, run.guard
        else:
            table, guard = work.folder / PARTIAL, work.records.guard
            if not table.exists() and work.records.training.exists():  # it has made its steps, and saves
                table = work.records.training
        saved = saved_step(work.folder)
        made, begun = self._steps(table), True
        if since is not None and _changed_at(table, 0.0) < since:
            made, begun = made.until(saved), False
        return Training(
            stage=stage,
            lineage=lineage,
            steps=int(recipe.get("train", {}).get("steps", 0)),
            made=made,
            saved=saved,
            pools=tuple(self._pools(guard)),
            phase=read_phase(work.phase) if since is not None else "",
            heartbeat_at=_changed_at(work.phase, None) if since is not None else None,
            begun=begun,
            status="" if outcome is None else str(outcome.get("status", "")),
        )

    def _steps(self, table: Path) -> Steps:
        try:
            return steps_of(whole_lines(table), table)
        except FgodError as error:
            self.problems.append(str(error))
            return Steps()

    def _pools(self, table: Path) -> Sequence[PoolUse]:
        try:
            return pools_of(whole_lines(table), table)
        except FgodError as error:
            self.problems.append(str(error))
            return []


def _changed_at(path: Path, otherwise: Any) -> Any:
    """When a file was written last, in seconds since 1970."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return otherwise


@dataclass(frozen=True)
class Verdict:
    """The newest verdict on record, and when it was written (seconds since 1970)."""

    stage: str
    lineage: str
    decision: str
    reasons: tuple[str, ...]
    at: float


def newest_verdict(reader: Reader, results: Path = layout.RESULTS) -> Verdict | None:
    """The verdict that was written last; None without any."""
    dated = [(_changed_at(path, 0.0), path) for path in (results / "runs").glob("*/*/verdict.json")]
    if not dated:
        return None
    at, path = max(dated)
    found: Mapping[str, Any] | None = reader.sealed(path)
    if found is None:
        return None
    stage, lineage = layout.run_of_path(layout.RESULTS / path.relative_to(results))
    return Verdict(stage, lineage, str(found.get("decision", "")), tuple(found.get("reasons", ())), at)
