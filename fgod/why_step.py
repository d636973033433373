"""`fgod why-step RUN STEP`: the rows that a step of a training was made of, from records alone.

train.tsv has the lines of rows.tsv of each step, and what each row's labels add to the loss. A step that diverged is
not in train.tsv: outcome.json has its lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgod import layout, runs
from fgod.data.rows import Row, read_rows
from fgod.errors import FgodError, UsageError
from fgod.layout import Mix, RunRecords
from fgod.seal import read_object, read_sealed
from fgod.system.files import sha256_file
from fgod.system.table import COUNT, FLOAT, TEXT, optional, parse_table, whole_lines
from fgod.train.record import FIRST_ROW, PARTIAL

STEP = {"step": COUNT, "loss": FLOAT, "rows": optional(TEXT), "row_losses": optional(TEXT)}
"""Columns of train.tsv. Tables of older versions do not say which rows a step took."""


@dataclass(frozen=True)
class Taken:
    """A row of a step. `line`: of rows.tsv; `loss`: nats a label of its own, None where that is not on record."""

    line: int
    row: Row
    loss: float | None


@dataclass(frozen=True)
class StepMade:
    """A step of a training. `loss`: of the whole step, in nats a label, None of one that diverged; `why_no_losses`: in
    words, why the rows have none."""

    stage: str
    lineage: str
    step: int
    loss: float | None
    table: Path
    rows: tuple[Taken, ...]
    why_no_losses: str = ""


def find_run(name: str, results: Path = layout.RESULTS) -> RunRecords:
    """The run that a person names, as `fgod.runs.resolve` does; STAGE is here the newest that has made steps, one that
    trains now too.

    Raises:
        UsageError: there is no such run, or several; names those that there are.
    """
    stepped = [run for run in runs.of_stage(name, results) if _table(run).exists()]
    return runs.newest_of(stepped, _last_written) or runs.resolve(name, results)


def _last_written(run: RunRecords) -> Path:
    """The outcome of a training that has ended; of one that trains, or was stopped, the table of its steps."""
    return run.outcome if run.outcome.exists() else _table(run)


def read_step(run: RunRecords, step: int) -> StepMade:
    """A step of a run, of one that trains now too.

    Raises:
        UsageError: it made no such step, or its table is of a version that does not say which rows it took.
        FgodError: the table is broken, or the rows of its mix are gone or changed; names the file.
    """
    stage, lineage = run.folder.parent.name, run.folder.name
    recipe = read_object(run.recipe)
    if "interpolate" in recipe:
        raise UsageError(f"RUN: {stage} {lineage} made no steps: it lies between start and end of {recipe.get('of')}")
    table = _table(run)
    text = whole_lines(table)
    made = parse_table(text, table, STEP) if text else []
    found = next((row for row in made if row["step"] == step), None)
    if found is not None:
        lines, losses, loss = found.get("rows", ""), found.get("row_losses", ""), found["loss"]
    else:
        lines, losses, loss = _diverged(run, table, made, step), "", None
    if not lines:
        raise UsageError(f"{table}: its steps have no rows on record: an older version of fgod made them")
    mix = layout.mix_of(recipe)
    taken = _rows(mix, [int(word) for word in lines.split()], [float(word) for word in losses.split()])
    why = "" if losses else "the loss of that step is not a number, so that no row's is on record"
    return StepMade(stage, lineage, step, loss, table, taken, why)


def _table(run: RunRecords) -> Path:
    """Where the steps of a run stand: its train.tsv, while it trains that of its work folder."""
    work = layout.work(run.folder.name)
    places = (run.training, work.records.training, work.folder / PARTIAL)
    return next((path for path in places if path.exists()), run.training)


def _diverged(run: RunRecords, table: Path, made: Sequence[Any], step: int) -> str:
    """The lines of the step that diverged.

    Raises:
        UsageError: this is not that step.
    """
    outcome = read_sealed(run.outcome) if run.outcome.exists() else {}
    last = made[-1]["step"] if made else 0
    if outcome.get("status") == "diverged" and step == last + 1:
        return str(outcome.get("diverged_rows", ""))
    raise UsageError(f"STEP: found {step}, expected 1 to {last}: {table} has {last} steps")


def _rows(mix: Mix, lines: Sequence[int], losses: Sequence[float]) -> tuple[Taken, ...]:
    """The rows of these lines, with the loss of each where there is one.

    Raises:
        FgodError: the rows are not those of the mix's stamp, or there are not so many.
    """
    if sha256_file(mix.rows) != read_sealed(mix.stamp).get("rows_sha256"):
        raise FgodError(f"{mix.rows}: it has changed since the mix was made, so its lines are not those of the step")
    rows = read_rows(mix.rows)
    beyond = [line for line in lines if not FIRST_ROW <= line < FIRST_ROW + len(rows)]
    if beyond or (losses and len(losses) != len(lines)):
        raise FgodError(f"{mix.rows}: {len(rows)} rows; the step's record names {lines} with {len(losses)} losses")
    each: Sequence[float | None] = losses or [None] * len(lines)
    return tuple(Taken(line, rows[line - FIRST_ROW], loss) for line, loss in zip(lines, each, strict=True))


def as_json(made: StepMade) -> dict[str, Any]:
    """For programs; a loss that is not a number is null."""
    rows = [{"line": one.line, "loss": _finite(one.loss), **asdict(one.row)} for one in made.rows]
    head = {"stage": made.stage, "lineage": made.lineage, "step": made.step, "loss": _finite(made.loss)}
    return {**head, "why_no_losses": made.why_no_losses, "rows": rows}


def _finite(loss: float | None) -> float | None:
    return None if loss is None or not math.isfinite(loss) else loss


def text(made: StepMade) -> str:
    """For people: the rows, the largest loss first."""
    loss = "not a number" if made.loss is None else f"{made.loss:.4g} nats a label"
    found = [f"{made.stage} {made.lineage} · step {made.step} · {len(made.rows)} rows · loss {loss}"]
    if made.why_no_losses:
        found.append(f"Losses of rows: {made.why_no_losses}.")
    for one in sorted(made.rows, key=lambda taken: -(_finite(taken.loss) or -math.inf)):
        said = "" if one.loss is None else f"loss {one.loss:.4g} · "
        about = " · ".join(filter(None, (one.row.part, one.row.kind, one.row.language, one.row.topic)))
        found += ["", f"line {one.line} · {said}{about}"]
        found += [_said("system", one.row.system)] if one.row.system else []
        found += [_said(turn.role, turn.content) for turn in one.row.history]
        found += [_said("prompt", one.row.prompt), _said("target", one.row.target)]
    return "\n".join(found)


def _said(who: str, words: str) -> str:
    """`  prompt    你是誰`, further lines of it below the first."""
    return f"  {who:9} " + words.replace("\n", "\n" + " " * 12)
