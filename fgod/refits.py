"""What a refit rule changes in a stage. Pure.

`set` names keys by path, `train.lr`; text that starts with `*`, `+` or `-` is relative to the value that stands there.
`bisect` gives one key a value between what was too little and what was too much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgod.errors import UsageError, did_you_mean

MISSED, DAMAGED = "missed", "damaged"

OPEN_TABLES = ("shares", "final_shares", "at_least", "at_most", "kinds", "styles", "lr_scale")
"""Tables that may get a key that they do not have."""


def answering(rules: Sequence[Mapping[str, Any]], decision: str, interpolated: bool) -> Iterator[int]:
    """The places in refits.rules of those that may answer a verdict, in their order.

    Args:
        interpolated: the run was. No point between a start and an end is neither damaged nor missed, so what missed is
            answered as the damage of the trained run, and no rule interpolates it once more.
    """
    answered = DAMAGED if interpolated and decision == MISSED else decision
    for index, rule in enumerate(rules):
        if answered in rule["when"] and not (interpolated and rule.get("interpolate")):
            yield index


@dataclass(frozen=True)
class Tried:
    """A value that a stage was trained with, and the verdict on it."""

    value: float
    decision: str

    def __str__(self) -> str:
        return f"{self.value:g} {self.decision}"


@dataclass(frozen=True)
class Bracket:
    """The largest value that taught too little and the smallest that was too much; None where none was tried."""

    missed: Tried | None
    too_much: Tried | None

    @classmethod
    def of(cls, tried: Sequence[Tried]) -> Bracket:
        """That of all values which were tried in runs that differ in nothing else."""
        missed = [one for one in tried if one.decision == MISSED]
        too_much = [one for one in tried if one.decision != MISSED]
        return cls(
            max(missed, key=lambda one: one.value, default=None), min(too_much, key=lambda one: one.value, default=None)
        )

    def middle(self, rule: Mapping[str, Any]) -> float | None:
        """The next value: the geometric mean, or by `up` or `down` of the rule where one side is open.

        None where the bracket is narrower than `narrowest`, or what missed lies above what was too much.
        """
        if self.missed and self.too_much:
            if self.too_much.value < self.missed.value * rule["narrowest"]:
                return None
            value = math.sqrt(self.missed.value * self.too_much.value)
        elif self.missed:
            value = self.missed.value * rule["up"]
        else:
            assert self.too_much is not None
            value = self.too_much.value * rule["down"]
        return float(f"{value:.6g}")


def apply(stage: dict[str, Any], changes: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any, Any]]:
    """Make each change in place; gives key, old and new value.

    Raises:
        UsageError: an unknown key, or a relative change of what is no number; names `where`.
    """
    for key, change in changes.items():
        yield key, *_change(stage, key.split("."), change, f"{where}.set.{key}")


def _change(stage: dict[str, Any], path: Sequence[str], change: Any, where: str) -> tuple[Any, Any]:
    """Apply one `set` entry in place; returns the old and the new value."""
    table: Any = stage
    for key in path[:-1]:
        if not isinstance(table.get(key), dict):
            raise UsageError(f"{where}: no key {key!r}{did_you_mean(key, table)}; found {', '.join(sorted(table))}")
        table = table[key]
    key = path[-1]
    if key not in table and path[-2] not in OPEN_TABLES:
        raise UsageError(f"{where}: no key {key!r}{did_you_mean(key, table)}; found {', '.join(sorted(table))}")
    old = table.get(key, 0)
    if key == "micro_batch" and old is None:
        old = table["batch"]
    table[key] = new = adjusted(old, change, where)
    return old, new


def adjusted(old: Any, change: Any, where: str) -> Any:
    """A value after a change: text that starts with `*`, `+` or `-` is relative to the old number, all else replaces.

    A whole number stays one: a relative change is rounded down, and never below 1 from 1 or more.

    Raises:
        UsageError: a relative change of something that is not a number, or not a number behind the sign.
    """
    if not (isinstance(change, str) and change[:1] in "*+-" and change):
        return change
    if isinstance(old, bool) or not isinstance(old, int | float):
        raise UsageError(f"{where}: found {change!r}, but the value it changes is {old!r}, not a number")
    try:
        amount = float(change[1:])
    except ValueError:
        raise UsageError(f"{where}: found {change!r}, expected a number behind {change[0]!r}") from None
    value = {"*": old * amount, "+": old + amount, "-": old - amount}[change[0]]
    if isinstance(old, int) and old >= 1 and change[0] == "*":
        return max(1, int(value + 1e-9))
    if isinstance(old, int) and float(value).is_integer():
        return int(value)
    return float(f"{value:.12g}")
