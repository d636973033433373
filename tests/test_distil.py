"""KL over the teacher's top tokens: against autograd of its definition, in float64, and against torch's own KL."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fgod.model.chats import Sample
from fgod.train.distil import (
    LOWEST,
    LossParts,
    Rehearsed,
    SoftLabels,
    Weighed,
    divergence,
    divergences,
    fold_rest,
    hard_labels,
    joined,
    label_weights,
    log_sums,
    places_of,
    put,
    rehearsed_labels,
    rest_slopes,
    take,
    top_slopes,
)
from fgod.train.recipe import Kl, Opening


def random_case(labels: int, vocab: int, k: int, seed: int, sharp: float = 3.0) -> tuple[Tensor, SoftLabels]:
    """Logits in float64 and a teacher's top tokens; the last label is a hard one where there is more than one."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (torch.randn(2, labels, vocab, generator=generator, dtype=torch.float64) * sharp).unbind()
    top = teacher.softmax(-1).topk(k)
    rest = (1 - top.values.sum(-1)).clamp(min=0) if k < vocab else torch.zeros(labels, dtype=torch.float64)
    known, places = torch.ones(labels, dtype=torch.bool), torch.arange(labels, dtype=torch.int32)
    soft = SoftLabels(top.indices.int(), top.values, rest, known, places)
    if labels > 1:
        last = hard_labels(torch.tensor([vocab // 2]), k)
        soft = SoftLabels(*(torch.cat((a[:-1], b.to(a.dtype))) for a, b in zip(soft, last, strict=True)))
    return logits, soft


def defined(logits: Tensor, soft: SoftLabels, cooling: Tensor) -> Tensor:
    """The definition, by torch's own KL on the classes' probabilities. Differentiable."""
    q = (logits * cooling[:, None]).softmax(-1)
    named = soft.ids >= 0
    tops = q.gather(1, soft.ids.clamp(min=0).long()) * named
    chosen = torch.zeros_like(q, dtype=torch.bool)
    for row, (ids, real) in enumerate(zip(soft.ids, named, strict=True)):
        chosen[row, ids[real].long()] = True
    others = (q * ~chosen).sum(-1, keepdim=True)
    classes, wanted = torch.cat((tops, others), 1), torch.cat((soft.p, soft.rest[:, None]), 1)
    log_q = torch.where(wanted > 0, classes, 1.0).log()
    return F.kl_div(log_q, wanted, reduction="none").sum(-1)


@settings(max_examples=40)
@given(
    labels=st.integers(1, 3), vocab=st.integers(2, 40), share=st.floats(0, 1), seed=st.integers(0, 999),
    temperature=st.floats(0.5, 4),
)  # fmt: skip
def test_value_and_gradient_are_those_of_the_definition(
    labels: int, vocab: int, share: float, seed: int, temperature: float
) -> None:
    logits, soft = random_case(labels, vocab, max(1, int(share * vocab)), seed)
    cooling = torch.full((labels,), 1 / temperature, dtype=torch.float64)
    weights = torch.arange(1, labels + 1, dtype=torch.float64)
    grads = []
    for function in (divergence, defined):
        x = logits.clone().requires_grad_()
        value = function(x, soft, cooling)
        (value * weights).sum().backward()
        grads.append((value.detach(), x.grad))
    assert torch.allclose(grads[0][0], grads[1][0], rtol=1e-9, atol=1e-11)
    assert torch.allclose(grads[0][1], grads[1][1], rtol=1e-9, atol=1e-11)


def test_gradcheck_in_float64() -> None:
    logits, soft = random_case(4, 12, 3, 1)
    cooling = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: divergence(x, soft, cooling), (logits.requires_grad_(),))


def test_a_hard_label_is_cross_entropy_and_every_token_is_the_full_kl() -> None:
    logits, soft = random_case(5, 30, 30, 2)
    ones = torch.ones(5, dtype=torch.float64)
    labels = torch.tensor([3, 1, 4, 1, 5])
    hard = SoftLabels(*(part.double() if part.is_floating_point() else part for part in hard_labels(labels, 4)))
    assert torch.allclose(divergence(logits, hard, ones), F.cross_entropy(logits, labels, reduction="none"))
    teacher = torch.zeros_like(logits).scatter_(1, soft.ids.clamp(min=0).long(), soft.p)
    full = F.kl_div(logits.log_softmax(-1), teacher, reduction="none").sum(-1)
    assert torch.allclose(divergence(logits, soft, ones)[:-1], full[:-1], atol=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 999), k=st.integers(1, 8))
def test_fewer_classes_never_have_a_larger_kl_and_the_model_as_its_own_teacher_has_none(seed: int, k: int) -> None:
    logits, fine = random_case(1, 20, k + 4, seed)
    coarse = SoftLabels(fine.ids[:, :k], fine.p[:, :k], fine.rest + fine.p[:, k:].sum(-1), *fine[3:])
    one = torch.ones(1, dtype=torch.float64)
    assert 0 <= divergence(logits, coarse, one).item() <= divergence(logits, fine, one).item() + 1e-12
    own = logits.softmax(-1).topk(k)
    same = SoftLabels(own.indices.int(), own.values, 1 - own.values.sum(-1), *fine[3:])
    x = logits.clone().requires_grad_()
    value = divergence(x, same, one)
    value.sum().backward()
    assert abs(value.item()) < 1e-12 and x.grad is not None and x.grad.abs().max() < 1e-12


@pytest.mark.parametrize("width", [1, 3, 7, 40])
def test_chunks_of_the_vocabulary_give_the_same_sums_and_slopes(width: int) -> None:
    logits, soft = random_case(6, 40, 5, 3)
    cooling = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    x = logits.clone().requires_grad_()
    expected = divergence(x, soft, cooling)
    expected.sum().backward()
    picked = torch.full(soft.p.shape, -torch.inf, dtype=torch.float64)
    top, total = torch.full((6,), LOWEST, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    chunks = [logits[:, first : first + width].clone() for first in range(0, 40, width)]
    for number, chunk in enumerate(chunks):
        take(chunk, soft.ids, number * width, picked)
        top, total = fold_rest(chunk, cooling, top, total)
    sums = log_sums(picked * cooling[:, None], top, total)
    assert torch.allclose(divergences(picked * cooling[:, None], sums, soft.p, soft.rest), expected, atol=1e-12)
    for number, chunk in enumerate(chunks):
        slopes = rest_slopes(chunk, cooling, *sums, soft.rest, cooling)
        put(slopes, soft.ids, number * width, top_slopes(picked * cooling[:, None], sums, soft.p, cooling))
        assert torch.allclose(slopes, x.grad[:, number * width : (number + 1) * width], atol=1e-12)


def test_a_tiny_mass_of_others_is_no_difference_of_large_numbers() -> None:
    """In float32: the others together have 1e-9 of the model's mass, and 1e-9 of the teacher's."""
    logits = torch.full((1, 1001), -28.0)
    logits[0, 7] = 0.0
    soft = hard_labels(torch.tensor([7]), 1)._replace(rest=torch.tensor([1e-9]))
    mass = 1000 * torch.tensor(-28.0, dtype=torch.float64).exp()
    expected = 1e-9 * (torch.tensor(1e-9, dtype=torch.float64) / mass).log() + (1 + mass).log()
    assert divergence(logits, soft, torch.ones(1)).double().item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-9)


def test_batches_join_hard_and_soft_labels_in_order() -> None:
    taught = Sample((1, 2, 3, 4), 2)
    _, soft = random_case(1, 9, 3, 4)
    soft = soft._replace(p=soft.p.float(), rest=soft.rest.float())
    assert joined([taught]) is None
    both = joined([taught, Rehearsed((5, 6), 1, soft=soft)])
    assert both is not None
    assert both.ids.tolist() == [[3, -1, -1], [4, -1, -1], *soft.ids.tolist()]
    assert both.rehearsed.tolist() == [False, False, True]
    assert torch.allclose(both.p.sum(-1) + both.rest, torch.ones(3))
    weights, cooling = label_weights(both, Kl(weight=3, temperature=2))
    assert weights.tolist() == [1, 1, 12] and cooling.tolist() == [1, 1, 0.5]


def test_the_first_tokens_of_rehearsed_answers_count_more() -> None:
    """Of every answer of a row that is learned."""
    sample = Sample(tuple(range(12)), 8, earlier=((2, 5),))
    assert places_of(sample).tolist() == [0, 1, 2, 0, 1, 2, 3]
    _, soft = random_case(1, 9, 3, 4)
    part = SoftLabels(*(part.repeat(7, *[1] * (part.dim() - 1)) for part in soft))._replace(place=places_of(sample))
    both = joined([Sample((1, 2, 3, 4), 2), Rehearsed(sample.ids, 8, sample.earlier, soft=part)])
    kl = Kl(weight=2, opening=Opening(weight=5, tokens=2))
    assert both is not None
    assert label_weights(both, kl)[0].tolist() == [1, 1, 10, 10, 2, 10, 10, 2, 2], "what is taught is not rehearsed"
    assert rehearsed_labels([both, None], kl) == Weighed(7, 46.0)
    assert rehearsed_labels([None], kl) == Weighed(0, 0) and rehearsed_labels([both], None) == Weighed(7, 0)


def test_losses_are_told_apart_in_nats_a_label() -> None:
    parts = LossParts(taught=0.5, rehearsed=0.25)
    assert parts.loss == 0.75
    assert parts.means(10, Weighed(4, 8.0), Kl(weight=2.0)) == (
        pytest.approx(0.5 * 10 / 6),
        pytest.approx(0.25 * 10 / 8),
    )
    assert parts.means(10, Weighed(10, 10.0), Kl()) == (None, pytest.approx(0.25))
    assert parts.means(10, Weighed(0, 0.0), None) == (None, None)
