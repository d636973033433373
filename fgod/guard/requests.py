"""How the guard asks a trainer for something, and how a trainer answers: two small files in one folder.

The guard tells its command in the environment (FGOD_GUARD_REQUESTS) which file to look at: `NUMBER REQUEST`, written by
rename. The trainer does what is asked and writes the number to the file beside it (`….done`). Who does not look is not
asked again; the limit still holds. A trainer looks once a step (a stat of one file, about a microsecond):

    ears = requests.Ears.from_environment()
    for step in steps:
        …
        match ears.heard():
            case Request.EMPTY_CACHE:
                torch.cuda.empty_cache()
                ears.done()
            case Request.SAVE_AND_STOP:
                save()
                ears.done()
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


class Voice:
    """The guard's side. Removes what an earlier run left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        for old in (path, _answers(path)):
            old.unlink(missing_ok=True)

    def ask(self, request: Request) -> None:
        self._number += 1
        _write(self._path, f"{self._number} {request}\n")

    def done(self) -> bool:
        """Whether what was asked last has been done; False as long as nothing was asked."""
        try:
            return self._number > 0 and _answers(self._path).read_text() == f"{self._number}\n"
        except FileNotFoundError:
            return False


class Ears:
    """The trainer's side. Without a guard (`path` None) nothing is ever asked."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._number = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ears:
        name = environment.get(VARIABLE)
        return cls(Path(name) if name else None)

    def heard(self) -> Request | None:
        """What was asked since the last call.

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
        """Say that what was heard last has been done."""
        if self._path is not None and self._number:
            _write(_answers(self._path), f"{self._number}\n")
