"""Turn a TorchSharp state dict into a folder of plain weights that can be a base.

    fgod import FILE.dat OUT --like FOLDER       OUT/config.json, model.safetensors, tokenizer.json, …, import.json

The file holds weights alone. Config, tokenizer and chat template are those of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgod.chat import ChatSettings
from fgod.dat.file import DatFile, read_dat
from fgod.dat.weights import Stored, element_counts, read_weight, stored_weights
from fgod.errors import UsageError
from fgod.importing import RECORD
from fgod.model.folder import FolderFacts, check_folder, check_sizes, checked_chat
from fgod.model.load import read_config
from fgod.models.architecture import architecture_of
from fgod.models.files import CONFIG
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, DTYPES, copy_side_files, described, write_config, write_weights
from fgod.system.files import atomic_folder, sha256_file, write_json


def import_dat(
    path: Path,
    out: Path,
    like: Path | None = None,
    dtype: str = "float32",
    chat: ChatSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
    beat: Callable[[], None] = lambda: None,
) -> FolderFacts:
    """Write a file's weights as a Hugging Face folder. `out` appears whole, and passes as a base.

    Where the config says that the head is the embedding, and the file has a head of other numbers, the written config
    says that they are two. One tensor is in memory, or head and embedding. `beat` is called for
    each tensor.

    Args:
        like: the folder with config.json and the tokenizer; its weights are not read. None: where the file lies.
        dtype: of the weights: float32 (default), which rounds nothing that was decoded, or bfloat16.
        chat: the config's `chat`, with which it has to be askable.

    Raises:
        UsageError: the file is damaged, its tensors are not those of the config, or the folder cannot be a base's.
        BadScaleError: a scale is negative or not finite; names the byte.
    """
    like = like_of(path, like)
    file = read_dat(path)
    stored = stored_weights(file)
    config = _config(like, stored, file)
    names = architecture_of(config, like / CONFIG).tensors(config, like / CONFIG)
    _check_names(names, stored, file, like)
    checked_chat(like, config, chat or ChatSettings())
    kind = DTYPES[dtype]

    def planned(name: str) -> dict[str, Tensor]:
        return {name: described(names[name], kind)}

    def made(name: str) -> dict[str, Tensor]:
        beat()
        return {name: read_weight(file, stored[name], kind)}

    say(f"import · {path} · {sum(map(prod, names.values())):,} parameters")
    with atomic_folder(out) as folder:
        write_weights(folder, list(names), planned, made, DEVICE_SHARD_BYTES)
        copy_side_files(like, folder)
        write_config(folder, config, dtype)
        write_json(folder / RECORD, _record(file, like, names, stored, dtype))
        return check_folder(folder, chat)


def like_of(path: Path, like: Path | None) -> Path:
    """The folder with a file's config and tokenizer; by default that where it lies.

    Raises:
        UsageError: there is no config.json.
    """
    folder = like or path.parent
    if not (folder / CONFIG).is_file():
        raise UsageError(
            f"{folder}: found no config.json; {path} holds weights alone: expected --like FOLDER, a Hugging Face "
            "folder of this model with config.json and tokenizer"
        )
    return folder


def _config(like: Path, stored: Mapping[str, Stored], file: DatFile) -> dict[str, Any]:
    """The folder's config.json, as one of plain weights that are tied only if the file's are."""
    where = like / CONFIG
    config = {key: value for key, value in read_config(like).items() if key != "quantization_config"}
    family = architecture_of(config, where)
    family.check(config, where)
    sizes = family.sizes(config, where)
    check_sizes(where, config, sizes)
    if sizes.tied and TIED_HEAD in stored and EMBEDDING in stored and not _same(file, stored):
        return {**config, "tie_word_embeddings": False}
    return config


def _same(file: DatFile, stored: Mapping[str, Stored]) -> bool:
    """Whether head and embedding are the same numbers."""
    head, table = stored[TIED_HEAD], stored[EMBEDDING]
    return head.shape == table.shape and torch.equal(read_weight(file, head), read_weight(file, table))


def _check_names(names: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], file: DatFile, like: Path) -> None:
    by = f"by {like / CONFIG}"
    for name, shape in names.items():
        if name not in stored:
            raise UsageError(f"{file.path}: the tensor {name} is missing, expected {by}")
        found = stored[name]
        if found.shape != shape:
            said = f"shape of {name}: found {list(found.shape)}, expected {list(shape)} {by}"
            raise file.wrong(found.data.at, said)
    for name, found in stored.items():
        if name not in names and name != TIED_HEAD:
            raise file.wrong(found.data.at, f"found the tensor {name}, expected none of this name {by}")


def _record(
    file: DatFile, like: Path, names: Mapping[str, object], stored: Mapping[str, Stored], dtype: str
) -> dict[str, Any]:
    return {
        "source": file.path.name,
        "sha256": sha256_file(file.path),
        "bytes": file.size,
        "like": like.name,
        "types": element_counts(file),
        "quantised": sum(one.scale is not None for one in stored.values()),
        "head_of_its_own": TIED_HEAD in names,
        "dtype": dtype,
    }
