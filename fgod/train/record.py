"""What a run tells while it trains: rows of train.tsv as they come, its phase to the guard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

from fgod.guard.samples import COLUMNS as GUARD_COLUMNS
from fgod.layout import RunRecords
from fgod.system.files import write_text
from fgod.system.table import COUNT, TEXT, line, optional, parse_table, read_texts, whole_lines, write_table

PARTIAL, PARTIAL_GROUPS = "train.partial.tsv", "efficiency.partial.tsv"
"""In the work folder, flushed row by row: what a killed run leaves."""


@dataclass(frozen=True)
class StepRow:
    """A step of train.tsv. loss: nats a label; tokens: without padding; seconds: of this step; memory_mib: resident.

    Under `train.kl` ce is the mean cross entropy of taught labels and kl the mean KL of rehearsed ones, in nats.
    `check`: of a step after which `train.check` asked, the shares in words.
    update_efficiency, update_noise, largest_update, clamped_share: see `Projection`.
    `rows`: the lines of rows.tsv that the step was made of (the header is line 1), in the order of the batch;
    `row_losses`: of each of them what its labels add to the loss, in nats a label of its own. Both are `numbers`.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    update_efficiency: float | None
    tokens: int
    seconds: float
    memory_mib: float
    update_noise: float | None
    largest_update: float
    clamped_share: float
    ce: float | None = None
    kl: float | None = None
    check: str = ""
    rows: str = ""
    row_losses: str = ""


FIRST_ROW = 2
"""The line of the first row in rows.tsv, below its header."""


def rows_of(indices: Iterable[int]) -> str:
    """Indices of rows, from 0, as `StepRow.rows`."""
    return numbers(index + FIRST_ROW for index in indices)


LOSS_DIGITS = 4
"""Of a row's loss: enough to tell rows apart, and 32 of them are 200 bytes."""


def numbers(values: Iterable[float]) -> str:
    """Numbers as one field of a table, with blanks between; of a fraction `LOSS_DIGITS` digits."""
    return " ".join(str(value) if isinstance(value, int) else f"{value:.{LOSS_DIGITS}g}" for value in values)


@dataclass(frozen=True)
class GroupRow:
    """A line of efficiency.tsv: how much of the updates of a group of tensors arrived in a step (see `Projection`)."""

    step: int
    group: str
    update_efficiency: float | None
    update_noise: float | None
    largest_update: float
    clamped_share: float


KEY = ("stage", "lineage")
COLUMNS = (*KEY, *(f.name for f in fields(StepRow)))
GROUP_COLUMNS = (*KEY, *(f.name for f in fields(GroupRow)))


class StepTable:
    """Appends rows to a partial table in the work folder; a crash loses none that was added.

    With `done` steps behind it a run that goes on keeps the rows of those, and none after them.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], stage: str, lineage: str, done: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.key = (stage, lineage)
        text = whole_lines(path) if done else ""
        known = {**dict.fromkeys(columns, optional(TEXT)), "step": COUNT}
        before = parse_table(text, path, known) if text else []
        kept = [{**dict.fromkeys(columns), **row} for row in before if row["step"] <= done]
        write_table(path, columns, kept)  # the columns that an older version did not have are empty
        self.stream: TextIO = path.open("a", encoding="utf-8", newline="")

    def add(self, row: StepRow | GroupRow) -> None:
        self.stream.write(line((*self.key, *asdict(row).values())))
        self.stream.flush()

    def __enter__(self) -> StepTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def publish(work: Path, run_dir: Path, keep: bool = False) -> None:
    """Move the rows of a run that has ended, or was killed, to train.tsv and efficiency.tsv: headers if it never began.

    With `keep` they stay in the work folder too: the run may go on.
    """
    for partial, name, columns in ((PARTIAL, "train.tsv", COLUMNS), (PARTIAL_GROUPS, "efficiency.tsv", GROUP_COLUMNS)):
        write_text(run_dir / name, whole_lines(work / partial) or line(columns))
        if not keep:
            (work / partial).unlink(missing_ok=True)


def write_interpolated(run: RunRecords, trained: RunRecords, changed: Mapping[str, float]) -> None:
    """The tables of a run that made no step: who took part in the training that it is from, and headers.

    Args:
        changed: by tensor the share of its elements that differ from the start.
    """
    for path, columns in ((run.training, COLUMNS), (run.efficiency, GROUP_COLUMNS), (run.guard, GUARD_COLUMNS)):
        write_table(path, columns, ())
    stage, lineage = run.folder.parent.name, run.folder.name
    rows = read_texts(trained.participation, ("tensor", "alias_of", "changed_share"))
    shares = [changed[row["alias_of"] or row["tensor"]] for row in rows]
    own = [row | {"stage": stage, "lineage": lineage, "changed_share": s} for row, s in zip(rows, shares, strict=True)]
    write_table(run.participation, tuple(rows[0]), own)
