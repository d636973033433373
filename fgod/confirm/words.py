"""The comparison of development and confirmation in words, for report and model card. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgod.documents import Compared
from fgod.evaluate.metric import Estimate, Unit

HELD_BACK_NONE = (
    "The probes hold no wordings back (none is of the split confirmation), so nothing was confirmed: the figures are "
    "of wordings by which recipes and limits may have been chosen."
)


def asked_words(asked_before: Sequence[str]) -> str:
    """What a candidate was asked, as a sentence.

    Args:
        asked_before: the lineages that were asked the same fold earlier.
    """
    if not asked_before:
        return "The candidate was asked, after the gate, wordings by which nothing was chosen."
    return (
        "The folds of held-back wordings are used up: the candidate was asked one that other weights were asked "
        "before, so its figures are no longer held back."
    )


@dataclass(frozen=True)
class Words:
    """A metric on both sides. `agrees`: yes where the interval of the difference contains 0, else no; – without one."""

    development: str
    confirmation: str
    difference: str
    agrees: str


def in_words(row: Compared, unit: Unit) -> Words:
    """`97.5 % (87–99.6 %, n 40)` on each side; the difference as `-2.5 % (-9.1 to 4 %)`."""
    interval = "" if row.low is None or row.high is None else f" ({unit.interval(row.low, row.high, ' to ')})"
    return Words(
        development=side_words(row.development, unit),
        confirmation=side_words(row.confirmation, unit),
        difference="–" if row.difference is None else f"{signed(row.difference, unit)}{interval}",
        agrees={True: "yes", False: "no", None: "–"}[row.contains_zero],
    )


def side_words(estimate: Estimate, unit: Unit) -> str:
    """`97.5 % (87–99.6 %, n 40)`."""
    if estimate.value is None:
        return "–"
    low, high = estimate.low, estimate.high
    interval = "" if low is None or high is None else f"{unit.interval(low, high)}, "
    return f"{unit.text(estimate.value)} ({interval}n {estimate.n})"


def signed(difference: float, unit: Unit) -> str:
    """A difference with its sign."""
    return f"{'+' if difference > 0 else ''}{unit.text(difference)}"
