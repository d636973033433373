"""Read and check results/tables: every fault names file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgod.comparison import NUMBERS as COMPARED
from fgod.data.rows import read_history
from fgod.data.suites import SCORINGS
from fgod.documents import DECISIONS
from fgod.errors import FgodError
from fgod.evaluate.metric import Legend, Unit
from fgod.evaluate.requirements import COMPARE
from fgod.probe.record import FLAGS, NUMBERS, UNASKED_FLAGS
from fgod.system import files
from fgod.tables import CONFIRMATION, TABLES

Row = Mapping[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True)
class Tables:
    """results/tables, typed: whole numbers, numbers, truth values and text; None for an empty field.

    `legends` say how each metric is shown, by name.
    """

    context: Mapping[str, Any]
    legends: Mapping[str, Legend]
    stages: Sequence[Row]
    probes: Sequence[Row]
    metrics: Sequence[Row]
    training: Sequence[Row]
    participation: Sequence[Row]
    guard: Sequence[Row]
    audits: Sequence[Row]
    artifacts: Sequence[Row]
    confirmation: Sequence[Row]
    abilities: Sequence[Row]
    comparison: Sequence[Row]


def _whole(text: str) -> int | None:
    return int(text) if text else None


def _ordinal(text: str) -> int:
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float | None:
    return float(text) if text else None


@dataclass(frozen=True)
class _InUnit:
    """A parser of values in a unit's range."""

    unit: Unit

    def __call__(self, text: str) -> float | None:
        value = _number(text)
        if value is not None and not self.unit.contains(value):
            raise ValueError(text)
        return value


def _flag(text: str) -> bool | None:
    return {"": None, "true": True, "false": False}[text]


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _sign(text: str) -> str | None:
    if text and text not in COMPARE:
        raise ValueError(text)
    return text or None


def _decision(text: str) -> str:
    if text not in DECISIONS:
        raise ValueError(text)
    return text


def _scoring(text: str) -> str:
    if text not in SCORINGS:
        raise ValueError(text)
    return text


_Parser = Callable[[str], Any]
_WORDS: Mapping[_Parser, str] = {
    _whole: "a whole number",
    _number: "a number",
    _ordinal: "a whole number from 0",
    _flag: "true, false or nothing",
    read_history: "earlier turns or nothing",
    _truth: "true or false",
    _sign: f"one of {', '.join(COMPARE)}",
    _decision: f"one of {', '.join(DECISIONS)}",
    _scoring: f"one of {', '.join(SCORINGS)}",
}


def _words(parse: _Parser) -> str:
    """What a parser accepts."""
    return f"{parse.unit.noun} {parse.unit.range_words}".strip() if isinstance(parse, _InUnit) else _WORDS[parse]


_SIDES = ("development", "confirmation")
_PARSERS: Mapping[str, Mapping[str, _Parser]] = {
    "stages": {
        "fit": _ordinal,
        "decision": _decision,
        "steps": _whole,
        **dict.fromkeys(("alpha", "lr", "wall_s", "peak_memory_mib", "parity_max_abs", "parity_mean_abs"), _number),
        "parity_first_differing_token": _whole,
    },
    "probes": {
        "fit": _ordinal,
        **dict.fromkeys(UNASKED_FLAGS, _flag),
        "scored_by": _scoring,
        **dict.fromkeys(FLAGS, _truth),
        "tokens": _ordinal,
        **dict.fromkeys(NUMBERS, _number),
        "history": read_history,
    },
    "metrics": {
        "fit": _ordinal,
        "n": _ordinal,
        "op": _sign,
        **dict.fromkeys(("value", "low", "high", "limit"), _number),
    },
    "training": {
        "step": _whole,
        **dict.fromkeys(("loss", "lr", "grad_norm", "update_efficiency", "tokens", "seconds", "memory_mib"), _number),
    },
    "participation": {"trainable": _flag, "got_gradient": _flag, "changed_share": _number},
    "guard": dict.fromkeys(("t", "used_mib", "limit_mib"), _number),
    "audits": {"line": _whole},
    "artifacts": {"bytes": _whole},
    "confirmation": {
        **dict.fromkeys(("fold", "development_n", "confirmation_n"), _ordinal),
        **{name: _number for name in CONFIRMATION if name.startswith(_SIDES) and not name.endswith("_n")},
        **dict.fromkeys(("difference", "low", "high", "limit"), _number),
        "contains_zero": _flag,
        "op": _sign,
    },
    "abilities": {
        **dict.fromkeys(("n", "lost", "gained"), _ordinal),
        **dict.fromkeys(("base", "tuned", "difference", "low", "high", "p_value", "loss_bound", "limit"), _number),
    },
    "comparison": {c: _ordinal if c.endswith("_n") else _number for c in COMPARED},
}
_CONTEXT = (
    *("persona", "stages", "suites", "gate", "base", "base_id", "config", "config_digest", "spent", "adjustments"),
    *("fits", "promoted", "confirmation", "metrics", "tables_sha256"),
)


def read_tables(folder: Path) -> Tables:
    """Read all tables of a folder.

    Raises:
        UsageError: a file is missing.
        FgodError: a file is broken; the message names file, line, column, what was found and what was expected.
    """
    context = files.read_json(folder / "context.json")
    missing = [key for key in _CONTEXT if not isinstance(context, dict) or key not in context]
    if missing:
        raise FgodError(f"{folder / 'context.json'}: the keys {', '.join(missing)} are missing; make the tables again")
    legends = _legends(folder / "context.json", context["metrics"])
    measured: dict[str, _Parser] = {name: _InUnit(legend.unit) for name, legend in legends.items()}
    measured |= {f"n_{suite}": _whole for suite in context["suites"]}
    stages = _read(folder / "stages.tsv", (*TABLES["stages"], *measured), {**_PARSERS["stages"], **measured})
    tables = {"stages": stages} | {
        name: _read(folder / f"{name}.tsv", columns, _PARSERS[name])
        for name, columns in TABLES.items()
        if name != "stages"
    }
    _check_runs(folder, tables)
    return Tables(context, legends, **tables)


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


def _read(path: Path, columns: Sequence[str], parsers: Mapping[str, _Parser]) -> list[Row]:
    try:
        rows = files.read_table(path, columns)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FgodError(f"{path}:{line}: not UTF-8 at byte {error.start} of the file") from error
    return [_typed(row, parsers, path, line) for line, row in enumerate(rows, start=2)]


def _typed(row: Mapping[str, str], parsers: Mapping[str, _Parser], path: Path, line: int) -> Row:
    out: dict[str, Any] = dict(row)
    for column, parse in parsers.items():
        try:
            out[column] = parse(row[column])
        except (ValueError, KeyError, TypeError):
            raise FgodError(f"{path}:{line}: {column} is {row[column]!r}; expected {_words(parse)}") from None
    return out


def _check_runs(folder: Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Every row must belong to a run of stages.tsv."""
    known = {(row["stage"], row["lineage"]) for row in tables["stages"]}
    for name, rows in tables.items():
        for line, row in enumerate(rows, start=2):
            if (row["stage"], row["lineage"]) not in known:
                where = f"{folder / f'{name}.tsv'}:{line}"
                raise FgodError(f"{where}: the run {row['stage']} {row['lineage']} is not in stages.tsv")


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
        raise FgodError(f"{path}:{line}: examples is {text!r}; expected a JSON list")
    return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in value]
