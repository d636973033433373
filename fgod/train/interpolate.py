"""Weights between the start and the end of a training: start + α · (end - start), without any training.

Two folders are read tensor by tensor and a third is written, so memory does not grow with the model. A matrix is
computed in float64, a piece of its rows at a time, and stored as the training's masters are: those that were rounded
stochastically are so here, so that a difference below one step of BF16 or NVFP4 is kept in expectation for every α.
Single operations of IEEE 754 and integer arithmetic alone: a CPU and a GPU give the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fgod.errors import UsageError
from fgod.nvfp4.codec import device_global_scale
from fgod.nvfp4.folders import (
    DEVICE_SHARD_BYTES,
    Weights,
    copy_side_files,
    described,
    open_weights,
    read_plain_config,
    stored_names,
    weight_files,
    write_weights,
)
from fgod.nvfp4.rounding import key_words, step_key, stream
from fgod.system import files
from fgod.train.storage import Master, StochasticNvfp4, master_kind

PIECE = {"cpu": 2**18, "cuda": 2**24}
"""Elements that are computed at once; on a CPU they stay in its caches."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Line:
    """A line between two sets of weights, and the place on it: 0 is the start, 1 the end.

    Args:
        master_dtype: how the training kept its masters (`TrainRecipe.master_dtype`).
        seed: of stochastic rounding.
    """

    alpha: float
    master_dtype: str
    seed: int

    def between(self, name: str, start: Tensor, end: Tensor) -> Tensor:
        """The tensor of this name, of any shape, on the device of both, stored as the masters of this training are."""
        kind = master_kind(self.master_dtype, end.shape)
        first, last = (tensor.view(1, -1) if tensor.ndim == 1 else tensor for tensor in (start, end))
        words = key_words(step_key(stream(self.seed, f"interpolate|{name}"), 0))
        key = torch.tensor(words, dtype=torch.int32, device=end.device)
        scale = _scale(kind, first, last)
        out = torch.empty(last.shape, dtype=kind.dtype, device=end.device)
        rows = max(1, PIECE[end.device.type] // last.shape[1])
        for row in range(0, len(last), rows):
            low, high = first[row : row + rows].double(), last[row : row + rows].double()
            wanted = (high - low).mul_(self.alpha).add_(low).float()
            out[row : row + rows] = kind.rounded(wanted, key, row * last.shape[1], scale)
        return out.view(end.shape)


def _scale(kind: type[Master], start: Tensor, end: Tensor) -> Tensor:
    """NVFP4's global scale for the larger of both; of other formats, which have none, 1."""
    if not issubclass(kind, StochasticNvfp4):
        return torch.ones((), device=end.device)
    ends = [bound.abs().float() for tensor in (start, end) for bound in torch.aminmax(tensor)]
    return device_global_scale(torch.stack(ends).amax())


def interpolate(
    start: Path,
    end: Path,
    line: Line,
    out: Path,
    device: torch.device = CPU,
    beat: Callable[[], None] = lambda: None,
) -> Mapping[str, float]:
    """Write the folder of weights that lies on the line between two others; config and tokenizer are those of the end.

    Args:
        beat: called for each tensor.

    Returns:
        By tensor the share of its elements that differ from the start.

    Raises:
        UsageError: the folders do not hold the same tensors, or one is quantised.
    """
    config = read_plain_config(end)
    changed: dict[str, float] = {}
    read_plain_config(start)

    def made(name: str) -> Mapping[str, Tensor]:
        beat()
        first, last = (tensor.to(device) for tensor in _pair(name, before, after))
        value = line.between(name, first, last)
        changed[name] = (value != first).count_nonzero().item() / value.numel()
        return {name: value}

    def planned(name: str) -> Mapping[str, Tensor]:
        shape = after.shape(name)
        return {name: described(shape, master_kind(line.master_dtype, shape).dtype)}

    with open_weights(start) as before, open_weights(end) as after, files.atomic_folder(out) as folder:
        write_weights(folder, stored_names(after, config), planned, made, DEVICE_SHARD_BYTES)
        copy_side_files(end, folder)
        shutil.copyfile(end / "config.json", folder / "config.json")
    for file in (*weight_files(start), *weight_files(end), *weight_files(out)):
        files.drop_cached(file)
    return changed


def _pair(name: str, before: Weights, after: Weights) -> tuple[Tensor, Tensor]:
    if name not in before.files:
        raise UsageError(
            f"{before.folder}: found no tensor {name}, but {after.folder} has one; expected the same tensors in both"
        )
    first, last = before.read(name), after.read(name)
    if first.shape != last.shape:
        raise UsageError(f"{before.folder}: {name}: found the shape {list(first.shape)}, expected {list(last.shape)}")
    return first, last
