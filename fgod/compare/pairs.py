"""A metric of two runs over the same probes: McNemar, exact, of shares, a paired bootstrap of all others. Pure.

Which probes a metric counts, and what each adds, is found by asking it for each reply alone; a metric whose counts do
not add up so (distinct replies, say) has a difference without an interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fgod.abilities.paired import Paired
from fgod.evaluate.measure import measure
from fgod.evaluate.metric import Estimate, Metric, middle, resampled, value_alone, wilson
from fgod.evaluate.scoring import Scored

MCNEMAR, BOOTSTRAP = "McNemar", "paired bootstrap"
RESAMPLES = 1000

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
    """The replies of two runs to the same probes, in the order of the first."""
    return [(a, b) for a, b in joined([first, other])]


def joined(sides: Iterable[Iterable[Scored]]) -> list[tuple[Scored, ...]]:
    """The replies of all runs to the probes that each was asked, in the order of the first. Of a probe that is asked
    several times the first replies belong together, then the second ones."""
    by_name = [dict(_numbered(side)) for side in sides]
    common = [name for name in by_name[0] if all(name in side for side in by_name)] if by_name else []
    return [tuple(side[name] for side in by_name) for name in common]


def _numbered(records: Iterable[Scored]) -> Iterable[tuple[object, Scored]]:
    seen: Counter[object] = Counter()
    for record in records:
        yield (record.asked, seen[record.asked]), record
        seen[record.asked] += 1


def difference(metric: Metric, pairs: Pairs) -> Difference:
    """A metric of another run minus that of the first."""
    counted = _counted(metric, pairs)
    if not counted:
        return Difference(0)
    first, other = [a for a, *_ in counted], [b for _, b, *_ in counted]
    with resampled() as before:
        of_first = measure(metric, first)
    with resampled() as after:
        of_other = measure(metric, other)
    if of_first.value is None or of_other.value is None:
        return Difference(len(counted))
    plain = Difference(len(counted), of_first.value, of_other.value, of_other.value - of_first.value)
    if of_first.low is None or of_other.low is None or {of_first.n, of_other.n} != {len(counted)}:
        return plain
    flags = [(x, y) for *_, x, y in counted]
    if is_share(of_first) and is_share(of_other) and all({*pair} <= {0.0, 1.0} for pair in flags):
        return _of_shares(plain, Paired.of((bool(x), bool(y)) for x, y in flags))
    if len(before) == len(after) == 1:
        low, high = middle(after[0] - before[0])
    else:  # a metric that makes its interval otherwise
        low, high = paired_bootstrap(metric, other, first)
    return plain if math.isnan(low) else replace(plain, low=low, high=high, method=BOOTSTRAP)


def _counted(metric: Metric, pairs: Pairs) -> list[tuple[Scored, Scored, float, float]]:
    """The pairs whose replies a metric counts both, with what it says of each reply alone."""
    found = []
    with value_alone():
        for a, b in pairs:
            x = metric.compute([a]).value
            y = None if x is None else metric.compute([b]).value
            if x is not None and y is not None:
                found.append((a, b, x, y))
    return found


def _of_shares(plain: Difference, found: Paired) -> Difference:
    low, high = found.interval
    return replace(
        plain,
        value=found.difference,
        low=low,
        high=high,
        method=MCNEMAR,
        only_first=found.lost,
        only_other=found.gained,
        p_value=found.p_value,
    )


def is_share(estimate: Estimate) -> bool:
    """Whether an estimate is k of n with Wilson's interval, and no mean."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return False
    k = round(estimate.value * estimate.n)
    if not 0 <= k <= estimate.n:
        return False
    import numpy as np  # here: the tables of runs that are compared with nothing need none of it

    return bool(np.allclose((estimate.value, estimate.low, estimate.high), (k / estimate.n, *wilson(k, estimate.n))))


def paired_bootstrap(metric: Metric, other: Sequence[Scored], first: Sequence[Scored]) -> tuple[float, float]:
    """Percentile bootstrap of other - first: each resample draws probes, and both sides' replies to them."""
    import numpy as np

    picks, found = np.random.default_rng(0).integers(len(other), size=(RESAMPLES, len(other))), []
    with value_alone():
        for pick in picks:
            ours, theirs = (metric.compute([side[i] for i in pick]).value for side in (other, first))
            if ours is not None and theirs is not None:
                found.append(ours - theirs)
    if not found:
        return math.nan, math.nan
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
