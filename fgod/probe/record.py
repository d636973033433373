"""A run's probe records as files: probes.tsv and metrics.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fgod.data.rows import history_json, read_history
from fgod.data.suites import SCORINGS
from fgod.documents import Metrics, Parity, Probed
from fgod.errors import FgodError
from fgod.evaluate.measure import measure_all, measure_by_language
from fgod.evaluate.scoring import Scored
from fgod.layout import RunRecords
from fgod.system import files

COLUMNS = tuple(f.name for f in fields(Scored))
LATER_COLUMNS = ("family", "system", "history")
"""Columns that records of older versions do not have."""
FLAGS = ("held_out", "proper", "marked", "reference_marked", "ended", "looped", "finite")
UNASKED_FLAGS = ("passed", "agrees")
"""Flags that may be empty."""
NUMBERS = ("kl", "nll_shift", "top1")
"""Numbers that may be missing."""


def measured(records: Sequence[Scored], parity: Parity | None, export: Probed, tables: Mapping[str, str]) -> Metrics:
    """What a probed run measured.

    Args:
        parity: see `fgod.probe.run.measure_parity`; None if no training weights were at hand.
        export: the folder that was probed.
        tables: sha256 of what is written beside metrics.json, by file name.
    """
    return Metrics(
        status="measured",
        metrics=measure_all(records),
        by_language=measure_by_language(records),
        probes=dict(Counter(r.suite for r in records)),
        non_finite=sum(not r.finite for r in records),
        parity=parity,
        export=export,
        tables_sha256=dict(tables),
    )


def write_skipped(run: RunRecords, reason: str) -> None:
    """The records of a run that has no weights to probe."""
    write_probes(run.probes, ())
    Metrics(status="skipped", reason=reason, tables_sha256=files.file_digests(run.folder, [run.probes])).write(
        run.metrics
    )


def write_probes(path: Path, records: Sequence[Scored]) -> None:
    files.write_table(path, COLUMNS, map(columns_of, records))


def columns_of(record: Scored) -> dict[str, object]:
    """A record as its line in a table has it."""
    return {**vars(record), "history": history_json(record.history)}


def read_probes(path: Path) -> list[Scored]:
    """The inverse of `write_probes`.

    Raises:
        FgodError: a column is missing or a value is not of its type; names file and line.
    """
    rows = files.read_table(path, [column for column in COLUMNS if column not in LATER_COLUMNS])
    return [_parse(row, path, line) for line, row in enumerate(rows, start=2)]


def _parse(row: Mapping[str, str], path: Path, line: int) -> Scored:
    values: dict[str, Any] = {c: row[c] for c in COLUMNS if c in row}
    for column in FLAGS:
        values[column] = _flag(row[column], column, path, line)
    if row["scored_by"] not in SCORINGS:
        allowed = ", ".join(SCORINGS)
        raise FgodError(f"{path}:{line}: scored_by is {row['scored_by']!r}; expected one of {allowed}")
    for column in UNASKED_FLAGS:
        values[column] = None if row[column] == "" else _flag(row[column], column, path, line)
    if not row["tokens"].isdecimal():
        raise FgodError(f"{path}:{line}: tokens is {row['tokens']!r}; expected a whole number from 0")
    values["tokens"] = int(row["tokens"])
    for column in NUMBERS:
        values[column] = _number(row[column], column, path, line)
    try:
        values["history"] = read_history(row.get("history", ""))
    except (ValueError, KeyError, TypeError) as error:  # json's own error is a ValueError
        raise FgodError(f"{path}:{line}: history is {row['history']!r}; expected earlier turns: {error}") from error
    return Scored(**values)


def _number(text: str, column: str, path: Path, line: int) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise FgodError(f"{path}:{line}: {column} is {text!r}; expected a number") from None


def _flag(text: str, column: str, path: Path, line: int) -> bool:
    if text not in ("true", "false"):
        raise FgodError(f"{path}:{line}: {column} is {text!r}; expected true or false")
    return text == "true"
