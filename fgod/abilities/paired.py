"""Statistics of one set of items that two models answered, the base and the tuned one, item by item. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import comb, sqrt

from fgod.evaluate.metric import Z95


@dataclass(frozen=True)
class Paired:
    """Counts of items: `both` right; `lost`, right by the base alone; `gained`, right by the tuned alone; `neither`."""

    both: int
    lost: int
    gained: int
    neither: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> Paired:
        """Of pairs: whether the base is right, whether the tuned model is."""
        seen = list(pairs)
        counts = [seen.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        return cls(*counts)

    @property
    def n(self) -> int:
        return self.both + self.lost + self.gained + self.neither

    @property
    def base(self) -> float:
        """Share that the base has right."""
        return (self.both + self.lost) / self.n

    @property
    def tuned(self) -> float:
        """Share that the tuned model has right."""
        return (self.both + self.gained) / self.n

    @property
    def difference(self) -> float:
        """Tuned minus base, as a share."""
        return (self.gained - self.lost) / self.n

    @property
    def p_value(self) -> float:
        """Of McNemar's test, exact and two-sided: how likely flips are at least as uneven where both directions are
        equally likely. McNemar 1947, Psychometrika 12; the exact form is the binomial test of the discordant pairs."""
        flips, fewer = self.lost + self.gained, min(self.lost, self.gained)
        tail = sum(comb(flips, k) for k in range(fewer + 1))
        return float(min(1, 2 * tail / 2**flips))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `difference`: Wald's with half an item added to each of the four counts.

        Agresti and Min 2005, Statistics in Medicine 24, 729–740. It has a width also where nothing flipped.
        """
        lost, gained, n = self.lost + 0.5, self.gained + 0.5, self.n + 2
        centre = (gained - lost) / n
        reach = Z95 * sqrt(lost + gained - (gained - lost) ** 2 / n) / n
        return max(-1.0, centre - reach), min(1.0, centre + reach)

    @property
    def loss_bound(self) -> float:
        """The largest loss that the 95 % interval allows, in points of 100."""
        return -100 * self.interval[0]
