"""What a folder of weights holds, as text: `fgod inspect FOLDER`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fgod.errors import UsageError
from fgod.nvfp4.codec import Quantised, dequantise, largest_magnitude
from fgod.nvfp4.folders import weight_files
from fgod.nvfp4.reader import read_export


@dataclass(frozen=True)
class Inspected:
    """One tensor. `stored` is nvfp4 or a dtype; `detail` says what its scales are."""

    name: str
    shape: tuple[int, ...]
    stored: str
    amax: float
    detail: str


def inspect_tensor(name: str, value: Quantised | Tensor) -> Inspected:
    """Raises BadScaleError naming the tensor if a scale of it is zero, negative or not finite."""
    if not isinstance(value, Quantised):
        return Inspected(
            name, tuple(value.shape), str(value.dtype).removeprefix("torch."), largest_magnitude(value), ""
        )
    weights = dequantise(value, name)
    scales = value.scales.float()
    detail = (
        f"global scale {value.global_scale:g}, block scales {scales.min().item():g} to {scales.max().item():g}, "
        f"{(value.codes % 8 == 0).float().mean().item():.1%} zeros"
    )
    return Inspected(name, tuple(weights.shape), "nvfp4", largest_magnitude(weights), detail)


def text(folder: Path) -> str:
    """A line for each tensor of a master folder or an export, and their sum.

    Raises:
        UsageError: the folder or its weights are missing.
        BadScaleError: a stored scale is zero, negative or not finite; names the tensor.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected a model folder")
    found = [inspect_tensor(name, value) for name, value in read_export(folder)]
    width = max(len(i.name) for i in found)
    lines = [
        f"{i.name:{width}}  {'×'.join(map(str, i.shape)):>12}  {i.stored:8}  |w| ≤ {i.amax:<10.4g} {i.detail}".rstrip()
        for i in found
    ]
    size = sum(path.stat().st_size for path in weight_files(folder))
    packed = sum(i.stored == "nvfp4" for i in found)
    return "\n".join([*lines, f"{len(found)} tensors, {packed} of them nvfp4, {size:,} bytes: {folder}"])
