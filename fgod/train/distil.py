"""KL(teacher ‖ model) over the teacher's most probable tokens, with all other tokens as one class.

For a label with the teacher's probabilities p_i of its top tokens i, and the mass r of all others, and the model's q:

    KL = Σ p_i·(log p_i − log q_i) + r·(log r − log Σ_others q_j)

and its gradient by the logits z: q_i − p_i for a top token, q_j − r·q_j / Σ_others q for any other. One top token with
p = 1 is cross entropy, so that hard and soft labels are one computation. At a temperature T both distributions are
softmax(z / T), and the loss is taken times T² (Hinton et al. 2015), which keeps gradients in size.

Sums over the vocabulary come chunk by chunk: `take` moves the top tokens' logits out of a chunk, `fold_rest` takes what
is left into a running log-sum-exp, so that a small mass of others is never a difference of large numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgod.model.chats import Sample
from fgod.train.recipe import Kl

FILL = -1
"""Token id of places without one: a hard label has one token, a soft one k."""

LOWEST = -1e30
"""Stands for the logarithm of nothing where -inf would make NaN of a difference."""


class SoftLabels(NamedTuple):
    """Of L labels. ids int32 [L, k], `FILL` after the last; p [L, k]: their probabilities, 0 there; rest [L]: the mass
    of all other tokens; rehearsed bool [L]: whether the teacher gave them, or they are hard; place int32 [L]:
    of each in its answer, from 0."""

    ids: Tensor
    p: Tensor
    rest: Tensor
    rehearsed: Tensor
    place: Tensor


@dataclass(frozen=True)
class Rehearsed(Sample):
    """A sample whose answer the teacher gave, with the teacher's distribution at each of its labels."""

    soft: SoftLabels = field(kw_only=True)


def places_of(sample: Sample) -> Tensor:
    """int32 [L]: the place of each label in its answer, from 0."""
    return torch.cat([torch.arange(end - start, dtype=torch.int32) for start, end in sample.answers])


def hard_labels(labels: Tensor, k: int) -> SoftLabels:
    """Labels int64 [L] in the form of soft ones, all of the mass on one token. Where they stand is of no consequence:
    their place is 0."""
    ids = torch.full((len(labels), k), FILL, dtype=torch.int32)
    p = torch.zeros(len(labels), k)
    ids[:, 0], p[:, 0] = labels, 1.0
    nothing = torch.zeros(len(labels))
    return SoftLabels(ids, p, nothing, nothing.bool(), nothing.int())


def joined(samples: Sequence[Sample]) -> SoftLabels | None:
    """The labels of all samples, one after the other; None where none is rehearsed."""
    k = max((one.soft.ids.shape[1] for one in samples if isinstance(one, Rehearsed)), default=0)
    if not k:
        return None
    parts = [
        one.soft
        if isinstance(one, Rehearsed)
        else hard_labels(torch.tensor([one.ids[place] for place in one.learned]), k)
        for one in samples
    ]
    return SoftLabels(*map(torch.cat, zip(*parts, strict=True)))


def label_weights(soft: SoftLabels, kl: Kl) -> tuple[Tensor, Tensor]:
    """What each label's divergence counts in the loss, and 1 over its temperature: float32 [L] both."""
    rehearsed = soft.rehearsed.float()
    weights = 1 + rehearsed * (kl.weight * kl.temperature**2 - 1)
    if kl.opening is not None:
        first = soft.rehearsed & (soft.place < kl.opening.tokens)
        weights = torch.where(first, weights * kl.opening.weight, weights)
    return weights, 1 + rehearsed * (1 / kl.temperature - 1)


class Weighed(NamedTuple):
    """How many labels there are, and what they count together."""

    labels: int
    weight: float


def rehearsed_labels(batches: Iterable[SoftLabels | None], kl: Kl | None) -> Weighed:
    """The labels of batches at which the teacher's distribution is known."""
    known = [soft for soft in batches if soft is not None]
    labels = sum(int(soft.rehearsed.sum()) for soft in known)
    weight = sum(float(label_weights(soft, kl)[0][soft.rehearsed].sum()) for soft in known) if kl else 0.0
    return Weighed(labels, weight)


class LossParts(NamedTuple):
    """Of a step's loss: what taught labels and what rehearsed ones add to it, with all weights, over all labels."""

    taught: float
    rehearsed: float

    @property
    def loss(self) -> float:
        return self.taught + self.rehearsed

    def means(self, labels: int, rehearsed: Weighed, kl: Kl | None) -> tuple[float | None, float | None]:
        """Nats of cross entropy a taught label, and of KL a rehearsed one, by their weights; None of what there is none
        of.

        Args:
            labels: of the step, `rehearsed` of which are so.
            kl: None: nothing is told apart.
        """
        if kl is None:
            return None, None
        taught = labels - rehearsed.labels
        return (
            self.taught * labels / taught if taught else None,
            self.rehearsed * labels / rehearsed.weight if rehearsed.labels else None,
        )


# ------------------------------------------------------------------------------------------ the parts of a computation


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def take(logits: Tensor, ids: Tensor, first: int, picked: Tensor) -> None:
    """Move the top tokens' logits from a chunk [L, C], that of the tokens from `first` on, to `picked` [L, k].

    In the chunk -inf is left. Top tokens of other chunks stay as they are in `picked`.
    """
    rows, places = _inside(logits, ids, first)
    columns = ids[rows, places] - first
    picked[rows, places] = logits[rows, columns].to(picked.dtype)
    logits[rows, columns] = -torch.inf


def put(slopes: Tensor, ids: Tensor, first: int, values: Tensor) -> None:
    """Write `values` [L, k] to the places of the top tokens in a chunk [L, C], of those that are in it."""
    rows, places = _inside(slopes, ids, first)
    slopes[rows, ids[rows, places] - first] = values[rows, places].to(slopes.dtype)


Move = Callable[[Tensor, Tensor, int, Tensor], None]
"""`take` or `put`, or the kernel of it."""


def _inside(chunk: Tensor, ids: Tensor, first: int) -> tuple[Tensor, ...]:
    """Row and place of each id whose token is in the chunk."""
    return ((ids >= max(first, 0)) & (ids < first + chunk.shape[1])).nonzero(as_tuple=True)


def fold_rest(logits: Tensor, cooling: Tensor, top: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Take a chunk of logits [L, C] times `cooling` [L] (1 / temperature) into a running log-sum-exp.

    `top`: largest so far, `LOWEST` at the start; `total`: Σ exp(logit - top). Both [L].
    """
    cooled = _wide(logits) * cooling[:, None]
    new_top = torch.maximum(top, cooled.amax(-1))
    return new_top, total * torch.exp(top - new_top) + cooled.sub_(new_top[:, None]).exp_().sum(-1)


class LogSums(NamedTuple):
    """Of each label [L]: log-sum-exp of all logits, and of those of other tokens than its top ones (`LOWEST`: none)."""

    all: Tensor
    rest: Tensor


def log_sums(picked: Tensor, top: Tensor, total: Tensor) -> LogSums:
    """From the top tokens' cooled logits [L, k] (-inf where there is none) and the folded rest."""
    rest = torch.where(total > 0, top + torch.log(total), LOWEST)
    return LogSums(torch.logaddexp(picked.logsumexp(-1), rest), rest)


def divergences(picked: Tensor, sums: LogSums, p: Tensor, rest: Tensor) -> Tensor:
    """KL of each label [L] in nats: cross entropy for a hard label."""
    log_q = torch.where(p > 0, picked - sums.all[:, None], 0.0)
    log_q_rest = torch.where(rest > 0, sums.rest - sums.all, 0.0)
    return (torch.xlogy(p, p) - p * log_q).sum(-1) + torch.xlogy(rest, rest) - rest * log_q_rest


def rest_slopes(logits: Tensor, cooling: Tensor, all: Tensor, others: Tensor, rest: Tensor, factor: Tensor) -> Tensor:
    """`factor` [L] times the gradient of a chunk of cooled logits of other tokens, in the logits' dtype.

    `all` and `others` are `LogSums`. What stands at top tokens' places means nothing: `put` writes there.
    """
    cooled = _wide(logits) * cooling[:, None]
    mine = torch.exp(cooled - all[:, None])
    theirs = cooled.sub_(others[:, None]).exp_()
    return mine.sub_(theirs.mul_(rest[:, None])).mul_(factor[:, None]).to(logits.dtype)


def top_slopes(picked: Tensor, sums: LogSums, p: Tensor, factor: Tensor) -> Tensor:
    """`factor` [L] times the gradient of the top tokens' cooled logits [L, k]."""
    return (torch.exp(picked - sums.all[:, None]) - p) * factor[:, None]


# --------------------------------------------------------------------------------------------------- all logits at once


class _Divergence(torch.autograd.Function):
    """One chunk that is the whole vocabulary. Nothing but one copy of the logits waits for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, p: Tensor, rest: Tensor, cooling: Tensor, take: Move, put: Move
    ) -> Tensor:
        others = _wide(logits)
        others = others.clone() if others is logits else others
        picked = torch.full(p.shape, -torch.inf, dtype=others.dtype, device=others.device)
        take(others, ids, 0, picked)
        picked *= cooling[:, None]
        start = torch.full_like(rest, LOWEST, dtype=others.dtype)
        sums = log_sums(picked, *fold_rest(others, cooling, start, torch.zeros_like(start)))
        ctx.save_for_backward(others, picked, ids, p, rest, cooling, *sums)
        ctx.dtype, ctx.put = logits.dtype, put
        return divergences(picked, sums, p, rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        others, picked, ids, p, rest, cooling, *both = ctx.saved_tensors
        sums, factor = LogSums(*both), grads[0] * cooling
        slopes = rest_slopes(others, cooling, *sums, rest, factor)
        ctx.put(slopes, ids, 0, top_slopes(picked, sums, p, factor))
        return slopes.to(ctx.dtype), None, None, None, None, None, None


def divergence(logits: Tensor, soft: SoftLabels, cooling: Tensor, take: Move = take, put: Move = put) -> Tensor:
    """KL(teacher ‖ model) of each label [L] from logits [L, V], differentiable by those.

    Args:
        cooling: [L], 1 / temperature.
        take, put: as the functions of these names.
    """
    found: Tensor = _Divergence.apply(logits, soft.ids, soft.p, soft.rest, cooling, take, put)
    return found
