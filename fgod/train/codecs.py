"""How an optimizer's states are packed: pure functions on float32 [R, K], block by block along the columns, to nearest.

    int8       code · scale, one float32 scale for `block_width(K)` columns, codes -127 to 127
    uint8 √v   the same without a sign, codes 1 to 255: a v that is not zero never becomes zero
    NVFP4      E2M1 code · E4M3 scale (16 columns) · float32 scale (`segment_width(K)` columns)
    NVFP4 √v   the same without a sign, smallest code 1 (a half)

v itself is never packed: a v that rounds to zero beside an m that does not makes m/(√v + ε) explode. No block
reaches beyond its row, so a tensor may be packed by chunks of rows of any size. Stochastic rounding helps masters, not
moments: it makes them noisier, and they are means already.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from fgod.nvfp4.codec import BLOCK, E2M1_MAX, E4M3_MAX, SCALE_MIN, decode_e2m1, encode_finite, pack, unpack

INT8_MAX, UINT8_MAX = 127, 255

WIDEST_BLOCK = 64
"""Columns of an 8-bit block: 4/64 = 0.06 bytes an element for its scale."""

WIDEST_SEGMENT = 512
"""Columns that share the float32 scale of NVFP4 moments: 0.008 bytes an element."""


def block_width(columns: int) -> int:
    """Columns of one 8-bit block: the largest power of two up to 64 that divides them."""
    return gcd(columns, WIDEST_BLOCK)


def segment_width(columns: int) -> int:
    """Columns of one segment of NVFP4 moments, a multiple of 16 where `columns` is."""
    return gcd(columns, WIDEST_SEGMENT)


def _safe(scales: Tensor) -> Tensor:
    """Divisors: 1 where one is zero, as of a block that is all zeros."""
    return torch.where(scales > 0, scales, 1.0)


def _eight_bits(values: Tensor, largest: int, least: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    blocks = values.unflatten(1, (-1, block_width(values.shape[1])))
    scales = blocks.abs().amax(-1).div_(largest)
    codes = (blocks / _safe(scales).unsqueeze(-1)).round_().clamp_(least, largest)
    return codes.to(dtype).flatten(1), scales


def encode_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [R, K] and scales float32 [R, K/block]; off by at most half a scale."""
    return _eight_bits(values, INT8_MAX, -INT8_MAX, torch.int8)


def encode_root_uint8(roots: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [R, K], 1 to 255, and scales float32 [R, K/block] of numbers of at least zero."""
    return _eight_bits(roots, UINT8_MAX, 1, torch.uint8)


def decode_eight_bits(codes: Tensor, scales: Tensor) -> Tensor:
    """float32 [R, K] of int8 or uint8 codes."""
    blocks = codes.float().unflatten(1, (scales.shape[1], -1))
    return blocks.mul_(scales.unsqueeze(-1)).flatten(1)


def _nvfp4(values: Tensor, least: int) -> tuple[Tensor, Tensor, Tensor]:
    blocks = values.unflatten(1, (-1, BLOCK))
    amax = blocks.abs().amax(-1)
    in_segments = amax.unflatten(1, (-1, segment_width(values.shape[1]) // BLOCK))
    segments = in_segments.amax(-1).div_(E2M1_MAX * E4M3_MAX)
    divisors = _safe(segments).unsqueeze(-1)
    scales = (in_segments / E2M1_MAX / divisors).flatten(1).clamp_(SCALE_MIN, E4M3_MAX).to(torch.float8_e4m3fn)
    steps = (scales.float().unflatten(1, (segments.shape[1], -1)) * divisors).flatten(1)
    codes = encode_finite(blocks / _safe(steps).unsqueeze(-1)).flatten(1)  # a step that underflows stands for zeros
    return pack(codes.clamp_(min=least)), scales, segments


def encode_nvfp4(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [R, K/2] (low nibble: even column), E4M3 scales [R, K/16], float32 scales [R, K/segment]."""
    return _nvfp4(values, 0)


def encode_root_nvfp4(roots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of numbers of at least zero, with codes 1 to 7."""
    return _nvfp4(roots, 1)


def decode_nvfp4(packed: Tensor, scales: Tensor, segments: Tensor) -> Tensor:
    """float32 [R, K]."""
    steps = (scales.float().unflatten(1, (segments.shape[1], -1)) * segments.unsqueeze(-1)).flatten(1)
    values = decode_e2m1(unpack(packed)).unflatten(1, (-1, BLOCK))
    return values.mul_(steps.unsqueeze(-1)).flatten(1)
