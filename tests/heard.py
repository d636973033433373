"""A listener that keeps what it is told of the progress of work."""

from __future__ import annotations

from fgod.progress.followed import Nobody
from fgod.progress.reached import Reached


class Heard(Nobody):
    """All that was told: how far work was, and what was done."""

    def __init__(self) -> None:
        self.moves: list[Reached] = []
        self.ends: list[Reached] = []

    def moved(self, now: Reached) -> None:
        self.moves.append(now)

    def done(self, last: Reached) -> None:
        self.ends.append(last)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """How many units were done, of how many, each time."""
        return [(now.done, now.total) for now in self.moves]
