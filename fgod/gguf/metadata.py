"""Metadata of a GGUF file: what the model is called and made of, its sizes, and its rotary positions.

Keys are those of llama.cpp (gguf-py/gguf/constants.py); `fgod.importing.gguf_config` is the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, LlamaFileType
from gguf.gguf_writer import GGUFWriter
from numpy.typing import NDArray
from transformers import AutoConfig

from fgod.importing import RECORD
from fgod.importing.gguf_config import FAMILIES, LLAMA3, MISTRAL, QWEN2_AS_LLAMA, Family, llama3_factors
from fgod.layout import RunWeights
from fgod.models.architecture import Sizes, wrong
from fgod.system.files import read_json

NO_4_BIT_ACTIVATIONS = "general.tensor_extra.prec_a4"
TENSORS = "general.tensor_extra.name"
"""Which tensors the values of general.tensor_extra are about. A llama.cpp that does not know the keys ignores them."""


def gguf_family(config: Mapping[str, Any], where: Path, scaled: bool) -> tuple[str, Family]:
    """`general.architecture` of a config.json's model, and its family.

    llama.cpp's qwen2 multiplies nothing by the scales of the feed-forward projections, its llama does: there a Qwen2
    with scales is a llama, which is the same network with its biases.

    Args:
        scaled: weights have tensor scales.

    Raises:
        UsageError: llama.cpp has none that this package writes.
    """
    found = config["architectures"][0]
    known = {family.architecture: (name, family) for name, family in FAMILIES.items()}
    known[MISTRAL.architecture] = ("llama", MISTRAL)
    if scaled:
        known[QWEN2_AS_LLAMA.architecture] = ("llama", QWEN2_AS_LLAMA)
    if found not in known:
        raise wrong(where, "architectures", found, f"one of {', '.join(known)}: no other is written as GGUF")
    return known[found]


def rope_factors(config: Mapping[str, Any], sizes: Sizes, family: Family, where: Path) -> NDArray[np.float32] | None:
    """By what rotary frequencies are divided [head_dim / 2]; None: they are as their base has them.

    Raises:
        UsageError: they are scaled in a way that llama.cpp does not compute of such a tensor.
    """
    rope = _complete(config).rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind == "llama3" and family.permuted:
        return llama3_factors(sizes.head_dim, rope["rope_theta"], {key: rope[key] for key in ("factor", *LLAMA3)})
    raise wrong(where, "rope_type", kind, "'default', or 'llama3' in a Llama or Mistral")


def _complete(config: Mapping[str, Any]) -> Any:
    """transformers' config, with its defaults, and rotary positions in one form."""
    known = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    return AutoConfig.for_model(config["model_type"], **known)


def add_model(writer: GGUFWriter, config: Mapping[str, Any], sizes: Sizes) -> None:
    """The model's sizes and constants."""
    whole = _complete(config)
    writer.add_context_length(whole.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.mlp)
    writer.add_block_count(sizes.layers)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(whole.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(whole.rms_norm_eps)
    writer.add_vocab_size(sizes.vocab)


def add_origin(writer: GGUFWriter, master: Path, family: Family, file_type: LlamaFileType) -> None:
    """What the model is called and comes from: its run, as artifacts/{stage}/{lineage}/ has it, and what was imported.

    The name of a run's model is made of stage and lineage; of other weights it is that on record where they were
    imported, or the folder's.
    """
    run = RunWeights(master.resolve().parent)
    record = read_json(master / RECORD) if (master / RECORD).is_file() else {}
    known, license_ = str(record.get("name") or record.get("source") or ""), str(record.get("license") or "")
    writer.add_type("model")
    if run.trained.is_file() and run.master == master.resolve():
        lineage, stage = run.folder.name, run.folder.parent.name
        writer.add_name(f"fgod {stage} {lineage}")
        writer.add_string("fgod.stage", stage)
        writer.add_string("fgod.lineage", lineage)
        if known:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, known)
    else:
        writer.add_name(known or master.resolve().name)
    if family is MISTRAL:
        writer.add_basename("Mistral")  # llama.cpp calls it a llama too
    writer.add_license(license_)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def add_tokenizer(writer: GGUFWriter, keys: Mapping[str, Any], template: str) -> None:
    """The keys of `fgod.gguf.tokens`, and the chat template."""
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.add_chat_template(template)


def add_activations(writer: GGUFWriter, names: list[str]) -> None:
    """Say that activations stay as they are where these tensors are multiplied with, which was so in training. GPUs
    with FP4 matrix products would round them to 4 bits."""
    writer.add_array(TENSORS, names)
    writer.add_array(NO_4_BIT_ACTIVATIONS, [False] * len(names))
