"""Each rank shows that it lives and how far it is: a file with its process number and a count, for the launcher."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

BEAT_SECS = 0.25
"""Between two writings of the file."""


class Beats(Thread):
    """A rank counts by it what every rank does in the same order; a thread writes the count down as long as it runs."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(daemon=True)
        self._count = 0
        self._file = os.open(folder / f"{rank}.beat", os.O_CREAT | os.O_WRONLY)
        self.start()

    def __call__(self) -> None:
        self._count += 1

    def run(self) -> None:
        while True:
            os.pwrite(self._file, f"{os.getpid():10} {self._count:20}\n".encode(), 0)
            time.sleep(BEAT_SECS)


@dataclass(frozen=True)
class Beat:
    """pid: of the rank; age: seconds since it wrote its count."""

    pid: int
    count: int
    age: float


def read_beats(folder: Path) -> dict[int, Beat]:
    """By rank, of those that have shown that they live."""
    found, now = {}, time.time()
    for path in folder.glob("*.beat"):
        words = path.read_text().split()
        if len(words) == 2:
            found[int(path.stem)] = Beat(int(words[0]), int(words[1]), now - path.stat().st_mtime)
    return found


@dataclass
class Hangs:
    """Says which rank hangs: it writes nothing any more, or stays behind others, for `secs`. None hangs where all wait
    at the same place: then it is not a rank that is at fault."""

    secs: float
    counts: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By rank its count, and since when."""

    def judge(self, t: float, beats: Mapping[int, Beat]) -> int | None:
        """Take what ranks show at time `t` (seconds, not falling); returns the rank that hangs."""
        for rank, beat in beats.items():
            if rank not in self.counts or self.counts[rank][0] != beat.count:
                self.counts[rank] = beat.count, t
        frozen = [rank for rank, beat in beats.items() if beat.age >= self.secs]
        if frozen and len(frozen) < len(beats):
            return min(frozen)
        most = max((count for count, _ in self.counts.values()), default=0)
        behind = {r: count for r, (count, since) in self.counts.items() if count < most and t - since >= self.secs}
        return min(behind, key=lambda rank: behind[rank], default=None)
