"""NVFP4 weights without a tensor scale: E2M1 codes, and one scale for each 16 columns, in E4M3 or float16.

    weight[n, k] = E2M1[code of (n, k)] · scales[n, k // 16]

What is written of a projection is what training computes with: the weights as NVFP4 rounds them, with a global scale.
float16 scales are those of the NVFP4 export divided by its global scale, a power of two: the same weights to the bit,
as long as float16 holds them (from 2⁻²¹ on). E4M3 scales without a global one lie below 2⁻⁶ in most models, where E4M3
has only eight numbers, 0 among them; the export tries amax/6 and its neighbours and takes the one with the smallest
squared error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fgod.dat.file import Element
from fgod.errors import UsageError
from fgod.models.names import BLOCK
from fgod.nvfp4.codec import (
    E2M1_MAX,
    E4M3_MAX,
    NonFiniteError,
    block_amax,
    block_view,
    decode_e2m1,
    encode_finite,
    fake_quantise,
    in_chunks,
    largest_magnitude,
    pack,
    power_of_two_global_scale,
    rows_at_once,
    scales_of_blocks,
    squared_errors,
    unpack,
)

TORCH = {
    Element.UINT8: torch.uint8,
    Element.FLOAT16: torch.float16,
    Element.BFLOAT16: torch.bfloat16,
    Element.FLOAT32: torch.float32,
    Element.FP8_E4M3: torch.float8_e4m3fn,
}
"""Element types of codes, scales and plain weights as torch's."""

SCALES = (Element.FP8_E4M3, Element.FLOAT16)
"""Element types of scales."""

LEAST = {Element.FP8_E4M3: 2.0**-9, Element.FLOAT16: 2.0**-24}
"""Their smallest numbers above 0: a scale is never 0."""

NEIGHBOURS = (1, 2, -1)
"""E4M3 numbers that are tried as a block's scale beside the nearest of amax/6, counted from it."""

E4M3_LAST = 0x7E
"""The bits of the largest E4M3 number, 448; those of 2⁻⁹ are 1."""

LARGEST = {Element.FP8_E4M3: E4M3_MAX, Element.FLOAT16: torch.finfo(torch.float16).max}


Chunk = tuple[Tensor, Tensor]
"""Codes and scales of some rows of a `Packed`."""


@dataclass(frozen=True)
class Packed:
    """codes: uint8 [N, K/2], the low nibble is the even column; scales: float8_e4m3fn or float16 [N, K/16]."""

    codes: Tensor
    scales: Tensor


def largest_finite(weight: Tensor, name: str) -> float:
    """max |w|.

    Raises:
        NonFiniteError: a weight is NaN or infinite; names the tensor.
    """
    amax = largest_magnitude(weight)
    if not math.isfinite(amax):
        raise NonFiniteError(f"{name}: a weight is not finite and cannot be exported")
    return amax


def quantise(
    weight: Tensor, element: Element, amax: float, rule: str = "amax", rounded: bool = True, name: str = "weight"
) -> Packed:
    """Quantise [N, K] of any float dtype, on its device.

    Args:
        element: the type of the scales.
        amax: the largest magnitude of the tensors that share a global scale in the NVFP4 export.
        rule: how that export chooses a block's scale (`fgod.nvfp4.codec.BLOCK_SCALES`).
        rounded: training computes with the weights as that export rounds them, and E4M3 scales are to be near to those;
            False: near to the weights themselves. float16 scales are those of NVFP4 in any case.

    Raises:
        UsageError: a weight is too large for its scale, or K is not divisible by 16.
    """
    own, most = largest_magnitude(weight), E2M1_MAX * LARGEST[element]
    if own > most:
        raise UsageError(
            f"{name}: the largest magnitude is {own:g}, expected at most {most:g}: 6 times the largest {element.name} "
            "block scale"
        )
    global_scale = power_of_two_global_scale(amax, name)
    pack_chunk = _with_e4m3 if element is Element.FP8_E4M3 else _with_float16
    return Packed(*in_chunks(weight, lambda chunk: pack_chunk(chunk, global_scale, rule, rounded, name)))


def _with_e4m3(weight: Tensor, global_scale: float, rule: str, rounded: bool, name: str) -> Chunk:
    blocks = block_view(fake_quantise(weight, global_scale, name, rule) if rounded else weight, name)
    nearest = (block_amax(blocks) / E2M1_MAX).clamp_(LEAST[Element.FP8_E4M3], E4M3_MAX).to(torch.float8_e4m3fn)
    best = nearest.float()
    least = squared_errors(blocks, best, 1.0)
    for step in NEIGHBOURS:
        bits = (nearest.view(torch.uint8).int() + step).clamp_(1, E4M3_LAST).to(torch.uint8)
        scales = bits.view(torch.float8_e4m3fn).float()
        errors = squared_errors(blocks, scales, 1.0)
        best, least = torch.where(errors < least, scales, best), torch.minimum(errors, least)
    return _packed(blocks, best.to(torch.float8_e4m3fn))


def _with_float16(weight: Tensor, global_scale: float, rule: str, rounded: bool, name: str) -> Chunk:
    blocks = block_view(weight, name)
    exact = scales_of_blocks(blocks, global_scale, rule).float() / global_scale
    return _packed(blocks, exact.clamp_(LEAST[Element.FLOAT16], LARGEST[Element.FLOAT16]).half())


def _packed(blocks: Tensor, scales: Tensor) -> Chunk:
    return pack(encode_finite(blocks / scales.float().unsqueeze(-1)).flatten(1)), scales


def dequantise(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights [N, K] that codes and scales stand for; float32 holds them exactly, BF16 those of E4M3 scales."""
    rows, width = packed.codes.shape
    out = torch.empty(rows, 2 * width, dtype=dtype, device=packed.codes.device)
    at_once = rows_at_once(out)
    for part, codes, scales in zip(*(one.split(at_once) for one in (out, packed.codes, packed.scales)), strict=True):
        values = decode_e2m1(unpack(codes)).unflatten(1, (-1, BLOCK))
        part.copy_((values * scales.float().unsqueeze(-1)).flatten(1))
    return out


def half(weight: Tensor, name: str) -> Tensor:
    """Round to float16, to nearest.

    Raises:
        UsageError: a weight is beyond float16's range; names the tensor.
    """
    rounded, most = weight.half(), LARGEST[Element.FLOAT16]
    if not math.isfinite(largest_magnitude(rounded)):
        found = f"the largest magnitude is {largest_magnitude(weight):g}"
        raise UsageError(f"{name}: {found}, expected at most {most:g}: float16 holds no more")
    return rounded
