"""Weights of Hugging Face folders: read tensor by tensor, written in shards; the files beside them copied."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from fgod.errors import FgodError, UsageError
from fgod.models.files import check_links, side_files
from fgod.nvfp4.codec import BLOCK_SCALES
from fgod.system import files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

SHARD_BYTES = 4_000_000_000
"""Largest shard, unless one unit is larger."""

DEVICE_SHARD_BYTES = 1_000_000_000
"""The same of weights that lie on a GPU."""

MAPPED_BYTES = 2**28
"""Bytes of a file of weights that are mapped at most, unless one tensor is larger: then it is mapped anew."""

PART_BYTES = 2**26
"""Bytes that are written at once."""

UNSYNCED_BYTES = 2**29
"""After so many bytes that were written, the disk is asked to take them."""

LENGTH_BYTES = 8
"""Of the number before safetensors' header, whose length is a multiple of this too."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The compute dtypes of configs and exports by name."""

BLOCK_SCALES_KEY = "nvfp4_block_scales"
"""In the config.json of masters that trained with another rule for block scales than the default: the export's rule."""

Unit = TypeVar("Unit")


class Weights:
    """An open folder: `names` in stored order, and in `files` from which file each comes.

    One file is open at a time: what was read of it is mapped, and counts as this process's memory, until it is closed.
    It is closed and opened again where more than `MAPPED_BYTES` would be mapped.
    """

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        self.folder, self.files = folder, files
        self._open: tuple[Path, Any] | None = None
        self._mapped = 0

    @property
    def names(self) -> list[str]:
        return list(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        value: Tensor = self._file(name).get_tensor(name)  # mapped, and not read yet
        if self._mapped and self._mapped + value.nbytes > MAPPED_BYTES:
            self.close()
            value = self._file(name).get_tensor(name)
        self._mapped += value.nbytes
        return value

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
            self._open, self._mapped = None, 0


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


def described(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor on the device meta: it stands for one of this shape and dtype, and holds nothing."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


class _Host:
    """The bytes of tensors, some at a time. What comes from a GPU passes through pinned memory, which is used again:
    into memory that is new each time it comes slower than a disk takes it."""

    def __init__(self) -> None:
        self.pinned: Tensor | None = None

    def parts(self, value: Tensor) -> Iterator[memoryview]:
        """Each part is valid until the next one is asked for."""
        for part in value.contiguous().reshape(-1).view(torch.uint8).split(PART_BYTES):
            yield self._here(part).numpy().data

    def _here(self, part: Tensor) -> Tensor:
        if part.device.type != "cuda":
            return part
        if self.pinned is None:
            self.pinned = torch.empty(PART_BYTES, dtype=torch.uint8, pin_memory=True)
        return self.pinned[: len(part)].copy_(part)


class _Shard:
    """A safetensors file that is written tensor by tensor, in any order, with the bytes of safetensors' `save_file`.

    Args:
        path: of the file, which is made anew.
        planned: what it is to hold, on the device meta.
    """

    def __init__(self, path: Path, planned: Mapping[str, Tensor]) -> None:
        header, self._starts = _header(planned)
        self._planned, self._left = planned, {*planned}
        self._stream = path.open("wb", buffering=0)
        self._stream.truncate(len(header) + sum(value.nbytes for value in planned.values()))
        self._begin = len(header)
        self._put(memoryview(header), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, name: str, value: Tensor, host: _Host) -> None:
        """Write a tensor.

        Raises:
            ValueError: it was not planned, not so, or is written already.
        """
        plan = self._planned[name] if name in self._left else None
        if plan is None or (plan.shape, plan.dtype) != (value.shape, value.dtype):
            expected = f"{plan.dtype} {list(plan.shape)}" if plan is not None else f"one of {sorted(self._left)}"
            raise ValueError(f"{name}: found {value.dtype} {list(value.shape)}, expected {expected}")
        self._left.remove(name)
        at = self._begin + self._starts[name]
        for part in host.parts(value):
            self._put(part, at)
            at += len(part)

    def check_whole(self) -> None:
        """Raise ValueError where a planned tensor was not written."""
        if self._left:
            raise ValueError(f"{self._stream.name}: {len(self._left)} tensors were not made, as {min(self._left)}")

    def _put(self, data: memoryview, at: int) -> None:
        while data:
            written = os.pwrite(self._stream.fileno(), data, at)
            data, at = data[written:], at + written


def _header(planned: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """What stands before the tensors in safetensors' file of them; where each one's data begins behind that.

    The order and the names of dtypes are those that safetensors gives for empty tensors of these names.
    """
    empty = save({name: torch.empty(0, dtype=value.dtype) for name, value in planned.items()}, {"format": "pt"})
    size = int.from_bytes(empty[:LENGTH_BYTES], "little")
    entries, starts, at = json.loads(empty[LENGTH_BYTES : LENGTH_BYTES + size]), {}, 0
    for name in [one for one in entries if one in planned]:
        starts[name], end = at, at + planned[name].nbytes
        entries[name] |= {"shape": list(planned[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text, starts


def _fsync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_weights(
    folder: Path,
    units: Sequence[Unit],
    planned: Callable[[Unit], Mapping[str, Tensor]],
    tensors: Callable[[Unit], Mapping[str, Tensor]],
    limit: int = SHARD_BYTES,
) -> None:
    """Write the tensors of units, on any device, made one unit at a time: one file, or shards with an index.

    A unit is written before the next one is made, while the disk takes what was written before.

    Args:
        planned: a unit's tensors on the device meta, before they are made.
        limit: bytes of a shard.

    Raises:
        ValueError: a unit's tensors are others than planned.
    """
    plans = [planned(unit) for unit in units]
    shards = plan_shards([sum(value.nbytes for value in plan.values()) for plan in plans], limit)
    host, weight_map, total, synced = _Host(), dict[str, str](), 0, []
    with ThreadPoolExecutor(1) as disk:
        for number, indices in enumerate(shards, start=1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            whole = {key: value for i in indices for key, value in plans[i].items()}
            unsynced = 0
            with _Shard(folder / name, whole) as shard:
                for i in indices:
                    for key, value in tensors(units[i]).items():
                        shard.write(key, value, host)
                        unsynced += value.nbytes
                        del value  # before the next one is made
                    if unsynced > UNSYNCED_BYTES:
                        synced.append(disk.submit(_fsync, folder / name))
                        unsynced = 0
                shard.check_whole()
            synced.append(disk.submit(_fsync, folder / name))
            weight_map.update(dict.fromkeys(whole, name))
            total += sum(value.nbytes for value in whole.values())
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
