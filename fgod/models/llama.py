"""Llama 2 and 3, and models of their shape (SmolLM2): `attention_bias` gives all four projections a bias."""

from __future__ import annotations

from fgod.models.architecture import ARCHITECTURES, Config, DenseDecoder


class Llama(DenseDecoder):
    """A decoder whose config decides whether its attention has biases."""

    def biased(self, config: Config) -> tuple[str, ...]:
        return ("q", "k", "v", "o") if config.get("attention_bias", False) else ()


ARCHITECTURES.register("LlamaForCausalLM", Llama("LlamaForCausalLM"))
