"""All experiments on one page: experiments.html, of experiments.tsv and the experiments' own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from fgod import dataframes
from fgod.campaign import BEFORE, below
from fgod.errors import FgodError
from fgod.layout import view
from fgod.report.frontier import frontier_of
from fgod.report.page import title
from fgod.report.reading import Row, Told, read_told
from fgod.report.templating import environment
from fgod.report.tree import Node, branches
from fgod.system import files
from fgod.system.table import NUMBER
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
    names = dataframes.read(table, BEFORE)["experiment"]
    if names.empty:
        raise FgodError(f"{table}: found no experiment, expected a row for each")
    folders = {name: view(name, table.parent).tables for name in names}
    told = {name: read_told(folder) for name, folder in folders.items()}
    legends = next(iter(told.values())).legends
    experiments = dataframes.read(table, {**BEFORE, **dict.fromkeys(legends, NUMBER)})
    files.write_text(out, _page(experiments, told))
    return list(folders.values())


def _page(experiments: DataFrame, told: Mapping[str, Told]) -> str:
    first = next(iter(told.values()))
    roots, starting = below(experiments)
    rows = dataframes.rows(experiments)
    templates = environment()
    templates.filters["title"] = title
    return templates.get_template("campaign.html.j2").render(
        language=first.context["language"],
        persona=first.context["persona"],
        rows=rows,
        roots={start: _views(start, starting, told) for start in roots},
        frontier=frontier_of(
            pd.concat([one.stages.assign(experiment=name) for name, one in told.items()]),
            pd.concat([one.metrics for one in told.values()]),
            first.legends,
        ),
        figures=[
            (legend, ["–" if row[name] is None else legend.unit.text(row[name]) for row in rows])
            for name, legend in first.legends.items()
            if experiments[name].notna().any()
        ],
    )


def _views(start: str, starting: Mapping[str, Sequence[Row]], told: Mapping[str, Told]) -> list[ExperimentView]:
    return [
        ExperimentView(
            row,
            [reason for reason in row["reasons"].split(REASON_BREAK) if reason],
            _runs(told[row["experiment"]]),
            _views(row["experiment"], starting, told),
        )
        for row in starting.get(start, ())
    ]


def _runs(told: Told) -> list[Node]:
    return branches(told.stages, [tuple(key) for key in told.context["promoted"][-1:]])
