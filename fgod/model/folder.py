"""Check a Hugging Face folder that is to be the base: everything that would fail hours later, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from fgod.errors import FgodError, UsageError
from fgod.model.chats import token_id
from fgod.model.load import load_tokenizer, read_config
from fgod.model.spec import TURN_END, TURN_START
from fgod.models.architecture import Sizes, architecture_of, tensors_of, wrong
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.codec import BLOCK
from fgod.nvfp4.folders import INDEX, weight_shards
from fgod.system.files import read_json

BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Stored types of weights that training can start from, and their size."""


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
    config, path = checked_config(folder), folder / "config.json"
    family = architecture_of(config, path)
    sizes = family.sizes(config, path)
    headers = checked_weights(folder, config)
    tokenizer = checked_tokenizer(folder, config)
    eos_ids = checked_end_tokens(folder, config, tokenizer)
    counts = [math.prod(h.shape) for h in headers.values()]
    return FolderFacts(
        path=folder,
        architecture=family.name,
        hidden=sizes.hidden,
        layers=sizes.layers,
        mlp=sizes.mlp,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        vocab=sizes.vocab,
        tied=sizes.tied,
        dtypes=tuple(sorted({h.dtype for h in headers.values()})),
        shards=tuple(sorted({h.file.name for h in headers.values()})),
        parameters=sum(counts),
        weight_bytes=sum(n * BYTES[h.dtype] for n, h in zip(counts, headers.values(), strict=True)),
        eos_ids=eos_ids,
        pad_id=token_id(tokenizer, str(tokenizer.pad_token)),
    )


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json of plain weights of a registered family, whose sizes NVFP4 can hold."""
    path = folder / "config.json"
    try:
        config = read_config(folder)
    except FgodError as error:
        raise UsageError(str(error)) from error
    family = architecture_of(config, path)
    if "quantization_config" in config:
        method = (config["quantization_config"] or {}).get("quant_method")
        raise wrong(path, "quantization_config", method, "none: a base holds plain weights")
    family.check(config, path)
    check_sizes(path, config, family.sizes(config, path))
    return config


def check_sizes(path: Path, config: Mapping[str, Any], sizes: Sizes) -> None:
    """The input of every Linear is a multiple of 16: NVFP4 can hold it."""
    heads = "hidden_size" if config.get("head_dim") is None else "num_attention_heads * head_dim"
    inputs = {"hidden_size": sizes.hidden, "intermediate_size": sizes.mlp, heads: sizes.query_width}
    for key, value in inputs.items():
        if value % BLOCK:
            raise wrong(path, key, value, f"a multiple of {BLOCK}: it is the input of a Linear, and NVFP4's block size")


def checked_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorHeader]:
    """Headers by tensor name: every tensor that the config asks for, with its shape and a float type, and no other."""
    headers: dict[str, TensorHeader] = {}
    for file, listed in weight_shards(folder).items():
        found = read_header(file)
        for name in listed or ():
            if name not in found:
                raise wrong(folder / INDEX, name, file.name, "a file that holds this tensor")
        headers |= found
    wanted = tensors_of(config, folder / "config.json")
    allowed = {**wanted, TIED_HEAD: wanted[EMBEDDING]}
    for name in wanted:
        if name not in headers:
            raise UsageError(f"{folder}: the tensor {name} is in none of the weight files, expected by config.json")
    for name, header in headers.items():
        if name not in allowed:
            raise UsageError(f"{header.file}: found the tensor {name}, expected none of this name by config.json")
        if header.shape != allowed[name]:
            raise wrong(header.file, f"shape of {name}", list(header.shape), f"{list(allowed[name])} by config.json")
        if header.dtype not in BYTES:
            raise wrong(header.file, f"type of {name}", header.dtype, f"one of {', '.join(BYTES)}")
    return headers


def read_header(file: Path) -> dict[str, TensorHeader]:
    """Tensors of a safetensors file. Of the file only the header is read.

    Raises:
        UsageError: the file is truncated, damaged, or of another format.
    """
    try:
        with safe_open(file, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            return {
                name: TensorHeader(file, str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()
            }
    except SafetensorError as error:
        expected = f"a whole safetensors file: truncated, or of another format ({error})"
        raise wrong(file, "size", file.stat().st_size, expected) from error


def checked_tokenizer(folder: Path, config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer: it fits the embedding, knows Qwen's turn tokens, and its chat template gives Qwen's shape."""
    tokenizer = load_tokenizer(folder)
    path = folder / "tokenizer.json"
    if len(tokenizer) > config["vocab_size"]:
        raise wrong(path, "tokens", len(tokenizer), f"at most vocab_size = {config['vocab_size']} of config.json")
    for token in (TURN_START, TURN_END):
        ids = tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids) != [token]:
            raise wrong(path, token, ids, "one special token")
    check_template(folder, tokenizer)
    return tokenizer


def check_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The chat template must give a lone question Qwen3-Instruct-2507's shape, without a system message."""
    path = folder / "tokenizer_config.json"
    if not tokenizer.chat_template:
        raise wrong(path, "chat_template", None, "a chat template, here or in chat_template.jinja")
    messages = [{"role": "user", "content": "?"}]
    expected = f"{TURN_START}user\n?{TURN_END}\n{TURN_START}assistant\n"
    try:
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # jinja2 raises many kinds, a template may raise its own
        raise UsageError(f"{path}: chat_template: fails with {error}, expected {expected!r} for '?'") from error
    if found != expected:
        raise wrong(path, "chat_template of '?'", found, repr(expected))


def checked_end_tokens(folder: Path, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's, else config.json's. `<|im_end|>` must be among them."""
    path = folder / "generation_config.json"
    ids = as_ids(read_json(path).get("eos_token_id")) if path.is_file() else ()
    if not ids:
        path, ids = folder / "config.json", as_ids(config.get("eos_token_id"))
    end = token_id(tokenizer, TURN_END)
    if end not in ids:
        raise wrong(path, "eos_token_id", list(ids), f"{end} ({TURN_END}) among them: else answers never end")
    strange = [i for i in ids if not 0 <= i < config["vocab_size"]]
    if strange:
        raise wrong(path, "eos_token_id", strange[0], f"an id below vocab_size = {config['vocab_size']}")
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
        raise wrong(
            folder / "tokenizer_config.json", "pad_token", tokenizer.pad_token, f"a token other than {TURN_END}"
        )
