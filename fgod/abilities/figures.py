"""The figures of a comparison as a document, {lineage}.json. Imports no torch."""

from __future__ import annotations

from typing import Any

from fgod.documents import Sealed

ALL = "all"
"""The suite of the row that counts all items."""
FIGURES = (
    *("suite", "group", "n", "base", "tuned", "lost", "gained"),
    *("difference", "low", "high", "p_value", "loss_bound"),
)


class Figures(Sealed):
    """The file {lineage}.json. `base` and `tuned` are the folders that were compared, by digest; `walls` what held
    programs in that ran; `results` rows of `FIGURES`: shares from 0 to 1, `loss_bound` in points of 100."""

    base: dict[str, str]
    tuned: dict[str, str]
    settings: dict[str, Any]
    limit: float
    within_limit: bool
    walls: dict[str, str] | None
    results: list[dict[str, Any]]


def summary(document: Figures) -> str:
    """The figures as a table for people."""
    lines = [f"{'items':<24}{'n':>6}{'base':>8}{'tuned':>8}{'lost':>6}{'gained':>8}{'p':>9}{'loss bound':>12}"]
    for row in document.results:
        name = row["suite"] + (f" · {row['group']}" if row["group"] else "")
        lines.append(
            f"{name:<24}{row['n']:>6}{row['base']:>8.3f}{row['tuned']:>8.3f}{row['lost']:>6}{row['gained']:>8}"
            f"{row['p_value']:>9.2g}{row['loss_bound']:>8.2f} pts"
        )
    first = document.results[0]["loss_bound"]
    says = "at most" if document.within_limit else "more than"
    lines.append(f"loss of all items: 95 % bound {first:.2f} points, {says} the limit of {document.limit:g}")
    return "\n".join(lines)
