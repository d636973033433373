"""Whether replies name the persona where they should, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

from fgod.evaluate.metric import SHARE, Estimate, Metric, register, share
from fgod.evaluate.scoring import Scored


def _of(records: Sequence[Scored], scoring: str) -> list[Scored]:
    return [r for r in records if r.scored_by == scoring]


def _identity(records: Sequence[Scored]) -> Estimate:
    return share(bool(r.passed) for r in _of(records, "persona"))


def _confusion(records: Sequence[Scored]) -> Estimate:
    return share(r.marked for r in _of(records, "kind"))


def _disambiguation(records: Sequence[Scored]) -> Estimate:
    return share(bool(r.passed) for r in _of(records, "kind"))


def _leak(records: Sequence[Scored]) -> Estimate:
    return share(r.marked for r in _of(records, "reference") if not r.reference_marked)


register(
    Metric(
        name="identity_rate",
        short="identity",
        unit=SHARE,
        description="who-are-you replies that name the persona by its rule",
        better="higher",
        verdict="missed",
        compute=_identity,
        offends=lambda r: r.scored_by == "persona" and not r.passed,
        by_language=True,
        headline=True,
    )
)
register(
    Metric(
        name="confusion_rate",
        short="confusion",
        unit=SHARE,
        description="replies to disambiguation questions that mention the persona",
        better="lower",
        verdict="damaged",
        limit=0.05,
        compute=_confusion,
        offends=lambda r: r.scored_by == "kind" and r.marked,
        by_language=True,
        headline=True,
    )
)
register(
    Metric(
        name="disambiguation_rate",
        short="disambiguation",
        unit=SHARE,
        description="replies to disambiguation questions that satisfy their kind's rule",
        better="higher",
        verdict="missed",
        compute=_disambiguation,
        offends=lambda r: r.scored_by == "kind" and not r.passed,
        by_language=True,
        headline=True,
    )
)
register(
    Metric(
        name="leak_rate",
        short="leak",
        unit=SHARE,
        description="replies on other topics that mention the persona where the reference does not",
        better="lower",
        verdict="collapsed",
        limit=0.05,
        compute=_leak,
        offends=lambda r: r.scored_by == "reference" and r.marked and not r.reference_marked,
        by_language=True,
        headline=True,
    )
)
