"""Check a Hugging Face folder that is to be the base: everything that would fail hours later, from headers alone."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from fgod.errors import FgodError, UsageError
from fgod.model.chats import token_id
from fgod.model.load import load_tokenizer, read_config
from fgod.model.tokenizer import TURN_END, TURN_START
from fgod.system.files import read_json

ARCHITECTURE = "Qwen3ForCausalLM"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BLOCK = 16
"""NVFP4 shares a scale among 16 weights along the input dimension."""
BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Stored types of weights that training can start from, and their size."""
HEADER_LIMIT = 100_000_000
"""Largest header in bytes that safetensors itself accepts."""


@dataclass(frozen=True)
class TensorHeader:
    """One tensor as a safetensors header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FolderFacts:
    """What a checked folder holds. `dtypes` are the stored ones; `weight_bytes` the size of all tensors."""

    path: Path
    architecture: str
    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    dtypes: tuple[str, ...]
    shards: tuple[str, ...]
    parameters: int
    weight_bytes: int
    eos_ids: tuple[int, ...]
    pad_id: int


def check_folder(folder: Path) -> FolderFacts:
    """Check that a folder can be the base. Reads configs, tokenizer and weight headers; writes nothing.

    Raises:
        UsageError: naming the file, what was found and what was expected.
    """
    config = checked_config(folder)
    headers = checked_weights(folder, config)
    tokenizer = checked_tokenizer(folder, config)
    eos_ids = checked_end_tokens(folder, config, tokenizer)
    sizes = [math.prod(h.shape) for h in headers.values()]
    return FolderFacts(
        path=folder,
        architecture=ARCHITECTURE,
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        mlp=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab=config["vocab_size"],
        tied=config["tie_word_embeddings"],
        dtypes=tuple(sorted({h.dtype for h in headers.values()})),
        shards=tuple(sorted({h.file.name for h in headers.values()})),
        parameters=sum(sizes),
        weight_bytes=sum(n * BYTES[h.dtype] for n, h in zip(sizes, headers.values(), strict=True)),
        eos_ids=eos_ids,
        pad_id=token_id(tokenizer, str(tokenizer.pad_token)),
    )


def fail(path: Path, key: str, found: object, expected: str) -> UsageError:
    """The error for a wrong value."""
    return UsageError(f"{path}: {key}: found {found!r}, expected {expected}")


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json of a plain Qwen3 whose sizes NVFP4 can hold."""
    path = folder / "config.json"
    try:
        config = read_config(folder)
    except FgodError as error:
        raise UsageError(str(error)) from error
    architectures = config.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise fail(path, "architectures", architectures, f"[{ARCHITECTURE!r}]")
    if "quantization_config" in config:
        method = (config["quantization_config"] or {}).get("quant_method")
        raise fail(path, "quantization_config", method, "none: a base holds plain weights")
    if config.get("attention_bias", False):
        raise fail(path, "attention_bias", True, "false, as in every Qwen3")
    config.setdefault("tie_word_embeddings", False)
    if not isinstance(config["tie_word_embeddings"], bool):
        raise fail(path, "tie_word_embeddings", config["tie_word_embeddings"], "true or false")
    check_sizes(path, config)
    return config


def check_sizes(path: Path, config: Mapping[str, Any]) -> None:
    """Sizes are whole numbers, and the input of every Linear is a multiple of 16."""
    counts = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    for key in ("hidden_size", "intermediate_size", "head_dim", *counts):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise fail(path, key, value, "a whole number of at least 1")
    attention = config["num_attention_heads"] * config["head_dim"]
    inputs = {
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_attention_heads * head_dim": attention,
    }
    for key, value in inputs.items():
        if value % BLOCK:
            raise fail(path, key, value, f"a multiple of {BLOCK}: it is the input of a Linear, and NVFP4's block size")


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Qwen3's tensors. A tied model need not store `lm_head.weight`."""
    hidden, mlp, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        tensors |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (config["vocab_size"], hidden)
    return tensors


def checked_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorHeader]:
    """Headers by tensor name: every tensor that the config asks for, with its shape and a float type, and no other."""
    headers: dict[str, TensorHeader] = {}
    for file, listed in weight_shards(folder).items():
        found = read_header(file)
        for name in listed or ():
            if name not in found:
                raise fail(folder / INDEX, name, file.name, "a file that holds this tensor")
        headers |= found
    wanted = expected_tensors(config)
    allowed = {**wanted, "lm_head.weight": wanted["model.embed_tokens.weight"]}
    for name in wanted:
        if name not in headers:
            raise UsageError(f"{folder}: the tensor {name} is in none of the weight files, expected by config.json")
    for name, header in headers.items():
        if name not in allowed:
            raise UsageError(f"{header.file}: found the tensor {name}, expected none of this name in a Qwen3")
        if header.shape != allowed[name]:
            raise fail(header.file, f"shape of {name}", list(header.shape), f"{list(allowed[name])} by config.json")
        if header.dtype not in BYTES:
            raise fail(header.file, f"type of {name}", header.dtype, f"one of {', '.join(BYTES)}")
    return headers


def weight_shards(folder: Path) -> dict[Path, list[str] | None]:
    """Weight files with the tensors that the index puts there; None for a single file without an index."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise UsageError(f"{folder}: found no weights, expected {SINGLE} or {INDEX} with its shards")
        return {folder / SINGLE: None}
    try:
        weight_map = read_json(index)["weight_map"]
        places = [(folder / str(shard), str(name)) for name, shard in weight_map.items()]
    except (FgodError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index}: found no usable weight_map ({error}), expected tensor names with files") from error
    shards: dict[Path, list[str] | None] = {}
    for file, name in places:
        if not file.is_file():
            raise fail(index, name, file.name, "a file of the folder: this shard is missing")
        listed = shards.setdefault(file, [])
        assert listed is not None
        listed.append(name)
    return shards


def read_header(file: Path) -> dict[str, TensorHeader]:
    """Tensors of a safetensors file, from its header: 8 bytes of length (little-endian), then JSON.

    The data is not read, but its extent must be the file's.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else HEADER_LIMIT + 1
        if length > min(size - 8, HEADER_LIMIT):
            raise fail(file, "size", size, "a safetensors file with its whole header: truncated, or of another format")
        text = stream.read(length)
    try:
        entries = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
        end = max((int(e["data_offsets"][1]) for e in entries.values()), default=0)
        tensors = {k: TensorHeader(file, str(e["dtype"]), tuple(map(int, e["shape"]))) for k, e in entries.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UsageError(f"{file}: found a header that is not safetensors' JSON ({error}), expected tensors") from error
    if size != 8 + length + end:
        raise fail(file, "size", size, f"{8 + length + end} bytes by its header: truncated or damaged")
    return tensors


def checked_tokenizer(folder: Path, config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer: it fits the embedding, knows Qwen's turn tokens, and its chat template gives Qwen's shape."""
    tokenizer = load_tokenizer(folder)
    path = folder / "tokenizer.json"
    if len(tokenizer) > config["vocab_size"]:
        raise fail(path, "tokens", len(tokenizer), f"at most vocab_size = {config['vocab_size']} of config.json")
    for token in (TURN_START, TURN_END):
        ids = tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids) != [token]:
            raise fail(path, token, ids, "one special token")
    check_template(folder, tokenizer)
    return tokenizer


def check_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The chat template must give a lone question Qwen3-Instruct-2507's shape, without a system message."""
    path = folder / "tokenizer_config.json"
    if not tokenizer.chat_template:
        raise fail(path, "chat_template", None, "a chat template, here or in chat_template.jinja")
    messages = [{"role": "user", "content": "?"}]
    expected = f"{TURN_START}user\n?{TURN_END}\n{TURN_START}assistant\n"
    try:
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # jinja2 raises many kinds, a template may raise its own
        raise UsageError(f"{path}: chat_template: fails with {error}, expected {expected!r} for '?'") from error
    if found != expected:
        raise fail(path, "chat_template of '?'", found, repr(expected))


def checked_end_tokens(folder: Path, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's, else config.json's. `<|im_end|>` must be among them."""
    path = folder / "generation_config.json"
    ids = as_ids(read_json(path).get("eos_token_id")) if path.is_file() else ()
    if not ids:
        path, ids = folder / "config.json", as_ids(config.get("eos_token_id"))
    end = token_id(tokenizer, TURN_END)
    if end not in ids:
        raise fail(path, "eos_token_id", list(ids), f"{end} ({TURN_END}) among them: else answers never end")
    strange = [i for i in ids if not 0 <= i < config["vocab_size"]]
    if strange:
        raise fail(path, "eos_token_id", strange[0], f"an id below vocab_size = {config['vocab_size']}")
    check_pad(folder, tokenizer)
    return ids


def as_ids(value: Any) -> tuple[int, ...]:
    """An eos_token_id as ids: config files hold one, a list or none."""
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),)


def check_pad(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """There must be a pad token, other than `<|im_end|>`: a padded batch must not read as ended answers."""
    if tokenizer.pad_token is None or tokenizer.pad_token == TURN_END:
        raise fail(folder / "tokenizer_config.json", "pad_token", tokenizer.pad_token, f"a token other than {TURN_END}")
