"""Requests of the guard to its command, and their acknowledgement: two small files in one folder.

The environment variable FGOD_GUARD_REQUESTS names the file of requests: `NUMBER REQUEST`, written by rename. The
command does what is requested and writes the number to the file beside it (`….done`). A command that does not
acknowledge is not asked again; the limit still holds. A trainer polls once a step (a stat of one file, about 1 µs):

    reader = requests.RequestReader.from_environment()
    for step in steps:
        …
        match reader.poll():
            case Request.EMPTY_CACHE:
                torch.cuda.empty_cache()
                reader.done()
            case Request.SAVE_AND_STOP:
                save()
                reader.done()
                sys.exit(STOPPED_EXIT)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fgod.errors import FgodError
from fgod.guard.limits import KILLED_EXIT, Request

VARIABLE = "FGOD_GUARD_REQUESTS"

STOPPED_EXIT = KILLED_EXIT
"""Exit code of a trainer that saved and stopped because it was asked to."""


class RequestError(FgodError):
    """The file of requests holds something else. Exit code 1."""


def _write(path: Path, text: str) -> None:
    """By rename, so that a reader sees the old or the new text; not synced: both sides live or the run is over."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="ascii")
    temporary.replace(path)


def _answers(path: Path) -> Path:
    return path.with_name(path.name + ".done")


class RequestWriter:
    """The guard's side. Removes the files of an earlier run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        for old in (path, _answers(path)):
            old.unlink(missing_ok=True)

    def ask(self, request: Request) -> None:
        self._number += 1
        _write(self._path, f"{self._number} {request}\n")

    def done(self) -> bool:
        """Whether the last request has been acknowledged; False before the first request."""
        try:
            return self._number > 0 and _answers(self._path).read_text() == f"{self._number}\n"
        except FileNotFoundError:
            return False


class RequestReader:
    """The command's side. Without a guard (`path` None) there is never a request."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._number = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> RequestReader:
        name = environment.get(VARIABLE)
        return cls(Path(name) if name else None)

    def poll(self) -> Request | None:
        """The request written since the last call, if any.

        Raises:
            RequestError: the file holds no request.
        """
        if self._path is None:
            return None
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            return None
        if (stat.st_ino, stat.st_mtime_ns) == self._seen:
            return None
        self._seen = stat.st_ino, stat.st_mtime_ns
        number, request = self._parsed(self._path.read_text(encoding="ascii", errors="replace"))
        if number == self._number:
            return None
        self._number = number
        return request

    def _parsed(self, text: str) -> tuple[int, Request]:
        number, _, request = text.strip().partition(" ")
        if not number.isdecimal() or request not in list(Request):
            expected = " or ".join(f"'NUMBER {name}'" for name in Request)
            raise RequestError(f"{self._path}: found {text.strip()[:80]!r}, expected {expected}")
        return int(number), Request(request)

    def done(self) -> None:
        """Acknowledge the last request."""
        if self._path is not None and self._number:
            _write(_answers(self._path), f"{self._number}\n")
