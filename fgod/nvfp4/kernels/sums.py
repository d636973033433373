"""Sums of a gradient's parts, which several ranks computed, with the squares by which it is clipped: in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 132 * 8
"""Most programs of a pass; each writes one partial sum of squares."""

TILE, WARPS = 2048, 8


@triton.jit
def _sum_kernel(parts, out, partials, count, stride, programs, PARTS: tl.constexpr, TILE: tl.constexpr):
    """out: the sum over parts, `stride` apart, of `count` elements each; partials[p]: Σ out² of program p's tiles."""
    program = tl.program_id(0)
    squares = tl.zeros([TILE], tl.float32)
    for turn in range(0, tl.cdiv(tl.cdiv(count, TILE) - program, programs)):
        begin = (program + turn * programs).to(tl.int64) * TILE
        inside = tl.arange(0, TILE)
        there = inside < count - begin
        total = tl.load(parts + begin + inside, mask=there, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            place = begin + stride.to(tl.int64) * part
            total += tl.load(parts + place + inside, mask=there, other=0.0).to(tl.float32)
        tl.store(out + begin + inside, total, mask=there)
        squares += total * total
    tl.store(partials + program, tl.sum(squares, 0))


def sum_parts(parts: Tensor, heights: Sequence[int], most: int = PROGRAMS) -> tuple[Tensor, Tensor]:
    """The sum over ranks, in their order, and the squares of it.

    Args:
        parts: float32 or BF16 [ranks, N, K], contiguous.
        heights: rows of the tensors below each other of which it is the gradient; N in all.
        most: programs of a tensor.

    Returns:
        float32 [N, K]; float32 [tensors], Σ g² of each.
    """
    count, rows, columns = parts.shape
    assert sum(heights) == rows and parts.is_contiguous()
    out = torch.empty(rows, columns, device=parts.device)
    partials = torch.zeros(len(heights), most, device=parts.device)
    first = 0
    for place, height in enumerate(heights):
        begin, size = first * columns, height * columns
        programs = min(most, triton.cdiv(size, TILE))
        _sum_kernel[(programs,)](
            parts.view(-1)[begin:], out.view(-1)[begin:], partials[place], size, rows * columns, programs, count, TILE,
            num_warps=WARPS,
        )  # fmt: skip
        first += height
    return out, partials.sum(1)
