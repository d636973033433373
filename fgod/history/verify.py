"""`fgod manifest verify`: every digest on record against what stands, each file read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fgod.documents import Audit, Outcome, Recipe, check_run, confirmation_of, verdict_of
from fgod.errors import FgodError
from fgod.history.index import Entry, Index, words_of
from fgod.history.told import trash_of
from fgod.keep import inventory
from fgod.layout import ARTIFACTS, DEVLOG, RESULTS, RunRecords, all_confirmations, lineage_of, run_records
from fgod.runs import all_runs
from fgod.system.files import HASHED_AT_ONCE, folder_files, sha256_file, sha256_listing

SAY_SECS = 2.0
"""Least seconds between two lines of progress."""


@dataclass(frozen=True)
class Expected:
    """A file, or a folder as a whole, that is to have a digest. `said_by`: in words, by what record."""

    path: Path
    sha256: str
    folder: bool
    said_by: str


@dataclass(frozen=True)
class Verified:
    """What was found. `faults` and `notes` in words; notes are of files outside results/ and artifacts/."""

    files: int
    bytes: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def verify(root: Path, entries: Sequence[Entry], say: Callable[[str], None]) -> Verified:
    """Check all digests on record of a project; says how far it is, every few seconds."""
    faults = [f"{e['file']}: {e['error']}" for e in entries if e["state"] == "unreadable"]
    faults += record_faults(root / RESULTS)
    expected, gone = _by_manifest(root, Index.of(e for e in entries if e["state"] != "unreadable"))
    faults += gone
    try:
        more, gone = _by_stamps(root)
        expected, faults = [*expected, *more], [*faults, *gone]
    except FgodError as error:
        faults.append(str(error))
    files = {file for one in expected for file in _files(one)}
    digests = dict(hashed(sorted(files), say))
    notes: list[str] = []
    for one in expected:
        if fault := _differs(one, digests):
            (faults if _own(root, one.path) else notes).append(fault)
    total = sum(file.stat().st_size for file in files)
    return Verified(len(files), total, tuple(dict.fromkeys(faults)), tuple(dict.fromkeys(notes)))


def _own(root: Path, path: Path) -> bool:
    """Whether nobody but fgod writes there."""
    return any(path.is_relative_to(root / folder) for folder in (RESULTS, ARTIFACTS))


def _files(expected: Expected) -> list[Path]:
    return folder_files(expected.path) if expected.folder else [expected.path]


def _differs(expected: Expected, digests: dict[Path, str]) -> str:
    if expected.folder:
        files = folder_files(expected.path)
        found = sha256_listing({file.relative_to(expected.path).as_posix(): digests[file] for file in files})
    else:
        found = digests[expected.path]
    if found == expected.sha256:
        return ""
    return f"{expected.path}: sha256 {found[:12]}…, expected {expected.sha256[:12]}… by {expected.said_by}"


def _by_manifest(root: Path, index: Index) -> tuple[list[Expected], list[str]]:
    """What the newest command that made each path left there, and in words what is gone."""
    expected, gone = [], []
    for made in index.newest():
        if Path(made.path) == DEVLOG:  # people write into it, and may delete it
            continue
        path, who = root / made.path, f"{words_of(made.entry)}, {str(made.entry['start'])[:19]}Z"
        trashed = trash_of(path)
        place = path if path.exists() or trashed is None else trashed
        if place.exists():
            expected.append(Expected(place, made.sha256, made.kind == "folder", who))
        elif _own(root, path) and not _emptied(root, path):
            gone.append(f"{path}: gone, made by {who}")
    return expected, gone


def _emptied(root: Path, path: Path) -> bool:
    """Whether a path belongs to weights that were deleted from the trash."""
    below = path.relative_to(root / ARTIFACTS).parts if path.is_relative_to(root / ARTIFACTS) else ()
    return len(below) > 2 and run_records(below[0], below[1], root / RESULTS).trashed.exists()


def _by_stamps(root: Path) -> tuple[list[Expected], list[str]]:
    """What stamps and releases say of every file of weights, and in words what is gone."""
    expected, gone = [], []
    for group in inventory.gather(root / RESULTS, root / ARTIFACTS):
        for folder in group.folders:
            for file in folder.files:
                if file.bytes is not None:
                    expected.append(Expected(Path(file.path), file.sha256, False, f"the stamp of {group.key}"))
                elif folder.status != "emptied":
                    gone.append(f"{file.path}: gone, of {group.key}")
    return expected, gone


def record_faults(results: Path) -> list[str]:
    """In words, which records of runs and confirmations are not as they were written."""
    checks = [*_checks(results)]
    return [fault for check in checks if (fault := _fault(check))]


def _checks(results: Path) -> Iterator[Callable[[], object]]:
    for run in all_runs(results):
        yield partial(_check_recipe, run)
        if run.outcome.exists():
            yield partial(Outcome.read, run.outcome)
        if run.outcome.exists() and run.metrics.exists():
            yield partial(check_run, run)
        if run.mix_audit.exists():
            yield partial(Audit.read, run.mix_audit)
        yield partial(verdict_of, run)
    for place in all_confirmations(results):
        run = run_records(place.folder.parent.name, place.folder.name, results)
        yield partial(confirmation_of, place, run)


def _check_recipe(run: RunRecords) -> None:
    found = lineage_of(Recipe.read(run.recipe).content())
    if found != run.folder.name:
        raise FgodError(f"{run.recipe}: it is the recipe of {found}, not of {run.folder.name}; it was edited")


def _fault(check: Callable[[], object]) -> str:
    try:
        check()
    except FgodError as error:
        return str(error)
    return ""


def hashed(files: Sequence[Path], say: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    """The sha256 of each file, read anew; says every few seconds how much is read."""
    sizes = [file.stat().st_size for file in files]
    total, done, begin = sum(sizes), 0, time.monotonic()
    told = begin
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        for file, size, sha256 in zip(files, sizes, pool.map(sha256_file, files), strict=True):
            done += size
            now = time.monotonic()
            if now - told >= SAY_SECS:
                told, left = now, (now - begin) * (total - done) / max(done, 1)
                say(f"verify · {done / 1e9:.1f} of {total / 1e9:.1f} GB · {left:.0f} s left")
            yield file, sha256


def report(found: Verified) -> Iterable[str]:
    """What was found, in lines."""
    yield from (f"note: {note}" for note in found.notes)
    yield from found.faults
    well = f"{len(found.faults)} faults" if found.faults else "all as it was made"
    yield f"{found.files} files read, {found.bytes:,} bytes: {well}"
