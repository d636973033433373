"""Turn a GGUF file into a folder of plain weights that can be a base.

fgod import FILE.gguf OUT        OUT/config.json, model.safetensors, tokenizer.json, …, import.json
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from fgod.chat import ChatSettings
from fgod.errors import UsageError
from fgod.importing import RECORD
from fgod.importing.gguf_config import HEAD, TABLE, config_of, same_table
from fgod.importing.gguf_file import read_gguf
from fgod.importing.gguf_tokenizer import GgufTokenizer, tokenizer_of
from fgod.importing.gguf_weights import GgufModel, model_of
from fgod.model.folder import FolderFacts, check_folder
from fgod.model.load import quiet
from fgod.models.names import EMBEDDING
from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, DTYPES, described, write_weights
from fgod.system.files import atomic_folder, sha256_file, write_json


def import_gguf(
    path: Path,
    out: Path,
    dtype: str = "bfloat16",
    chat: ChatSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
    beat: Callable[[], None] = lambda: None,
) -> FolderFacts:
    """Write a GGUF file's model as a Hugging Face folder. `out` appears whole, and passes as a base.

    One tensor in float32 is in memory. `beat` is called for each tensor.

    Args:
        dtype: of the weights: bfloat16 (default) or float32, which rounds nothing that was decoded.
        chat: the config's `chat`, with which it has to be askable.

    Raises:
        UsageError: the file is damaged, or holds what cannot be read (see `fgod.importing`).
    """
    file = read_gguf(path)
    tied = HEAD not in file.tensors or (TABLE in file.tensors and same_table(file))
    config, tokens = config_of(file, tied), tokenizer_of(file.metadata, path, chat)
    model, kind = model_of(file, config, path, tied), DTYPES[dtype]
    names = model.shapes

    def planned(name: str) -> dict[str, Tensor]:
        return {name: described(names[name], kind)}

    def made(name: str) -> dict[str, Tensor]:
        beat()
        return {name: torch.from_numpy(model.read(name)).to(kind)}

    say(f"import · {path} · {sum(map(prod, names.values())):,} parameters")
    with atomic_folder(out) as folder:
        write_weights(folder, list(names), planned, made, DEVICE_SHARD_BYTES)
        _write_tokens(folder, config, tokens, dtype)
        write_json(folder / RECORD, _record(model, tied, dtype))
        facts = _checked(folder, path, chat)
    return facts


def _write_tokens(folder: Path, config: Mapping[str, Any], tokens: GgufTokenizer, dtype: str) -> None:
    fast = tokens.tokenizer
    begin: dict[str, Any] = {} if fast.bos_token_id is None else {"bos_token_id": fast.bos_token_id}
    with quiet():
        fast.save_pretrained(folder)
        ids = {**begin, "eos_token_id": list(tokens.end_ids), "pad_token_id": fast.pad_token_id}
        GenerationConfig(do_sample=False, **ids).save_pretrained(folder)
    own = {**begin, "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id, "dtype": dtype}
    write_json(folder / "config.json", {**config, **own})


def _record(model: GgufModel, tied: bool, dtype: str) -> dict[str, Any]:
    file = model.file
    types = Counter(tensor.type.name for tensor in file.tensors.values())
    return {
        "source": file.path.name,
        "sha256": sha256_file(file.path),
        "bytes": file.path.stat().st_size,
        "name": file.metadata.get("general.name", ""),
        "license": file.metadata.get("general.license", ""),
        "types": dict(sorted(types.items())),
        "table_stored_twice": tied and HEAD in file.tensors,
        "embedding_from": model.sources[EMBEDDING],
        "dtype": dtype,
    }


def _checked(folder: Path, path: Path, chat: ChatSettings | None) -> FolderFacts:
    """What the folder of a base must be, said of the file that it comes from."""
    try:
        return check_folder(folder, chat)
    except UsageError as error:
        raise UsageError(f"{path}: what it holds cannot be a base: {str(error).replace(f'{folder}/', '')}") from error
