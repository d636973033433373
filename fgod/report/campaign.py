"""All experiments on one page: experiments.html, of experiments.tsv and the experiments' own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgod.campaign import BEFORE
from fgod.errors import FgodError
from fgod.layout import view
from fgod.report.frontier import frontier_of
from fgod.report.page import title
from fgod.report.reading import Row, Told, read_told
from fgod.report.templating import environment
from fgod.report.tree import Node, branches
from fgod.system import files
from fgod.system.table import NUMBER, read_table
from fgod.tables import REASON_BREAK


@dataclass(frozen=True)
class ExperimentView:
    """An experiment, its runs, and the experiments that start from it."""

    row: Row
    reasons: Sequence[str]
    runs: Sequence[Node]
    children: Sequence[ExperimentView]


def write_campaign_report(table: Path, out: Path) -> list[Path]:
    """Write the page of a campaign; returns the folders of tables that it is made of.

    Raises:
        UsageError: a table is missing.
        FgodError: a table is broken, or there is no experiment; names the file.
    """
    rows = read_table(table, BEFORE)
    if not rows:
        raise FgodError(f"{table}: found no experiment, expected a row for each")
    folders = {row["experiment"]: view(row["experiment"], table.parent).tables for row in rows}
    told = {name: read_told(folder) for name, folder in folders.items()}
    legends = next(iter(told.values())).legends
    figures = read_table(table, {**BEFORE, **dict.fromkeys(legends, NUMBER)})
    files.write_text(out, _page(figures, told))
    return list(folders.values())


def _page(rows: Sequence[Row], told: Mapping[str, Told]) -> str:
    first = next(iter(told.values()))
    shown = [legend for name, legend in first.legends.items() if any(row[name] is not None for row in rows)]
    names = {row["experiment"] for row in rows}
    starts = dict.fromkeys(row["starts_from"] for row in rows if row["starts_from"] not in names)
    templates = environment()
    templates.filters["title"] = title
    return templates.get_template("campaign.html.j2").render(
        language=first.context["language"],
        persona=first.context["persona"],
        rows=rows,
        roots={start: _below(start, rows, told) for start in starts},
        frontier=frontier_of(
            {name: one.stages for name, one in told.items()},
            [row for one in told.values() for row in one.metrics],
            first.legends,
        ),
        figures=[
            (legend, ["–" if row[legend.name] is None else legend.unit.text(row[legend.name]) for row in rows])
            for legend in shown
        ],
    )


def _below(start: str, rows: Sequence[Row], told: Mapping[str, Told]) -> list[ExperimentView]:
    return [
        ExperimentView(
            row,
            [reason for reason in (row["reasons"] or "").split(REASON_BREAK) if reason],
            _runs(told[row["experiment"]]),
            _below(row["experiment"], rows, told),
        )
        for row in rows
        if row["starts_from"] == start
    ]


def _runs(told: Told) -> list[Node]:
    return branches(told.stages, [tuple(key) for key in told.context["promoted"][-1:]])
