"""Check a Hugging Face folder that is to be the base: everything that would fail hours later, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fgod.chat import ChatSettings
from fgod.errors import FgodError, UsageError
from fgod.exporters.exporter import exporter_of
from fgod.model.chats import ChatFormat, stored_end_ids
from fgod.model.load import read_config
from fgod.models.architecture import Sizes, architecture_of, tensors_of, wrong
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.codec import BLOCK
from fgod.nvfp4.folders import INDEX, weight_shards

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


def check_folder(folder: Path, settings: ChatSettings | None = None) -> FolderFacts:
    """Check that a folder can be the base. Reads configs, tokenizer and weight headers; writes nothing.

    Args:
        settings: the config's `chat`.

    Raises:
        UsageError: naming the file, what was found and what was expected.
    """
    config, path = checked_config(folder), folder / "config.json"
    family = architecture_of(config, path)
    sizes = family.sizes(config, path)
    headers = checked_weights(folder, config)
    chat = checked_chat(folder, config, settings or ChatSettings())
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
        eos_ids=chat.end_ids,
        pad_id=chat.pad_id,
    )


def checked_config(folder: Path, export_ok: bool = False) -> dict[str, Any]:
    """config.json of plain weights of a registered family, whose sizes NVFP4 can hold.

    Args:
        export_ok: an export is accepted too.
    """
    path = folder / "config.json"
    try:
        config = read_config(folder)
    except FgodError as error:
        raise UsageError(str(error)) from error
    family = architecture_of(config, path)
    if "quantization_config" in config and not (export_ok and exporter_of(config)):
        method = (config["quantization_config"] or {}).get("quant_method")
        expected = "none: a base holds plain weights; take the model's own release in BF16, or a GGUF file of it"
        raise wrong(path, "quantization_config", method, expected)
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


def checked_chat(folder: Path, config: Mapping[str, Any], settings: ChatSettings) -> ChatFormat:
    """The tokenizer with its chat template: it fits the embedding, and a chat of one turn is written, asked and ended.

    Raises:
        UsageError: naming the file; or `chat.system`, where the template takes no such system prompt.
    """
    chat, vocab = ChatFormat.of_folder(folder, settings), config["vocab_size"]
    if len(chat.tokenizer) > vocab:
        raise wrong(
            folder / "tokenizer.json", "tokens", len(chat.tokenizer), f"at most vocab_size = {vocab} of config.json"
        )
    highest = max(chat.tokenizer.get_vocab().values(), default=0)
    if highest >= vocab:
        raise wrong(folder / "tokenizer.json", "the id of a token", highest, f"ids below vocab_size = {vocab}")
    path, ends = stored_end_ids(folder)
    for token in ends:
        if not 0 <= token < vocab:
            raise wrong(path, "eos_token_id", token, f"an id below vocab_size = {vocab}")
    chat.check()
    return chat
