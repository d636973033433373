"""Products for few tokens: with quantised weights, Q(W) made where it is multiplied and never written; and gradients of
weights, with their norms.

At up to `MOST_TOKENS` tokens a product is bound by reading weights. Quantised beforehand, a BF16 weight is read, its
quantised form written and read again; here it is read once. The bits of Q(W) are those of `codec.fake_quantise`;
products accumulate in float32, over splits of the summed dimension that are added in one order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgod.nvfp4.kernels.codec import by_pairs
from fgod.nvfp4.kernels.device import BLOCK, fake_quantise_packed, quantise_blocks

MOST_TOKENS = 128
"""With more, each tile of weights would be quantised more than once: quantise first, then multiply."""


@dataclass(frozen=True)
class Tuning:
    """Rows and columns of a tile of weights, warps that share it, stages of the loop over tiles, most registers of a
    thread, and programs that fill a GPU: sums are split until there are about as many."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 3
    registers: int | None = None
    programs: int = 132 * 2


FORWARD = Tuning(64, 64, 4, registers=128, programs=132 * 3)
BACKWARD = Tuning(64, 128, 8)
GRADIENT = Tuning(64, 128, 4, programs=512)
"""Fastest over the shapes of Qwen3-4B at 96 tokens on an H100."""

SMALL_BACKWARD = Tuning(32, 128, 8, 4)
"""In place of BACKWARD, whose tiles may take more than the 99 KiB of shared memory that a block of a GPU of compute
capability 8.9 or 12.x can have."""

LARGE_SHARED_MEMORY = 128 * 1024
"""Bytes that a block can have on the GPUs that BACKWARD is for: 227 KiB on an H100, 163 KiB on an A100."""

SUM_TILE = 1024


@triton.jit
def _quantised_tile(
    weight, divisor, row, column, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr,
    NARROW: tl.constexpr, FOUR_OVER_SIX: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Q(W) [ROWS, COLUMNS], float32 or (PACKED) BF16, zero outside of the matrix."""
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    places = rows.to(tl.int64)[:, None] * width + columns[None, :]
    if EVEN:
        values = tl.load(weight + places)
    else:
        values = tl.load(weight + places, mask=(rows < height)[:, None] & (columns < width)[None, :], other=0.0)
    blocks = tl.reshape(values.to(tl.float32), [ROWS * COLUMNS // BLOCK, BLOCK])
    if PACKED:
        return tl.reshape(fake_quantise_packed(blocks, divisor), [ROWS, COLUMNS])
    else:
        grid, _, steps = quantise_blocks(blocks, divisor, NARROW, FOUR_OVER_SIX)
        return tl.reshape(grid * steps[:, None], [ROWS, COLUMNS])


@triton.jit
def _forward_kernel(
    x, weight, scale, out, tokens, height, width, turns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
    NARROW: tl.constexpr, FOUR_OVER_SIX: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """out[s]: x [T, K] · Q(W) [N, K]ᵀ over the columns of split s, a tile of ROWS outputs."""
    row, split = tl.program_id(0) * ROWS, tl.program_id(1)
    divisor = tl.load(scale)
    token = tl.arange(0, TOKENS)
    total = tl.zeros([TOKENS, ROWS], tl.float32)
    for turn in tl.range(split * turns, tl.minimum((split + 1) * turns, tl.cdiv(width, COLUMNS)), num_stages=STAGES):
        column = turn * COLUMNS
        columns = column + tl.arange(0, COLUMNS)
        some = tl.load(
            x + token[:, None] * width + columns[None, :],
            mask=(token < tokens)[:, None] & (EVEN | (columns < width)[None, :]), other=0.0,
        )  # fmt: skip
        made = _quantised_tile(
            weight, divisor, row, column, height, width, ROWS, COLUMNS, EVEN, NARROW, FOUR_OVER_SIX, PACKED
        )
        total = tl.dot(some, tl.trans(made.to(some.dtype)), total, input_precision="ieee")
    rows = row + tl.arange(0, ROWS)
    places = (split * tokens + token).to(tl.int64)[:, None] * height + rows[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & (rows < height)[None, :])


@triton.jit
def _backward_kernel(
    grad, weight, scale, out, tokens, height, width, turns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
    NARROW: tl.constexpr, FOUR_OVER_SIX: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """out[s]: grad [T, N] · Q(W) [N, K] over the rows of split s, a tile of COLUMNS outputs."""
    column, split = tl.program_id(0) * COLUMNS, tl.program_id(1)
    divisor = tl.load(scale)
    token = tl.arange(0, TOKENS)
    total = tl.zeros([TOKENS, COLUMNS], tl.float32)
    for turn in tl.range(split * turns, tl.minimum((split + 1) * turns, tl.cdiv(height, ROWS)), num_stages=STAGES):
        row = turn * ROWS
        rows = row + tl.arange(0, ROWS)
        some = tl.load(
            grad + token[:, None] * height + rows[None, :],
            mask=(token < tokens)[:, None] & (EVEN | (rows < height)[None, :]), other=0.0,
        )  # fmt: skip
        made = _quantised_tile(
            weight, divisor, row, column, height, width, ROWS, COLUMNS, EVEN, NARROW, FOUR_OVER_SIX, PACKED
        )
        total = tl.dot(some, made.to(some.dtype), total, input_precision="ieee")
    columns = column + tl.arange(0, COLUMNS)
    places = (split * tokens + token).to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & (columns < width)[None, :])


@triton.jit(do_not_specialize=["turns"])
def _gradient_kernel(
    outputs, inputs, out, squares, tokens, stride, height, turns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out = outputsᵀ [N, T] · inputs [T, K], `turns` tiles below each other; squares[p]: Σ out² of those."""
    program, token = tl.program_id(0), tl.arange(0, TOKENS)
    first = program // (WIDTH // COLUMNS) * turns
    columns = program % (WIDTH // COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    real = (token < tokens)[:, None]
    right = tl.load(inputs + token[:, None] * WIDTH + columns[None, :], mask=real, other=0.0)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for turn in tl.range(0, tl.minimum(turns, height // ROWS - first), num_stages=STAGES):
        rows = (first + turn) * ROWS + tl.arange(0, ROWS)
        left = tl.load(outputs + token[:, None] * stride + rows[None, :], mask=real, other=0.0)
        made = tl.dot(tl.trans(left), right, input_precision="ieee").to(out.dtype.element_ty)
        tl.store(out + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], made)
        wide = made.to(tl.float32)
        total += wide * wide
    tl.store(squares + program, tl.sum(tl.sum(total, 1), 0))


@triton.jit
def _sum_kernel(partials, residual, out, count, SPLITS: tl.constexpr, RESIDUAL: tl.constexpr, TILE: tl.constexpr):
    """The splits' parts added in order, and the residual to them."""
    places = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = places < count
    total = tl.zeros([TILE], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partials + split * count + places, mask=inside, other=0.0)
    if RESIDUAL:
        total += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, total.to(out.dtype.element_ty), mask=inside)


def _splits(tiles: int, turns: int, programs: int) -> tuple[int, int]:
    """How often a sum of so many turns is split, and the turns of each split."""
    wanted = max(1, min(turns, programs // tiles))
    each = triton.cdiv(turns, wanted)
    return triton.cdiv(turns, each), each


def _product(
    kernel: object, x: Tensor, weight: Tensor, scale: Tensor, outputs: int, tiles: int, turns: int,
    residual: Tensor | None, block_scales: str, tuning: Tuning,
) -> Tensor:  # fmt: skip
    if not (x.is_contiguous() and weight.is_contiguous()) or len(x) > MOST_TOKENS:
        raise ValueError(
            f"{list(x.shape)} (strides {x.stride()}) times {list(weight.shape)} (strides {weight.stride()}); "
            f"expected contiguous matrices and at most {MOST_TOKENS} tokens"
        )
    tokens, (height, width) = len(x), weight.shape
    splits, each = _splits(tiles, turns, tuning.programs)
    out = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    direct = splits == 1 and residual is None
    parts = out if direct else torch.empty(splits, tokens, outputs, dtype=torch.float32, device=x.device)
    kernel[(tiles, splits)](  # type: ignore[index]
        x, weight, scale, parts, tokens, height, width, each, max(16, triton.next_power_of_2(tokens)), tuning.rows,
        tuning.columns, tuning.stages, height % tuning.rows == 0 and width % tuning.columns == 0,
        weight.dtype == torch.bfloat16, block_scales == "four-over-six", by_pairs(weight, x.dtype, block_scales),
        num_warps=tuning.warps, maxnreg=tuning.registers, enable_fp_fusion=False,
    )  # fmt: skip
    if not direct:
        _sum_kernel[(triton.cdiv(out.numel(), SUM_TILE),)](
            parts, parts if residual is None else residual, out, out.numel(), splits, residual is not None, SUM_TILE
        )
    return out


def forward(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    residual: Tensor | None = None,
    block_scales: str = "amax",
    tuning: Tuning = FORWARD,
) -> Tensor:
    """x [T, K] · Q(W)ᵀ, and a residual [T, N] added: [T, N]. T is at most `MOST_TOKENS`.

    Args:
        x: contiguous BF16 or float32; products are of this format, and so is the result.
        weight: contiguous BF16 or float32 [N, K].
        scale: float32 [1] or no dimension, the weight's global scale on the device.
    """
    height, width = weight.shape
    tiles, turns = triton.cdiv(height, tuning.rows), triton.cdiv(width, tuning.columns)
    return _product(_forward_kernel, x, weight, scale, height, tiles, turns, residual, block_scales, tuning)


def backward(
    grad: Tensor, weight: Tensor, scale: Tensor, block_scales: str = "amax", tuning: Tuning | None = None
) -> Tensor:
    """grad [T, N] · Q(W) [N, K]: [T, K]. Arguments as of `forward`."""
    tuning = tuning or _backward_tuning(grad.device)
    height, width = weight.shape
    tiles, turns = triton.cdiv(width, tuning.columns), triton.cdiv(height, tuning.rows)
    return _product(_backward_kernel, grad, weight, scale, width, tiles, turns, None, block_scales, tuning)


@functools.cache
def _backward_tuning(device: torch.device) -> Tuning:
    if device.type != "cuda":
        return BACKWARD
    index = torch.cuda.current_device() if device.index is None else device.index
    most = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return BACKWARD if most >= LARGE_SHARED_MEMORY else SMALL_BACKWARD


def makes_gradient(shape: Sequence[int], tuning: Tuning = GRADIENT) -> bool:
    """Whether `gradient` serves a weight of this shape: tiles fill it."""
    height, width = shape
    return height % tuning.rows == 0 and width % tuning.columns == 0 and width // tuning.columns <= tuning.programs


def gradient(outputs: Tensor, inputs: Tensor, squares: Tensor, tuning: Tuning = GRADIENT) -> tuple[Tensor, Tensor]:
    """A weight's gradient outputsᵀ · inputs [N, K] in their format, and partial sums of its squares, for which it is
    not read again. T is at most `MOST_TOKENS`, and `makes_gradient` holds.

    Args:
        outputs: [T, N], columns side by side: the gradient of the product with the weight.
        inputs: contiguous [T, K]: what the weight was multiplied with.
        squares: float32, at least `tuning.programs`: where the partial sums are written.
    """
    tokens, height, width = len(inputs), outputs.shape[1], inputs.shape[1]
    fits = makes_gradient((height, width), tuning) and len(outputs) == tokens <= MOST_TOKENS
    if not (fits and inputs.is_contiguous() and outputs.stride(1) == 1):
        raise ValueError(
            f"outputs {list(outputs.shape)} (strides {outputs.stride()}), inputs {list(inputs.shape)} (strides "
            f"{inputs.stride()}); expected columns side by side, multiples of {tuning.rows} and {tuning.columns} of "
            f"them, and as many tokens in both, at most {MOST_TOKENS}"
        )
    tiles, strips = height // tuning.rows, width // tuning.columns
    below, turns = _splits(strips, tiles, tuning.programs)
    out = torch.empty(height, width, dtype=inputs.dtype, device=inputs.device)
    _gradient_kernel[(strips * below,)](
        outputs, inputs, out, squares, tokens, outputs.stride(0), height, turns,
        max(16, triton.next_power_of_2(tokens)), tuning.rows, tuning.columns, width, tuning.stages,
        num_warps=tuning.warps, maxnreg=tuning.registers,
    )  # fmt: skip
    return out, squares[: strips * below]
