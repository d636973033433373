"""Decoding with a static KV cache, greedy or drawn: every token of a batch is the same work, on a GPU a CUDA graph's
replay.

The cache, the mask and the tokens have the size that they will have in the end, and nothing asks the device for
anything but, now and then, whether all rows have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fgod.model.attention import one_kernel_norms, use_grouped_attention
from fgod.model.cache import FixedCache
from fgod.system import terminal

Choose = Callable[[Tensor, Tensor], Tensor]
"""Tokens [rows, 1] by logits float32 [rows, V] and the number of the token among a reply's, int64 [1]."""


def likeliest(logits: Tensor, step: Tensor) -> Tensor:
    """The token with the largest logit."""
    return logits.argmax(-1, keepdim=True)


LOOK = 8
"""Tokens between two looks whether every row has ended."""

ALIGNED = 16
"""The cache's length is a multiple of this: else attention copies its mask in every layer."""


class _Batch:
    """Rows that are decoded together, all on the model's device; `done`: an end token came."""

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Tensor],
        count: int,
        ends: Sequence[int],
        pad: int,
        choose: Choose,
    ) -> None:
        """`inputs`: left-padded `input_ids` and `attention_mask` [rows, width]; `count`: tokens to come at most."""
        self.model, self.ids, self.pad, self.choose = model, inputs["input_ids"], pad, choose
        rows, width = self.ids.shape
        length = width + count + -(width + count) % ALIGNED
        self.cache = FixedCache(model, length)
        device = model.device
        self.ends = torch.tensor(list(ends), device=device)
        self.seen = torch.zeros(rows, length, dtype=torch.bool, device=device)
        self.seen[:, :width] = inputs["attention_mask"].bool()
        self.places = inputs["attention_mask"].cumsum(1).sub(1).clamp(min=0)
        self.at = torch.tensor([width], device=device)
        self.out = torch.full((rows, count), pad, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.token = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)

    def prefill(self) -> None:
        """The prompts, and the first token of each answer."""
        width, device = self.ids.shape[1], self.seen.device
        across = torch.ones(width, self.seen.shape[1], dtype=torch.bool, device=device)
        # padding sees itself: what it computes is seen by nobody, but a row of nothing would be NaN
        visible = self.seen[:, None] & across.tril() | across.tril() & across.triu()
        self._next(self.ids, torch.arange(width, device=device), visible)
        self.places = self.places[:, -1:].contiguous()

    def decode(self) -> None:
        """One more token of each row; the same kernels on the same memory every time."""
        self.seen.index_fill_(1, self.at, True)
        self.places.add_(1)
        self._next(self.token, self.at, self.seen[:, None])
        self.at.add_(1)

    def _next(self, ids: Tensor, columns: Tensor, visible: Tensor) -> None:
        logits = self.cache.forward(ids, self.places, columns, visible)
        chosen = self.choose(logits, self.step)
        self.token.copy_(torch.where(self.done[:, None], self.pad, chosen))
        self.out.index_copy_(1, self.step, self.token)
        self.step.add_(1)
        self.done.logical_or_((self.token == self.ends).any(1))


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    count: int,
    ends: Sequence[int],
    pad: int,
    choose: Choose = likeliest,
) -> list[list[int]]:
    """The next `count` tokens of each left-padded row, padding after its end token."""
    use_grouped_attention(model)
    batch = _Batch(model, inputs, count, ends, pad, choose)
    batch.prefill()
    step: Callable[[], None] = batch.decode
    with for_graphs(model):
        for made in range(1, count):
            if made % LOOK == 0 and batch.done.all():
                break
            if made == 2 and model.device.type == "cuda":  # the first ran as it is written: all kernels are there
                step = captured(batch.decode)
            step()
    found: list[list[int]] = batch.out.tolist()
    return found


def for_graphs(model: PreTrainedModel) -> AbstractContextManager[None]:
    """On a GPU, the model with fewer kernels while a token is computed and captured; elsewhere as it is."""
    return one_kernel_norms(model) if model.device.type == "cuda" else nullcontext()


Step = TypeVar("Step")


def captured(step: Callable[[], Step]) -> Callable[[], Step]:
    """A replay of a step as a CUDA graph, which fills what the step returned when it was captured; or the step itself,
    in words, where it cannot be captured. The step must have run once: then all of its kernels are there."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            made = step()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises what the call inside the capture raised
        first = (str(error).strip().splitlines() or [""])[0]
        terminal.line(f"fgod: decoding cannot be captured as a CUDA graph ({first}): slower")
        torch.cuda.synchronize()
        return step

    def replay() -> Step:
        graph.replay()
        return made

    return replay
