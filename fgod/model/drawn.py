"""Tokens drawn for many rows at once, each row from a stream of random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fgod.model.decode import Choose

MOST = 4096
"""So many of the likeliest tokens are drawn from at most: a whole vocabulary would have to be sorted for each token."""
UNIT = 2**40
"""Whole numbers stand for probabilities while they are added up: their sums are the same in every order."""


def streams(seed: int, numbers: Sequence[int], count: int) -> Tensor:
    """`count` numbers in [0, 1) for each row, float64 [rows, count]: by Philox, whose key is the seed and the row's
    number, so that a row has the same ones in every batch, on every machine."""
    bits = [np.random.Philox(key=[seed, number]).random_raw(count) for number in numbers]
    return torch.from_numpy((np.stack(bits) >> np.uint64(11)) / 2.0**53)


def nucleus(uniform: Tensor, temperature: float, top_p: float) -> Choose:
    """Chooses each row's next token by its own numbers (`streams`): the inverse of the distribution function over the
    likeliest tokens that have together at least the probability `top_p` (Holtzman et al. 2020, top-p sampling).

    Args:
        uniform: float64 [rows, tokens], on the model's device.
        temperature: divides the logits.
    """

    def choose(logits: Tensor, step: Tensor) -> Tensor:
        scores = (logits / temperature).log_softmax(-1)
        best, tokens = scores.topk(min(MOST, scores.shape[-1]), -1)
        weights = (best.double().exp() * UNIT).long()
        before = weights.cumsum(-1) - weights
        weights = weights.masked_fill(before >= top_p * UNIT, 0)
        weights[:, 0].clamp_(min=1)  # something is always likeliest
        sums = weights.cumsum(-1)
        drawn = (uniform.index_select(1, step) * sums[:, -1:]).long()
        return tokens.gather(-1, (sums <= drawn).sum(-1, keepdim=True))

    return choose
