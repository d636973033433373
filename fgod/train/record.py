"""What a run tells while it trains: rows of train.tsv as they come, its phase to the guard, its progress to people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

import psutil

from fgod import files

PARTIAL = "train.partial.tsv"
"""In the work folder, flushed row by row: what a killed run leaves."""

Progress = Callable[[int, int, float, float], None]
"""Called with (step, steps, loss, seconds left) after each step; step counts from 1."""


@dataclass(frozen=True)
class StepRow:
    """A step of train.tsv. loss: nats a label; tokens: without padding; seconds: of this step; memory_mib: resident."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    update_efficiency: float | None
    tokens: int
    seconds: float
    memory_mib: float


COLUMNS = ("stage", "lineage", *(f.name for f in fields(StepRow)))


class StepTable:
    """Appends rows to the work folder's partial table; a crash loses none that was added."""

    def __init__(self, work: Path, stage: str, lineage: str) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.prefix = f"{files.escape_field(stage)}\t{files.escape_field(lineage)}"
        self.stream: TextIO = (work / PARTIAL).open("w", encoding="utf-8", newline="")
        self._line("\t".join(COLUMNS))

    def _line(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()

    def add(self, row: StepRow) -> None:
        values = ("" if value is None else repr(value) for value in asdict(row).values())
        self._line("\t".join((self.prefix, *values)))

    def __enter__(self) -> StepTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def publish(work: Path, run_dir: Path) -> None:
    """Move the rows of a run that has ended, or was killed, to its train.tsv: a header only if it never began."""
    partial = work / PARTIAL
    text = partial.read_text(encoding="utf-8") if partial.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # a kill may leave a piece of a line
    files.write_text(run_dir / "train.tsv", whole or "\t".join(COLUMNS) + "\n")
    partial.unlink(missing_ok=True)


_THIS_PROCESS = psutil.Process()


def resident_mib() -> float:
    """Memory of this process in MiB."""
    return round(_THIS_PROCESS.memory_info().rss / 2**20, 1)
