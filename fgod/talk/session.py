"""One conversation's keys and values, fed only what is new.

What is fed comes in passes: a prompt is one pass, and each token of a reply is one. The cache holds the keys and values
of a list of passes, and goes on from the longest beginning that the next list shares with it.

The products of one token and of many are different kernels, which add in another order: the same tokens in other passes
give other last bits. So nothing about a pass depends on what was cached before it: its tokens, its place and the number
of keys that attention looks at (`bucket`) are those of a replay of all passes from an empty cache, and so are its bits,
on a CPU. On a GPU the one-token passes are replays of a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fgod.model.attention import use_grouped_attention
from fgod.model.cache import FixedCache
from fgod.model.decode import captured, for_graphs

Pass = tuple[int, ...]
"""Tokens that go through the model together."""

LEAST_KEYS = 256
"""The smallest bucket."""

MOST_TOKENS = 512
"""Tokens of a pass at most: it bounds the memory of a long prompt."""


def bucket(tokens: int) -> int:
    """How many keys attention looks at once there are `tokens`: the next power of two, 256 at least."""
    return max(LEAST_KEYS, 1 << (tokens - 1).bit_length())


def cut(ids: Sequence[int]) -> list[Pass]:
    """Tokens in passes of at most `MOST_TOKENS`."""
    return [tuple(ids[start : start + MOST_TOKENS]) for start in range(0, len(ids), MOST_TOKENS)]


def shared(a: Sequence[Pass], b: Sequence[Pass]) -> int:
    """How many passes two lists begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


class Session:
    """A model with the keys and values of one conversation.

    Args:
        context: tokens that it may hold.
        graphs: on a GPU, run one-token passes as a CUDA graph.
    """

    def __init__(self, model: PreTrainedModel, context: int, graphs: bool = True) -> None:
        self.model, self.context = model, context
        self.passes: list[Pass] = []
        """What the cache holds."""
        self.tokens = 0
        """How many tokens that is."""
        self.cache = FixedCache(model)
        device = model.device
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._graphs = graphs and device.type == "cuda"
        self._step: tuple[int, Callable[[], Tensor]] | None = None
        use_grouped_attention(model)

    def reset(self) -> None:
        """Forget everything."""
        self._cut(0)

    def read(self, passes: Sequence[Pass]) -> tuple[Tensor, int]:
        """Logits float32 [V] after a conversation, and how many tokens of it were there already.

        Args:
            passes: the whole of it, at least one; its last pass is always computed.

        Raises:
            ValueError: it is longer than the context.
        """
        kept = min(shared(self.passes, passes), len(passes) - 1)
        self._cut(kept)
        there = self.tokens
        for one in passes[kept:]:
            logits = self.feed(one)
        return logits, there

    @torch.inference_mode()
    def feed(self, ids: Pass) -> Tensor:
        """Logits float32 [V] after one more pass."""
        end = self.tokens + len(ids)
        if not ids or end > self.context:
            raise ValueError(f"a pass of {len(ids)} tokens after {self.tokens}, expected 1 up to {self.context} in all")
        self._reach(bucket(end))
        logits = self._next_token(ids[0], bucket(end)) if len(ids) == 1 else self._many(ids, bucket(end))
        self.passes.append(tuple(ids))
        self.tokens = end
        return logits

    def _cut(self, passes: int) -> None:
        del self.passes[passes:]
        self.tokens = sum(map(len, self.passes))

    def _reach(self, length: int) -> None:
        if length > self.cache.length:
            self.cache.grow(length)
            self._step = None

    def _many(self, ids: Pass, seen: int) -> Tensor:
        device = self.model.device
        places = torch.arange(self.tokens, self.tokens + len(ids), device=device)
        return self._forward(torch.tensor([ids], device=device), places, seen)

    def _next_token(self, token: int, seen: int) -> Tensor:
        self._token.fill_(token)
        self._place.fill_(self.tokens)
        if self._step is None or self._step[0] != seen:

            def step() -> Tensor:
                return self._forward(self._token, self._place, seen)

            with for_graphs(self.model):
                logits = step()  # as it is written: then all kernels are there, and the cache too
                self._step = seen, captured(step) if self._graphs else step
            return logits
        return self._step[1]()

    def _forward(self, ids: Tensor, places: Tensor, seen: int) -> Tensor:
        visible = torch.arange(seen, device=places.device) <= places[:, None]
        return self.cache.forward(ids, places[None], places, visible[None])[0]
