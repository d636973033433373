"""Runs on record by the names that people give them: STAGE is its newest run, STAGE@LINEAGE a certain one, of whose
lineage a unique beginning suffices.

Placebos have the names of stages too, and are meant only where their lineage is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from fgod.errors import UsageError, did_you_mean
from fgod.layout import RESULTS, RunRecords
from fgod.names import AT, name_of_folder, parts_of
from fgod.recipes import is_placebo
from fgod.system.files import read_json

RUNS = "STAGE (its newest run) or STAGE@LINEAGE; a unique beginning of LINEAGE suffices"
"""What help says of such a name."""


def name_of(run: RunRecords) -> str:
    """`STAGE@LINEAGE`."""
    return name_of_folder(run.folder)


def all_runs(results: Path = RESULTS) -> Iterator[RunRecords]:
    """The runs on record, by stage and lineage: those that have a recipe."""
    return (RunRecords(recipe.parent) for recipe in sorted((results / "runs").glob("*/*/recipe.json")))


def of_stage(stage: str, results: Path = RESULTS) -> list[RunRecords]:
    """The runs of a stage that are on record."""
    return [run for run in all_runs(results) if run.folder.parent.name == stage]


def resolve(name: str, results: Path = RESULTS) -> RunRecords:
    """The run on record that a person names.

    Raises:
        UsageError: no run has this name, or several have; names those that there are.
    """
    runs = {name_of(run): run for run in all_runs(results)}
    if AT not in name and name in stages_on_record(results):
        return newest(results, name)
    return runs[matching(name, runs, f"run in {results / 'runs'}")]


def matching(name: str, names: Collection[str], what: str) -> str:
    """The one of `names`, each STAGE@LINEAGE, that a person's `name` stands for.

    Args:
        what: what there is, for messages: "run in results/runs".

    Raises:
        UsageError: none has this name, or several have; names those that there are.
    """
    if name in names:
        return name
    stage, beginning = parts_of(name)
    of_stage = [one for one in names if parts_of(one)[0] == stage]
    found = [one for one in of_stage if parts_of(one)[1].startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if not of_stage:
        stages = list(dict.fromkeys(parts_of(one)[0] for one in names))
        there = f"found those of {', '.join(stages)}" if stages else "there is none at all"
        raise UsageError(f"{name}: no {what} is of stage {stage!r}{did_you_mean(stage, stages)}; {there}")
    how = f"{len(found)} have this name" if found else f"no {what} has this name"
    raise UsageError(f"{name}: {how}; expected one of {', '.join(found or of_stage)}")


def newest(results: Path, stage: str = "*") -> RunRecords:
    """The run, of a stage or of all, whose training ended last, and that is no placebo.

    Raises:
        UsageError: there is none.
    """
    if run := newest_of(_ended(results, stage)):
        return run
    of = "" if stage == "*" else f" of {stage}"
    raise UsageError(f"{results}: found no run{of} whose training has ended, expected one (placebos do not count)")


def newest_of(
    runs: Iterable[RunRecords], last: Callable[[RunRecords], Path] = lambda run: run.outcome
) -> RunRecords | None:
    """The newest of these runs that is no placebo; None where there is none.

    Args:
        last: the file that a run's training wrote last; by default that of a training that has ended.
    """
    by_age = sorted(runs, key=lambda run: (last(run).stat().st_mtime_ns, run.folder.name), reverse=True)
    return next((run for run in by_age if not is_placebo(read_json(run.recipe))), None)


def newest_of_each(results: Path = RESULTS) -> Iterator[RunRecords]:
    """The newest run of each stage that has one whose training ended, and that is no placebo."""
    found = (newest_of(_ended(results, stage)) for stage in stages_on_record(results))
    return (run for run in found if run)


def stages_on_record(results: Path) -> list[str]:
    """The stages that have a training that ended."""
    return sorted({run.folder.parent.name for run in _ended(results, "*")})


def chain(run: RunRecords, results: Path) -> list[RunRecords]:
    """A run and those before it that are on record, from the first stage to it."""
    found = [run]
    while before := of_lineage(str(read_json(found[0].recipe)["starts_from"]), results):
        found.insert(0, before)
    return found


def of_lineage(lineage: str, results: Path) -> RunRecords | None:
    """The run of this lineage whose training ended; None where it is not on record, or the id of a base."""
    return next((RunRecords(path.parent) for path in (results / "runs").glob(f"*/{lineage}/outcome.json")), None)


def _ended(results: Path, stage: str) -> Iterator[RunRecords]:
    return (RunRecords(path.parent) for path in (results / "runs").glob(f"{stage}/*/outcome.json"))
