"""Metric by metric in four columns: the base in its own number format, the base rounded, the placebo, the tuned run.

What tuning costs is tuned - placebo over the same probes, with an interval of pairs (`fgod.compare.pairs`). What
rounding costs stands in the first column. Pure but for the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.compare.pairs import difference, paired
from fgod.confirm.words import side_words, signed
from fgod.documents import Metrics, differing_files
from fgod.errors import FgodError
from fgod.evaluate.measure import measure
from fgod.evaluate.metric import METRICS, Estimate, Unit
from fgod.evaluate.scoring import Scored
from fgod.layout import RunRecords
from fgod.probe.record import read_probes
from fgod.system.table import COUNT, NUMBER, TEXT, Column

if TYPE_CHECKING:
    from pandas import DataFrame

SIDES = ("base", "rounded", "placebo", "tuned")
"""base: in its own number format; rounded: to NVFP4, the reference itself."""


def estimates(*sides: str) -> dict[str, Column]:
    """The columns of an `Estimate` of each side: value, number of probes, and both ends of its interval."""
    ends = {"": NUMBER, "_n": COUNT, "_low": NUMBER, "_high": NUMBER}
    return {f"{side}{end}": column for side in sides for end, column in ends.items()}


COLUMNS: Mapping[str, Column] = {
    **dict.fromkeys(("stage", "lineage", "placebo_lineage", "metric"), TEXT),
    **estimates(*SIDES),
    **dict.fromkeys(("difference", "low", "high"), NUMBER),
    "interval": TEXT,
}


def read_side(run: RunRecords) -> list[Scored]:
    """The scored replies on record.

    Raises:
        FgodError: nothing was measured, or the replies were changed since.
    """
    found = Metrics.read(run.metrics)
    if found.status != "measured":
        raise FgodError(f"{run.metrics}: nothing was measured ({found.reason}), so there is nothing to compare")
    if changed := differing_files(run.folder, found.tables_sha256):
        raise FgodError(f"{run.folder}: {', '.join(changed)} since it was written; delete {run.metrics} and run again")
    return read_probes(run.probes)


def check_same_probes(sides: Mapping[str, Sequence[Scored]]) -> None:
    """Raise FgodError unless all were asked the same probes in the same order: pairs are made of them."""
    asked = {side: [r.asked for r in records] for side, records in sides.items()}
    other = [side for side in asked if asked[side] != asked["tuned"]]
    if other:
        raise FgodError(
            f"comparison: {other[0]} was asked {len(asked[other[0]])} probes and tuned {len(asked['tuned'])}, or others"
        )


def comparison_rows(sides: Mapping[str, Sequence[Scored]], names: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """The rows of comparison.tsv, of metrics that have a value on either side of the difference.

    Args:
        names: stage, lineage and placebo_lineage.
    """
    check_same_probes(sides)
    for name, metric in METRICS.items():
        found = {side: measure(metric, sides[side]) for side in SIDES}
        if found["tuned"].value is None and found["placebo"].value is None:
            continue
        apart = difference(metric, paired(sides["placebo"], sides["tuned"]))
        row: dict[str, object] = {**names, "metric": name}
        for side, estimate in found.items():
            row |= {side: estimate.value, f"{side}_n": estimate.n}
            row |= {f"{side}_low": estimate.low, f"{side}_high": estimate.high}
        yield row | {"difference": apart.value, "low": apart.low, "high": apart.high, "interval": apart.method}


def write_comparison(out: Path, metrics: Mapping[str, Path]) -> None:
    """Write comparison.tsv of the metrics.json of each side, with probes.tsv beside it."""
    from fgod import dataframes  # here: the workflow takes no more than the columns

    runs = {side: RunRecords(path.parent) for side, path in metrics.items()}
    names = {"stage": runs["tuned"].folder.parent.name, "lineage": runs["tuned"].folder.name}
    names["placebo_lineage"] = runs["placebo"].folder.name
    rows = comparison_rows({side: read_side(run) for side, run in runs.items()}, names)
    dataframes.write(out, dataframes.made(rows, COLUMNS))


# ----------------------------------------------------------------------------------------------------------- in words

HOW = (
    "`snakemake placebo` shows beside it what tuning costs whatever is taught, and what rounding costs (four columns)."
)
"""Where there is no comparison."""


@dataclass(frozen=True)
class Words:
    """A metric in the four columns, and tuned - placebo with its interval."""

    metric: str
    sides: tuple[str, ...]
    difference: str


def in_words(row: Mapping[str, Any], unit: Unit) -> Words:
    """A typed row of comparison.tsv for people."""
    found = (Estimate(row[s], row[f"{s}_n"], row[f"{s}_low"], row[f"{s}_high"]) for s in SIDES)
    apart, low, high = row["difference"], row["low"], row["high"]
    interval = "" if low is None or high is None else f" ({unit.interval(low, high, ' to ')})"
    return Words(
        str(row["metric"]),
        tuple(side_words(estimate, unit) for estimate in found),
        "–" if apart is None else f"{signed(apart, unit)}{interval}",
    )


def read_comparison(path: Path, lineages: Iterable[str]) -> DataFrame:
    """The rows of comparison.tsv about runs; none where the file is not there, or is about others.

    Raises:
        FgodError: it is no such table; names the file, and the line.
    """
    from fgod import dataframes

    found = dataframes.read(path, COLUMNS) if path.exists() else dataframes.made((), COLUMNS)
    return found[found["lineage"].isin(list(lineages))]
