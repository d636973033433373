"""A tiny model of each family, with the project's tokenizer and numbers that no random number generator gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fgod.model.load import quiet
from tests.tiny_model import noise, tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 304, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE}),
    "llama-biased": ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
    "mistral": ("mistral", {"tie_word_embeddings": False, "sliding_window": None}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
}
"""By a short name: transformers' model type, and what differs from its default config. Gemma comes by a plugin."""


def family_model(name: str, **changes: Any) -> PreTrainedModel:
    """float32; matrices of different magnitudes, biases that matter. `changes`: other values of the config."""
    kind, more = FAMILIES[name]
    tokenizer = tiny_tokenizer()
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, **{**SIZES, **more, **tokens, **changes}, dtype=torch.float32)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for seed, (parameter_name, parameter) in enumerate(model.named_parameters()):
            values = noise(tuple(parameter.shape), seed)
            if parameter.ndim > 1:
                parameter.copy_(values * 0.1 * 3 ** (seed % 3))
            else:
                parameter.copy_(values / 4 + (0 if kind == "gemma" or parameter_name.endswith("bias") else 1))
    return model.eval()


def family_folder(name: str, path: Path) -> Path:
    """A Hugging Face folder of the model with its tokenizer."""
    with quiet():
        family_model(name).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path
