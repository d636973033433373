"""Identity against KL: what is learned, against what it costs all else. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fgod.decisions import ACCEPTED
from fgod.evaluate.metric import Legend
from fgod.report.phrases import say, short
from fgod.report.reading import Row
from fgod.report.svg import Spot, plot

ACROSS, UP = "kl_reference", "identity_rate"


@dataclass(frozen=True)
class Point:
    """A run that has both figures; its number stands in the drawing."""

    number: int
    experiment: str
    row: Row
    x: float
    y: float


@dataclass(frozen=True)
class Frontier:
    """`drawing` is None where no run has both figures."""

    across: Legend
    up: Legend
    points: Sequence[Point]
    drawing: Markup | None


def frontier_of(chains: Mapping[str, Sequence[Row]], metrics: Sequence[Row], legends: Mapping[str, Legend]) -> Frontier:
    """All runs of chains, each once.

    Args:
        chains: rows of stages.tsv by experiment.
        metrics: rows of metrics.tsv, for the limits.
    """
    runs: dict[str, tuple[str, Row]] = {}
    for name, rows in chains.items():
        for row in rows:
            runs.setdefault(row["lineage"], (name, row))
    known = [(name, row) for name, row in runs.values() if None not in (row[ACROSS], row[UP])]
    points = [Point(i, name, row, row[ACROSS], row[UP]) for i, (name, row) in enumerate(known, start=1)]
    across, up = legends[ACROSS], legends[UP]
    return Frontier(across, up, points, _drawn(points, across, up, metrics) if points else None)


def _drawn(points: Sequence[Point], across: Legend, up: Legend, metrics: Sequence[Row]) -> Markup:
    spots = [Spot(str(p.number), p.x, p.y, p.row["decision"] == ACCEPTED) for p in points]
    title = say("frontier_title", n=len(points)).plain
    labels = short(across).svg + Markup(f" ({across.unit.symbol})"), short(up).svg
    return plot(spots, title, labels, (_limits(metrics, ACROSS), _limits(metrics, UP)))


def _limits(metrics: Sequence[Row], name: str) -> list[float]:
    return sorted({m["limit"] for m in metrics if m["metric"] == name and m["limit"] is not None})
