"""What is required of metrics: by a stage, `require: {retention: ">=0.95"}`; of all, `gate: {leak: 0.05}`. Pure."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fgod.errors import UsageError, did_you_mean
from fgod.evaluate.metric import METRICS, Metric
from fgod.validation import kind_words

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def comparison(text: str) -> tuple[str, float]:
    """Operator and number of a text such as ">=0.95".

    Raises:
        ValueError: it is no comparison with a number.
    """
    match = re.fullmatch(r"\s*(>=|<=|>|<)\s*(-?(?:\d+(?:\.\d*)?|\.\d+)(?:e-?\d+)?)\s*", text)
    if match is None:
        raise ValueError(f"{text!r}; expected a comparison with a number, such as '>=0.95'")
    return match[1], float(match[2])


@dataclass(frozen=True)
class Check:
    """`metric op limit` must hold, else `failed` is the verdict. `source` is gate or require."""

    metric: str
    op: str
    limit: float
    failed: str
    source: str

    def holds(self, value: float) -> bool:
        return COMPARE[self.op](value, self.limit)


def parse_requirements(require: Mapping[str, str], where: str = "require") -> tuple[Check, ...]:
    """A stage's `require`: metric → ">=0.95".

    Args:
        where: the config key, for messages.

    Raises:
        UsageError: unknown metric, no comparison with a number, or one that asks for a bad value.
    """
    for name in require:
        if name not in METRICS:
            meant = did_you_mean(name, METRICS)
            raise UsageError(
                f"{where}.{name}: no such metric{meant}; known are {', '.join(sorted(METRICS))} (`plugins` adds others)"
            )
    return tuple(_requirement(METRICS[name], text, f"{where}.{name}") for name, text in require.items())


def _requirement(metric: Metric, text: object, key: str) -> Check:
    try:
        op, limit = comparison(str(text))
    except ValueError as error:
        raise UsageError(f"{key}: {error}") from error
    unit = metric.unit
    if not unit.contains(limit):
        raise UsageError(f"{key}: {text!r}; {metric.name} is {unit.noun}: expected a number {unit.range_words}")
    if metric.verdict is None:
        raise UsageError(f"{key}: {text!r}; {metric.name} is only reported: no stage can require it")
    good = {"higher": ">", "lower": "<", None: op[0]}[metric.better]
    if op[0] != good:
        raise UsageError(f"{key}: {text!r}; {metric.name} is better the {metric.better} it is: use {good}=")
    return Check(metric.name, op, limit, "missed" if metric.verdict == "missed" else "damaged", "require")


def gate_limits(gate: Mapping[str, Any], closed: bool = True) -> dict[str, float | None]:
    """The limits of a config's `gate`, with those that metrics have by themselves filled in. None: no limit.

    Args:
        closed: whether the base's answers are closed (see `Metric.own_limit`).

    Raises:
        UsageError: see `check_limits`; or null for a metric that has a limit by itself.
    """
    found = {short: metric.own_limit(closed) for short, metric in _gated().items()}
    own = {short: limit for short, limit in found.items() if limit is not None}
    return {**own, **check_limits(gate, needed=own)}


def check_limits(gate: Mapping[str, Any], needed: Iterable[str] = (), where: str = "gate") -> dict[str, float | None]:
    """A `gate` as it stands, by short names of metrics.

    Args:
        needed: names that may not be null.
        where: the config key, for messages.

    Raises:
        UsageError: no metric has that short name, or a value that the metric cannot have; a line for each fault.
    """
    known, needed = _gated(), set(needed)
    faults = [_limit_fault(where, short, limit, known, short in needed) for short, limit in gate.items()]
    if any(faults):
        raise UsageError("\n".join(filter(None, faults)))
    return {short: None if limit is None else float(limit) for short, limit in gate.items()}


def _gated() -> dict[str, Metric]:
    return {metric.short: metric for _, metric in METRICS.items() if metric.gated}


def _limit_fault(where: str, short: str, limit: Any, known: Mapping[str, Metric], needed: bool) -> str:
    """What is wrong with a limit; empty if nothing is."""
    if short not in known:
        hint = did_you_mean(short, known)
        return f"{where}: unknown key {short!r}{hint}; allowed: {', '.join(sorted(known))} (`plugins` adds others)"
    number = isinstance(limit, int | float) and not isinstance(limit, bool) and math.isfinite(limit)
    if (limit is None and not needed) or (number and known[short].unit.contains(limit)):
        return ""
    kind = "" if number else f" ({kind_words(limit)})"
    return f"{where}.{short}: found {limit!r}{kind}, expected a number {known[short].unit.range_words}"
