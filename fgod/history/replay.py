"""`fgod manifest replay`: a run made again from its record in an empty folder, and its bits compared.

The folder gets links to what the recorded commands read, each compared with its recorded digest before; then the same
command lines run there, with the recorded environment variables. The rows of its mix are made again from the sources.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgod import manifest, numerics_on
from fgod.documents import Outcome, Recipe
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.history.index import Entry, Index, maker_of, subcommand, words_of
from fgod.history.told import trash_of
from fgod.layout import RunRecords, RunWeights, run_records
from fgod.runs import name_of
from fgod.system.files import differing, file_digests
from fgod.system.stop import VARIABLE

MAKING = ("train", "interpolate")
"""Subcommands that make a run's weights."""

MIX = "data mix"
ROWS = "rows.tsv"


@dataclass(frozen=True)
class Steps:
    """The recorded commands that make a run again, in order: of its mix, if its rows are made too; of its weights."""

    mix: Entry | None
    making: Entry

    @property
    def entries(self) -> list[Entry]:
        return [*([self.mix] if self.mix else []), self.making]

    def inputs(self) -> Iterator[tuple[Entry, Mapping[str, Any]]]:
        """What these commands read, as it was described, but what one of them made."""
        made = {output["path"] for output in self.mix["outputs"]} if self.mix else set()
        for entry in self.entries:
            for read in entry["inputs"]:
                if read["path"] not in made and read["sha256"]:
                    yield entry, read


Outputs = Callable[[Sequence[str]], Sequence[Path]]
"""The paths that a command line writes to, of its words behind `fgod`."""


def steps_of(run: RunRecords, index: Index, from_rows: bool, outputs: Outputs) -> Steps:
    """The commands that made a run's weights.

    Args:
        from_rows: take the rows of its mix as they stand.

    Raises:
        UsageError: none is on record, or one wrote outside the project, so that it cannot be run elsewhere.
    """
    makers = [m.entry for m in index.makers(run.outcome.as_posix()) if subcommand(m.entry["argv"]) in MAKING]
    if not makers:
        raise UsageError(f"{name_of(run)}: no command on record in {manifest.FOLDER} made {run.outcome}")
    making, mix = makers[-1], None
    rows = next((read for read in making["inputs"] if Path(read["path"]).name == ROWS), None)
    if rows and not from_rows:
        maker = maker_of(index, rows["path"], rows["sha256"], str(making["start"]))
        mix = maker.entry if maker and subcommand(maker.entry["argv"]) == MIX else None
    steps = Steps(mix, making)
    for entry in steps.entries:
        _check_inside(entry, outputs)
    return steps


def _check_inside(entry: Entry, outputs: Outputs) -> None:
    for path in outputs(entry["argv"][1:]):
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{words_of(entry)}: it wrote to {path}, expected a path below the project: it would be "
                             "written over, so that this run cannot be made again elsewhere")  # fmt: skip


def check_inputs(root: Path, steps: Steps) -> None:
    """What the commands read must be what they read then.

    Raises:
        RefusedError: names each file or folder that differs, with both digests.
    """
    faults = []
    for entry, read in steps.inputs():
        [now] = manifest.describe(root, [root / read["path"]])
        if now["sha256"] == read["sha256"]:
            continue
        trashed = trash_of(root / read["path"])
        how = f"it lies in the trash, {trashed}" if trashed else f"sha256 {str(now['sha256'])[:12]} ({now['kind']})"
        faults.append(f"  {read['path']}: {how}, expected {read['sha256'][:12]} as {words_of(entry)} read it")
    if faults:
        only_mix = steps.mix and not any(entry is steps.making for entry, _ in _changed(root, steps))
        hint = "\nThe rows themselves are as they were: --from-rows trains on them" if only_mix else ""
        raise RefusedError("\n".join(["what the run was made of has changed since:", *dict.fromkeys(faults)]) + hint)


def _changed(root: Path, steps: Steps) -> Iterator[tuple[Entry, Mapping[str, Any]]]:
    for entry, read in steps.inputs():
        if manifest.describe(root, [root / read["path"]])[0]["sha256"] != read["sha256"]:
            yield entry, read


def lay_out(root: Path, steps: Steps, folder: Path) -> None:
    """Links in a folder to all that the commands read, at the same paths."""
    paths = sorted({read["path"] for _, read in steps.inputs() if not Path(read["path"]).is_absolute()})
    for path in paths:
        link = folder / path
        if link.exists():  # in a folder that is linked as a whole
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((root / path).resolve())


def run_again(entry: Entry, folder: Path) -> None:
    """Run a recorded command in a folder, with the environment variables that were recorded.

    Raises:
        FgodError: it failed.
    """
    kept = {key: value for key, value in os.environ.items() if key not in (*manifest.VARIABLES, VARIABLE)}
    command = [sys.executable, "-P", "-m", "fgod", *entry["argv"][1:]]
    ended = subprocess.run(command, cwd=folder, env={**kept, **entry["environment"]})
    if ended.returncode:
        raise FgodError(f"{words_of(entry)}: made again in {folder}, it failed with exit code {ended.returncode}")


@dataclass(frozen=True)
class Replayed:
    """What came of it. `differing`: in words, files of the weights whose bits are others; `environment`: in words, what
    else is other than when the run was made."""

    files: tuple[str, ...]
    differing: tuple[str, ...]
    environment: tuple[str, ...]

    @property
    def same(self) -> bool:
        return not self.differing


def replay(root: Path, run: RunRecords, steps: Steps, folder: Path, say: Callable[[str], None]) -> Replayed:
    """Make a run again in an empty folder, and compare the bits of its weights with their record.

    Raises:
        UsageError: it has no weights.
        RefusedError: what it was made of has changed; or the rows of its mix come out otherwise.
        FgodError: a command failed.
    """
    before = Outcome.read(run.outcome)
    if before.status != "trained":
        raise UsageError(f"{name_of(run)}: it was {before.status}, so that there are no weights to compare")
    for line in environment_then(run, steps.making):
        say(f"not as it was: {line}")
    check_inputs(root, steps)
    lay_out(root, steps, folder)
    for entry in steps.entries:
        say(f"{words_of(entry)}, as of {str(entry['start'])[:19]}Z")
        run_again(entry, folder)
        if entry is steps.mix:
            _check_rows(entry, folder)
    stage, lineage = run.folder.parent.name, run.folder.name
    after = Outcome.read(folder / run_records(stage, lineage).outcome)
    where = [f"{key}: {old or 'not recorded'}, now {new}" for key, old, new in _places(before, after) if old != new]
    found = _compared(before, after)
    return Replayed(tuple(before.weights_files), found, (*environment_then(run, steps.making), *where))


def _places(before: Outcome, after: Outcome) -> Iterator[tuple[str, object, object]]:
    for key in ("cpu", "device", "torch_version", "threads"):
        yield key, getattr(before, key), getattr(after, key)


def _compared(before: Outcome, after: Outcome) -> tuple[str, ...]:
    if after.status != "trained":
        return (f"there are none: it is {after.status} now ({after.reason})",)
    return tuple(differing(before.weights_files, after.weights_files))


def _check_rows(mix: Entry, folder: Path) -> None:
    for output in mix["outputs"]:
        [made] = manifest.describe(folder, [folder / output["path"]])
        if made["sha256"] != output["sha256"]:
            raise RefusedError(
                f"{output['path']}: made again, its sha256 is {str(made['sha256'])[:12]}, expected "
                f"{output['sha256'][:12]} as recorded: the code of mixes, or what it reads, has changed. --from-rows "
                "trains on the rows on record"
            )


def environment_then(run: RunRecords, making: Entry) -> list[str]:
    """In words, what of the environment is other than when a run was made; CPU and GPU are told by the training."""
    now, then = manifest.versions(), making["versions"]
    lines = [f"{name}: {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]
    recipe = Recipe.read(run.recipe)
    numerics = numerics_on(recipe.train.get("device", "cpu"))
    if recipe.numerics != numerics:
        lines.append(f"version of the numerics: {recipe.numerics}, now {numerics}")
    was, is_now = making.get("commit"), manifest.commit(Path("."))
    if was != is_now:
        lines.append(f"commit: {_commit(was)}, now {_commit(is_now)}")
    return lines


def _commit(commit: Mapping[str, Any] | None) -> str:
    return f"{commit['sha'][:12]}{' with changes' if commit['dirty'] else ''}" if commit else "none"


def other_bytes(run: RunRecords, weights: RunWeights, folder: Path) -> list[str]:
    """How many bytes differ of each file of weights that came out otherwise, where the old one is at its place."""
    import numpy as np

    lines = []
    made = folder / weights.master
    for name in file_digests(made) if made.is_dir() else ():
        old, new = weights.master / name, made / name
        if old.is_file() and 0 < old.stat().st_size == new.stat().st_size:
            apart = int((np.memmap(old, np.uint8, "r") != np.memmap(new, np.uint8, "r")).sum())
            if apart:
                lines.append(f"{name}: {apart:,} of {old.stat().st_size:,} bytes differ")
    return lines


def told(run: RunRecords, found: Replayed, more: Sequence[str]) -> Iterator[str]:
    """The result in lines."""
    if found.same:
        yield f"{name_of(run)}: the same bits in all {len(found.files)} files of its weights"
    else:
        yield f"{name_of(run)}: other bits: {', '.join(found.differing)}"
        yield from (f"  {line}" for line in more)
    if found.environment:
        yield "not as it was when the run was made:" if found.same else "which may be the cause:"
        yield from (f"  {line}" for line in found.environment)
    elif not found.same:
        yield "  nothing that is recorded of the environment differs"
