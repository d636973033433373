"""guard.tsv: readings over time, of bounded size, with the maximum of every phase kept."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from fgod.guard.limits import MIN_POLL_SECS
from fgod.system import terminal
from fgod.system.table import write_table

COLUMNS = ("t", "phase", "source", "used_mib", "limit_mib")

MAX_SAMPLES = 2000
"""Samples of one table: enough for a chart, and written in 10 ms. Two hours of two pools at 50 ms are 288,000 readings:
12 MB, and 2.9 s of a core every time that they are written."""

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
    """Keeps at most `limit` samples: of each phase and source the largest of each bucket of time. For two threads.

    When full, buckets become twice as long: they are even over the run, and the maxima of phases stay. Where a command
    names phases without end, buckets no longer tell them apart.
    """

    def __init__(self, limit: int = MAX_SAMPLES) -> None:
        self._limit = limit
        self._bucket_secs = MIN_POLL_SECS
        self._by_phase = True
        self._kept: dict[tuple[str, str, int], Sample] = {}
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        with self._lock:
            self._keep(sample)
            while len(self._kept) > self._limit:
                self._by_phase = self._by_phase and self._bucket_secs <= sample.t
                self._bucket_secs *= 2
                kept, self._kept = self._kept, {}
                for one in kept.values():
                    self._keep(one)

    def _keep(self, sample: Sample) -> None:
        key = (sample.source, sample.phase if self._by_phase else "", int(sample.t // self._bucket_secs))
        self._kept[key] = larger(self._kept[key], sample) if key in self._kept else sample

    def sorted(self) -> list[Sample]:
        with self._lock:
            return sorted(self._kept.values(), key=lambda s: s.t)


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
                terminal.line(f"fgod guard: cannot write {self._path} now, will try again: {error}")

    def _write(self) -> None:
        write_table(self._path, COLUMNS, (s.row() for s in self._samples.sorted()))
