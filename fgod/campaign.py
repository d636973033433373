"""All experiments of a config side by side: results/experiments.tsv, and a tree for people.

fgod campaign      (results/experiments/*/walk.json → results/experiments.tsv)

An experiment that no longer has a run to release takes its release back, as the config's own chain does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pandas import DataFrame

from fgod import dataframes
from fgod.documents import Metrics, Verdict
from fgod.evaluate.metric import METRICS
from fgod.layout import Releases
from fgod.promotion import WalkEntry, of_walk
from fgod.release import retire
from fgod.system.table import COUNT, TEXT
from fgod.tables import REASON_BREAK

BEFORE = {"experiment": TEXT, "starts_from": TEXT, "note": TEXT, "fits": COUNT, "stage": TEXT, "lineage": TEXT}
BEFORE |= {"decision": TEXT, "reasons": TEXT, "release": TEXT}


def write_campaign(out: Path, walks: Mapping[str, Mapping[str, Any]], results: Path) -> DataFrame:
    """Write a row for each experiment, of the last run that it came by; returns the table.

    Args:
        walks: note, start, fault and walk (`fgod.records.walk_json`) of each, by name.

    Raises:
        FgodError: a record of a run that was judged is missing or was edited; names the file.
    """
    experiments = dataframes.made((_row(name, one, results) for name, one in walks.items()), (*BEFORE, *METRICS))
    dataframes.write(out, experiments)
    return experiments


def _row(name: str, told: Mapping[str, Any], results: Path) -> dict[str, Any]:
    walk = told["walk"]
    row = {"experiment": name, "starts_from": told["starts_from"], "note": told["note"], "release": ""}
    row |= {"fits": max((visit["fit"] + 1 for visit in walk["visits"]), default=0)}
    if not walk["visits"]:
        row |= {"stage": "", "lineage": "", "decision": "", "reasons": walk["spent"]}
        return {**row, **dict.fromkeys(METRICS)}
    last = WalkEntry(**walk["visits"][-1])
    run = last.records(results)
    verdict, metrics = Verdict.read(run.verdict), Metrics.read(run.metrics).metrics
    row |= {"stage": last.stage, "lineage": last.lineage, "decision": verdict.decision}
    row |= {"reasons": REASON_BREAK.join(verdict.reasons)}
    if of_walk(walk, results).promoted:
        row |= {"release": Releases(results, experiment=name).link.as_posix()}
    return {**row, **{metric: metrics[metric].value if metric in metrics else None for metric in METRICS}}


def unpromoted(walks: Mapping[str, Mapping[str, Any]], results: Path) -> Iterator[str]:
    """The experiments that promote nothing now, those whose start is gone left out.

    Args:
        walks: as of `write_campaign`.

    Raises:
        FgodError: a confirmation was edited; names the file.
    """
    for name, one in walks.items():
        if not one["fault"] and not of_walk(one["walk"], results).promoted:
            yield name


def retire_unpromoted(walks: Mapping[str, Mapping[str, Any]], results: Path, artifacts: Path) -> Iterator[str]:
    """Take back what is released of experiments that promote nothing now; says what. The releases stay as history.

    An experiment whose start is gone was not judged again: its release stays.

    Args:
        walks: as of `write_campaign`.

    Raises:
        FgodError: a confirmation was edited; names the file.
    """
    for name in unpromoted(walks, results):
        if earlier := retire(Releases(results, artifacts, name)):
            yield f"{name}: nothing is released any more; its earlier release is whole in {earlier}"


def below(experiments: DataFrame) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """The starts that are no experiments, and the rows of those that start from each name."""
    found = {str(start): dataframes.rows(rows) for start, rows in experiments.groupby("starts_from", sort=False)}
    names = set(experiments["experiment"])
    return [start for start in found if start not in names], found


def tree(experiments: DataFrame) -> Iterator[str]:
    """The experiments below what they start from, a line each."""
    roots, found = below(experiments)
    for root in roots:
        yield root
        yield from _branch(root, found, "")


def _branch(start: str, found: Mapping[str, list[dict[str, Any]]], indent: str) -> Iterator[str]:
    children = found.get(start, [])
    for i, row in enumerate(children):
        corner, side = ("└─ ", "   ") if i == len(children) - 1 else ("├─ ", "│  ")
        run = f"{row['stage']}@{row['lineage']}" if row["stage"] else "no run"
        end = f", released as {row['release']}" if row["release"] else ""
        why = f" ({row['reasons']})" if row["reasons"] and not row["release"] else ""
        yield f"{indent}{corner}{row['experiment']}  {run}: {row['decision'] or 'nothing'}{end}{why}"
        yield from _branch(row["experiment"], found, indent + side)
