"""Multiple choice: which of its choices a model finds likeliest behind an item's prompt, as lm_eval does it.

Plain text by default: the choice follows the prompt after a space, and both are encoded together; the log-likelihood of
the choice is that of the tokens behind those of the prompt alone (lm_eval's `_encode_pair` and `acc`: no normalisation
by length). With the chat template the prompt is a user turn, and the choice begins the answer, without a space.

Choices of one token are read off one forward pass of their prompt, as all sequences that are equal are computed once.
Logits are computed in float32: in BF16 those of two letters are often the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fgod.abilities.items import Choice
from fgod.model.chats import ChatFormat
from fgod.model.generate import left_padded, length_batches
from fgod.progress.followed import follow


@dataclass(frozen=True)
class Asked:
    """A choice as tokens: those that the model reads, and those whose likelihood counts, the last ones but one each."""

    read: tuple[int, ...]
    scored: tuple[int, ...]


def encode(chat: ChatFormat, items: Sequence[Choice], template: bool, longest: int) -> list[list[Asked]]:
    """Each choice of each item.

    Args:
        template: whether prompts are chats.
        longest: tokens that the model was made for; of a longer sequence the beginning is left out, as lm_eval does.
    """
    pairs = [(item, choice) for item in items for choice in item.choices]
    if template:
        starts = chat.prompts([item.prompt for item, _ in pairs])
        ends = chat.going_on([choice for _, choice in pairs])
        split = list(zip(starts, ends, strict=True))
    else:
        prompts = [item.prompt.rstrip() for item, _ in pairs]
        gaps = [item.prompt[len(prompt) :] or " " for (item, _), prompt in zip(pairs, prompts, strict=True)]
        wholes = _plain(chat, [f"{p}{gap}{c}" for p, gap, (_, c) in zip(prompts, gaps, pairs, strict=True)])
        contexts = dict(zip(dict.fromkeys(prompts), _plain(chat, list(dict.fromkeys(prompts))), strict=True))
        counts = [len(contexts[prompt]) for prompt in prompts]
        split = [(whole[:count], whole[count:]) for whole, count in zip(wholes, counts, strict=True)]
    asked = iter([Asked(tuple([*start, *end][:-1])[-longest:], tuple(end)) for start, end in split])
    return [[next(asked) for _ in item.choices] for item in items]


def _plain(chat: ChatFormat, texts: Sequence[str]) -> list[list[int]]:
    encoded = chat.tokenizer(list(texts), split_special_tokens=True)
    return cast(list[list[int]], encoded["input_ids"])


@torch.inference_mode()
def log_likelihoods(
    model: PreTrainedModel, pad: int, asked: Sequence[Sequence[Asked]], batch: int
) -> list[list[float]]:
    """The log-likelihood of each choice of each item, in nats.

    Args:
        batch: sequences at once.
    """
    scored: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for choice in (choice for choices in asked for choice in choices):
        scored.setdefault(choice.read, []).append(choice.scored)
    reads = list(scored)
    found: dict[Asked, float] = {}
    with _float32_head(model), follow("choices", len(reads), "sequence") as progress:
        for rows in length_batches([len(read) for read in reads], batch):
            chosen = [reads[i] for i in rows]
            ends = [list(dict.fromkeys(scored[read])) for read in chosen]
            values = _batch(model, pad, chosen, ends)
            keys = (Asked(read, end) for read, own in zip(chosen, ends, strict=True) for end in own)
            found.update(zip(keys, values, strict=True))
            progress.to(progress.now.done + len(rows))
    return [[found[choice] for choice in choices] for choices in asked]


def _batch(
    model: PreTrainedModel, pad: int, reads: Sequence[Sequence[int]], ends: Sequence[Sequence[tuple[int, ...]]]
) -> list[float]:
    """Of each sequence, the log-likelihood of each of the ends that its last places predict, one after another."""
    inputs = left_padded(reads, pad, model.device)
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    kept = max(len(end) for own in ends for end in own)
    logits: Tensor = model(**inputs, position_ids=places, use_cache=False, logits_to_keep=kept).logits.float()
    norms = logits.logsumexp(-1)
    flat = [(row, end) for row, own in enumerate(ends) for end in own]
    index = [(row, kept - len(end) + i, token) for row, end in flat for i, token in enumerate(end)]
    rows, columns, tokens = torch.tensor(index, device=logits.device).unbind(1)
    values = (logits[rows, columns, tokens] - norms[rows, columns]).double().tolist()
    each = iter(values)
    return [sum(next(each) for _ in end) for _, end in flat]


class _Float32Head(torch.nn.Module):
    """A linear head that computes in float32 what it is given."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.weight = head.weight.detach().float()
        self.bias = None if getattr(head, "bias", None) is None else head.bias.detach().float()

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)


@contextmanager
def _float32_head(model: PreTrainedModel) -> Iterator[None]:
    """Logits of this model are computed in float32 inside."""
    untyped: Any = model
    head = untyped.get_output_embeddings()
    untyped.set_output_embeddings(_Float32Head(head))
    try:
        yield
    finally:
        untyped.set_output_embeddings(head)
