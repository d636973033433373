"""What the package needs to know of a model family. Pure: a config.json goes in, names and shapes come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fgod.errors import UsageError
from fgod.models.names import EMBEDDING, TIED_HEAD, projection_group
from fgod.plugins import Registry

ARCHITECTURES: Registry[Architecture] = Registry(
    "model family", [f"fgod.models.{family}" for family in ("qwen3", "qwen2", "llama", "mistral")]
)

Config = Mapping[str, Any]
Shape = tuple[int, ...]

COUNTS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
WIDTHS = ("hidden_size", "intermediate_size")

MOST_LAYERS = 1000
"""More layers than this no model has: the names of a damaged config's tensors stay few."""


def wrong(where: str | Path, key: str, found: object, expected: str) -> UsageError:
    """The error for a wrong value of a file's key."""
    return UsageError(f"{where}: {key}: found {found!r}, expected {expected}")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder. `head_dim` may differ from `hidden / heads`."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Head and embedding are one tensor."""

    @property
    def query_width(self) -> int:
        """Outputs of the query projection: heads x head_dim. The output projection has as many inputs."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Outputs of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim


class Architecture(Protocol):
    """A family of causal language models that transformers implements."""

    @property
    def name(self) -> str:
        """transformers' class, as `architectures` of config.json has it: `Qwen3ForCausalLM`."""

    def check(self, config: Config, where: str | Path) -> None:
        """Refuse what this family's training or export would compute wrongly.

        Raises:
            UsageError: names `where`, the key, what was found and what is expected.
        """

    def sizes(self, config: Config, where: str | Path) -> Sizes:
        """Sizes by a config.json.

        Raises:
            UsageError: one is missing or is no whole number of at least 1.
        """

    def tensors(self, config: Config, where: str | Path) -> dict[str, Shape]:
        """Name and shape of each parameter, in transformers' order. A tied head is none of its own."""

    def scale_group(self, tensor: str) -> str | None:
        """The group of tensors that share a global NVFP4 scale. None: the tensor is not quantised."""

    def layer_extras(self, config: Config, item: int) -> int:
        """Bytes of one token in one layer that the backward pass keeps beside what every decoder layer keeps."""

    def hand_written(self, config: Config) -> bool:
        """Whether the network with a hand-written backward pass (`fgod.train.device`) computes this model."""


@dataclass(frozen=True)
class DenseDecoder:
    """Decoders of the Llama kind: RMS norms, rotary positions, grouped-query attention, a gated MLP with SiLU.

    Args:
        name: transformers' class.
        qk_norm: each head's queries and keys are normed, with one weight of head_dim for all heads.
        biases: projections of the attention that have a bias: a subset of q, k, v, o.
        tied: whether the family ties head and embedding where config.json does not say.
        window_keys: keys of config.json that limit attention to a window, which is refused.
    """

    name: str
    qk_norm: bool = False
    biases: tuple[str, ...] = ()
    tied: bool = False
    window_keys: tuple[str, ...] = ()

    def biased(self, config: Config) -> tuple[str, ...]:
        """Projections of the attention that have a bias in this model."""
        return self.biases

    def check(self, config: Config, where: str | Path) -> None:
        if config.get("hidden_act", "silu") != "silu":
            raise wrong(where, "hidden_act", config["hidden_act"], "'silu'")
        if config.get("mlp_bias", False):
            raise wrong(where, "mlp_bias", True, "false")
        for key in self.window_keys:
            if config.get(key):
                raise wrong(where, key, config[key], "null or false: attention within a window is not supported")
        if config.get("attention_bias", False) and not self.biased(config):
            raise wrong(where, "attention_bias", True, f"false, as in every {self.name}")
        tied = config.get("tie_word_embeddings", self.tied)
        if not isinstance(tied, bool):
            raise wrong(where, "tie_word_embeddings", tied, "true or false")

    def sizes(self, config: Config, where: str | Path) -> Sizes:
        for key in (*WIDTHS, *COUNTS):
            _check_count(config, key, where)
        if config["num_hidden_layers"] > MOST_LAYERS:
            raise wrong(where, "num_hidden_layers", config["num_hidden_layers"], f"at most {MOST_LAYERS}")
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        if config.get("head_dim") is not None:
            _check_count(config, "head_dim", where)
        elif hidden % heads:
            raise wrong(where, "num_attention_heads", heads, f"a divisor of hidden_size ({hidden}), or a head_dim")
        return Sizes(
            hidden=hidden,
            mlp=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or hidden // heads,
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", self.tied)),
        )

    def tensors(self, config: Config, where: str | Path) -> dict[str, Shape]:
        sizes = self.sizes(config, where)
        out: dict[str, Shape] = {EMBEDDING: (sizes.vocab, sizes.hidden)}
        layer = self._layer(config, sizes)
        for number in range(sizes.layers):
            out |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
        out["model.norm.weight"] = (sizes.hidden,)
        if not sizes.tied:
            out[TIED_HEAD] = (sizes.vocab, sizes.hidden)
        return out

    def _layer(self, config: Config, sizes: Sizes) -> dict[str, Shape]:
        """Name and shape of one layer's tensors, in transformers' order."""
        outputs = {"q": sizes.query_width, "k": sizes.key_width, "v": sizes.key_width, "o": sizes.hidden}
        out: dict[str, Shape] = {}
        for projection, rows in outputs.items():
            columns = sizes.query_width if projection == "o" else sizes.hidden
            out[f"self_attn.{projection}_proj.weight"] = (rows, columns)
            if projection in self.biased(config):
                out[f"self_attn.{projection}_proj.bias"] = (rows,)
        if self.qk_norm:
            out |= {f"self_attn.{one}_norm.weight": (sizes.head_dim,) for one in "qk"}
        out |= {f"mlp.{one}_proj.weight": (sizes.mlp, sizes.hidden) for one in ("gate", "up")}
        out["mlp.down_proj.weight"] = (sizes.hidden, sizes.mlp)
        return out | {f"{one}_layernorm.weight": (sizes.hidden,) for one in ("input", "post_attention")}

    def scale_group(self, tensor: str) -> str | None:
        return projection_group(tensor)

    def layer_extras(self, config: Config, item: int) -> int:
        if not self.qk_norm:
            return 0
        sizes = self.sizes(config, "config.json")
        heads = sizes.heads + sizes.kv_heads
        return heads * sizes.head_dim * (4 + item) + 4 * heads

    def hand_written(self, config: Config) -> bool:
        return True


def tensors_of(config: Config, where: str | Path) -> dict[str, Shape]:
    """Name and shape of each parameter of a config.json's model.

    Raises:
        UsageError: the family is not registered, or a size is missing.
    """
    return architecture_of(config, where).tensors(config, where)


def _check_count(config: Config, key: str, where: str | Path) -> None:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise wrong(where, key, value, "a whole number of at least 1")


def architecture_of(config: Config, where: str | Path) -> Architecture:
    """The family of a config.json.

    Raises:
        UsageError: it names none, or one that is not registered.
    """
    found = config.get("architectures")
    names = ", ".join(sorted(ARCHITECTURES))
    named = found[0] if isinstance(found, list | tuple) and len(found) == 1 else None
    if not isinstance(named, str) or named not in ARCHITECTURES:
        raise wrong(where, "architectures", found, f"one of {names} (a plugin may add a family, see CONTRIBUTING.md)")
    family: Architecture = ARCHITECTURES[named]
    return family
