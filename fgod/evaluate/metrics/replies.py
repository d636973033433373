"""Whether replies end, do not loop, and differ from each other."""

from __future__ import annotations

from collections.abc import Sequence

from fgod.evaluate.metric import SHARE, Estimate, Metric, register, share
from fgod.evaluate.scoring import Scored


def _scored(records: Sequence[Scored]) -> list[Scored]:
    return [r for r in records if r.scored]


def _repetition(records: Sequence[Scored]) -> Estimate:
    return share(r.looped for r in _scored(records))


def _ended(records: Sequence[Scored]) -> Estimate:
    return share(r.ended for r in _scored(records))


def _distinct(records: Sequence[Scored]) -> Estimate:
    """Distinct replies over prompts; has no interval."""
    replies = [r.reply for r in _scored(records)]
    return Estimate(len(set(replies)) / len(replies), len(replies)) if replies else Estimate(None, 0)


register(
    Metric(
        name="repetition_rate",
        short="repetition",
        unit=SHARE,
        description="replies that loop",
        better="lower",
        verdict="collapsed",
        limit=0.2,
        compute=_repetition,
        offends=lambda r: r.scored and r.looped,
        headline=True,
    )
)
register(
    Metric(
        name="ended_rate",
        short="ended",
        unit=SHARE,
        description="replies that stop by the end token",
        better="higher",
        verdict="missed",
        compute=_ended,
        offends=lambda r: r.scored and not r.ended,
        headline=True,
    )
)
register(
    Metric(
        name="distinct_replies",
        short="distinct replies",
        unit=SHARE,
        description="distinct replies over prompts",
        better=None,
        verdict="missed",
        compute=_distinct,
    )
)
