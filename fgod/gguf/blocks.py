"""NVFP4 as GGML stores it (type 40): 64 weights of a row are a block of 36 bytes.

    4 bytes    block scales, one for 16 weights each, as unsigned E4M3 (no sign; 0x7F is 0, as 0 is)
    32 bytes   codes, 8 bytes for 16 weights each: byte j has weight j in its low nibble, weight j + 8 in its high one

Codes are E2M1's. What a file calls X.scale beside X.weight, float32 [1], multiplies the product with the tensor; here
it is 1 / global scale, a power of two. Block scales from 2⁻⁶ to 448 and codes other than 8 (−0) are what
`fgod.nvfp4.codec.quantise` gives: all of them are bytes of GGML's too, and the weights the same to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgod.nvfp4.codec import Quantised

WIDTH = 64
"""Weights of a block."""

BYTES = 36
"""Bytes of a block."""


def blocks_of(quantised: Quantised) -> Tensor:
    """The blocks of a quantised weight [N, K], K a multiple of 64: uint8 [N, K/64 · 36]."""
    rows = len(quantised.codes)
    codes = quantised.codes.reshape(rows, -1, 4, 16)
    nibbles = codes[..., :8] | codes[..., 8:] << 4
    scales = quantised.scales.view(torch.uint8).reshape(rows, -1, 4)
    return torch.cat([scales, nibbles.flatten(2)], dim=2).flatten(1)


def quantised_of(blocks: Tensor, scale: float) -> Quantised:
    """The inverse of `blocks_of`.

    Args:
        blocks: uint8 [N, K/64 · 36].
        scale: the tensor's, which multiplies.
    """
    parts = blocks.reshape(len(blocks), -1, BYTES)
    nibbles = parts[..., 4:].reshape(len(blocks), -1, 8)
    codes = torch.cat([nibbles & 0xF, nibbles >> 4], dim=2).flatten(1)
    scales = parts[..., :4].flatten(1).view(torch.float8_e4m3fn)
    return Quantised(codes, scales, 1 / scale)
