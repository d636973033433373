"""The DevLog as a file: what is missing is added at its end, and nothing else is touched."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fgod.devlog.entry import Judged, entry, mark, read_judged
from fgod.devlog.next_step import LogSettings
from fgod.documents import Verdict
from fgod.errors import FgodError
from fgod.layout import DEVLOG, DEVLOG_LOCK, RESULTS, RunRecords
from fgod.manifest import starts
from fgod.system.files import write_text
from fgod.system.lock import LockHeldError, held

WAIT_SECS = 60.0
"""For another process that adds entries, which takes it a moment."""

_MARK = re.compile(r"^<!-- entry \S+ \S+ -->\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Added:
    """What an update did: the runs that have a new entry, and in words the records of which none could be made."""

    runs: tuple[str, ...]
    faults: tuple[str, ...]


def update(settings: LogSettings, results: Path = RESULTS) -> Added:
    """Add an entry for each verdict on record that has none, in the order in which the runs were made.

    A log that cannot be read, or that another process adds to for long, is a fault, and left alone. What people save
    while entries are made is kept: the log is read again just before it is written. A log that is a link stays one.

    Raises:
        StorageError: the log could not be written; it is as before.
        OSError: the folders of the records cannot be read, or the lock cannot be made.
    """
    path = results / DEVLOG.name
    try:
        with held(results.parent / DEVLOG_LOCK, str(path), WAIT_SECS):
            return _update(settings, results, path)
    except (LockHeldError, _NotReadError) as error:
        return Added((), (str(error),))


def _update(settings: LogSettings, results: Path, path: Path) -> Added:
    text = _read(path)
    while True:
        known = _marks(text)
        added, new = _entries(settings, results, known)
        text = _read(path)
        if _marks(text) == known:
            break
    if new:
        write_text(path.resolve(), "\n".join([_ended(text) or f"# DevLog\n\n{settings.words.about}\n", *new]))
    return added


def _marks(text: str) -> set[str]:
    """The marks of the entries that a log has."""
    return {mark.rstrip("\r") for mark in _MARK.findall(text)}


def _entries(settings: LogSettings, results: Path, known: Collection[str]) -> tuple[Added, list[str]]:
    """The texts of the entries that are missing beside the known ones, and what is to be said of them."""
    judged, faults = _judged(results, known)
    new: list[str] = []
    added: list[str] = []
    earlier: dict[str, Judged] = {}
    for one in judged:
        try:
            if one.mark not in known and not one.stale:
                new.append(entry(len(known) + len(new) + 1, one, earlier.get(one.stage), results, settings))
                added.append(one.name)
        except _UNUSABLE as error:
            faults.append(_fault(one.run, error))
        earlier[one.stage] = one
    return Added(tuple(added), tuple(faults)), new


_UNUSABLE = (FgodError, OSError, AttributeError, LookupError, TypeError, ValueError)
"""What comes of records that are missing, were edited, cannot be read or have another shape than fgod writes."""


def _fault(run: RunRecords, error: Exception) -> str:
    if isinstance(error, FgodError | OSError):
        return str(error)
    return f"{run.folder}: a record has another shape than fgod writes ({type(error).__name__}: {error})"


class _NotReadError(FgodError):
    """The log cannot be read."""


def _read(path: Path) -> str:
    """The log as it stands, to the byte; empty where there is none.

    Raises:
        _NotReadError: it cannot be read, or is not UTF-8; names the line.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _NotReadError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _NotReadError(
            f"{path}:{line}: not UTF-8; save it as UTF-8: it is only added to, never written over"
        ) from None


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _judged(results: Path, known: Collection[str]) -> tuple[list[Judged], list[str]]:
    """The runs with a verdict, of the stages that have one without an entry, in the order in which they were made; and
    in words those that cannot be read."""
    verdicts: list[tuple[RunRecords, Verdict]] = []
    faults: list[str] = []
    for path in sorted((results / "runs").glob("*/*/verdict.json")):
        try:
            verdicts.append((RunRecords(path.parent), Verdict.read(path)))
        except _UNUSABLE as error:
            faults.append(_fault(RunRecords(path.parent), error))
    stages = {run.folder.parent.name for run, verdict in verdicts if mark(run, verdict) not in known}
    looked = [(run, verdict) for run, verdict in verdicts if run.folder.parent.name in stages]
    commands = starts(results.parent, {run.folder.name for run, _ in looked})
    found: list[Judged] = []
    for run, verdict in looked:
        try:
            found.append(read_judged(run, verdict, commands.get((run.folder.parent.name, run.folder.name), ())))
        except _UNUSABLE as error:
            faults.append(_fault(run, error))
    return sorted(found, key=lambda one: (one.made, one.name)), faults


def lines(added: Added) -> Iterator[str]:
    """What an update did, for people."""
    yield from (f"DevLog · {run}" for run in added.runs)
    yield from (f"DevLog · no entry: {fault}" for fault in added.faults)
