"""A run's probe records as files: probes.tsv and metrics.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fgod.data.rows import HISTORY, history_json
from fgod.data.suites import SCORINGS
from fgod.documents import Metrics, Parity, Probed
from fgod.evaluate.measure import measure_all, measure_by_language
from fgod.evaluate.scoring import Scored
from fgod.layout import RunRecords
from fgod.system.files import file_digests
from fgod.system.table import TEXT, columns_of, one_of, optional, read_table, write_table

SCORED = columns_of(
    Scored,
    scored_by=one_of(SCORINGS),
    # tables of older versions do not have these
    family=optional(TEXT),
    system=optional(TEXT),
    history=optional(HISTORY),
)
COLUMNS = tuple(SCORED)


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
    Metrics(status="skipped", reason=reason, tables_sha256=file_digests(run.folder, [run.probes])).write(run.metrics)


def write_probes(path: Path, records: Sequence[Scored]) -> None:
    write_table(path, COLUMNS, map(fields_of, records))


def fields_of(record: Scored) -> dict[str, object]:
    """A record as its line in a table has it."""
    return {**vars(record), "history": history_json(record.history)}


def read_probes(path: Path) -> list[Scored]:
    """The inverse of `write_probes`.

    Raises:
        FgodError: a column is missing or a value is not of its type; names file and line.
    """
    return [Scored(**row) for row in read_table(path, SCORED)]
