"""Where memory readings come from. Unknown is None and never 0: a guard must not take blindness for an idle machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fgod.guard.tree import Member

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")
MIB = 2**20

VFORK_SECS = 1.0
"""A child this young whose memory map is that of its parent has most likely not yet reached exec."""

SAME_MAP = 0.02
"""Relative difference up to which two maps count as the same: other threads go on while one waits in vfork."""

PSS_CALM_COST = 200
"""PSS of a process is read again after this many times the time that reading took: at most 0.5 % of a core …"""

PSS_ALERT_COST = 20
""" … and 5 % while the cheap upper bound, RSS, is above the limit."""


class MemorySource(Protocol):
    """One way of reading memory. All figures in MiB; None where the source cannot tell."""

    name: str
    """Stands in guard.tsv."""

    def total_mib(self) -> float | None:
        """What the machine or device has."""

    def machine_mib(self) -> float | None:
        """What all of its users use together, now."""

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        """What the processes of the tree use together, now."""


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
    """PSS of a process in MiB, and the RSS when it was read; `due` is the time to read it again."""

    started: int
    pss: float
    rss: float
    read_at: float
    cost: float

    def due(self, now: float, factor: float) -> bool:
        return now >= self.read_at + factor * self.cost


class HostMemory:
    """Host memory of a process tree: PSS (pages shared by n processes count 1/n each) where the kernel tells, else RSS.

    Reading PSS walks the page tables (about 10 ms a GiB) and holds up the process's own page faults, so between two
    readings the change of RSS stands in for the change of PSS. A sum above `exact_above_mib` is always read exactly.
    Swapped pages do not count.
    """

    def __init__(self, exact_above_mib: float, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._exact_above = exact_above_mib
        self._shares: dict[int, _Share] = {}
        self._has_pss = (proc / "self" / "smaps_rollup").exists()
        self.name = "host_pss" if self._has_pss else "host_rss"

    def total_mib(self) -> float | None:
        return self._meminfo().get("MemTotal")

    def machine_mib(self) -> float | None:
        info = self._meminfo()
        if "MemTotal" not in info or "MemAvailable" not in info:
            return None
        return info["MemTotal"] - info["MemAvailable"]

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        """Sum over the tree; None when it has no process with memory, or one that cannot be read."""
        try:
            resident = {m.pid: r for m in tree if (r := self._resident(m.pid))}
        except PermissionError:
            return None
        members = [m for m in tree if m.pid in resident]
        if not members:
            return None
        upper = sum(r.mib for r in resident.values())
        factor = PSS_CALM_COST if upper <= self._exact_above else PSS_ALERT_COST
        used = self._sum(members, resident, factor)
        return used if used <= self._exact_above else self._sum(members, resident, 0)

    def _sum(self, members: list[Member], resident: dict[int, _Resident], factor: float) -> float:
        """Sum of shares; those older than `factor` times their cost are read again."""
        before = self._shares
        self._shares = {m.pid: self._share(m, resident[m.pid], before.get(m.pid), factor) for m in members}
        current = {m.pid: _estimate(self._shares[m.pid], resident[m.pid]) for m in members}
        return sum(current.values()) - _counted_twice(members, resident, current)

    def _share(self, member: Member, resident: _Resident, last: _Share | None, factor: float) -> _Share:
        begin = time.monotonic()
        if last and last.started == member.started and not last.due(begin, factor):
            return last
        pss = self._pss(member.pid) if self._has_pss else None
        share = resident.mib if pss is None else min(pss, resident.mib)
        return _Share(member.started, share, resident.mib, begin, time.monotonic() - begin)

    def _resident(self, pid: int) -> _Resident | None:
        """None for a process that is gone or has given its memory back."""
        try:
            extent, pages = map(int, (self._proc / str(pid) / "statm").read_bytes().split()[:2])
        except (FileNotFoundError, ProcessLookupError):
            return None
        return _Resident(extent, pages) if pages else None

    def _pss(self, pid: int) -> float | None:
        """None when the process is gone or another user's: its RSS counts then."""
        try:
            text = (self._proc / str(pid) / "smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return None
        return _kib_fields(text.splitlines()).get("Pss")

    def _meminfo(self) -> dict[str, float]:
        try:
            return _kib_fields((self._proc / "meminfo").read_text().splitlines())
        except OSError:
            return {}


def _kib_fields(lines: Iterable[str]) -> dict[str, float]:
    """`Name:   123 kB` lines as MiB."""
    fields = (line.split() for line in lines)
    return {f[0].rstrip(":"): int(f[1]) / 1024 for f in fields if len(f) == 3 and f[2] == "kB"}


def _estimate(share: _Share, resident: _Resident) -> float:
    return min(max(share.pss + resident.mib - share.rss, 0.0), resident.mib)


def _counted_twice(members: list[Member], resident: dict[int, _Resident], current: dict[int, float]) -> float:
    """MiB that parents and children between vfork and exec count together: they have one memory, of at most one RSS.

    subprocess uses vfork: for a moment a trainer of 6 GiB that calls a compiler looks like 12 GiB.
    """
    ticks = _uptime_ticks()
    twice = 0.0
    for m in members:
        young = ticks - m.started <= VFORK_SECS * TICKS_PER_SEC
        if young and m.parent in resident and resident[m.parent].like(resident[m.pid]):
            twice += max(current[m.parent] + current[m.pid] - resident[m.pid].mib, 0.0)
    return twice


def _uptime_ticks() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS_PER_SEC
