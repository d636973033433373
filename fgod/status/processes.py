"""The living processes of a command, and what each does there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgod.guard.phases import phase_file_of
from fgod.system.process import Member, ProcessTree
from fgod.system.procfs import MIB, PAGE_BYTES, Statm

KEEPER = "keeper.py"
"""The script that stands between the guard and its command (`fgod.guard.keeper`)."""


@dataclass(frozen=True)
class Process:
    """`role`: guard (of a command without one: command), keeper, trainer, worker or helper. `resident_mib`: its RSS,
    in which shared pages count whole; None where it is hidden from us."""

    pid: int
    role: str
    name: str
    resident_mib: float | None


def processes_of(pid: int, trains: bool, proc: Path = Path("/proc")) -> list[Process]:
    """The processes of the command with this number: itself first, then by number.

    Args:
        trains: whether what it guards is a trainer.
    """
    members = ProcessTree(pid).members()
    keepers = {m.pid for m in members if m.parent == pid and KEEPER in _words(m.pid, proc)}
    ordered = sorted(members, key=lambda m: (m.pid != pid, m.pid))
    return [Process(m.pid, role(m, pid, keepers, trains), m.name, _resident_mib(m, proc)) for m in ordered]


def role(member: Member, pid: int, keepers: set[int], trains: bool) -> str:
    """What a process does below the command with number `pid`."""
    if member.pid == pid:
        return "guard" if keepers else "command"
    if member.pid in keepers:
        return "keeper"
    if member.parent in keepers:
        return "trainer" if trains else "worker"
    return "helper"


def phase_file(processes: Sequence[Process], proc: Path = Path("/proc")) -> Path | None:
    """Where the guarded process says its phase, which its environment names; None where that is hidden from us."""
    guarded = (process.pid for process in processes if process.role in ("trainer", "worker"))
    return next(filter(None, (phase_file_of(pid, proc) for pid in guarded)), None)


def _words(pid: int, proc: Path) -> str:
    return _read(proc / str(pid) / "cmdline").replace(b"\0", b" ").decode(errors="replace")


def _read(path: Path) -> bytes:
    """Empty for a process that is gone, or another user's."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _resident_mib(member: Member, proc: Path) -> float | None:
    try:
        found = Statm.parsed(Statm(proc).read(member.pid, member.started))
    except PermissionError:
        return None
    return round(found[1] * PAGE_BYTES / MIB, 1) if found else None
