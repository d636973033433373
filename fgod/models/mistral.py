"""Mistral: Llama's layers. Version 0.1 attends within a sliding window, which is refused."""

from __future__ import annotations

from fgod.models.architecture import ARCHITECTURES, DenseDecoder

ARCHITECTURES.register("MistralForCausalLM", DenseDecoder("MistralForCausalLM", window_keys=("sliding_window",)))
