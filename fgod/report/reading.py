"""Read and check results/tables: every fault names file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pandas import DataFrame, MultiIndex

from fgod import dataframes
from fgod.errors import FgodError
from fgod.evaluate.metric import Legend, Unit
from fgod.report.words import LANGUAGES
from fgod.system import files
from fgod.system.table import WHOLE, Column, or_nothing
from fgod.tables import KEY, TABLES

Row = Mapping[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True)
class Tables:
    """results/tables, each with its columns' types.

    `legends` say how each metric is shown, by name.
    """

    context: Mapping[str, Any]
    legends: Mapping[str, Legend]
    stages: DataFrame
    probes: DataFrame
    metrics: DataFrame
    training: DataFrame
    participation: DataFrame
    guard: DataFrame
    audits: DataFrame
    artifacts: DataFrame
    confirmation: DataFrame
    abilities: DataFrame
    comparison: DataFrame
    engines: DataFrame


def _measured(unit: Unit) -> Column:
    """A column of a metric's values, which are in its unit's range."""

    def parse(text: str) -> float:
        value = float(text)
        if not unit.contains(value):
            raise ValueError(text)
        return value

    return or_nothing(Column(parse, f"{unit.noun} {unit.range_words}".strip(), "Float64"))


_CONTEXT = (
    *("persona", "stages", "suites", "gate", "base", "base_id", "config", "config_digest", "spent", "adjustments"),
    *("language", "experiment", "reference", "fits", "promoted", "confirmation", "metrics", "tables_sha256"),
)


def read_tables(folder: Path) -> Tables:
    """Read all tables of a folder.

    Raises:
        UsageError: a file is missing.
        FgodError: a file is broken; the message names file, line, column, what was found and what was expected.
    """
    context, legends = read_context(folder)
    tables = {name: _read(folder, name, context, legends) for name in TABLES}
    _check_runs(folder, tables)
    return Tables(context, legends, **tables)


def read_context(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Legend]]:
    """What the tables of a folder are told with: context.json, and how its metrics are shown.

    Raises:
        UsageError: it is missing.
        FgodError: it is broken.
    """
    context = files.read_json(folder / "context.json")
    missing = [key for key in _CONTEXT if not isinstance(context, dict) or key not in context]
    if missing:
        raise FgodError(f"{folder / 'context.json'}: the keys {', '.join(missing)} are missing; make the tables again")
    if context["language"] not in LANGUAGES:
        found, known = context["language"], ", ".join(LANGUAGES)
        raise FgodError(f"{folder / 'context.json'}: language: found {found!r}, expected one of {known}")
    return context, _legends(folder / "context.json", context["metrics"])


@dataclass(frozen=True)
class Told:
    """What the campaign's page tells of an experiment, of its tables."""

    context: Mapping[str, Any]
    legends: Mapping[str, Legend]
    stages: DataFrame
    metrics: DataFrame


def read_told(folder: Path) -> Told:
    """Read what the campaign's page tells; raises as `read_tables`."""
    context, legends = read_context(folder)
    return Told(context, legends, *(_read(folder, name, context, legends) for name in ("stages", "metrics")))


def _read(folder: Path, name: str, context: Mapping[str, Any], legends: Mapping[str, Legend]) -> DataFrame:
    columns = TABLES[name]
    if name == "stages":
        measured = {metric: _measured(legend.unit) for metric, legend in legends.items()}
        columns = {**columns, **measured, **{f"n_{suite}": WHOLE for suite in context["suites"]}}
    return dataframes.read(folder / f"{name}.tsv", columns)


def _legends(path: Path, listed: Any) -> dict[str, Legend]:
    try:
        legends = [Legend.from_dict(entry) for entry in listed]
    except (KeyError, TypeError) as error:
        raise FgodError(f"{path}: metrics: {error}; make the tables again") from None
    return {legend.name: legend for legend in legends}


def check_unchanged(folder: Path, recorded: Mapping[str, str]) -> None:
    """Tables are made from the runs' records, never by hand.

    Args:
        recorded: sha256 by file name, from context.json.

    Raises:
        FgodError: a table has changed since it was made; names it.
    """
    changed = files.differing(recorded, files.file_digests(folder, (folder / name for name in recorded)))
    if changed:
        raise FgodError(
            f"{folder}: {', '.join(changed)} since the tables were made (sha256 in context.json); they are made from "
            f"results/runs, never by hand: delete {folder} and run snakemake again (copy a table to work on it)"
        )


def _check_runs(folder: Path, tables: Mapping[str, DataFrame]) -> None:
    """Every row must belong to a run of stages.tsv."""
    runs = {name: MultiIndex.from_frame(table[list(KEY)]) for name, table in tables.items()}
    for name, found in runs.items():
        unknown = ~found.isin(runs["stages"])
        if unknown.any():
            (stage, lineage), where = found[unknown][0], f"{folder / f'{name}.tsv'}:{unknown.argmax() + 2}"
            raise FgodError(f"{where}: the run {stage} {lineage} is not in stages.tsv")


def examples(text: str, path: str, line: int) -> list[str]:
    """The examples of an audit's finding (a JSON list).

    Raises:
        FgodError: it is not one.
    """
    try:
        value = json.loads(text) if text else []
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, list):
        raise FgodError(f"{path}:{line}: examples: found {text!r}, expected a JSON list")
    return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in value]
