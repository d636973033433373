"""The runs of a chain below those whose weights they start from. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fgod.report.reading import Key, Row


@dataclass(frozen=True)
class Node:
    """A run with those that start from it. `fits`: the fits that it stands in."""

    row: Row
    released: bool
    fits: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


def branches(stages: Sequence[Row], released: Collection[Key]) -> list[Node]:
    """The runs that start from no other run of the chain, and all others below them.

    Args:
        stages: rows of stages.tsv, in which a run stands after the one that it starts from.
        released: stage and lineage of the runs that are.
    """
    found: dict[str, Node] = {}
    roots: list[Node] = []
    for row in stages:
        if row["lineage"] not in found:
            node = found[row["lineage"]] = Node(row, (row["stage"], row["lineage"]) in released)
            before = found.get(row["starts_from"] or "")
            (before.children if before and before is not node else roots).append(node)
        found[row["lineage"]].fits.append(row["fit"])
    return roots
