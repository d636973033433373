"""What a limit on a share can tell with n probes: its power, by the exact binomial distribution. Pure.

A limit is passed or failed by the replies to n probes; X ~ Binomial(n, p) of a model's are bad whose true rate is p.
With few probes a limit has low power: whether a good model passes is mostly chance, one reply more or less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fgod.evaluate.metric import METRICS, Estimate
from fgod.evaluate.requirements import Check

SURE = 0.95


@dataclass(frozen=True)
class Power:
    """What a limit tells of rates of bad replies.

    `allowed`: bad replies that still pass; `passes`: the true rate at which a model passes with 95 %, `fails`: the one
    at which it fails with 95 %. Between them chance decides.
    """

    n: int
    allowed: int
    passes: float
    fails: float


def at_most(k: int, n: int, p: float) -> float:
    """P(X ≤ k) of X ~ Binomial(n, p), summed term by term in logarithms."""
    if k >= n or p <= 0:
        return 1.0
    if p >= 1 or k < 0:
        return 0.0
    log_p, log_q = math.log(p), math.log1p(-p)
    whole = math.lgamma(n + 1)
    terms = (whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q for i in range(k + 1))
    return min(1.0, math.fsum(map(math.exp, terms)))


def rate_at(k: int, n: int, chance: float) -> float:
    """The rate p with P(X ≤ k) = chance, by bisection (the chance falls as p rises); 1 if k is all of n."""
    if k >= n:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(k, n, middle) > chance else (low, middle)
    return low


def power(check: Check, n: int) -> Power:
    """What a check of a share says with n probes, n ≥ 1. Where more is better, what is missing to 1 is bad."""
    higher = check.op[0] == ">"
    passing = [bad for bad in range(n + 1) if check.holds((n - bad) / n if higher else bad / n)]
    allowed = max(passing, default=-1)
    return Power(n, allowed, rate_at(allowed, n, SURE), rate_at(allowed, n, 1 - SURE))


def a_coin_decides(check: Check, n: int) -> bool:
    """Whether a model at half the rate of bad replies that a check of a share allows fails more than once in twenty.

    A check that allows no bad reply is strict on purpose, and is not counted.
    """
    bad = 1 - check.limit if check.op[0] == ">" else check.limit
    found = power(check, n)
    return bad > 0 and found.passes < bad / 2


def weak_limits(checks: Iterable[Check], measured: Mapping[str, Estimate]) -> Iterator[str]:
    """A warning for each check of a share that has too few probes for its limit."""
    for check in dict.fromkeys(checks):
        metric, n = METRICS[check.metric], measured[check.metric].n
        if metric.unit.percent and n and a_coin_decides(check, n):
            found = power(check, n)
            limit, one = metric.unit.text(check.limit), metric.unit.text(1 / n)
            yield (
                f"{check.metric} {check.op} {limit} (n {n}): n is too small for this limit: passing is mostly chance; "
                f"one reply is {one}, and a model passes with a probability of 95 % only if its true share of "
                f"bad replies is {metric.unit.text(found.passes)} or less"
            )
