"""Runs on record by the names that people give them: STAGE is its newest run, STAGE@LINEAGE a certain one.

A run is on record when its training has ended. The newest is the one whose training ended last. Placebos have the names
of stages too, and are meant only where their lineage is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fgod.errors import UsageError, did_you_mean
from fgod.layout import RESULTS, RunRecords
from fgod.recipes import is_placebo
from fgod.system.files import read_json

AT = "@"


def resolve(name: str, results: Path = RESULTS) -> RunRecords:
    """The records of the run that `STAGE` or `STAGE@LINEAGE` names; of a lineage the beginning is enough.

    Raises:
        UsageError: no run, or more than one, is so called; names those that are on record.
    """
    stage, at, lineage = name.partition(AT)
    stages = stages_on_record(results)
    if stage not in stages:
        there, hint = ", ".join(stages) or "none", did_you_mean(stage, stages)
        raise UsageError(f"{name}: no run of a stage {stage!r}{hint} in {results}; found {there}")
    if not at:
        return newest(results, stage)
    found = _on_record(results, stage)
    matching = [run for run in found if lineage and run.folder.name.startswith(lineage)]
    exact = [run for run in matching if run.folder.name == lineage]
    if len(exact or matching) != 1:
        said = "no run" if not matching else "more than one run"
        names = ", ".join(run.folder.name for run in matching or found)
        raise UsageError(f"{name}: {said} of {stage} has a lineage that begins with {lineage!r}; found {names}")
    return (exact or matching)[0]


def newest(results: Path, stage: str = "*") -> RunRecords:
    """The run, of a stage or of all, whose training ended last, and that is no placebo.

    Raises:
        UsageError: there is none.
    """
    for run in reversed(_on_record(results, stage)):
        if not is_placebo(read_json(run.recipe)):
            return run
    of = "" if stage == "*" else f" of {stage}"
    raise UsageError(f"{results}: found no run{of} whose training has ended, expected one (placebos do not count)")


def stages_on_record(results: Path) -> list[str]:
    """The stages that have runs on record."""
    return sorted({outcome.parents[1].name for outcome in (results / "runs").glob("*/*/outcome.json")})


def chain(run: RunRecords, results: Path) -> list[RunRecords]:
    """A run and those before it that are on record, from the first stage to it."""
    found = [run]
    while before := of_lineage(str(read_json(found[0].recipe)["starts_from"]), results):
        found.insert(0, before)
    return found


def of_lineage(lineage: str, results: Path) -> RunRecords | None:
    """The run of this lineage; None where it is not on record, or the id of a base."""
    return next((RunRecords(path.parent) for path in (results / "runs").glob(f"*/{lineage}/outcome.json")), None)


def _on_record(results: Path, stage: str) -> list[RunRecords]:
    """By the time at which the training ended."""
    return sorted(_outcomes(results, stage), key=lambda run: (run.outcome.stat().st_mtime_ns, run.folder.name))


def _outcomes(results: Path, stage: str) -> Iterator[RunRecords]:
    return (RunRecords(path.parent) for path in (results / "runs").glob(f"{stage}/*/outcome.json"))
