"""The power of limits, against the binomial distribution in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod.evaluate.metric import Estimate
from fgod.evaluate.power import Power, a_coin_decides, at_most, power, rate_at, weak_limits
from fgod.evaluate.requirements import Check, parse_requirements
from tests.mini import ROOT


def exactly(k: int, n: int, p: Fraction) -> Fraction:
    return sum((comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.fractions(0, 1))
def test_the_binomial_is_exact(kn: tuple[int, int], p: Fraction) -> None:
    k, n = kn
    p = p.limit_denominator(1000)
    assert at_most(k, n, float(p)) == pytest.approx(float(exactly(k, n, p)), rel=1e-9, abs=1e-12)


@given(
    st.integers(2, 400).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))), st.sampled_from([0.95, 0.05])
)
def test_a_rate_gives_its_chance(kn: tuple[int, int], chance: float) -> None:
    assert at_most(*kn, rate_at(*kn, chance)) == pytest.approx(chance, abs=1e-5)


def at_limit(limit: float, op: str = "<=") -> Check:
    return Check("leak_rate", op, limit, "collapsed", "gate")


def test_what_a_limit_tells() -> None:
    assert power(at_limit(0.05), 20).allowed == 1 and power(at_limit(0.05), 88).allowed == 4
    assert power(at_limit(0.05), 400) == Power(
        400, 20, pytest.approx(0.0355, abs=5e-4), pytest.approx(0.0720, abs=5e-4)
    )
    good = power(Check("identity_rate", ">=", 0.9, "missed", "require"), 62)
    assert good.allowed == 6  # 56 of 62 are 90.3 %
    assert power(at_limit(0.1, "<"), 20).allowed == 1  # 2 of 20 are not under a tenth
    assert power(at_limit(1.0), 5) == Power(5, 5, 1.0, 1.0)
    rule_of_three = power(at_limit(0.0), 100)
    assert rule_of_three.allowed == 0 and rule_of_three.fails == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-6)


@pytest.mark.parametrize(
    ("limit", "n", "coin"), [(0.05, 20, True), (0.05, 88, True), (0.05, 200, False), (0.0, 9, False)]
)
def test_a_coin_decides_with_few_probes(limit: float, n: int, coin: bool) -> None:
    assert a_coin_decides(at_limit(limit), n) is coin
    assert a_coin_decides(Check("identity_rate", ">=", 1 - limit, "missed", "require"), n) is coin


def test_weak_limits_are_named() -> None:
    checks = [at_limit(0.05), Check("kl_reference", "<=", 0.5, "collapsed", "gate")]
    checks += parse_requirements({"identity_rate": ">=0.9", "retention": ">=0.95"})
    measured = {name: Estimate(0.0, 88) for name in ("leak_rate", "kl_reference", "identity_rate")}
    (found,) = weak_limits([*checks, *checks], measured | {"retention": Estimate(None, 0)})
    assert found == (
        "leak_rate <= 5 % (n 88): n is too small for this limit: passing is mostly chance; one reply is 1.1 %, and a "
        "model passes with a probability of 95 % only if its true share of bad replies is 2.3 % or less"
    )


def test_the_docs_state_the_power_of_limits() -> None:
    """The table of docs/measuring.md is what `power` gives."""
    lines = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| limit | n |"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start + 2 : start + 12]]
    for op, limit, n, *stated in [(*row[0].split(" ")[:2], *row[1:]) for row in rows]:
        check = at_limit(float(limit), {"≤": "<=", "≥": ">="}[op])
        found = power(check, int(n))
        shown = [str(found.allowed), *(f"{100 * rate:.1f} %" for rate in (found.passes, found.fails))]
        assert [*shown, "yes" if a_coin_decides(check, int(n)) else ""] == stated
