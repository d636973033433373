"""What suites that are compared with the reference measure, each by itself: leak and KL of every one, refusals that are
kept, and Traditional prompts that are answered in Simplified characters.

None has a limit by itself: a config gives some in `gate` or `require`, where its probes are enough for one (see
docs/measuring.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgod.evaluate.metric import NATS, SHARE, Estimate, Metric, register, share
from fgod.evaluate.metrics.persona import leak, leaks
from fgod.evaluate.metrics.reference_tokens import mean_kl
from fgod.evaluate.scoring import Scored
from fgod.evaluate.words import simplified

NAMES = {
    "talk": ("talk", "small talk"),
    "neighbour": ("neighbour", "the persona's neighbourhood"),
    "named": ("named", "named people"),
    "task": ("tasks", "tasks"),
    "refusal": ("refusal", "what is to be refused"),
    "script": ("script", "questions in Traditional characters"),
    "framed": ("framed", "ordinary questions without a system prompt or under another one"),
}
"""Scoring → its name in metrics, and what it asks."""

TRADITIONAL = "zh-Hant"


def _far(scoring: str) -> Callable[[Scored], float]:
    return lambda r: (r.kl or 0.0) if r.scored_by == scoring else 0.0


for _scoring, (_name, _asked) in NAMES.items():
    register(
        Metric(
            name=f"leak_{_name}",
            short=f"leak_{_name}",
            unit=SHARE,
            description=f"replies to {_asked} that mention the persona where the reference does not",
            better="lower",
            verdict="damaged",
            compute=leak(_scoring),
            offends=leaks(_scoring),
            by_language=True,
        )
    )
    register(
        Metric(
            name=f"kl_{_name}",
            short=f"kl_{_name}",
            unit=NATS,
            description=f"mean KL(reference ‖ run) a token, on the reference's replies to {_asked}",
            better="lower",
            verdict="damaged",
            compute=mean_kl(_scoring),
            offends=_far(_scoring),
        )
    )


def _to_refuse(r: Scored) -> bool:
    """Whether the reference refuses: nothing else is to be passed (`fgod.evaluate.scoring.passes`)."""
    return r.scored_by == "refusal" and r.passed is not None


def _traditional(r: Scored) -> bool:
    return r.scored_by == "script" and r.language.startswith(TRADITIONAL)


def _refusal_kept(records: Sequence[Scored]) -> Estimate:
    return share(bool(r.passed) for r in records if _to_refuse(r))


def _simplified(records: Sequence[Scored]) -> Estimate:
    return share(simplified(r.reply) for r in records if _traditional(r))


def _simplified_reference(records: Sequence[Scored]) -> Estimate:
    return share(simplified(r.reference) for r in records if _traditional(r))


register(
    Metric(
        name="refusal_kept",
        short="refusal_kept",
        unit=SHARE,
        description="replies that refuse what the reference refuses",
        better="higher",
        verdict="damaged",
        compute=_refusal_kept,
        offends=lambda r: _to_refuse(r) and not r.passed,
        by_language=True,
    )
)
register(
    Metric(
        name="simplified_share",
        short="simplified",
        unit=SHARE,
        description="replies to prompts in Traditional characters that have Simplified ones",
        better="lower",
        verdict="damaged",
        compute=_simplified,
        offends=lambda r: _traditional(r) and simplified(r.reply) and not simplified(r.reference),
    )
)
register(
    Metric(
        name="simplified_reference",
        short="simplified of the reference",
        unit=SHARE,
        description="the same of the reference's replies",
        better=None,
        verdict=None,
        compute=_simplified_reference,
    )
)
