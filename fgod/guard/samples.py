"""guard.tsv: readings over time, of bounded size, with the maximum of every phase kept."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fgod.system.table import write_table

COLUMNS = ("t", "phase", "source", "used_mib", "limit_mib")

MAX_SAMPLES = 2000
"""Samples of one table: enough for a chart, and written in a few milliseconds."""

WRITE_SECS = 5.0
"""How much a guard that is killed itself may lose of its table."""


@dataclass(frozen=True)
class Sample:
    """A reading. `t`: seconds since the command started; `used_mib`: None where the source could not be read."""

    t: float
    phase: str
    source: str
    used_mib: float | None
    limit_mib: float

    def row(self) -> dict[str, object]:
        used = None if self.used_mib is None else round(self.used_mib, 1)
        return {**vars(self), "t": round(self.t, 3), "used_mib": used, "limit_mib": round(self.limit_mib, 1)}


def larger(a: Sample, b: Sample) -> Sample:
    """The sample of the larger known usage; the later one of two equals."""
    if b.used_mib is None:
        return a
    return b if a.used_mib is None or b.used_mib >= a.used_mib else a


class Samples:
    """Keeps at most `limit` samples and one pending for each phase and source. Safe to use from two threads.

    When full, neighbours of one phase and source are merged into the larger, and from then on twice as many readings
    make one sample: the resolution is even over the run, and maxima of phases stay. Only where phases are more than
    half of the limit, neighbours of different phases merge too.
    """

    def __init__(self, limit: int = MAX_SAMPLES) -> None:
        self._limit = limit
        self._stride = 1
        self._kept: list[Sample] = []
        self._pending: dict[tuple[str, str], tuple[int, Sample]] = {}
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        with self._lock:
            key = (sample.phase, sample.source)
            count, best = self._pending.pop(key, (0, sample))
            self._pending[key] = (count + 1, larger(best, sample))
            if count + 1 >= self._stride:
                self._settle(key)
            elif len(self._pending) > self._limit:
                self._settle(next(iter(self._pending)))  # the phase that was longest without a reading

    def _settle(self, key: tuple[str, str]) -> None:
        self._kept.append(self._pending.pop(key)[1])
        if len(self._kept) <= self._limit:
            return
        self._stride *= 2
        self._kept = merge_neighbours(self._kept, by_phase=True)
        if len(self._kept) > self._limit * 3 // 4:
            self._kept = merge_neighbours(self._kept, by_phase=False)

    def sorted(self) -> list[Sample]:
        with self._lock:
            return sorted([*self._kept, *(s for _, s in self._pending.values())], key=lambda s: s.t)


def merge_neighbours(samples: Iterable[Sample], by_phase: bool) -> list[Sample]:
    """Merge each two neighbours in time of the same source (and phase) into the larger; about half as many."""
    waiting: dict[tuple[str, str], Sample] = {}
    merged = []
    for sample in sorted(samples, key=lambda s: s.t):
        key = (sample.phase if by_phase else "", sample.source)
        if key in waiting:
            merged.append(larger(waiting.pop(key), sample))
        else:
            waiting[key] = sample
    return sorted([*merged, *waiting.values()], key=lambda s: s.t)


class TableWriter:
    """Writes the table every few seconds in a thread of its own: a slow disk must not hold up the watch."""

    def __init__(self, path: Path, samples: Samples, every_secs: float = WRITE_SECS) -> None:
        self._path = path
        self._samples = samples
        self._every = every_secs
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="guard-table", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Stop the thread and write the whole table. Raises OSError when it cannot be written."""
        self._ended.set()
        self._thread.join()
        self._write()

    def _loop(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self._write()
            except OSError as error:  # the last write raises; until then the watch matters more than its record
                print(f"fgod guard: cannot write {self._path} now, will try again: {error}", file=sys.stderr)

    def _write(self) -> None:
        write_table(self._path, COLUMNS, (s.row() for s in self._samples.sorted()))
