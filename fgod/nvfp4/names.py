"""Which tensors of a Qwen3 model are quantised, and which of them share one global scale. Pure."""

from __future__ import annotations

import re

_QUANTISED = re.compile(
    r"(?P<parent>model\.layers\.\d+\.(?:self_attn|mlp))\.(?P<leaf>[qkvo]_proj|(?:gate|up|down)_proj)"
)

_SHARED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Projections that servers fuse into one matrix: vLLM then keeps the largest global scale without rescaling."""

TIED_HEAD = "lm_head.weight"
"""On a tied model this name is an alias of `EMBEDDING` and is never stored."""

EMBEDDING = "model.embed_tokens.weight"


def is_quantised(tensor: str) -> bool:
    """Whether a tensor is stored as NVFP4: the weight of one of the seven projections of each layer."""
    return tensor.endswith(".weight") and _QUANTISED.fullmatch(tensor.removesuffix(".weight")) is not None


def scale_group(tensor: str) -> str:
    """Name of the group that shares a global scale: q/k/v of a layer, gate/up of a layer, else the tensor itself."""
    match = _QUANTISED.fullmatch(tensor.removesuffix(".weight"))
    if match is None or not tensor.endswith(".weight"):
        return tensor
    return f"{match['parent']}.{_SHARED.get(match['leaf'], match['leaf'])}"


def exported_as(tensor: str, dtype: str) -> str:
    """How the export stores a tensor: `nvfp4`, or the name of the dtype of what is not quantised."""
    return "nvfp4" if is_quantised(tensor) else dtype
