"""config.json, names of tensors and their layout from a GGUF file's metadata. Pure.

Keys are those of llama.cpp (gguf-py/gguf/constants.py), names of tensors those of its tensor_mapping.py. What these
do not say, and what would be computed wrongly, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgod.errors import UsageError, did_you_mean
from fgod.importing.gguf_file import SCALE, WEIGHT, GgufFile
from fgod.models.architecture import Sizes, wrong
from fgod.models.names import EMBEDDING, TIED_HEAD

TABLE = "token_embd.weight"
HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
"""By what the frequencies of rotary positions are divided, where they are scaled as Llama 3.1's."""

LEAVES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
"""Of a layer: transformers' names and GGUF's."""

PROJECTIONS = tuple(ours for theirs, ours in LEAVES.items() if theirs.endswith("_proj"))
"""Of a layer: GGUF's names of what llama.cpp multiplies by a scale, where the file has one."""

INPUT_SCALE = ".input_scale"
"""End of the name of what activations are scaled by before they are quantised: weights do not depend on it."""


@dataclass(frozen=True)
class Family:
    """How a `general.architecture` of GGUF is called in transformers.

    Args:
        permuted: llama.cpp has the rows of the query and key projections in another order (see `unpermuted`).
    """

    architecture: str
    model_type: str
    permuted: bool = False


FAMILIES = {
    "qwen2": Family("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3"),
    "llama": Family("LlamaForCausalLM", "llama", permuted=True),
}
"""Mistral's and SmolLM2's files say llama: they are Llama's network."""

MISTRAL = Family("MistralForCausalLM", "mistral", permuted=True)

QWEN2_AS_LLAMA = Family("Qwen2ForCausalLM", "qwen2", permuted=True)
"""A llama with biases of the queries, keys and values, and none of the attention's output: Qwen2's network."""


def family_of(file: GgufFile) -> Family:
    """The family of a file.

    Raises:
        UsageError: the file names none, or one that is not read.
    """
    found = file.metadata.get("general.architecture")
    if found not in FAMILIES:
        hint = did_you_mean(str(found), FAMILIES)
        raise wrong(file.path, "general.architecture", found, f"one of {', '.join(FAMILIES)}{hint}")
    if found == "llama" and "blk.0.attn_q.bias" in file.tensors and "blk.0.attn_output.bias" not in file.tensors:
        return QWEN2_AS_LLAMA
    names = (str(file.metadata.get(key, "")).lower() for key in ("general.name", "general.basename"))
    return MISTRAL if found == "llama" and any("mistral" in name for name in names) else FAMILIES[found]


def config_of(file: GgufFile, tied: bool) -> dict[str, Any]:
    """config.json of a file's model, without its tokens.

    Args:
        tied: head and embedding are one tensor.

    Raises:
        UsageError: the family is not read, a key is missing, or the network differs from the family's.
    """
    family, keys = family_of(file), _Keys(file)
    keys.check()
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", keys.count("rope.dimension_count", hidden // heads))
    if TABLE not in file.tensors:
        raise UsageError(f"{file.path}: the tensor {TABLE} is missing: this file holds no whole model")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": keys.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "vocab_size": file.tensors[TABLE].shape[0],
        "max_position_embeddings": keys.count("context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(file, head_dim, keys.number("rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
    }
    if head_dim * heads != hidden or family.model_type == "qwen3":
        config["head_dim"] = head_dim
    if family.model_type == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": False}
    if family.model_type == "mistral":
        config["sliding_window"] = None
    return config


class _Keys:
    """Metadata of a file's own architecture: `qwen2.block_count`."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.prefix = file, file.metadata["general.architecture"]

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.prefix}.{key}")

    def wrong(self, key: str, found: object, expected: str) -> UsageError:
        return wrong(self.file.path, f"{self.prefix}.{key}", found, expected)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.get(key) if self.get(key) is not None else default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, value, "a whole number of at least 1, the same for all layers")
        return value

    def layers(self) -> int:
        """Layers: never more than the file has tensors, so that a damaged number is not believed."""
        value, most = self.count("block_count"), len(self.file.tensors)
        if value > most:
            raise self.wrong("block_count", value, f"at most {most}, as many as the file has tensors: it is damaged")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key) if self.get(key) is not None else default
        if not isinstance(value, float) or not value > 0:
            raise self.wrong(key, value, "a number above 0")
        return value

    def check(self) -> None:
        """Refuse networks that these families' layers do not compute."""
        if self.get("expert_count"):
            raise self.wrong("expert_count", self.get("expert_count"), "none: a mixture of experts is not supported")
        window, context = self.get("attention.sliding_window"), self.get("context_length")
        if window and context and window < context:
            raise self.wrong("attention.sliding_window", window, "none: attention within a window is not supported")
        scaling = self.get("rope.scaling.type")
        if scaling not in (None, "none"):
            raise self.wrong("rope.scaling.type", scaling, "none, or Llama 3's, which is in the tensor rope_freqs")
        key, value = self.get("attention.key_length"), self.get("attention.value_length")
        if key != value:
            raise self.wrong("attention.value_length", value, f"as attention.key_length: {key}")
        rotated = self.get("rope.dimension_count")
        if key and rotated and key != rotated:
            raise self.wrong("rope.dimension_count", rotated, f"{key}: positions are rotated in whole heads")


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all releases of Llama 3.1 to 3.3 say; a GGUF file holds only the factors that come of it."""


def rope_parameters(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any]:
    """config.json's `rope_parameters`.

    Raises:
        UsageError: the frequencies are scaled otherwise than those of Llama 3.
    """
    if ROPE_FACTORS not in file.tensors:
        return {"rope_type": "default", "rope_theta": theta}
    found = file.read(ROPE_FACTORS)
    factor = _shortest_factor(found)
    expected = llama3_factors(head_dim, theta, {**LLAMA3, "factor": factor})
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise UsageError(
            f"{file.path}: {ROPE_FACTORS}: found factors up to {found.max():g} that are not Llama 3's, expected the "
            f"scaling of Llama 3.1 to 3.3 ({', '.join(f'{key} {value:g}' for key, value in LLAMA3.items())})"
        )
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **LLAMA3}


def _shortest_factor(found: NDArray[np.float32]) -> float:
    return float(str(found.max()))


def llama3_factors(head_dim: int, theta: float, scaling: Mapping[str, float]) -> NDArray[np.float32]:
    """By what each rotary frequency is divided [head_dim / 2]: 1 for short waves, the factor for long ones, smooth
    between.

    The formula is of Llama 3.1's reference code (apply_scaling in llama_models/llama3/reference_impl/model.py).

    Args:
        scaling: `factor`, and what `LLAMA3` has.
    """
    low, high, original, factor = (
        scaling[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "factor")
    )
    waves = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor of transformers."""
    whole = {EMBEDDING: TABLE, TIED_HEAD: HEAD, "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    leaf, _, kind = rest.rpartition(".")
    return f"blk.{number}.{LEAVES[leaf]}.{kind}"


def unpermuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection (or its bias) in transformers' order.

    Rotary positions turn pairs of rows of each head: neighbours (2i, 2i + 1) in llama.cpp's llama, rows that are half a
    head apart (i, i + D/2) in transformers. conversion/llama.py of llama.cpp, `permute`, has the other direction.
    """
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def permuted_rows(rows: int, heads: int) -> NDArray[np.int64]:
    """Which of transformers' rows stand where in llama.cpp's order [rows]: the inverse of `unpermuted`."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def heads_of_rows(name: str, sizes: Sizes) -> int | None:
    """Heads whose rows llama.cpp permutes in a tensor of transformers' name; None: it does not."""
    leaf = name.rpartition(".")[0].rpartition(".")[2]
    return {"q_proj": sizes.heads, "k_proj": sizes.kv_heads}.get(leaf)


def same_table(file: GgufFile) -> bool:
    """Whether a file stores the table of a tied model twice, in two types; two tables differ by more than their size.

    Compared are some thousand rows.
    """
    first, second = file.tensors[TABLE], file.tensors[HEAD]
    if first.shape != second.shape:
        return False
    some = slice(None, None, max(1, first.shape[0] // 4096))
    one, other = file.read(TABLE, some), file.read(HEAD, some)
    return bool(np.linalg.norm(one - other) < 0.5 * np.linalg.norm(one))


def sources_of(names: Mapping[str, Any], file: GgufFile, tied: bool) -> dict[str, str]:
    """GGUF's tensor for each of transformers' names; for a tied table that is stored twice the finer of both.

    Raises:
        UsageError: one is missing, or the file holds a tensor that the family has no place for.
    """
    found = {name: gguf_name(name) for name in names}
    if tied and HEAD in file.tensors:
        found[EMBEDDING] = max(HEAD, TABLE, key=lambda name: file.tensors[name].bits)
    for name in found.values():
        if name not in file.tensors:
            raise UsageError(f"{file.path}: the tensor {name} is missing: this file holds no whole model")
    strange = file.tensors.keys() - found.values() - scales_of(found.values()) - {ROPE_FACTORS, TABLE, HEAD}
    for name in sorted(strange):
        raise UsageError(f"{file.path}: found the tensor {name}, expected none of this name in a model of this family")
    return found


def scales_of(names: Iterable[str]) -> set[str]:
    """The tensors that may stand beside weights of these GGUF names: scales of the projections and of the head."""
    scaled = [
        name.removesuffix(WEIGHT)
        for name in names
        if name == HEAD or (name.endswith(WEIGHT) and name.split(".")[-2] in PROJECTIONS)
    ]
    return {f"{name}{end}" for name in scaled for end in (SCALE, INPUT_SCALE)}
