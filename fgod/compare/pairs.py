"""A metric of two runs over the same probes: McNemar, exact, of shares, a paired bootstrap of all others. Pure.

Which probes a metric counts, and what each adds, is found by asking it for each reply alone; a metric whose counts do
not add up so (distinct replies, say) has a difference without an interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgod.abilities.paired import Paired
from fgod.comparison import BOOTSTRAP, is_share, paired_bootstrap
from fgod.evaluate.measure import measure
from fgod.evaluate.metric import Metric, middle, resampled, value_alone
from fgod.evaluate.scoring import Scored

MCNEMAR = "McNemar"

Pairs = Sequence[tuple[Scored, Scored]]


@dataclass(frozen=True)
class Difference:
    """Another run minus the first, over `n` probes that both were asked and that the metric counts in both.

    `first` and `other` are the values over these probes alone. `low` and `high` are the ends of the 95 % interval that
    `method` made, None without one. Of shares `only_first` and `only_other` count probes that one of the two alone
    has, and `p_value` is that of the exact test.
    """

    n: int
    first: float | None = None
    other: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    only_first: int | None = None
    only_other: int | None = None
    p_value: float | None = None


def paired(first: Iterable[Scored], other: Iterable[Scored]) -> list[tuple[Scored, Scored]]:
    """The replies of two runs to the same probes, in the order of the first. Of a probe that is asked several times the
    first replies are a pair, then the second ones."""
    theirs = dict(_numbered(other))
    return [(reply, theirs[name]) for name, reply in _numbered(first) if name in theirs]


def _numbered(records: Iterable[Scored]) -> Iterable[tuple[object, Scored]]:
    seen: Counter[object] = Counter()
    for record in records:
        yield (record.asked, seen[record.asked]), record
        seen[record.asked] += 1


def difference(metric: Metric, pairs: Pairs) -> Difference:
    """A metric of another run minus that of the first."""
    with value_alone():
        alone = [(metric.compute([a]).value, metric.compute([b]).value) for a, b in pairs]
    counted = [place for place, flags in enumerate(alone) if None not in flags]
    if not counted:
        return Difference(0)
    first, other = ([pairs[place][side] for place in counted] for side in (0, 1))
    with resampled() as before:
        of_first = measure(metric, first)
    with resampled() as after:
        of_other = measure(metric, other)
    if of_first.value is None or of_other.value is None:
        return Difference(len(counted))
    value = of_other.value - of_first.value
    plain = Difference(len(counted), of_first.value, of_other.value, value)
    if of_first.low is None or of_other.low is None or {of_first.n, of_other.n} != {len(counted)}:
        return plain
    flags = [alone[place] for place in counted]
    if is_share(of_first) and is_share(of_other) and all({*pair} <= {0.0, 1.0} for pair in flags):
        return _of_shares(plain, Paired.of((bool(a), bool(b)) for a, b in flags))
    if len(before) == len(after) == 1:
        low, high = middle(after[0] - before[0])
    else:  # a metric that makes its interval otherwise
        low, high = paired_bootstrap(metric, other, first)
    if math.isnan(low):
        return plain
    return Difference(plain.n, plain.first, plain.other, value, low, high, BOOTSTRAP)


def _of_shares(plain: Difference, found: Paired) -> Difference:
    low, high = found.interval
    return Difference(
        plain.n, plain.first, plain.other, found.difference, low, high, MCNEMAR, found.lost, found.gained, found.p_value
    )
