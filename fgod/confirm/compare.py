"""A candidate's figures on held-back wordings against those on the wordings that the gate knew. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fgod.documents import Compared
from fgod.evaluate.metric import Estimate


def difference_interval(one: Estimate, other: Estimate) -> tuple[float, float] | None:
    """95 % interval of `one` - `other`, of two independent samples, made of the interval of each.

    Of Wilson's intervals of two shares that is Newcombe's hybrid score interval (Newcombe 1998, method 10); of any two
    others, such as bootstrapped means, the method of variance estimates recovery (Zou and Donner 2008). None where one
    has no value or no interval.
    """
    ends = (one.value, one.low, one.high, other.value, other.low, other.high)
    if any(end is None for end in ends):
        return None
    a, a_low, a_high, b, b_low, b_high = (end for end in ends if end is not None)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def compare(development: Mapping[str, Estimate], confirmation: Mapping[str, Estimate]) -> list[Compared]:
    """Metric by metric, of those that have a value on either side."""
    none = Estimate(None, 0)
    pairs = {
        name: (development.get(name, none), confirmation.get(name, none))
        for name in dict.fromkeys([*development, *confirmation])
    }
    return [_compared(name, *pair) for name, pair in pairs.items() if any(e.value is not None for e in pair)]


def _minus(one: Estimate, other: Estimate) -> float | None:
    return None if one.value is None or other.value is None else one.value - other.value


def _compared(name: str, development: Estimate, confirmation: Estimate) -> Compared:
    interval = difference_interval(confirmation, development)
    low, high = interval or (None, None)
    return Compared(
        metric=name,
        development=development,
        confirmation=confirmation,
        difference=_minus(confirmation, development),
        low=low,
        high=high,
        contains_zero=None if low is None or high is None else low <= 0 <= high,
    )
