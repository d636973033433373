"""A plugin: Gemma, whose norms multiply by 1 + weight and whose embeddings are scaled. transformers computes both."""

from __future__ import annotations

from fgod.models.architecture import Config, DenseDecoder, wrong
from fgod.registry import ARCHITECTURES


class Gemma(DenseDecoder):
    """Llama's tensors, another activation."""

    def check(self, config: Config, where: object) -> None:
        found = config.get("hidden_activation") or config.get("hidden_act")
        if found != "gelu_pytorch_tanh":
            raise wrong(str(where), "hidden_act", found, "'gelu_pytorch_tanh'")

    def hand_written(self, config: Config) -> bool:
        return False


ARCHITECTURES.register("GemmaForCausalLM", Gemma("GemmaForCausalLM", tied=True))
