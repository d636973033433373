"""Top tokens' places in a chunk of logits, read and written: `take` and `put` of `fgod.train.distil`, the same bits.

The shapes do not depend on how many of them are in the chunk, so that a step can be a CUDA graph.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _take_kernel(logits, ids, picked, first, width, stride, k, BLOCK: tl.constexpr):
    row, place = tl.program_id(0), tl.arange(0, BLOCK)
    column = tl.load(ids + row * k + place, place < k, -1)
    inside = (column >= first) & (column < first + width)
    address = logits + row.to(tl.int64) * stride + (column - first)
    value = tl.load(address, inside, 0.0).to(tl.float32)
    tl.store(picked + row * k + place, value, inside)
    tl.store(address, tl.full((BLOCK,), float("-inf"), tl.float32).to(logits.dtype.element_ty), inside)


@triton.jit
def _put_kernel(slopes, ids, values, first, width, stride, k, BLOCK: tl.constexpr):
    row, place = tl.program_id(0), tl.arange(0, BLOCK)
    column = tl.load(ids + row * k + place, place < k, -1)
    inside = (column >= first) & (column < first + width)
    value = tl.load(values + row * k + place, inside, 0.0)
    tl.store(slopes + row.to(tl.int64) * stride + (column - first), value, inside)


def take(logits: Tensor, ids: Tensor, first: int, picked: Tensor) -> None:
    """As `fgod.train.distil.take`: logits [L, C] with columns side by side, ids int32 and picked float32 [L, k]."""
    rows, k = ids.shape
    _take_kernel[(rows,)](logits, ids, picked, first, logits.shape[1], logits.stride(0), k, triton.next_power_of_2(k))


def put(slopes: Tensor, ids: Tensor, first: int, values: Tensor) -> None:
    """As `fgod.train.distil.put`: slopes [L, C] with columns side by side, ids int32 and values float32 [L, k]."""
    rows, k = ids.shape
    rounded = values.to(slopes.dtype).contiguous()  # Triton's interpreter cuts off what torch and GPUs round
    _put_kernel[(rows,)](slopes, ids, rounded, first, slopes.shape[1], slopes.stride(0), k, triton.next_power_of_2(k))
