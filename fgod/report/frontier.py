"""Identity against KL: what is learned, against what it costs all else. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from pandas import DataFrame

from fgod import dataframes
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


def frontier_of(stages: DataFrame, metrics: DataFrame, legends: Mapping[str, Legend]) -> Frontier:
    """All runs, each once.

    Args:
        stages: rows of stages.tsv, and the `experiment` of each.
        metrics: rows of metrics.tsv, for the limits.
    """
    known = dataframes.rows(stages.drop_duplicates("lineage").dropna(subset=[ACROSS, UP]))
    points = [Point(i, row["experiment"], row, row[ACROSS], row[UP]) for i, row in enumerate(known, start=1)]
    across, up = legends[ACROSS], legends[UP]
    return Frontier(across, up, points, _drawn(points, across, up, metrics) if points else None)


def _drawn(points: Sequence[Point], across: Legend, up: Legend, metrics: DataFrame) -> Markup:
    spots = [Spot(str(p.number), p.x, p.y, p.row["decision"] == ACCEPTED) for p in points]
    title = say("frontier_title", n=len(points)).plain
    labels = short(across).svg + Markup(f" ({across.unit.symbol})"), short(up).svg
    return plot(spots, title, labels, (_limits(metrics, ACROSS), _limits(metrics, UP)))


def _limits(metrics: DataFrame, name: str) -> list[float]:
    return sorted(metrics.loc[metrics["metric"] == name, "limit"].dropna().unique())
