"""transformers' models with less to move and fewer kernels, for decoding: one token is bound by both.

Attention of grouped heads without copies: the query heads that share a key head are rows of one product. transformers
repeats keys and values for each query head where there is a mask. RMSNorm in one kernel instead of eight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "fgod_grouped"
"""Its name in transformers' registry of attention functions."""


def _grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Queries [B, H, T, D], keys and values [B, G, S, D], a mask [B or 1, 1, T, S]: outputs [B, T, H, D]."""
    if attention_mask is None:  # transformers' own, which knows when nothing needs a mask
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    batch, heads, tokens, width = query.shape
    groups = key.shape[1]
    together = heads // groups
    rows = query.reshape(batch, groups, together * tokens, width)
    if tokens > 1:
        attention_mask = attention_mask.repeat(1, 1, together, 1)
    out = scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, heads, tokens, width).transpose(1, 2), None


AttentionInterface.register(GROUPED, _grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model that attends by `sdpa` attend so. Others stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)


@contextmanager
def no_plans() -> Iterator[None]:
    """Inside, torch does not attend by cuDNN, which it prefers on Hopper. cuDNN makes a plan for each new shape, in a
    tenth of a second and more, and batches of prompts have many lengths."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def one_kernel_norms(model: PreTrainedModel) -> Iterator[None]:
    """While entered, RMSNorms as Llama has them compute in one kernel, which rounds once less than transformers'.

    What is captured inside as a CUDA graph stays so. Other norms, such as Gemma's, are left as they are.
    """
    norms = [module for module in model.modules() if hasattr(module, "variance_epsilon")]
    for module in norms:
        module.forward = partial(_norm, module)
    try:
        yield
    finally:
        for module in norms:
            del module.forward


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
