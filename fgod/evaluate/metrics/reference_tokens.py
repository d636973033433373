"""How far a run's distributions lie from the reference's, on every token of the reference's replies.

Each mean is over all tokens of all prompts; intervals are of a bootstrap over prompts, as the tokens of one reply are
not independent. Measured so, free text can be judged: a harmless change of the weights alters most replies after a few
tokens, and the distributions hardly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgod.evaluate.metric import NATS, SHARE, Estimate, Metric, Unit, percentile, register, weighted_mean
from fgod.evaluate.scoring import Scored

OF_THE_REPLY = "on the reference's replies to other topics, all tokens"


def compared(records: Sequence[Scored], scored_by: str = "reference") -> list[Scored]:
    """The replies of one scoring whose distributions were compared."""
    return [r for r in records if r.scored_by == scored_by and r.tokens and r.kl is not None]


def _mean_over_tokens(records: Sequence[Scored], value: Callable[[Scored], float | None]) -> Estimate:
    found = [(v, r.tokens) for r in records if (v := value(r)) is not None]
    return weighted_mean([v for v, _ in found], [tokens for _, tokens in found])


def mean_kl(scored_by: str) -> Callable[[Sequence[Scored]], Estimate]:
    """Mean KL over all tokens of the replies of one scoring."""
    return lambda records: _mean_over_tokens(compared(records, scored_by), lambda r: r.kl)


def _kl_p99(records: Sequence[Scored]) -> Estimate:
    return percentile([r.kl for r in compared(records) if r.kl is not None], 99)


def _nll_shift(records: Sequence[Scored]) -> Estimate:
    return _mean_over_tokens(compared(records), lambda r: r.nll_shift)


def _top1(records: Sequence[Scored]) -> Estimate:
    return _mean_over_tokens(compared(records), lambda r: r.top1)


def _far(r: Scored) -> float:
    return (r.kl or 0.0) if r.scored_by == "reference" else 0.0


register(
    Metric(
        name="kl_reference",
        short="kl",
        unit=NATS,
        description=f"mean KL(reference ‖ run) a token, {OF_THE_REPLY}",
        better="lower",
        verdict="collapsed",
        limit=0.5,
        compute=mean_kl("reference"),
        offends=_far,
        headline=True,
    )
)
register(
    Metric(
        name="kl_p99",
        short="kl_p99",
        unit=NATS,
        description="99th percentile by prompt of the same",
        better="lower",
        verdict="damaged",
        compute=_kl_p99,
        offends=_far,
    )
)
register(
    Metric(
        name="top1_agreement",
        short="top1",
        unit=SHARE,
        description=f"tokens that run and reference both find likeliest, {OF_THE_REPLY}",
        better="higher",
        verdict="damaged",
        open_limit=0.85,
        compute=_top1,
        offends=lambda r: 1 - r.top1 if r.scored_by == "reference" and r.top1 is not None else 0.0,
    )
)
register(
    Metric(
        name="nll_shift",
        short="nll shift",
        unit=Unit("nats", low=-float("inf")),
        description=f"rise of the negative log-likelihood a token, {OF_THE_REPLY}",
        better="lower",
        verdict="damaged",
        compute=_nll_shift,
        offends=lambda r: (r.nll_shift or 0.0) if r.scored_by == "reference" else 0.0,
    )
)
register(
    Metric(
        name="kl_identity",
        short="kl identity",
        unit=NATS,
        description="mean KL(reference ‖ run) a token, on the reference's replies to who-are-you",
        better=None,
        verdict=None,
        compute=mean_kl("persona"),
    )
)
