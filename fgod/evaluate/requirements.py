"""What a stage requires of its metrics: `require: {retention: ">=0.95"}` becomes checks. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fgod.errors import UsageError, did_you_mean
from fgod.evaluate.metric import Metric
from fgod.registry import METRICS

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


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
                f"{where}.{name}: no such metric{meant}; known are {', '.join(METRICS)} (`plugins` adds others)"
            )
    return tuple(_requirement(METRICS[name], text, f"{where}.{name}") for name, text in require.items())


def _requirement(metric: Metric, text: object, key: str) -> Check:
    match = re.fullmatch(r"\s*(>=|<=|>|<)\s*(-?(?:\d+(?:\.\d*)?|\.\d+)(?:e-?\d+)?)\s*", str(text))
    if match is None:
        raise UsageError(f"{key}: {text!r}; expected a comparison with a number, such as '>=0.95'")
    op, limit, unit = match[1], float(match[2]), metric.unit
    if not unit.contains(limit):
        raise UsageError(f"{key}: {text!r}; {metric.name} is {unit.noun}: expected a number {unit.range_words}")
    if metric.verdict is None:
        raise UsageError(f"{key}: {text!r}; {metric.name} is only reported: no stage can require it")
    good = {"higher": ">", "lower": "<", None: op[0]}[metric.better]
    if op[0] != good:
        raise UsageError(f"{key}: {text!r}; {metric.name} is better the {metric.better} it is: use {good}=")
    return Check(metric.name, op, limit, "missed" if metric.verdict == "missed" else "damaged", "require")
