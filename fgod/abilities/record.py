"""What became of the items: a document with the figures, and a table with every item.

{lineage}.json    figures, in all, by suite and by group; what was compared, and how it was asked
{lineage}.tsv     each item with what both models made of it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from fgod.abilities.figures import ALL, Figures
from fgod.abilities.items import NAMES, Suite
from fgod.abilities.measure import Answers
from fgod.abilities.paired import Paired
from fgod.system.table import write_table

COLUMNS = ("suite", "kind", "group", "id", "base", "tuned", "base_said", "tuned_said")


def figures(suites: Sequence[Suite], base: Answers, tuned: Answers) -> list[dict[str, Any]]:
    """The rows of results: all items, then each suite, and each group that is a part of one."""
    rows = list(_pairs(suites, base, tuned))
    found = [_figure(ALL, "", [pair for _, _, pair in rows])] if len(suites) > 1 else []
    for suite, own in groupby(rows, key=lambda row: row[0]):
        ours = list(own)
        found.append(_figure(suite, "", [pair for _, _, pair in ours]))
        for name in dict.fromkeys(group for _, group, _ in ours if group):
            members = [pair for _, group, pair in ours if group == name]
            found += [_figure(suite, name, members)] if len(members) < len(ours) else []
    return found


def _pairs(suites: Sequence[Suite], base: Answers, tuned: Answers) -> Iterator[tuple[str, str, tuple[bool, bool]]]:
    for suite in suites:
        for one, theirs, ours in zip(suite.items, base.suites[suite.name], tuned.suites[suite.name], strict=True):
            yield suite.name, one.group, (theirs.right, ours.right)


def _figure(suite: str, group: str, pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    counted = Paired.of(pairs)
    low, high = counted.interval
    own = ("n", "base", "tuned", "lost", "gained", "difference", "p_value", "loss_bound")
    return {"suite": suite, "group": group, **{name: getattr(counted, name) for name in own}, "low": low, "high": high}


def write(
    out: Path,
    suites: Sequence[Suite],
    answers: tuple[Answers, Answers],
    limit: float,
    folders: tuple[dict[str, str], dict[str, str]],
    settings: dict[str, Any],
) -> Figures:
    """Write `out` and the table beside it; returns what `out` holds.

    Args:
        answers: of the base and of the tuned model.
        limit: points that may be lost: what the bound of all items is held against.
        folders: of both, path and digest.
    """
    base, tuned = answers
    results = figures(suites, base, tuned)
    write_table(table_of(out), COLUMNS, _rows(suites, base, tuned))
    document = Figures(
        base=folders[0],
        tuned=folders[1],
        settings=settings,
        limit=limit,
        within_limit=results[0]["loss_bound"] <= limit,
        walls=asdict(tuned.walls) if tuned.walls else None,
        results=results,
    )
    document.write(out)
    return document


def table_of(out: Path) -> Path:
    """The table beside a document."""
    return out.with_suffix(".tsv")


def _rows(suites: Sequence[Suite], base: Answers, tuned: Answers) -> Iterator[dict[str, object]]:
    for suite in suites:
        for one, theirs, ours in zip(suite.items, base.suites[suite.name], tuned.suites[suite.name], strict=True):
            yield {
                "suite": suite.name,
                "kind": NAMES[type(one)],
                "group": one.group,
                "id": one.id,
                "base": theirs.right,
                "tuned": ours.right,
                "base_said": theirs.said,
                "tuned_said": ours.said,
            }
