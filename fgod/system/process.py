"""The processes that a command started, found in /proc: descendants, and members of its session or group.

A worker is often a grandchild. One whose parent died goes to the nearest subreaper, for the guard that is its keeper
(`fgod.guard.keeper`): it stays a descendant even after a double fork and setsid. A process once seen stays a member
while it lives.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fgod.system.procfs import OpenFile

RESCAN_SECS = 60.0
"""How often strangers are looked at again: a number may have gone round and be reused between two looks."""

LOOKS = 3
"""How often one call looks for members while some have parents that ended during the look."""

KILL_SECS = 5.0
"""How long a killed process may take to vanish (freeing many GiB takes time) before it counts as a survivor."""


@dataclass(frozen=True)
class Member:
    """A living process. `started` is in clock ticks after boot: with the number it names one process for good."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    name: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.name})"


def read_process(pid: int) -> Member | None:
    """A living process from /proc/PID/stat (proc_pid_stat(5)); None when it is gone, a zombie, or hidden from us."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            text = stream.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    head, _, tail = text.rpartition(")")  # the name itself may hold parentheses and blanks
    fields = tail.split()
    if fields[0] in "ZX":
        return None
    name = head.partition("(")[2]
    return Member(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), name)


def process_numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


class ProcessTree:
    """The living processes below `root`, which is the keeper (never a member itself) or, alone, the command.

    Nothing here signals by number or group: each process is named by number and start time, so none is taken for one
    that was given its number later.
    """

    def __init__(self, root: int, keeper: bool = False) -> None:
        self.root = root
        self._hidden = {root} if keeper else set()
        self._members: dict[int, Member] = {}
        self._strangers: set[str] = set()  # names in /proc
        self._orphans: frozenset[Member] = frozenset()  # of the last look: processes whose parent ended while we looked
        self._rescan_at = 0.0
        self._last_created: bytes | None = None
        self._watched: list[Member] = []
        self._loadavg = OpenFile(Path("/proc/loadavg"))

    def watched(self) -> list[Member]:
        """`members`, looked up only when a process or thread was created since, or a minute has passed.

        /proc/loadavg ends with the number given last (proc_loadavg(5)): while it stands no process can have joined.
        Those that ended meanwhile are still listed.
        """
        last = self._loadavg.read(128).split()[-1]
        if last != self._last_created or self._orphans or time.monotonic() >= self._rescan_at:
            self._last_created = last
            self._watched = self.members()
        return self._watched

    def members(self) -> list[Member]:
        """Living members, sorted by number. A look lists /proc once and reads each member and each new process.

        A process whose parent ended during a look is read again at once, until all have one that lives or no look finds
        others, `LOOKS` times at most.
        """
        before: frozenset[Member] = frozenset()
        for _ in range(LOOKS):
            self._look()
            if not self._orphans or self._orphans == before:
                break
            before = self._orphans
        return sorted((m for m in self._members.values() if m.pid not in self._hidden), key=lambda m: m.pid)

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._rescan_at:
            self._strangers.clear()
            self._rescan_at = now + RESCAN_SECS
        self._drop_dead()
        listed = set(os.listdir("/proc"))
        self._strangers &= listed
        new = listed - self._strangers - {str(pid) for pid in self._members}
        self._strangers.update(name for name in new if not name.isdecimal())
        self._adopt([p for name in new - self._strangers if (p := read_process(int(name)))])

    def _drop_dead(self) -> None:
        current = {pid: read_process(pid) for pid in self._members}
        self._members = {
            pid: now for pid, was in self._members.items() if (now := current[pid]) and now.started == was.started
        }

    def _adopt(self, unknown: list[Member]) -> None:
        """Sort new processes into members and strangers; as a child may come before its parent, until no more join.

        One whose parent has ended meanwhile has another by now, perhaps the keeper: it is read again by the next look.
        """
        living = {str(p.pid) for p in unknown} | self._strangers | {"0"}
        joined = True
        while joined:
            joining = [p for p in unknown if self._belongs(p)]
            self._members.update((p.pid, p) for p in joining)
            unknown = [p for p in unknown if p.pid not in self._members]
            joined = bool(joining)
        self._orphans = frozenset(p for p in unknown if str(p.parent) not in living)
        self._strangers |= {str(p.pid) for p in unknown} - {str(p.pid) for p in self._orphans}

    def _belongs(self, p: Member) -> bool:
        return self.root in (p.pid, p.session, p.group) or p.parent in self._members

    def kill(self, timeout: float = KILL_SECS) -> list[Member]:
        """SIGKILL to all members until none lives, or `timeout` seconds passed: returns the survivors."""
        deadline = time.monotonic() + timeout
        pause = 0.001
        while members := self.members():
            if time.monotonic() > deadline:
                return members
            kill_all(members)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return []

    def wait_gone(self, timeout: float) -> list[Member]:
        """Give members up to `timeout` seconds to end by themselves: returns those that live on."""
        deadline = time.monotonic() + timeout
        while (members := self.members()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return members


def kill_all(members: Sequence[Member]) -> None:
    """SIGKILL to each of these processes, and to no other."""
    for member in members:
        signal_process(member, signal.SIGKILL)


def signal_process(member: Member, number: int) -> None:
    """Send a signal to exactly this process: the handle is taken before its start time is compared; numbers are reused.

    A process that has ended, or is not ours to signal, gets none.
    """
    with suppress(ProcessLookupError, PermissionError):  # gone, or not ours to end: the caller looks again
        handle = os.pidfd_open(member.pid)
        try:
            now = read_process(member.pid)
            if now and now.started == member.started:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
