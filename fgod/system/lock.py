"""A file lock whose descriptor a command inherits.

flock(2) belongs to the open file, so the lock is held as long as anyone lives who could write: also in the moment
between the end of a parent that was killed and the end of its command.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgod.errors import FgodError
from fgod.system.process import process_numbers, read_process

WAIT_STEP_SECS = 0.05


class LockHeldError(FgodError):
    """Another process holds the lock: the command was not started. Exit code 1."""


@contextmanager
def held(path: Path, what: str = "this folder", wait_secs: float = 0.0) -> Iterator[int]:
    """Hold the lock and yield its descriptor. The file stays behind: removing it would let two in.

    Args:
        wait_secs: for as long another one is waited for.

    Raises:
        LockHeldError: someone else holds it; names the processes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, writable = _opened(path)
    try:
        until = time.monotonic() + wait_secs
        while not _taken(handle):
            if time.monotonic() >= until:
                raise LockHeldError(_held_by(path, handle, what))
            time.sleep(WAIT_STEP_SECS)
        if writable:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)  # no LOCK_UN: that would unlock the copies that the command inherited


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path) -> tuple[int, bool]:
    """A descriptor and whether it can be written to: another user's file is enough to lock."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), True
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def _held_by(path: Path, handle: int, what: str) -> str:
    holders = [str(p) for pid in holder_numbers(handle) if (p := read_process(pid))]
    named = ", ".join(holders) or f"unknown; last taken by process {os.pread(handle, 32, 0).decode().strip()}"
    return (
        f"{path}: another run is using {what}, found process {named}; "
        "expected none. Wait until it ends, or end it, then start again"
    )


def holder_numbers(handle: int) -> list[int]:
    """Other processes that have the file open, as far as this user may see."""
    file = os.fstat(handle)
    others = (pid for pid in process_numbers() if pid != os.getpid())
    return sorted(pid for pid in others if _has_open(pid, (file.st_dev, file.st_ino)))


def _has_open(pid: int, file: tuple[int, int]) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(_identity(entry.path) == file for entry in entries)
    except OSError:  # gone, or another user's
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:  # closed meanwhile
        return None
    return stat.st_dev, stat.st_ino
