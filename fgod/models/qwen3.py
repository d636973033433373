"""Qwen3, the dense models: queries and keys are normed, no projection has a bias."""

from __future__ import annotations

from fgod.models.architecture import ARCHITECTURES, DenseDecoder

ARCHITECTURES.register(
    "Qwen3ForCausalLM", DenseDecoder("Qwen3ForCausalLM", qk_norm=True, window_keys=("use_sliding_window",))
)
