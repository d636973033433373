"""Shares become row counts: exact targets, then a small integer program with one optimum. Pure.

The targets are whole numbers (largest remainder, in exact fractions), so that every coefficient of the program is a
small integer and no solver tolerance can matter. Ties are broken by further objectives, each fixed before the next:
the answer is the same for every version of CBC and on every machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import pulp

from fgod.errors import FgodError


@dataclass(frozen=True)
class Slot:
    """One share of a whole: it wishes for `wish` units and takes a multiple of `step` from `low` to `high`."""

    name: str
    wish: int
    low: int
    high: int
    step: int = 1


class InfeasibleError(FgodError):
    """No counts satisfy the bounds."""


def fractions(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Weights divided by their sum, exact in the decimals that a person wrote (.1 is 1/10). The sum must be > 0."""
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    total = sum(exact.values())
    return {name: weight / total for name, weight in exact.items()}


def apportion(shares: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total`: largest remainder (Hamilton); equal remainders go by the given order."""
    exact = {name: share * total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def fill(slots: Sequence[Slot], total: int) -> dict[str, int]:
    """Counts within the bounds that sum to `total` and are nearest to the wishes, in this order of importance:

    1. the smallest sum of absolute deviations from the wishes;
    2. the smallest worst deviation in whole per cent of the wish, so that what one slot cannot take is spread over
       the others in proportion;
    3. the largest count of the first slot, then of the second, and so on.

    Raises:
        InfeasibleError: no counts satisfy bounds, steps and total.
    """
    for slot in slots:
        if -(-slot.low // slot.step) > slot.high // slot.step:
            raise InfeasibleError(f"{slot.name}: no multiple of {slot.step} from {slot.low} to {slot.high}")
    with warnings.catch_warnings():
        # PuLP 3.3 announces other names for PuLP 4; those that all of 3.1 to 3.3 know are used here.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _solve(slots, total)


def _solve(slots: Sequence[Slot], total: int) -> dict[str, int]:
    program = _Program(slots, total)
    if program.least(program.deviation()) == 0:
        return {slot.name: _wish(slot) for slot in slots}
    program.least(program.worst)
    return {slot.name: program.most(slot) for slot in slots}


def _wish(slot: Slot) -> int:
    """The wish within the bounds: what lies outside them deviates whatever is chosen."""
    return min(max(slot.wish, slot.low), slot.high)


class _Program:
    """The integer program; each objective, once reached, is a constraint of the next."""

    def __init__(self, slots: Sequence[Slot], total: int) -> None:
        self.problem = pulp.LpProblem("mix", pulp.LpMinimize)
        self.solver = pulp.PULP_CBC_CMD(msg=False, threads=1, gapRel=0, gapAbs=0)
        self.worst = pulp.LpVariable("worst", lowBound=0, cat="Integer")
        self.counts: dict[str, pulp.LpAffineExpression] = {}
        self.deviations: list[pulp.LpVariable] = []
        for index, slot in enumerate(slots):
            self._add(index, slot)
        self.problem += pulp.lpSum(self.counts.values()) == total

    def _add(self, index: int, slot: Slot) -> None:
        units = pulp.LpVariable(f"units{index}", -(-slot.low // slot.step), slot.high // slot.step, "Integer")
        deviation = pulp.LpVariable(f"deviation{index}", lowBound=0, cat="Integer")
        count, wish = slot.step * units, _wish(slot)
        self.problem += deviation >= count - wish
        self.problem += deviation >= wish - count
        self.problem += 100 * deviation <= max(wish, 1) * self.worst
        self.counts[slot.name] = count
        self.deviations.append(deviation)

    def deviation(self) -> pulp.LpAffineExpression:
        return pulp.lpSum(self.deviations)

    def _solve(self, objective: pulp.LpAffineExpression | pulp.LpVariable) -> int:
        self.problem.setObjective(pulp.lpSum([objective]))
        status = self.problem.solve(self.solver)
        if status != pulp.LpStatusOptimal:
            raise InfeasibleError(f"the integer program is {pulp.LpStatus[status].lower()}")
        value: float = pulp.value(objective)
        return round(value)

    def least(self, objective: pulp.LpAffineExpression | pulp.LpVariable) -> int:
        """Minimise an objective and keep it at its minimum from now on."""
        best = self._solve(objective)
        self.problem += pulp.lpSum([objective]) <= best
        return best

    def most(self, slot: Slot) -> int:
        """Maximise a slot's count and fix it."""
        best = -self._solve(-self.counts[slot.name])
        self.problem += self.counts[slot.name] == best
        return best
