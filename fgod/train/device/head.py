"""Cross entropy, or KL to a teacher, over a large vocabulary whose logits never exist at once.

They come in chunks of the vocabulary, which are computed again for the gradient.

Logits of 2048 labels over 151,936 tokens take 1.2 GB in float32, and as much again while they are differentiated. Here
two chunks of at most `CHUNK_LOGITS` exist at a time, and a row of the table's gradient is complete when its chunk is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgod.train.device.ops import Ops
from fgod.train.distil import LOWEST, divergences, log_sums, top_slopes

CHUNK_LOGITS = 2**25
"""Logits of one chunk: 64 MiB in BF16, enough for a matrix product to fill a GPU."""


class SoftTargets(NamedTuple):
    """Of L labels, all on the device: `fgod.train.distil.SoftLabels`, with `rehearsed` float32; cooling [L]: 1 over the
    temperature."""

    ids: Tensor
    p: Tensor
    rest: Tensor
    rehearsed: Tensor
    cooling: Tensor


class Vocabulary:
    """The tokens that a table has a row for: here all of them. Where several ranks have some each, what each finds out
    of its own is put together (`fgod.train.ranks.network`)."""

    first = 0
    """The first token."""

    def log_sum_exp(self, top: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Largest logit and Σ exp(logit - largest) over all tokens, from those of these tokens."""
        return top, total

    def picked(self, logits: Tensor, absent: float) -> Tensor:
        """Logits of single tokens; `absent` stands where a token is none of these."""
        return logits

    def to_hidden(self, grad: Tensor) -> Tensor:
        """The gradient of the hidden states that came from here, from the part that these tokens add to it."""
        return grad


WHOLE = Vocabulary()


def chunk_width(labels: int, vocab: int) -> int:
    """Tokens of one chunk: all of them where that is little, else a multiple of 128."""
    return min(vocab, max(128, CHUNK_LOGITS // max(labels, 1) // 128 * 128))


def head_loss(
    ops: Ops,
    hidden: Tensor,
    table: Tensor,
    labels: Tensor,
    weights: Tensor,
    to_table: Tensor,
    tokens: Vocabulary = WHOLE,
) -> tuple[Tensor, Tensor]:
    """Σ weight · cross entropy of hidden [L, H] · table [V, H]ᵀ; the gradient of the table is written to `to_table`.

    Args:
        labels: int64 [L]; rows whose weight is 0 may have any.
        weights: float32 [L].
        to_table: [V, H] in the compute dtype.
        tokens: those of the table's rows.

    Returns:
        What each label adds to the loss (float32 [L]) and the gradient of hidden.
    """
    count, vocab = len(hidden), len(table)
    width = chunk_width(count, vocab)
    top = torch.full((count,), -torch.inf, device=hidden.device)
    total, picked = torch.zeros(2, count, device=hidden.device).unbind()
    logits = None
    for first in range(0, vocab, width):
        logits = hidden @ table[first : first + width].to(hidden.dtype).t()
        top, total, picked = ops.fold_logits(logits, labels, tokens.first + first, top, total, picked)
    (top, total), picked = tokens.log_sum_exp(top, total), tokens.picked(picked, 0.0)
    log_sum = top + torch.log(total)
    each = (log_sum - picked) * weights
    to_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for first in range(0, vocab, width):
        part = table[first : first + width].to(hidden.dtype)
        if width < vocab or logits is None:
            logits = hidden @ part.t()
        slopes = ops.logit_slopes(logits, labels, tokens.first + first, log_sum, weights)
        to_hidden += slopes @ part
        torch.mm(slopes.t(), hidden, out=to_table[first : first + width])
    return each, tokens.to_hidden(to_hidden).to(hidden.dtype)


def soft_head_loss(
    ops: Ops,
    hidden: Tensor,
    table: Tensor,
    soft: SoftTargets,
    weights: Tensor,
    to_table: Tensor,
    tokens: Vocabulary = WHOLE,
) -> tuple[Tensor, Tensor]:
    """Σ weight · KL(teacher ‖ model), as `head_loss` in chunks of the vocabulary; a hard label's KL is cross entropy.

    Args:
        weights: float32 [L]; 0 where a label only fills up.
        to_table, tokens: as of `head_loss`.

    Returns:
        What each label adds to the loss (float32 [L]), and the gradient of hidden.
    """
    width = chunk_width(len(hidden), len(table))
    picked = torch.full(soft.p.shape, -torch.inf, device=hidden.device)
    top, total = torch.full_like(soft.rest, LOWEST), torch.zeros_like(soft.rest)
    for first in range(0, len(table), width):
        logits = hidden @ table[first : first + width].to(hidden.dtype).t()
        ops.take(logits, soft.ids, tokens.first + first, picked)
        top, total = ops.fold_rest(logits, soft.cooling, top, total)
    (top, total), picked = tokens.log_sum_exp(top, total), tokens.picked(picked, -torch.inf)
    picked = picked * soft.cooling[:, None]
    sums, factor = log_sums(picked, top, total), weights * soft.cooling
    each = divergences(picked, sums, soft.p, soft.rest) * weights
    to_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    tops = top_slopes(picked, sums, soft.p, factor)
    for first in range(0, len(table), width):
        part = table[first : first + width].to(hidden.dtype)
        if width < len(table):
            logits = hidden @ part.t()
        slopes = ops.rest_slopes(logits, soft.cooling, *sums, soft.rest, factor)
        ops.put(slopes, soft.ids, tokens.first + first, tops)
        to_hidden += slopes @ part
        torch.mm(slopes.t(), hidden, out=to_table[first : first + width])
    return each, tokens.to_hidden(to_hidden).to(hidden.dtype)
