"""Memory in files: what processes hold open in memfd and tmpfs (/dev/shm). It is in no RSS until it is mapped."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from fgod.system.procfs import MIB

BLOCK_BYTES = 512
"""Unit of st_blocks (stat(2))."""

MEMFD = "/memfd:"
"""How /proc names the file of memfd_create(2)."""

Files = Mapping[tuple[int, int], float]
"""MiB by device and inode."""


def tmpfs_folders(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Mount points of tmpfs as this process sees them (proc_pid_mountinfo(5)), each with a slash at its end."""
    try:
        lines = (proc / "self" / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return ()
    mounts = (line.split(" - ", 1) for line in lines)
    found = {_unescaped(mount.split()[4]) for mount, kind in mounts if kind.split()[0] == "tmpfs"}
    return tuple(sorted(f"{folder.rstrip('/')}/" for folder in found))


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)


def held_files(pid: int, tmpfs: tuple[str, ...], proc: Path = Path("/proc")) -> Files:
    """Files in memory that a process holds open for writing; what it only reads was there before, or is another's.

    Empty for a process that is gone, or whose files we may not see.
    """
    found: dict[tuple[int, int], float] = {}
    try:
        with os.scandir(proc / str(pid) / "fd") as entries:
            for entry in entries:
                found.update(_held_file(entry, tmpfs))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return found
    return found


def _held_file(entry: os.DirEntry[str], tmpfs: tuple[str, ...]) -> Files:
    """The file of an entry of /proc/PID/fd, if it lies in memory and is open for writing."""
    try:
        # names first: to ask a network's file system for a file's size may take for ever
        if not os.readlink(entry.path).startswith((MEMFD, *tmpfs)):
            return {}
        writable = entry.stat(follow_symlinks=False).st_mode & stat.S_IWUSR  # of the link: how it was opened
        file = entry.stat()
    except FileNotFoundError:  # closed meanwhile
        return {}
    if not writable or not stat.S_ISREG(file.st_mode):
        return {}
    return {(file.st_dev, file.st_ino): file.st_blocks * BLOCK_BYTES / MIB}
