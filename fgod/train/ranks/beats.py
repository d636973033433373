"""Each rank shows that it lives: a file with its process number and a count, which the launcher reads."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Beat:
    """pid: of the rank; count: how often it showed that it lives, the same for each piece of work; age: seconds since."""

    pid: int
    count: int
    age: float


class Beats:
    """Called by a rank at the same places as by every other one."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._count = 0
        self._file = os.open(folder / f"{rank}.beat", os.O_CREAT | os.O_WRONLY)

    def __call__(self) -> None:
        os.pwrite(self._file, f"{os.getpid():10} {self._count:12}\n".encode(), 0)
        self._count += 1


def read_beats(folder: Path, now: float | None = None) -> dict[int, Beat]:
    """By rank, of those that have shown that they live."""
    found, now = {}, time.time() if now is None else now
    for path in folder.glob("*.beat"):
        words = path.read_text().split()
        if len(words) == 2:
            found[int(path.stem)] = Beat(int(words[0]), int(words[1]), now - path.stat().st_mtime)
    return found


def hung(beats: Mapping[int, Beat], secs: float) -> int | None:
    """The rank that others have waited for longer than `secs`: the one that is behind. None where all are as far."""
    most = max((beat.count for beat in beats.values()), default=0)
    behind = {rank: beat for rank, beat in beats.items() if beat.count < most and beat.age >= secs}
    return min(behind, key=lambda rank: behind[rank].count, default=None)
