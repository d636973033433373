"""Size and recipe of the embedded base, shapes of random ones, tokens of tokenizers made here. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from annotated_types import Ge, Lt, MultipleOf
from pydantic.dataclasses import dataclass

from fgod.models.names import BLOCK
from fgod.validation import (
    KEYS,
    Count,
    CountOrZero,
    FromList,
    Keys,
    NotNegative,
    OmitDefault,
    Positive,
    fault,
    validate,
)

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Qwen's special tokens; their ids are 0, 1 and 2 in a tokenizer made here."""

MIN_VOCAB = len(SPECIAL_TOKENS) + 256
"""Special tokens and one token for each byte."""

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
}  # fmt: skip

RANDOM_DESIGN = 2
"""How random weights are drawn (`fgod.model.random`), for the base's id: other draws are another base."""

_QWEN3_LARGE = {
    **_QWEN3, "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        **_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
    },
    "qwen3-8b": {
        **_QWEN3_LARGE, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
    "qwen3-14b": {
        **_QWEN3_LARGE, "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
    },
    "llama3-8b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
    "tiny": {
        **_QWEN3, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2816, "max_position_embeddings": 2048,
    },
}  # fmt: skip
"""By the name in a config: of config.json what differs between families and sizes. Qwen3-4B-Instruct-2507's,
Qwen3-8B's, Qwen3-14B's, Qwen2.5-0.5B-Instruct's, Llama-3.1-8B-Instruct's."""

NOT_SPEC = ("kind", "seed", "require", "closed_answers")

Width = Annotated[int, Ge(BLOCK), MultipleOf(BLOCK)]
Beta = Annotated[float, Ge(0), Lt(1)]
Later = OmitDefault()
"""Keys that the config got after bases had been made: they are part of base_id where they differ from the default."""


@dataclass(frozen=True, config=KEYS)
class EmbeddedSpec(Keys):
    """Size and recipe of the embedded base; all of it is part of base_id."""

    hidden: Width = 96
    """Width of the residual stream."""
    layers: Count = 2
    """Decoder layers."""
    mlp: Width = 256
    """Width inside each MLP."""
    heads: Annotated[Count, Later] = 3
    """Attention heads for queries."""
    kv_heads: Annotated[Count, Later] = 1
    """Attention heads for keys and values; divides `heads`."""
    head_dim: Annotated[Width, Later] = 32
    """Width of one attention head."""
    vocab: Annotated[int, Ge(MIN_VOCAB)] = 2700
    """Tokens at most; the embedding has as many rows as the corpus gives tokens, rounded up to a multiple of 16."""
    tied: Annotated[bool, Later] = True
    """Whether the head is the table of token embeddings."""
    steps: Count = 1500
    """Optimizer steps; fewer: faster, and it knows less."""
    batch: Count = 16
    """Rows a step."""
    lr: Positive = 4e-3
    """Peak learning rate, reached after `warmup` steps; a half cosine leads from it to zero."""
    warmup: Annotated[CountOrZero, Later] = 30
    """Steps over which the learning rate rises from zero."""
    betas: Annotated[tuple[Beta, Beta], FromList, Later] = (0.9, 0.95)
    """Decay of AdamW's running mean of gradients, and of their squares."""
    weight_decay: Annotated[NotNegative, Later] = 0.01
    """AdamW's decay of weights to zero."""
    grad_clip: Annotated[Positive, Later] = 1.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise fault("heads", f"found {self.heads}, expected a multiple of base.kv_heads = {self.kv_heads}")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The spec from config `base`; keys that are not of the training itself (`NOT_SPEC`) are for others.

        Raises:
            UsageError: an unknown key, or a value out of range.
        """
        return validate(cls, {k: v for k, v in value.items() if k not in NOT_SPEC}, "base")
