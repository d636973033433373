"""The runs of a chain below those whose weights they start from. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pandas import DataFrame

from fgod import dataframes
from fgod.report.reading import Key, Row


@dataclass(frozen=True)
class Node:
    """A run with those that start from it. `fits`: the fits that it stands in."""

    row: Row
    released: bool
    fits: Sequence[int]
    children: list[Node] = field(default_factory=list)


def branches(stages: DataFrame, released: Collection[Key]) -> list[Node]:
    """The runs that start from no other run of the chain, and all others below them.

    Args:
        stages: stages.tsv, in which a run stands after the one that it starts from.
        released: stage and lineage of the runs that are.
    """
    fits = stages.groupby("lineage")["fit"].agg(list)
    found: dict[str, Node] = {}
    roots: list[Node] = []
    for row in dataframes.rows(stages.drop_duplicates("lineage")):
        lineage, before = row["lineage"], found.get(row["starts_from"])
        found[lineage] = Node(row, (row["stage"], lineage) in released, fits[lineage])
        (before.children if before else roots).append(found[lineage])
    return roots
