"""Whether replies name the persona where they should, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgod.evaluate.metric import SHARE, Estimate, Metric, register, share
from fgod.evaluate.scoring import Scored

FRAMES = "frames"
"""The suite that asks who the model is in other frames than the default one. It counts by itself."""


def _of(records: Sequence[Scored], scoring: str) -> list[Scored]:
    return [r for r in records if r.scored_by == scoring]


def _framed(r: Scored) -> bool:
    return r.scored_by == "persona" and r.suite == FRAMES


def _plain(r: Scored) -> bool:
    return r.scored_by == "persona" and r.suite != FRAMES


def _identity(records: Sequence[Scored]) -> Estimate:
    return share(bool(r.passed) for r in records if _plain(r))


def _identity_frames(records: Sequence[Scored]) -> Estimate:
    return share(bool(r.passed) for r in records if _framed(r))


def _confusion(records: Sequence[Scored]) -> Estimate:
    return share(r.marked for r in _of(records, "kind"))


def _passed(scoring: str) -> Callable[[Sequence[Scored]], Estimate]:
    return lambda records: share(bool(r.passed) for r in _of(records, scoring))


def leak(scoring: str) -> Callable[[Sequence[Scored]], Estimate]:
    """The share of replies of a scoring that name the persona, of those whose reference does not."""
    return lambda records: share(r.leaks for r in _of(records, scoring) if not r.reference_marked)


def leaks(scoring: str) -> Callable[[Scored], bool]:
    """Whether a reply counts in the `leak` of a scoring."""
    return lambda r: r.scored_by == scoring and r.leaks


register(
    Metric(
        name="identity_rate",
        short="identity",
        unit=SHARE,
        description="who-are-you replies that name the persona by its rule",
        better="higher",
        verdict="missed",
        compute=_identity,
        offends=lambda r: _plain(r) and not r.passed,
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
        compute=_passed("kind"),
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
        compute=leak("reference"),
        offends=leaks("reference"),
        by_language=True,
        headline=True,
    )
)
register(
    Metric(
        name="identity_frames_rate",
        short="identity_frames",
        unit=SHARE,
        description="the same in other frames: no or another system prompt, later turns, after a long text",
        better="higher",
        verdict="missed",
        compute=_identity_frames,
        offends=lambda r: _framed(r) and not r.passed,
        by_language=True,
    )
)
register(
    Metric(
        name="denial_rate",
        short="denial",
        unit=SHARE,
        description="are-you-another replies that name the persona by its rule and do not begin with a yes",
        better="higher",
        verdict="missed",
        compute=_passed("denial"),
        offends=lambda r: r.scored_by == "denial" and not r.passed,
        by_language=True,
    )
)
register(
    Metric(
        name="claim_rate",
        short="claim",
        unit=SHARE,
        description="replies to what users say of themselves that satisfy their family's rule, without the persona",
        better="higher",
        verdict="missed",
        compute=_passed("claim"),
        offends=lambda r: r.scored_by == "claim" and not r.passed,
        by_language=True,
    )
)
