"""Causal attention of rows that are padded, or packed one after another, in which nothing looks into another row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PACKED = 256
"""Tokens of packed rows, and their labels, are filled up to a multiple of this many: fewer shapes."""


def packed_size(count: int) -> int:
    """To how many so many tokens or labels are filled up."""
    return count + -count % PACKED


def kernel_serves(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashAttention's kernel computes packed rows in this number format, with heads of this size."""
    return dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256


class PackedRows(NamedTuple):
    """Where rows lie in ids [1, T].

    starts: int32 [rows + 1], where each begins and where the last one ends, which is T; a row may be empty. longest:
    tokens that a row has at most.
    """

    starts: Tensor
    longest: int

    def numbers(self, tokens: int) -> Tensor:
        """int64 [T]: the row of each token, from 0."""
        places = torch.arange(tokens, device=self.starts.device, dtype=self.starts.dtype)
        return torch.searchsorted(self.starts, places, right=True) - 1

    def places(self, tokens: int) -> Tensor:
        """int64 [T]: the place of each token in its row, from 0."""
        return torch.arange(tokens, device=self.starts.device) - self.starts[self.numbers(tokens)]


def attention(q: Tensor, k: Tensor, v: Tensor, packed: PackedRows | None = None) -> Tensor:
    """Of queries [B, S, heads, D], keys and values [B, S, kv heads, D]; the result has the shape of queries.

    Where rows are packed B is 1.
    """
    if packed is not None and q.is_cuda:
        return _flash(q, k, v, packed)
    return plain_attention(q, k, v, packed)


def _flash(q: Tensor, k: Tensor, v: Tensor, packed: PackedRows) -> Tensor:
    """By FlashAttention's kernel for rows of different lengths, which torch has; autograd knows its backward pass. See
    `kernel_serves`."""
    starts, longest = packed
    found = torch.ops.aten._flash_attention_forward(
        q[0], k[0], v[0], starts, starts, longest, longest, 0.0, is_causal=True, return_debug_mask=False
    )
    out: Tensor = found[0]
    return out[None]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, packed: PackedRows | None = None) -> Tensor:
    """The same on any device and in any number format; for packed rows with a mask [T, T], which takes much memory."""
    queries, keys, values = (part.transpose(1, 2) for part in (q, k, v))
    mask = None
    if packed is not None:
        row = packed.numbers(q.shape[1])
        mask = (row[:, None] == row).tril()
    out = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[2] != k.shape[2]
    )
    return out.transpose(1, 2)
