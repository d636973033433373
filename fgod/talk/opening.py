"""Folders and files as models to talk to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from fgod.chat import ChatSettings
from fgod.errors import UsageError
from fgod.layout import RunWeights
from fgod.model import memory
from fgod.model.chats import ChatFormat
from fgod.model.load import load_model, read_config
from fgod.models.files import CONFIG
from fgod.nvfp4.folders import DTYPES, read_plain_config, stored_block_scales
from fgod.nvfp4.layers import prepare, quantised_once
from fgod.talk.session import MOST_TOKENS

Kind = Literal["stored", "training"]
"""How weights compute: as they are stored, or as the training forward does, through NVFP4 rounding."""


@dataclass(frozen=True)
class Opened:
    """A model that is loaded, with its chat format and the length of its context in tokens."""

    name: str
    model: PreTrainedModel
    chat: ChatFormat
    context: int


def check_place(folder: Path) -> dict[str, Any]:
    """The config.json of a folder that is to be opened.

    Raises:
        UsageError: there is no such folder, or it is none of a model; names the model's folders inside it.
    """
    if not folder.exists():
        raise UsageError(f"{folder}: no such folder or file, expected a model folder, a .gguf or a .dat file")
    if not (folder / CONFIG).is_file():
        run = RunWeights(folder)
        inside = [str(one) for one in (run.exported, run.master) if (one / CONFIG).is_file()]
        hint = f": {' or '.join(inside)}?" if inside else ""
        raise UsageError(f"{folder}: found no config.json, expected a model folder{hint}")
    return read_config(folder)


def context_of(folder: Path, config: Mapping[str, Any]) -> int:
    """Tokens that a model was made for.

    Raises:
        UsageError: its config.json does not say.
    """
    found = config.get("max_position_embeddings")
    if not isinstance(found, int) or found < 2:
        raise UsageError(f"{folder / CONFIG}: max_position_embeddings: found {found!r}, expected a whole number")
    return found


def stored_dtype(folder: Path, config: Mapping[str, Any]) -> torch.dtype:
    """What weights are in memory: as config.json says; float16 becomes BF16, which has float32's range.

    Raises:
        UsageError: config.json names another type.
    """
    found = config.get("dtype", config.get("torch_dtype", "float32"))
    if found == "float16":
        return torch.bfloat16
    if found not in DTYPES:
        raise UsageError(f"{folder / CONFIG}: dtype: found {found!r}, expected one of float16, {', '.join(DTYPES)}")
    return DTYPES[found]


def predicted(folder: Path, kind: Kind, tokens: int, process: int, gpu: bool) -> memory.Parts:
    """What loading a folder and a conversation of so many tokens will need at its widest (bytes by part)."""
    config = check_place(folder)
    model = memory.stored(folder)
    dtype = str(stored_dtype(folder, config)).removeprefix("torch.")
    dimensions = memory.Dimensions.from_config(config, str(folder / CONFIG))
    tokens = min(tokens, context_of(folder, config))
    width = min(tokens, MOST_TOKENS)
    asked = memory.Asked(width, tokens - width)
    parts = memory.widest(
        memory.predict_loading(model, dtype, process, gpu),
        memory.predict_answers(model, dimensions, dtype, asked, 1, process, gpu),
    )
    if kind == "training":  # the masters, and once what they round to
        parts |= {"rounded weights": parts["weights"], "weights": model.weights * 4}
    return parts


def open_model(folder: Path, kind: Kind, device: str, settings: ChatSettings, name: str = "") -> Opened:
    """Load a folder to talk to it.

    Args:
        kind: "training" is for folders of plain weights alone.
        name: what messages call it; the folder by default.

    Raises:
        UsageError: the folder, its weights, tokenizer or chat template are missing or broken; or an export was to
            compute as the training forward does.
    """
    config = check_place(folder)
    context = context_of(folder, config)
    chat = ChatFormat.of_folder(folder, settings)
    dtype = stored_dtype(folder, config)
    if kind == "stored":
        model = load_model(folder, dtype, device)
    else:
        plain = read_plain_config(folder)
        model = load_model(folder, torch.float32, device)
        quantised_once(prepare(model, dtype, stored_block_scales(folder, plain)))
    return Opened(name or str(folder), model, chat, context)


def bytes_a_token(model: PreTrainedModel, cached: int, rows: int = 1) -> int:
    """Bytes that a token of each of some rows reads at least: the weights once, but of an embedding that is not the
    head too one line a row, and each row's cache.

    Args:
        cached: tokens in the cache of a row.
    """
    config = model.config.get_text_config()
    dimensions = memory.Dimensions.from_config(config.to_dict(), "config.json")
    item = model.dtype.itemsize
    line = dimensions.hidden * item
    table = 0 if config.tie_word_embeddings else dimensions.vocab * line
    cache = 2 * dimensions.layers * dimensions.kv_heads * dimensions.head_dim * item * cached
    return sum(parameter.nbytes for parameter in model.parameters()) - table + rows * (line + cache)
