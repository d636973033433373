"""What can be compared, by the names that people give: a run, a release, a project's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fgod import runs
from fgod.documents import Recipe, Release
from fgod.errors import UsageError
from fgod.layout import RELEASE_RECORD, RESULTS, Releases, RunRecords, View, at_alpha, run_records, views
from fgod.system.files import read_json

RELEASE = "release"


@dataclass(frozen=True)
class Operand:
    """A run that is compared: `title` for people, its records, and the results/ in which the runs before it lie."""

    title: str
    records: RunRecords
    results: Path


def operand(name: str) -> Operand:
    """The run that a name stands for: `STAGE` (its newest run), `STAGE@LINEAGE`, `release` (the one that counts), an
    experiment (its last run that was judged), or a folder: a release's, a run's records, or a project's, whose release
    is meant, else its newest run.

    Raises:
        UsageError: there is none of this name; says what was found and what was expected.
    """
    if name == RELEASE:
        return _of_release(Releases().current, RESULTS, RELEASE)
    if name in (told := {one.experiment: one for one in views() if one.experiment}):
        return _of_experiment(told[name])
    folder = Path(name)
    if folder.is_dir() and name not in runs.stages_on_record(RESULTS):
        return _of_folder(folder)
    return _of_run(runs.resolve(name, RESULTS), RESULTS)


def _of_experiment(told: View) -> Operand:
    judged = [visit for visit in read_json(told.walk)["walk"]["visits"] if visit["state"] != "pending"]
    if not judged:
        raise UsageError(f"{told.experiment}: no run of this experiment was judged yet, expected one")
    run = run_records(judged[-1]["stage"], judged[-1]["lineage"], RESULTS)
    return _of_run(run, RESULTS, f"{told.experiment}: ")


def _of_folder(folder: Path) -> Operand:
    results, record = folder / RESULTS, folder / RELEASE_RECORD
    if (folder / "outcome.json").is_file():
        return _of_run(RunRecords(folder), folder.resolve().parents[2])
    if record.is_file():
        project = folder.resolve().parents[2:3]
        return _of_release(record, (project[0] if project else folder) / RESULTS, folder.as_posix())
    if not results.is_dir():
        raise UsageError(
            f"{folder}: found a folder without {RESULTS}/, {RELEASE_RECORD} or outcome.json; expected that of a "
            "project, of a release or of a run's records"
        )
    released = Releases(results).record
    if released.is_file():
        return _of_release(released, results, folder.as_posix())
    return _of_run(runs.newest(results), results, f"{folder.as_posix()}: ")


def _of_run(run: RunRecords, results: Path, before: str = "") -> Operand:
    if not run.outcome.is_file():
        raise UsageError(f"{run.folder}: its training has not ended; expected a run with an {run.outcome.name}")
    alpha = Recipe.read(run.recipe).alpha
    return Operand(f"{before}{at_alpha(run.folder.parent.name, alpha)} {run.folder.name}", run, results)


def _of_release(record: Path, results: Path, name: str) -> Operand:
    last = Release.read(record).promoted[-1]
    run = run_records(last.stage, last.lineage, results)
    if not run.outcome.is_file():
        raise UsageError(
            f"{record}: it is the release of {last.stage} {last.lineage}, which is not on record in {results}; "
            "expected its records in the folder of the project, as runs are compared by these"
        )
    return _of_run(run, results, f"{name}: ")
