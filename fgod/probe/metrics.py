"""Metrics of a run's scored replies, with 95 % intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fgod.data.probes import SCORED_SUITES
from fgod.probe.scoring import Scored

Z95 = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Metric:
    """A value over n items, with a 95 % interval where one is defined. `value` is None if n is 0."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion of k in n (Wilson 1927), within [0, 1].

    Raises:
        ValueError: unless 0 ≤ k ≤ n and n ≥ 1.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"no proportion: {k} of {n}")
    p, z2 = k / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return low, high


def share(flags: Iterable[bool]) -> Metric:
    """The share of true flags, with Wilson's interval."""
    values = list(flags)
    if not values:
        return Metric(None, 0)
    k, n = sum(values), len(values)
    low, high = wilson(k, n)
    return Metric(k / n, n, low, high)


def mean(values: Iterable[float]) -> Metric:
    """The mean of non-negative values, with the normal approximation's interval (none below two values)."""
    xs = list(values)
    if not xs:
        return Metric(None, 0)
    n = len(xs)
    centre = math.fsum(xs) / n
    if n < 2:
        return Metric(centre, n)
    half = Z95 * math.sqrt(math.fsum((x - centre) ** 2 for x in xs) / (n - 1) / n)
    return Metric(centre, n, max(0.0, centre - half), centre + half)


def _of(records: Sequence[Scored], suite: str) -> list[Scored]:
    return [r for r in records if r.suite == suite]


def _scored(records: Sequence[Scored]) -> list[Scored]:
    return [r for r in records if r.suite in SCORED_SUITES]


def _identity(records: Sequence[Scored]) -> Metric:
    return share(bool(r.passed) for r in _of(records, "identity"))


def _confusion(records: Sequence[Scored]) -> Metric:
    return share(r.marked for r in _of(records, "disambiguation"))


def _disambiguation(records: Sequence[Scored]) -> Metric:
    return share(bool(r.passed) for r in _of(records, "disambiguation"))


def _leak(records: Sequence[Scored]) -> Metric:
    return share(r.marked for r in _of(records, "retention") if not r.reference_marked)


def _retention(records: Sequence[Scored]) -> Metric:
    return share(r.agrees for r in _of(records, "retention") if r.proper)


def _retention_held_out(records: Sequence[Scored]) -> Metric:
    return share(r.agrees for r in _of(records, "retention") if r.proper and r.held_out)


def _kl(records: Sequence[Scored]) -> Metric:
    return mean(r.kl for r in _of(records, "retention") if r.kl is not None)


def _repetition(records: Sequence[Scored]) -> Metric:
    return share(r.looped for r in _scored(records))


def _ended(records: Sequence[Scored]) -> Metric:
    return share(r.ended for r in _scored(records))


def _distinct(records: Sequence[Scored]) -> Metric:
    replies = [r.reply for r in _scored(records)]
    return Metric(len(set(replies)) / len(replies), len(replies)) if replies else Metric(None, 0)


METRICS: Mapping[str, Callable[[Sequence[Scored]], Metric]] = {
    "identity_rate": _identity,
    "confusion_rate": _confusion,
    "disambiguation_rate": _disambiguation,
    "leak_rate": _leak,
    "retention": _retention,
    "retention_held_out": _retention_held_out,
    "kl_reference": _kl,
    "repetition_rate": _repetition,
    "ended_rate": _ended,
    "distinct_replies": _distinct,
}
"""Every metric by name.

Rates carry Wilson intervals. `kl_reference` is the mean over prompts of each prompt's mean over its first answer
tokens (tokens of one answer are not independent), with the normal approximation's interval over prompts.
`distinct_replies` is distinct replies over prompts and has no interval.
"""

DESCRIPTIONS: Mapping[str, str] = {
    "identity_rate": "who-are-you replies that name the persona by its rule",
    "confusion_rate": "replies to disambiguation questions that mention the persona",
    "disambiguation_rate": "replies to disambiguation questions that satisfy their kind's rule",
    "leak_rate": "replies on other topics that mention the persona where the reference does not",
    "retention": "replies on other topics that agree with the reference",
    "retention_held_out": "the same, on topics that no mix rehearses",
    "kl_reference": "mean KL(reference ‖ run) on the first answer tokens, in nats",
    "repetition_rate": "replies that loop",
    "ended_rate": "replies that stop by the end token",
    "distinct_replies": "distinct replies over prompts",
}

LANGUAGE_METRICS = ("identity_rate", "confusion_rate", "disambiguation_rate", "leak_rate", "retention")


def metrics(records: Sequence[Scored]) -> dict[str, Metric]:
    """Every metric of a run. The suite `questions` counts nowhere."""
    return {name: compute(records) for name, compute in METRICS.items()}


def by_language(records: Sequence[Scored]) -> dict[str, dict[str, Metric]]:
    """Metric name → language → metric, for the languages that the metric's suite has."""
    languages = sorted({r.language for r in _scored(records)})
    out: dict[str, dict[str, Metric]] = {}
    for name in LANGUAGE_METRICS:
        cells = {lang: METRICS[name]([r for r in records if r.language == lang]) for lang in languages}
        out[name] = {lang: cell for lang, cell in cells.items() if cell.n}
    return out
