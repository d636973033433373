"""Names of runs for people: STAGE, which is its newest run, or STAGE@LINEAGE, of which a unique beginning suffices."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from fgod.errors import UsageError, did_you_mean
from fgod.layout import RESULTS, RunRecords

RUNS = "STAGE (its newest run) or STAGE@LINEAGE; a unique beginning of LINEAGE suffices"
"""What help says of such a name."""


def name_of(run: RunRecords) -> str:
    """`STAGE@LINEAGE`."""
    return f"{run.folder.parent.name}@{run.folder.name}"


def all_runs(results: Path = RESULTS) -> Iterator[RunRecords]:
    """The runs on record, by stage and lineage: those that have a recipe."""
    return (RunRecords(recipe.parent) for recipe in sorted((results / "runs").glob("*/*/recipe.json")))


def resolve(name: str, results: Path = RESULTS) -> RunRecords:
    """The run on record that a person names. The newest of a stage is the one whose recipe was written last.

    Raises:
        UsageError: no run has this name, or several have; names those that there are.
    """
    stage, at, _ = name.partition("@")
    runs = {name_of(run): run for run in all_runs(results)}
    of_stage = [run for run in runs.values() if run.folder.parent.name == stage]
    if of_stage and not at:
        return max(of_stage, key=lambda run: run.recipe.stat().st_mtime_ns)
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
    stage, _, beginning = name.partition("@")
    of_stage = [one for one in names if one.partition("@")[0] == stage]
    found = [one for one in of_stage if one.partition("@")[2].startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if not of_stage:
        stages = list(dict.fromkeys(one.partition("@")[0] for one in names))
        there = f"found those of {', '.join(stages)}" if stages else "there is none at all"
        raise UsageError(f"{name}: no {what} is of stage {stage!r}{did_you_mean(stage, stages)}; {there}")
    how = f"{len(found)} have this name" if found else f"no {what} has this name"
    raise UsageError(f"{name}: {how}; expected one of {', '.join(found or of_stage)}")
