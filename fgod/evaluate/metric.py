"""What a metric is: a named function of scored replies, its unit, and what follows when it fails. Pure.

A metric is added by one file that registers it, in fgod/evaluate/metrics/ or as a plugin (see `fgod.registry`):

    register(Metric(name="mean_length", short="length", unit=Unit("characters"), better="higher", verdict="missed",
                    description="characters of a reply", compute=lambda rs: mean(len(r.reply) for r in rs),
                    offends=lambda r: -len(r.reply)))
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from fgod.errors import UsageError
from fgod.plugins import Registry

if TYPE_CHECKING:  # what reads records alone resamples and scores nothing, and need not import it
    import numpy as np
    from numpy.typing import NDArray

    from fgod.evaluate.scoring import Scored

METRICS: Registry[Metric] = Registry("metric", ["fgod.evaluate.metrics"])

Z95 = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""

FAILURES = ("collapsed", "damaged", "missed")
"""Verdicts that a metric may have, the worst first."""


@dataclass(frozen=True)
class Unit:
    """What a metric's values count: how they are printed, and which values there can be.

    Args:
        name: plural, as printed after a value: "nats", "tokens". Not printed if `percent`.
        low: the smallest value there can be.
        high: the largest.
        percent: values are shares of 1, printed in per cent.
    """

    name: str
    low: float = 0.0
    high: float = math.inf
    percent: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"unit {self.name!r}: its values are from {self.low} to {self.high}; expected low < high")

    def number(self, value: float) -> str:
        """A value for people, without its unit."""
        scaled = 100 * value if self.percent else value
        if self.percent:
            return f"{scaled:.0f}" if scaled == round(scaled) else f"{scaled:.1f}"
        return f"{scaled:,.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"

    def text(self, value: float) -> str:
        """A value for people: `97.5 %`, `0.875 nats`."""
        return f"{self.number(value)} {self.symbol}"

    def interval(self, low: float, high: float, dash: str = "–") -> str:
        """A range of values for people: `66–81 %`."""
        return f"{self.number(low)}{dash}{self.text(high)}"

    @property
    def symbol(self) -> str:
        return "%" if self.percent else self.name

    @property
    def noun(self) -> str:
        """What a value is, for messages: `a share`, `a number of tokens`."""
        return "a share" if self.percent else f"a number of {self.name}"

    @property
    def range_words(self) -> str:
        """The range for messages: `from 0 to 1`, `from 0`; empty if there is none."""
        low = f"from {self.low:g}" if math.isfinite(self.low) else ""
        high = f"to {self.high:g}" if math.isfinite(self.high) else ""
        return f"{low} {high}".strip()

    def contains(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high


SHARE = Unit("share", high=1.0, percent=True)
NATS = Unit("nats")


@dataclass(frozen=True, kw_only=True)
class Legend:
    """How a metric is shown in tables, reports and model cards.

    Args:
        name: column of stages.tsv, and key of a stage's `require`.
        short: in sentences; the config's `gate` names its limit by it.
        description: what is counted or averaged, for people.
        headline: among the figures at the top of the report.
    """

    name: str
    short: str
    unit: Unit
    description: str
    headline: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite bound is null."""
        unit = {key: None if value in (math.inf, -math.inf) else value for key, value in vars(self.unit).items()}
        return {**{key: getattr(self, key) for key in ("name", "short", "description", "headline")}, "unit": unit}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Legend:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError: it is not what `to_dict` wrote.
        """
        unit = dict(table["unit"])
        unit["low"] = -math.inf if unit["low"] is None else unit["low"]
        unit["high"] = math.inf if unit["high"] is None else unit["high"]
        return cls(**{**table, "unit": Unit(**unit)})


@dataclass(frozen=True, kw_only=True)
class Metric(Legend):
    """A function of a run's scored replies.

    Args:
        better: which direction is better; None: neither, and a stage may require either.
        verdict: the decision on a run that is past the limit of the gate: collapsed, damaged or missed. A run that
            fails a stage's own requirement is damaged where this is collapsed, else as here. None: the metric is
            reported only.
        compute: all scored replies of a run, or those in one language → the value.
        equality: it counts equality with the reference's replies, which says something of closed answers alone.
        limit: the gate's limit where the config's `gate` says none; None: there is none then.
        open_limit: the same where the base's answers are open (`fgod.evaluate.scoring.Standard`); None: `limit`.
        offends: how badly a reply offends, for the example beside a failed metric; 0 or less: it does not.
        by_language: also computed for each language.
    """

    better: Literal["higher", "lower"] | None
    verdict: Literal["collapsed", "damaged", "missed"] | None
    compute: Callable[[Sequence[Scored]], Estimate]
    equality: bool = False
    limit: float | None = None
    open_limit: float | None = None
    offends: Callable[[Scored], float] | None = None
    by_language: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UsageError(f"metric {self.name!r}: expected a name of small letters, digits and _, such as leak_rate")
        if self.better not in ("higher", "lower", None):
            raise UsageError(f"metric {self.name}: better is {self.better!r}; expected 'higher', 'lower' or None")
        if self.verdict not in (*FAILURES, None):
            raise UsageError(f"metric {self.name}: verdict is {self.verdict!r}; expected one of {FAILURES} or None")

        for limit in (self.limit, self.open_limit):
            self._check_limit(limit)

    def _check_limit(self, limit: float | None) -> None:
        if limit is not None and not (self.gated and self.unit.contains(limit)):
            raise UsageError(
                f"metric {self.name}: limit is {limit}; expected {self.unit.noun} {self.unit.range_words}, of a "
                "metric that is better in one direction and has a verdict"
            )

    def own_limit(self, closed: bool) -> float | None:
        """The limit that it has where the config names none.

        Args:
            closed: whether the base's answers are closed (`fgod.evaluate.scoring.Standard`).
        """
        if closed or self.open_limit is None:
            return None if self.equality and not closed else self.limit
        return self.open_limit

    @property
    def gated(self) -> bool:
        """Whether the config's `gate` may have a limit for it."""
        return self.better is not None and self.verdict is not None

    @property
    def legend(self) -> Legend:
        return Legend(**{key: getattr(self, key) for key in Legend.__dataclass_fields__})


@dataclass(frozen=True)
class Estimate:
    """A value over n items, with a 95 % interval where one is defined. `value` is None if n is 0."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def register(metric: Metric) -> Metric:
    """Add a metric to the registry by its name; returns it.

    Raises:
        UsageError: there is one of this name.
    """
    METRICS.register(metric.name, metric)
    return metric


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


def share(flags: Iterable[bool]) -> Estimate:
    """The share of true flags, with Wilson's interval."""
    values = list(flags)
    if not values:
        return Estimate(None, 0)
    k, n = sum(values), len(values)
    low, high = wilson(k, n)
    return Estimate(k / n, n, low, high)


BOOTSTRAP = 2000
"""Resamples of a bootstrap; always the same ones, so that the same records give the same interval."""


_VALUE_ALONE: ContextVar[bool] = ContextVar("value_alone", default=False)


@contextmanager
def value_alone() -> Iterator[None]:
    """Within it, means and percentiles have no interval of their own: they are resampled from outside."""
    token = _VALUE_ALONE.set(True)
    try:
        yield
    finally:
        _VALUE_ALONE.reset(token)


_RESAMPLED: ContextVar[list[NDArray[np.float64]] | None] = ContextVar("resampled", default=None)


@contextmanager
def resampled() -> Iterator[list[NDArray[np.float64]]]:
    """Within it, each bootstrap also adds its statistic [resamples] to the list that is yielded. As the resamples of n
    items are always the same ones, those of two runs' replies to the same probes are pairs."""
    kept: list[NDArray[np.float64]] = []
    token = _RESAMPLED.set(kept)
    try:
        yield kept
    finally:
        _RESAMPLED.reset(token)


def middle(statistics: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95 % of a statistic over resamples."""
    import numpy as np

    low, high = np.quantile(statistics, (0.025, 0.975))
    return float(low), float(high)


def bootstrap(n: int, statistic: Callable[[NDArray[np.intp]], NDArray[np.float64]]) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979): the middle 95 % of a statistic over resamples of n items.

    Args:
        statistic: places of items [resamples, n] → [resamples].
    """
    import numpy as np

    picks = np.random.default_rng(0).integers(n, size=(BOOTSTRAP, n))
    found = statistic(picks)
    if (kept := _RESAMPLED.get()) is not None:
        kept.append(found)
    return middle(found)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Σ wᵢ xᵢ / Σ wᵢ with a bootstrap interval over the items (none below two)."""
    if not values:
        return Estimate(None, 0)
    import numpy as np

    x, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    centre = math.fsum(x * w) / math.fsum(w)
    if len(x) < 2 or _VALUE_ALONE.get():
        return Estimate(centre, len(x))
    low, high = bootstrap(len(x), lambda picks: (x * w)[picks].sum(1) / w[picks].sum(1))
    return Estimate(centre, len(x), low, high)


def percentile(values: Sequence[float], q: float) -> Estimate:
    """The q-th percentile, linear between items, with a bootstrap interval over the items (none below two).

    A high percentile of few items is little more than the largest, and its interval too narrow: no resample has a
    larger one.
    """
    if not values:
        return Estimate(None, 0)
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    centre = float(np.percentile(x, q))
    if len(x) < 2 or _VALUE_ALONE.get():
        return Estimate(centre, len(x))
    low, high = bootstrap(len(x), lambda picks: np.asarray(np.percentile(x[picks], q, axis=1)))
    return Estimate(centre, len(x), low, high)


def mean(values: Iterable[float]) -> Estimate:
    """The mean of non-negative values, with the normal approximation's interval (none below two values)."""
    xs = list(values)
    if not xs:
        return Estimate(None, 0)
    n = len(xs)
    centre = math.fsum(xs) / n
    if n < 2:
        return Estimate(centre, n)
    half = Z95 * math.sqrt(math.fsum((x - centre) ** 2 for x in xs) / (n - 1) / n)
    return Estimate(centre, n, max(0.0, centre - half), centre + half)
