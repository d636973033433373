"""A file lock whose descriptor a command inherits.

flock(2) belongs to the open file, so the lock is held as long as anyone lives who could write: also in the moment
between the end of a parent that was killed and the end of its command. The kernel frees it, on NFS the server does when
the node is gone: no lock is ever taken for stale by a process number. The file says who took it last, and where.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fgod.errors import FgodError, StorageError
from fgod.system.process import process_numbers, read_process

WAIT_STEP_SECS = 0.05

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What flock(2) answers on a file system without it."""

RECORD_BYTES = 8192


class LockHeldError(FgodError):
    """Another process holds the lock: the command was not started. Exit code 1."""


@dataclass(frozen=True)
class Holder:
    """Who took a lock last: a process, its machine, and the folder that it works in."""

    host: str
    pid: int
    folder: str

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        process = read_process(self.pid) if self.here else None
        name = process or f"{self.pid}{'' if self.here else f' on {self.host}'}"
        return f"{name}, at work in {self.folder}"


@contextmanager
def held(path: Path, what: str = "this folder", wait_secs: float = 0.0) -> Iterator[int]:
    """Hold the lock and yield its descriptor. The file stays behind: removing it would let two in.

    Args:
        wait_secs: for as long another one is waited for.

    Raises:
        LockHeldError: someone else holds it; names the processes.
        StorageError: the file system has no locks.
    """
    handle, writable = _opened(path)
    try:
        until = time.monotonic() + wait_secs
        while not _taken(handle, path):
            if time.monotonic() >= until:
                raise LockHeldError(_held_by(path, handle, what))
            time.sleep(WAIT_STEP_SECS)
        if writable:
            _record(handle)
        yield handle
    finally:
        os.close(handle)  # no LOCK_UN: that would unlock the copies that the command inherited


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the lock together with others who share it; waits for who has it alone."""
    handle, _ = _opened(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


@contextmanager
def held_if_free(path: Path) -> Iterator[int | None]:
    """Hold the lock as `held` does, or yield None at once where someone else does."""
    handle, writable = _opened(path)
    try:
        free = _taken(handle, path)
        if free and writable:
            _record(handle)
        yield handle if free else None
    finally:
        os.close(handle)


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock of this machine now; None where nobody does, or the file does not say it."""
    try:
        with path.open("rb") as stream:
            return _recorded(stream.fileno()) if _is_held(os.fstat(stream.fileno())) else None
    except (FileNotFoundError, PermissionError):
        return None


def _is_held(file: os.stat_result) -> bool:
    """Whether the kernel lists a lock of the file (proc_locks(5)); looking at it takes nothing from anybody."""
    with open("/proc/locks", encoding="ascii") as stream:
        found = [line.split() for line in stream]
    return any(words[1] == "FLOCK" and words[-3].split(":")[-1] == str(file.st_ino) for words in found)


def _taken(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise StorageError(
            f"{path}: this file system has no locks (flock: {error.strerror}); expected one that has, as two runs "
            "would write one folder. docs/scale.md says which do"
        ) from None
    return True


def _opened(path: Path) -> tuple[int, bool]:
    """A descriptor and whether it can be written to: another user's file is enough to lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), True
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def _record(handle: int) -> None:
    """Say in the file who we are."""
    text = json.dumps(asdict(Holder(socket.gethostname(), os.getpid(), os.getcwd()))) + "\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)


def _recorded(handle: int) -> Holder | None:
    """What the file says; None where it is empty, or not written by us."""
    try:
        return Holder(**json.loads(os.pread(handle, RECORD_BYTES, 0)))
    except (TypeError, ValueError):
        return None


def _held_by(path: Path, handle: int, what: str) -> str:
    recorded = _recorded(handle)
    holders = [str(p) for pid in holder_numbers(handle) if (p := read_process(pid))]
    if recorded and not recorded.here:  # those of this machine that have it open wait for it
        holders = [str(recorded)]
    named = ", ".join(holders) or f"unknown; last taken by process {recorded or 'unknown'}"
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
