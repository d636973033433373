"""Each rank shows that it lives and how far it is, in a file for the launcher: its process number, a count of what it
did, and a count of writings. No time of a file is read: a file server has a clock of its own."""

from __future__ import annotations

import itertools
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
        for writings in itertools.count():
            os.pwrite(self._file, f"{os.getpid():10} {self._count:20} {writings:20}\n".encode(), 0)
            time.sleep(BEAT_SECS)


@dataclass(frozen=True)
class Beat:
    """pid: of the rank; count: of what it did; writings: of these two: a rank that waits shows by it that it lives."""

    pid: int
    count: int
    writings: int


def read_beats(folder: Path) -> dict[int, Beat]:
    """By rank, of those that have shown that they live."""
    found = {}
    for path in folder.glob("*.beat"):
        words = path.read_text().split()
        if len(words) == 3:
            found[int(path.stem)] = Beat(*map(int, words))
    return found


Seen = dict[int, tuple[int, float]]
"""By rank a number that it shows, and since when."""


@dataclass
class Hangs:
    """Says which rank hangs: it writes nothing any more, or stays behind others, for `secs`. None hangs where all wait
    at the same place: then it is not a rank that is at fault."""

    secs: float
    counts: Seen = field(default_factory=dict)
    writings: Seen = field(default_factory=dict)

    def judge(self, t: float, beats: Mapping[int, Beat]) -> int | None:
        """Take what ranks show at time `t` (seconds of our own clock, not falling); returns the rank that hangs."""
        for rank, beat in beats.items():
            for seen, shown in ((self.counts, beat.count), (self.writings, beat.writings)):
                if rank not in seen or seen[rank][0] != shown:
                    seen[rank] = shown, t
        frozen = [rank for rank in beats if t - self.writings[rank][1] >= self.secs]
        if frozen and len(frozen) < len(beats):
            return min(frozen)
        most = max((count for count, _ in self.counts.values()), default=0)
        behind = {r: count for r, (count, since) in self.counts.items() if count < most and t - since >= self.secs}
        return min(behind, key=lambda rank: behind[rank], default=None)
