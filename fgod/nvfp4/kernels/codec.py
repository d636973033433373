"""The quantiser of `fgod.nvfp4.codec` as kernels: the same bits in one pass, and global scales that stay on the device.

A global scale is a float32 tensor [1] here, so that no call waits for the GPU. One that is not finite (a weight is NaN
or infinite) is NaN, and so is then all that is made with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgod.errors import UsageError
from fgod.nvfp4 import codec
from fgod.nvfp4.kernels.device import (
    BLOCK,
    as_words,
    e2m1_codes,
    e2m1_values,
    e4m3_bytes,
    fake_quantise_packed,
    flat,
    from_e4m3_bytes,
    pack_pairs,
    quantise_blocks,
    unpack_pairs,
)


@dataclass(frozen=True)
class Tuning:
    """How a kernel is launched: elements of a tile, and warps that share it."""

    tile: int = 4096
    warps: int = 4


FAKE_QUANTISE = Tuning(2048, 4)
QUANTISE = Tuning(2048, 4)
DEQUANTISE = Tuning(4096, 4)
AMAX = Tuning(8192, 8)

AMAX_PROGRAMS = 256
"""Most partial maxima of a tensor."""

_RATIO = codec.E4M3_MAX * codec.E2M1_MAX / codec.HEADROOM
_RATIO_MANTISSA, _RATIO_EXPONENT = math.frexp(_RATIO)
_MANTISSA = tl.constexpr(int((2 * _RATIO_MANTISSA - 1) * 2**23))
_EXPONENT = tl.constexpr(_RATIO_EXPONENT - 1)


def _least_scaled() -> int:
    """Bits of the smallest float32 that is not below `AMAX_MIN`."""
    least = torch.tensor(codec.AMAX_MIN)
    if least.item() < codec.AMAX_MIN:
        least = torch.nextafter(least, torch.ones(()))
    return int(least.view(torch.int32).item())


_LEAST_SCALED = tl.constexpr(_least_scaled())


@triton.jit
def _amax_kernel(weight, partials, count, programs, TILE: tl.constexpr):
    """partials[p]: the largest of its tiles' magnitudes as int32 bits, which order as magnitudes do, NaN above all."""
    program = tl.program_id(0)
    largest = tl.zeros([TILE], tl.int32)
    for turn in range(0, tl.cdiv(tl.cdiv(count, TILE) - program, programs)):
        begin = (program + turn * programs).to(tl.int64) * TILE
        inside = tl.arange(0, TILE)
        values = tl.load(weight + begin + inside, mask=inside < count - begin, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, (as_words(values) & 0x7FFFFFFF).to(tl.int32))
    tl.store(partials + program, tl.max(largest, 0))


@triton.jit
def _scale_kernel(partials, scale, count, PADDED: tl.constexpr):
    """`codec.power_of_two_global_scale` of the largest of all partial maxima."""
    places = tl.arange(0, PADDED)
    amax = tl.max(tl.load(partials + places, mask=places < count, other=0), 0)
    # 1344 = (1 + MANTISSA/2²³)·2^EXPONENT: the quotient's exponent is one lower where amax has the larger mantissa
    exponent = _EXPONENT - ((amax >> 23) - 127) - ((amax & 0x7FFFFF) > _MANTISSA).to(tl.int32)
    words = tl.where(amax < _LEAST_SCALED, 127 << 23, (exponent + 127) << 23)
    words = tl.where(amax >= 0x7F800000, 0x7FC00000, words)
    tl.store(scale, words.to(tl.float32, bitcast=True))


@triton.jit
def _fake_quantise_kernel(
    weight, scale, out, count, TILE: tl.constexpr, EVEN: tl.constexpr, NARROW: tl.constexpr,
    FOUR_OVER_SIX: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * TILE
    inside = tl.arange(0, TILE // BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if EVEN:
        values = tl.load(weight + begin + inside).to(tl.float32)
    else:
        values = tl.load(weight + begin + inside, mask=inside < count - begin, other=0.0).to(tl.float32)
    if PACKED:
        result = fake_quantise_packed(values, tl.load(scale))
    else:
        grid, _, steps = quantise_blocks(values, tl.load(scale), NARROW, FOUR_OVER_SIX)
        result = (grid * steps[:, None]).to(out.dtype.element_ty)
    if EVEN:
        tl.store(out + begin + inside, result)
    else:
        tl.store(out + begin + inside, result, mask=inside < count - begin)


@triton.jit
def _quantise_kernel(
    weight, scale, packed, scales, count, TILE: tl.constexpr, NARROW: tl.constexpr, FOUR_OVER_SIX: tl.constexpr
):
    begin = tl.program_id(0).to(tl.int64) * TILE
    left = count - begin
    inside = tl.arange(0, TILE // BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(weight + begin + inside, mask=inside < left, other=0.0).to(tl.float32)
    grid, found, _ = quantise_blocks(values, tl.load(scale), NARROW, FOUR_OVER_SIX)
    blocks = tl.arange(0, TILE // BLOCK)
    tl.store(scales + begin // BLOCK + blocks, e4m3_bytes(found), mask=blocks * BLOCK < left)
    pairs = tl.arange(0, TILE // 2)
    tl.store(packed + begin // 2 + pairs, pack_pairs(e2m1_codes(flat(grid))), mask=pairs * 2 < left)


@triton.jit
def _dequantise_kernel(packed, scales, scale, out, count, stride, TILE: tl.constexpr):
    """Of each part (the second dimension of the grid) `count` elements; its bytes begin `stride` after the last's."""
    part = tl.program_id(1).to(tl.int64)
    packed += part * stride
    scales += part * stride
    out += part * count
    begin = tl.program_id(0).to(tl.int64) * TILE
    left = count - begin
    pairs, blocks = tl.arange(0, TILE // 2), tl.arange(0, TILE // BLOCK)
    codes = unpack_pairs(tl.load(packed + begin // 2 + pairs, mask=pairs * 2 < left, other=0))
    found = from_e4m3_bytes(tl.load(scales + begin // BLOCK + blocks, mask=blocks * BLOCK < left, other=0x38))
    steps = found * tl.div_rn(1.0, tl.load(scale))
    values = tl.reshape(e2m1_values(codes), [TILE // BLOCK, BLOCK]) * steps[:, None]
    inside = tl.arange(0, TILE)
    tl.store(out + begin + inside, flat(values).to(out.dtype.element_ty), mask=inside < left)


def by_pairs(weight: Tensor, dtype: torch.dtype, block_scales: str) -> bool:
    """Whether `fake_quantise_packed` serves: BF16 to BF16 on a GPU; the interpreter knows no assembler."""
    return weight.is_cuda and weight.dtype == dtype == torch.bfloat16 and block_scales == "amax"


def _check(weight: Tensor) -> None:
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"{weight.dtype}; expected float32 or bfloat16 weights")
    if weight.ndim != 2 or weight.shape[1] % codec.BLOCK:
        raise UsageError(
            f"shape {tuple(weight.shape)}; NVFP4 needs two dimensions, the second divisible by {codec.BLOCK}"
        )
    if not weight.is_contiguous():
        raise UsageError(f"strides {weight.stride()} of shape {tuple(weight.shape)}; expected a contiguous matrix")


def global_scale(weights: Sequence[Tensor]) -> Tensor:
    """float32 [1] on the weights' device: the power of two that tensors share (`codec.shared_global_scale`).

    NaN if a weight is NaN or infinite.
    """
    programs = [min(AMAX_PROGRAMS, triton.cdiv(weight.numel(), AMAX.tile)) for weight in weights]
    partials = torch.empty(sum(programs), dtype=torch.int32, device=weights[0].device)
    for weight, own, count in zip(weights, partials.split(programs), programs, strict=True):
        _check(weight)
        _amax_kernel[(count,)](weight, own, weight.numel(), count, AMAX.tile, num_warps=AMAX.warps)
    scale = torch.empty(1, dtype=torch.float32, device=weights[0].device)
    _scale_kernel[(1,)](partials, scale, partials.numel(), triton.next_power_of_2(partials.numel()))
    return scale


def fake_quantise(
    weight: Tensor,
    scale: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    block_scales: str = "amax",
    tuning: Tuning = FAKE_QUANTISE,
) -> Tensor:
    """`codec.fake_quantise` of a float32 or BF16 [N, K] under `scale` [1], in `dtype`: the same bits.

    Raises:
        UsageError: the matrix is not contiguous or K is not divisible by 16.
        TypeError: another dtype.
    """
    _check(weight)
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    count = weight.numel()
    _fake_quantise_kernel[(triton.cdiv(count, tuning.tile),)](
        weight,
        scale,
        out,
        count,
        tuning.tile,
        count % tuning.tile == 0,
        weight.dtype == torch.bfloat16,
        block_scales == "four-over-six",
        by_pairs(weight, dtype, block_scales),
        num_warps=tuning.warps,
        enable_fp_fusion=False,
    )
    return out


def quantise(
    weight: Tensor, scale: Tensor, block_scales: str = "amax", tuning: Tuning = QUANTISE
) -> tuple[Tensor, Tensor]:
    """Packed codes uint8 [N, K/2] and scales float8_e4m3fn [N, K/16] of a float32 or BF16 [N, K] under `scale` [1].

    The bytes of `codec.pack(codec.quantise(weight).codes)`. Raises as `fake_quantise` does.
    """
    rows, columns = weight.shape
    packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(rows, columns // codec.BLOCK, dtype=torch.uint8, device=weight.device)
    quantise_into(packed, scales, weight, scale, block_scales, tuning)
    return packed, scales.view(torch.float8_e4m3fn)


def quantise_into(
    packed: Tensor,
    scales: Tensor,
    weight: Tensor,
    scale: Tensor,
    block_scales: str = "amax",
    tuning: Tuning = QUANTISE,
) -> None:
    """`quantise` into memory that is there, contiguous bytes of any shape."""
    _check(weight)
    _quantise_kernel[(triton.cdiv(weight.numel(), tuning.tile),)](
        weight,
        scale,
        packed,
        scales,
        weight.numel(),
        tuning.tile,
        weight.dtype == torch.bfloat16,
        block_scales == "four-over-six",
        num_warps=tuning.warps,
        enable_fp_fusion=False,
    )


def dequantise(
    packed: Tensor, scales: Tensor, scale: Tensor, dtype: torch.dtype = torch.bfloat16, tuning: Tuning = DEQUANTISE
) -> Tensor:
    """[N, K] in `dtype` of what `quantise` gives. Scales must be at least 2⁻⁶, as all that fgod writes are."""
    rows, half = packed.shape
    out = torch.empty(rows, 2 * half, dtype=dtype, device=packed.device)
    _dequantise_kernel[(triton.cdiv(out.numel(), tuning.tile), 1)](
        packed, scales.view(torch.uint8), scale, out, out.numel(), 0, tuning.tile, num_warps=tuning.warps
    )
    return out


def dequantise_parts(
    parts: Tensor, rows: int, columns: int, scale: Tensor, dtype: torch.dtype, tuning: Tuning = DEQUANTISE
) -> Tensor:
    """[P · rows, columns] of bytes uint8 [P, …], each part all codes of its rows and then their block scales."""
    count, stride = rows * columns, parts.shape[1]
    out = torch.empty(len(parts) * rows, columns, dtype=dtype, device=parts.device)
    bytes_ = parts.view(-1)
    _dequantise_kernel[(triton.cdiv(count, tuning.tile), len(parts))](
        bytes_, bytes_[count // 2 :], scale, out, count, stride, tuning.tile, num_warps=tuning.warps
    )
    return out
