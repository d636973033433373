"""Small GGUF files of each family, written by the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.tiny_model import tiny_tokenizer

ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "mistral": "llama"}

LEAVES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """A query or key projection as llama.cpp has it: the halves of each head, row by row in turn."""
    out = []
    for head in np.split(rows, heads):
        first, second = np.split(head, 2)
        out += [row for pair in zip(first, second, strict=True) for row in pair]
    return np.stack(out)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    types: Mapping[str, Type] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **changes: Any,
) -> Path:
    """Write a model. `types`: how a tensor is stored, by its GGUF name (float32 otherwise); `changes`: see below.

    Args:
        changes: pre (name of the pre-tokenizer), tensors (added or, None, left out, by name), metadata (the same).
    """
    config: Any = model.config
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.model_type])
    writer.add_name(f"Tiny {config.model_type}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    add_tokenizer(writer, tokenizer or tiny_tokenizer(), changes.get("pre", "qwen2"))
    for key, value in changes.get("metadata", {}).items():
        for fields in writer.kv_data:
            fields.pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    tensors = {**gguf_tensors(model), **changes.get("tensors", {})}
    for name, values in tensors.items():
        if values is not None:
            kind = (types or {}).get(name, Type.F32)
            writer.add_tensor(name, gguf.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The model's tensors as GGUF names and lays them out."""
    config: Any = model.config
    out = {}
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        values = parameter.detach().numpy()
        if config.model_type in ("llama", "mistral") and owner.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if owner.endswith("q_proj") else config.num_key_value_heads
            values = permuted(values, heads)
        number, leaf = owner.removeprefix("model.layers.").partition(".")[::2] if "layers" in owner else ("", owner)
        out[f"{f'blk.{number}.' if number else ''}{LEAVES[leaf]}.{kind}"] = values
    rope = dict(config.rope_parameters)
    if rope.get("rope_type", "default") == "llama3":
        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
        plain = rope["rope_theta"] ** -(np.arange(0, 2 * len(scaled), 2) / (2 * len(scaled)))
        out["rope_freqs.weight"] = plain / scaled
    return out


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, pre: str) -> None:
    """Vocabulary, merges and special tokens of a byte-level BPE."""
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in stored["added_tokens"]}
    spelled = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [spelled.get(i, f"[PAD{i}]") for i in range(304)]
    kinds = [5 if i not in spelled else 1 if i not in added else 3 if added[i]["special"] else 4 for i in range(304)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = stored["model"]["merges"]
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
