"""Where memory readings come from: the interface, and host memory.

What cannot be read is an UnseenError and never 0: a guard must not take blindness for an idle machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fgod.guard import cgroup
from fgod.guard.shared import Files, held_files, tmpfs_folders
from fgod.system.process import Member
from fgod.system.procfs import MIB, PAGE_BYTES, TICKS_PER_SEC, Meminfo, Statm, kib_field

VFORK_SECS = 1.0
"""A child this young whose memory map is that of its parent has most likely not yet reached exec."""

SAME_MAP = 0.02
"""Relative difference up to which two maps count as the same: other threads go on while one waits in vfork."""

PSS_CALM_SECS = 2.0
"""PSS is read again after this long, and …"""

PSS_CALM_COST = 500
"""… after this many times the time that reading the tree takes: at most 0.2 % of a core …"""

PSS_ALERT_COST = 20
""" … and 5 % while the cheap upper bound, RSS, is above the limit."""


class UnseenError(Exception):
    """A source cannot be read now. The message says why."""


@dataclass(frozen=True)
class User:
    """A process that uses memory of a device; `mib` None: how much is unknown."""

    pid: int
    name: str
    mib: float | None

    def __str__(self) -> str:
        return f"{self.pid} ({self.name}) {'an unknown amount' if self.mib is None else f'{self.mib:.0f} MiB'}"


def named_users(source: MemorySource) -> str:
    """Its users in words; empty when there is none."""
    try:
        return ", ".join(map(str, source.users()))
    except UnseenError as error:
        return f"users that cannot be listed ({error})"


class MemorySource(Protocol):
    """One way of reading one pool of memory. All figures in MiB."""

    name: str
    """Stands in guard.tsv."""

    def total_mib(self) -> float | None:
        """What the machine or device has, and our control group may have of it; None: unknown."""

    def machine_mib(self) -> float | None:
        """What all of its users use together, now; None: unknown."""

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        """What counts against the limit now; None: the tree has no process with memory (it starts or ends).

        Raises:
            UnseenError: it cannot be read.
        """

    def users(self) -> list[User]:
        """Processes that use the device, as far as it reports them; none for memory of the host.

        Raises:
            UnseenError: they cannot be listed.
        """


@dataclass(frozen=True)
class _Resident:
    """Memory map of a process in pages (proc_pid_statm(5)): its extent and its resident part."""

    extent: int
    pages: int

    @property
    def mib(self) -> float:
        return self.pages * PAGE_BYTES / MIB

    def like(self, other: _Resident) -> bool:
        pairs = ((self.extent, other.extent), (self.pages, other.pages))
        return all(abs(a - b) <= SAME_MAP * max(a, b) for a, b in pairs)


@dataclass(frozen=True)
class _Share:
    """PSS of a process in MiB, the RSS when it was read, and what reading took (seconds).

    `shared`: what of its PSS is shared memory; `files`: what it holds open in memfd and tmpfs, mapped or not.
    """

    started: int
    pss: float
    rss: float
    shared: float
    files: Files
    read_at: float
    cost: float


@dataclass(frozen=True)
class _Pace:
    """How old a reading may get: `secs`, and `factor` times what it took."""

    secs: float
    factor: float

    def due(self, share: _Share, now: float) -> bool:
        return now >= share.read_at + max(self.secs, self.factor * share.cost)


_EXACT = _Pace(0.0, 0.0)


class HostMemory:
    """Host memory of a process tree: PSS (pages shared by n processes count 1/n each), or RSS where there is none.

    Reading PSS walks the page tables (about 10 ms a GiB) and holds up the process's own page faults, so between two
    readings the change of RSS stands in for the change of PSS. A sum above `exact_above_mib` is always read exactly.
    Swapped pages do not count. Files in memory (memfd, tmpfs) that the tree holds open count as far as they are more
    than the shared memory that it maps; they are looked at when PSS is read.
    """

    def __init__(self, exact_above_mib: float, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._exact_above = exact_above_mib
        self._shares: dict[int, _Share] = {}
        self._has_pss = (proc / "self" / "smaps_rollup").exists()
        self._tmpfs = tmpfs_folders(proc)
        self._meminfo = Meminfo(proc)
        self._statm = Statm(proc)
        self._group = cgroup.own(proc)
        self._last_tree: Sequence[Member] = ()
        self._last_texts: list[bytes] = []
        self._last_used: float | None = None
        self._look_at = 0.0
        self.name = "host_pss" if self._has_pss else "host_rss"

    def total_mib(self) -> float | None:
        machine, group = self._meminfo.read(), self._group.limit_mib()
        known = [total for total in (machine and machine[0], group) if total is not None]
        return min(known, default=None)

    def machine_mib(self) -> float | None:
        info = self._meminfo.read()
        return None if info is None else info[0] - info[1]

    def users(self) -> list[User]:
        return []

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        """Sum over the tree. Maps that did not change since the last reading are not looked at again for a while."""
        try:
            texts = [self._statm.read(m.pid, m.started) for m in tree]
        except OSError as error:
            raise UnseenError(f"{error.filename or self._proc}: {error.strerror}") from None
        now = time.monotonic()
        if tree is not self._last_tree or texts != self._last_texts or now >= self._look_at:
            self._last_tree, self._last_texts, self._look_at = tree, texts, now + PSS_CALM_SECS
            self._last_used = self._used(tree, texts)
        return self._last_used

    def _used(self, tree: Sequence[Member], texts: Sequence[bytes]) -> float | None:
        maps = zip(tree, map(self._statm.parsed, texts), strict=True)
        resident = {m.pid: _Resident(*r) for m, r in maps if r}
        self._statm.keep_only(resident.keys())
        members = [m for m in tree if m.pid in resident]
        if not members:
            return None
        upper = sum(r.mib for r in resident.values())
        calm = upper <= self._exact_above
        count = len(members)
        pace = _Pace(PSS_CALM_SECS, PSS_CALM_COST * count) if calm else _Pace(0.0, PSS_ALERT_COST * count)
        used = self._sum(members, resident, pace)
        return used if used <= self._exact_above else self._sum(members, resident, _EXACT)

    def _sum(self, members: list[Member], resident: dict[int, _Resident], pace: _Pace) -> float:
        """Sum of shares; those that are due are read again."""
        before = self._shares
        self._shares = {m.pid: self._share(m, resident[m.pid], before.get(m.pid), pace) for m in members}
        current = {m.pid: _estimate(self._shares[m.pid], resident[m.pid]) for m in members}
        counted = sum(current.values()) - _counted_twice(members, resident, current)
        return counted + _unmapped_files(list(self._shares.values()))

    def _share(self, member: Member, resident: _Resident, last: _Share | None, pace: _Pace) -> _Share:
        begin = time.monotonic()
        if last and last.started == member.started and not pace.due(last, begin):
            return last
        pss, shared = self._pss(member.pid) if self._has_pss else (None, None)
        share = resident.mib if pss is None else min(pss, resident.mib)
        files = held_files(member.pid, self._tmpfs, self._proc)
        shared = share if shared is None else shared
        return _Share(member.started, share, resident.mib, shared, files, begin, time.monotonic() - begin)

    def _pss(self, pid: int) -> tuple[float | None, float | None]:
        """PSS, and what of it is shared memory. None: the process is gone or another user's, so that its RSS counts, or
        the kernel does not say (Pss_Shmem is there since Linux 5.4)."""
        try:
            text = (self._proc / str(pid) / "smaps_rollup").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None, None
        return kib_field(text, b"Pss:"), kib_field(text, b"Pss_Shmem:")


def _estimate(share: _Share, resident: _Resident) -> float:
    return min(max(share.pss + resident.mib - share.rss, 0.0), resident.mib)


def _unmapped_files(shares: Sequence[_Share]) -> float:
    """MiB of files in memory that are in no PSS. A file that is mapped is: so all mapped shared memory is taken off."""
    files: dict[tuple[int, int], float] = {}
    for share in shares:
        files.update(share.files)
    return max(sum(files.values()) - sum(share.shared for share in shares), 0.0) if files else 0.0


def _counted_twice(members: list[Member], resident: dict[int, _Resident], current: dict[int, float]) -> float:
    """MiB that parents and children between vfork and exec count together: they have one memory, of at most one RSS.

    subprocess uses vfork: for a moment a trainer of 6 GiB that calls a compiler looks like 12 GiB.
    """
    ticks = _uptime_ticks()
    twice = 0.0
    for m in members:
        young = m.parent in resident and ticks - m.started <= VFORK_SECS * TICKS_PER_SEC
        if young and resident[m.parent].like(resident[m.pid]):
            twice += max(current[m.parent] + current[m.pid] - resident[m.pid].mib, 0.0)
    return twice


def _uptime_ticks() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_SEC
