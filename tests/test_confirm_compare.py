"""Development against confirmation."""

from __future__ import annotations

import numpy as np
import pytest

from fgod.confirm.compare import compare, difference_interval
from fgod.evaluate.metric import Estimate, share, weighted_mean


def of(k: int, n: int) -> Estimate:
    return share([True] * k + [False] * (n - k))


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_difference_of_shares_has_the_intervals_of_newcombe_1998_table_2(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    assert difference_interval(of(*one), of(*other)) == pytest.approx((low, high), abs=6e-5)


def test_the_difference_of_means_has_the_interval_of_a_bootstrap_of_both() -> None:
    draw = np.random.default_rng(3)
    x, y = draw.gamma(1.0, 0.02, 400), draw.gamma(1.0, 0.03, 300)
    means = [draw.choice(s, (4000, len(s))).mean(1) for s in (x, y)]
    expected = np.quantile(means[1] - means[0], (0.025, 0.975))
    found = difference_interval(weighted_mean(y.tolist(), [1.0] * 300), weighted_mean(x.tolist(), [1.0] * 400))
    assert found == pytest.approx(expected, abs=0.0008)


def test_what_one_side_does_not_measure_has_no_difference() -> None:
    same, gone, other = compare(
        {"identity_rate": of(50, 50), "kl": Estimate(0.01, 1), "empty": Estimate(None, 0)},
        {"identity_rate": of(39, 50), "kl": Estimate(None, 0), "new": of(1, 2)},
    )
    assert (same.metric, same.contains_zero) == ("identity_rate", False) and same.difference == pytest.approx(-0.22)
    assert same.low is not None and same.high is not None and same.low < -0.22 < same.high < 0
    assert (gone.difference, gone.low, gone.contains_zero) == (None, None, None) and other.metric == "new"
    assert compare({"leak": of(0, 100)}, {"leak": of(1, 100)})[0].contains_zero
