"""Whether a run still answers other topics as the reference does."""

from __future__ import annotations

from collections.abc import Sequence

from fgod.data.suites import COMPARED
from fgod.evaluate.metric import SHARE, Estimate, Metric, register, share
from fgod.evaluate.scoring import Scored


def _compared(r: Scored) -> bool:
    """Whether equality of a reply with the reference's says something."""
    return r.scored_by in COMPARED and r.proper and r.agrees is not None


def _retention(records: Sequence[Scored]) -> Estimate:
    return share(bool(r.agrees) for r in records if _compared(r))


def _retention_held_out(records: Sequence[Scored]) -> Estimate:
    return share(bool(r.agrees) for r in records if _compared(r) and r.held_out)


register(
    Metric(
        name="retention",
        short="retention",
        unit=SHARE,
        description="replies on other topics that agree with the reference, where its answers are closed",
        better="higher",
        verdict="collapsed",
        limit=0.5,
        equality=True,
        compute=_retention,
        offends=lambda r: _compared(r) and not r.agrees,
        by_language=True,
        headline=True,
    )
)
register(
    Metric(
        name="retention_held_out",
        short="retention held out",
        unit=SHARE,
        description="the same, on topics that no mix rehearses",
        better="higher",
        verdict="damaged",
        equality=True,
        compute=_retention_held_out,
        offends=lambda r: _compared(r) and r.held_out and not r.agrees,
        headline=True,
    )
)
