"""Names of tensors that all families of transformers' dense decoders share. Pure."""

from __future__ import annotations

import re

BLOCK = 16
"""Weights of a row that share a block scale in NVFP4."""

EMBEDDING = "model.embed_tokens.weight"
"""The table of token embeddings."""

TIED_HEAD = "lm_head.weight"
"""The head. On a tied model this name is an alias of `EMBEDDING` and is never stored."""

_PROJECTION = re.compile(
    r"(?P<parent>model\.layers\.\d+\.(?:self_attn|mlp))\.(?P<leaf>[qkvo]_proj|(?:gate|up|down)_proj)\.weight"
)

_SHARED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Projections that servers fuse into one matrix: vLLM then keeps the largest global scale without rescaling."""


def projection_group(tensor: str) -> str | None:
    """Of the weight of one of a decoder layer's seven projections the name of what shares a global scale with it.

    q, k and v of a layer share one, gate and up share one, o and down have their own. None for every other tensor.
    """
    match = _PROJECTION.fullmatch(tensor)
    if match is None:
        return None
    return f"{match['parent']}.{_SHARED.get(match['leaf'], match['leaf'])}"
