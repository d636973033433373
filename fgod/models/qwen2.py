"""Qwen2 and Qwen2.5: queries, keys and values have a bias."""

from __future__ import annotations

from fgod.models.architecture import ARCHITECTURES, DenseDecoder

ARCHITECTURES.register(
    "Qwen2ForCausalLM",
    DenseDecoder("Qwen2ForCausalLM", biases=("q", "k", "v"), window_keys=("use_sliding_window",)),
)
