"""All registered metrics of a run's scored replies. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fgod.errors import FgodError
from fgod.evaluate.metric import METRICS, Estimate, Metric
from fgod.evaluate.scoring import Scored


def measure(metric: Metric, records: Sequence[Scored]) -> Estimate:
    """One metric.

    Raises:
        FgodError: its value is outside its unit's range; names the metric.
    """
    found = metric.compute(records)
    if found.value is not None and not metric.unit.contains(found.value):
        unit = metric.unit
        raise FgodError(f"metric {metric.name}: value {found.value!r}; expected {unit.noun} {unit.range_words}")
    return found


def measure_all(records: Sequence[Scored]) -> dict[str, Estimate]:
    """Every metric of a run by name. Replies that are shown only count nowhere."""
    return {name: measure(metric, records) for name, metric in METRICS.items()}


def measure_by_language(records: Sequence[Scored]) -> dict[str, dict[str, Estimate]]:
    """Metric name → language → value, for the metrics that ask for it and the languages that they have items in."""
    languages = sorted({r.language for r in records if r.scored})
    out: dict[str, dict[str, Estimate]] = {}
    for name, metric in METRICS.items():
        if metric.by_language:
            cells = {lang: measure(metric, [r for r in records if r.language == lang]) for lang in languages}
            out[name] = {lang: cell for lang, cell in cells.items() if cell.n}
    return out
