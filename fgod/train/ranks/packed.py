"""A quantised weight as it travels: codes and block scales as bytes, 4.5 bits an element.

Its bits when it is unpacked are those of `fgod.nvfp4.codec.fake_quantise`: products with it are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgod.nvfp4 import kernels
from fgod.nvfp4.codec import BLOCK, block_view, decode_e2m1, encode_finite, pack, scales_of_blocks, unpack
from fgod.train.device.ops import QUANTISE_ROWS


def packed_bytes(rows: int, columns: int) -> int:
    """Bytes of a weight."""
    return rows * (columns // 2 + columns // BLOCK)


def packed(weight: Tensor, global_scale: Tensor, block_scales: str) -> Tensor:
    """uint8 [bytes] of a master [N, K]: all codes, then all block scales."""
    if kernels.run_on(weight.device):
        from fgod.nvfp4.kernels import codec

        made = torch.empty(packed_bytes(*weight.shape), dtype=torch.uint8, device=weight.device)
        codes, scales = made.split([weight.numel() // 2, weight.numel() // BLOCK])
        codec.quantise_into(codes, scales, weight, global_scale, block_scales)
        return made
    all_codes, all_scales = [], []
    for part in weight.split(QUANTISE_ROWS):
        blocks = block_view(part.float(), "weight")
        its_scales = scales_of_blocks(blocks, global_scale, block_scales)
        steps = its_scales.float() / global_scale
        all_codes.append(pack(encode_finite(blocks / steps.unsqueeze(-1)).flatten(1)).flatten())
        all_scales.append(its_scales.view(torch.uint8).flatten())
    return torch.cat(all_codes + all_scales)


def unpacked(parts: Tensor, columns: int, global_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, K] of every rank's bytes [ranks, bytes], their rows below each other."""
    ranks, size = parts.shape
    rows = size // (columns // 2 + columns // BLOCK)
    if kernels.run_on(parts.device):
        from fgod.nvfp4.kernels import codec

        return codec.dequantise_parts(parts, rows, columns, global_scale, dtype)
    out = torch.empty(ranks * rows, columns, dtype=dtype, device=parts.device)
    cut = rows * columns // 2
    for part, made in zip(parts, out.split(rows), strict=True):
        scales = part[cut:].view(torch.float8_e4m3fn).view(rows, -1).float() / global_scale
        codes = decode_e2m1(unpack(part[:cut].view(rows, -1))).unflatten(1, (-1, BLOCK))
        made.copy_(codes.mul_(scales.unsqueeze(-1)).flatten(1))
    return out
