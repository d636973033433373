"""Weights of Hugging Face folders: read tensor by tensor, written in shards; the files beside them copied."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fgod.errors import FgodError, UsageError
from fgod.models.files import check_links, side_files
from fgod.nvfp4.codec import BLOCK_SCALES
from fgod.system import files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

SHARD_BYTES = 4_000_000_000
"""Largest shard, unless one unit is larger. A shard is held in memory while it is written."""

DEVICE_SHARD_BYTES = 1_000_000_000
"""The same of weights that lie on a GPU."""

ALIGNMENT = 64
"""Bytes between the places of tensors in pinned memory are a multiple of this."""

PADDING = 2**20
"""What that takes, for 16,000 tensors."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The compute dtypes of configs and exports by name."""

BLOCK_SCALES_KEY = "nvfp4_block_scales"
"""In the config.json of masters that trained with another rule for block scales than the default: the export's rule."""

Unit = TypeVar("Unit")


class Weights:
    """An open folder: `names` in stored order, and in `files` from which file each comes.

    One file is open at a time: what was read of it is mapped, and counts as this process's memory, until it is closed.
    """

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        self.folder, self.files = folder, files
        self._open: tuple[Path, Any] | None = None

    @property
    def names(self) -> list[str]:
        return list(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        return self._file(name).get_tensor(name)

    def _file(self, name: str) -> Any:
        path = self.files[name]
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, safe_open(path, framework="pt").__enter__()
        return self._open[1]

    def close(self) -> None:
        """Unmap what was read, but for tensors that somebody still holds."""
        if self._open is not None:
            self._open[1].__exit__(None, None, None)
            self._open = None


def weight_shards(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a folder, each with the tensors that the index puts there; None: there is no index.

    Raises:
        UsageError: there are no weights, the index cannot be read, or it names a file that is missing or lies outside
            the folder, or a link leads out of it.
    """
    if folder.is_dir():
        check_links(folder)
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise UsageError(f"{folder}: found no weights, expected {SINGLE} or {INDEX} with its shards")
        return {folder / SINGLE: None}
    try:
        places = [(str(name), str(file)) for name, file in files.read_json(index)["weight_map"].items()]
    except (FgodError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index}: found no usable weight_map ({error}), expected tensor names with files") from error
    shards: dict[Path, list[str] | None] = {}
    for name, file in places:
        if Path(file).name != file:
            raise UsageError(f"{index}: {name}: found {file!r}, expected the name of a file in this folder")
        if not (folder / file).is_file():
            raise UsageError(f"{index}: {name}: found {file!r}, expected a file of the folder: this shard is missing")
        listed = shards.setdefault(folder / file, [])
        assert listed is not None
        listed.append(name)
    return shards


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, sorted. Raises what `weight_shards` does."""
    return sorted(weight_shards(folder))


@contextmanager
def open_weights(folder: Path) -> Iterator[Weights]:
    """The weights of a folder, of which headers alone are read at first.

    Raises:
        UsageError: a weight file is missing or is not safetensors.
    """
    owners: dict[str, Path] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as handle:
                owners.update(dict.fromkeys(handle.keys(), path))
        except SafetensorError as error:
            raise UsageError(f"{path}: not a safetensors file: {error}") from error
    weights = Weights(folder, owners)
    try:
        yield weights
    finally:
        weights.close()


def plan_shards(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of units in order, cut into shards of at most `limit` bytes (a larger unit stands alone)."""
    shards: list[list[int]] = []
    used = 0
    for index, size in enumerate(sizes):
        if not shards or used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(index)
        used += size
    return shards


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """safetensors' `save_file`.

    Raises:
        OSError: the disk is full, or the like; safetensors says so in an error of its own, without the path.
    """
    try:
        save_file(dict(tensors), path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)|code: (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1] or number[2]), str(error), str(path)) from error


class _Host:
    """Host memory for one shard at a time. What comes from a GPU goes to pinned memory that every shard uses again:
    into memory that is new each time it comes slower than a disk takes it."""

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self.pinned: Tensor | None = None

    def take(self, value: Tensor) -> Tensor:
        """The tensor on the host, contiguous, until `used` is set back."""
        if value.device.type != "cuda":
            return value.contiguous()
        if self.pinned is None:
            self.pinned = torch.empty(self.size, dtype=torch.uint8, pin_memory=True)
        start, self.used = self.used, self.used + value.nbytes + -value.nbytes % ALIGNMENT
        if self.used > self.size:
            return value.cpu()
        return self.pinned[start : start + value.nbytes].view(value.dtype).view(value.shape).copy_(value)


def _fsync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_weights(
    folder: Path,
    units: Sequence[Unit],
    size: Callable[[Unit], int],
    tensors: Callable[[Unit], Mapping[str, Tensor]],
    limit: int = SHARD_BYTES,
) -> None:
    """Write the tensors of units, on any device, made one unit at a time: one file, or shards with an index.

    `size` gives a unit's bytes before its tensors are made. The disk takes one shard while the next is made.
    """
    sizes = [size(unit) for unit in units]
    shards = plan_shards(sizes, limit)
    host = _Host(max((sum(sizes[i] for i in indices) for indices in shards), default=0) + PADDING)
    weight_map: dict[str, str] = {}
    total = 0
    synced = []
    with ThreadPoolExecutor(1) as disk:
        for number, indices in enumerate(shards, start=1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            host.used = 0
            shard = {key: host.take(value) for i in indices for key, value in tensors(units[i]).items()}
            save_tensors(shard, folder / name, metadata={"format": "pt"})
            synced.append(disk.submit(_fsync, folder / name))
            weight_map.update(dict.fromkeys(shard, name))
            total += sum(value.nbytes for value in shard.values())
            del shard  # before the next one is made
    for one in synced:
        one.result()
    if len(shards) > 1:
        files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def copy_side_files(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template, generation config and the like: all files but weights and config.json."""
    for path in side_files(source):
        shutil.copyfile(path, target / path.name)


def read_plain_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder of plain (not quantised) weights.

    Raises:
        UsageError: it is missing, or the weights are quantised: they have no masters to start from.
    """
    config = files.read_json(folder / "config.json")
    if "quantization_config" in config:
        raise UsageError(
            f"{folder / 'config.json'}: found quantization_config; expected plain weights (a master folder or the base)"
        )
    return config


def stored_block_scales(folder: Path, config: Mapping[str, Any]) -> str:
    """By which rule the weights of a folder are to be quantised.

    Raises:
        UsageError: config.json names an unknown one.
    """
    found = config.get(BLOCK_SCALES_KEY, BLOCK_SCALES[0])
    if found not in BLOCK_SCALES:
        raise UsageError(
            f"{folder / 'config.json'}: {BLOCK_SCALES_KEY}: found {found!r}, expected one of {', '.join(BLOCK_SCALES)}"
        )
    return str(found)


def write_config(folder: Path, config: Mapping[str, Any], dtype: str, **more: Any) -> None:
    """config.json with the dtype of what is stored (under both of the names that transformers has used)."""
    kept = {key: value for key, value in config.items() if key not in {"dtype", "torch_dtype", BLOCK_SCALES_KEY}}
    files.write_json(folder / "config.json", {**kept, "dtype": dtype, **more})


def stored_names(weights: Weights, config: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that are weights of their own: without the head of a tied model, should it be stored."""
    tied = config.get("tie_word_embeddings", False)
    return [name for name in weights.names if not (tied and name == "lm_head.weight")]


def check_tensors(weights: Weights, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> None:
    """Raise UsageError for weights that are not those of config.json, whose tensors have these shapes."""
    differing = sorted(shapes.keys() ^ {*stored_names(weights, config)})
    if differing:
        found = "found no tensor" if differing[0] in shapes else "found the tensor"
        raise UsageError(f"{weights.folder}: {found} {differing[0]}, expected those of config.json")
    for name, shape in shapes.items():
        if weights.shape(name) != shape:
            found = f"found {list(weights.shape(name))}, expected {list(shape)} by config.json"
            raise UsageError(f"{weights.folder}: shape of {name}: {found}")
