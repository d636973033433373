"""Write a folder of the format `fgod.exporters.nvfp4` from master weights.

    fgod export --weights MASTER --stamp trained.json --dtype float32 --out artifacts/A/123/exported.json

`transformers.AutoModelForCausalLM` loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from fgod.exporters.nvfp4 import GLOBAL_SCALE, NVFP4, PACKED, SCALE
from fgod.models.architecture import Architecture, architecture_of
from fgod.nvfp4.codec import BLOCK, NonFiniteError, Quantised, pack, quantise, shared_global_scale
from fgod.nvfp4.folders import (
    DTYPES,
    SHARD_BYTES,
    Weights,
    copy_side_files,
    open_weights,
    read_plain_config,
    stored_block_scales,
    stored_names,
    weight_files,
    write_config,
    write_weights,
)
from fgod.system import files


@dataclass(frozen=True)
class _Unit:
    """Tensors that are quantised together: those of one scale group, or one plain tensor. Shapes by name."""

    group: str
    shapes: dict[str, tuple[int, ...]]
    quantised: bool


def _units(weights: Weights, stored: list[str], family: Architecture) -> list[_Unit]:
    units: dict[str, _Unit] = {}
    for name in stored:
        group = family.scale_group(name)
        unit = units.setdefault(group or name, _Unit(group or name, {}, quantised=group is not None))
        unit.shapes[name] = weights.shape(name)
    return list(units.values())


def _size(unit: _Unit, dtype: torch.dtype) -> int:
    """Bytes of a unit in the export: 4.5 bits a quantised weight and 4 bytes for its global scale."""
    return sum(
        prod(shape) // 2 + prod(shape) // BLOCK + 4 if unit.quantised else prod(shape) * dtype.itemsize
        for shape in unit.shapes.values()
    )


def packed_tensors(name: str, quantised: Quantised) -> dict[str, Tensor]:
    """The three stored tensors of a quantised weight."""
    return {
        f"{name}{PACKED}": pack(quantised.codes),
        f"{name}{SCALE}": quantised.scales,
        f"{name}{GLOBAL_SCALE}": torch.tensor([quantised.global_scale]),
    }


def _tensors(
    weights: Weights, unit: _Unit, dtype: torch.dtype, block_scales: str, device: torch.device
) -> dict[str, Tensor]:
    """What is stored of a unit, computed on the device."""
    masters = {name: weights.read(name).to(device).float() for name in unit.shapes}
    if not unit.quantised:
        for name, master in masters.items():
            if not torch.isfinite(master).all():
                raise NonFiniteError(f"{weights.folder}: {name}: a weight is not finite and cannot be exported")
        return {name: master.to(dtype) for name, master in masters.items()}
    global_scale = shared_global_scale(list(masters.values()), f"{weights.folder}: {unit.group}")
    out: dict[str, Tensor] = {}
    for name, master in masters.items():
        out.update(packed_tensors(name, quantise(master, global_scale, name, block_scales)))
    return out


CPU = torch.device("cpu")


def export(
    master: Path,
    out: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    device: torch.device | None = None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Export a folder of plain weights (float32 masters, or a BF16 model: plain rounding). `out` appears whole.

    `dtype` (float32 or bfloat16) is that of embeddings, norms and head, and of the training forward that the export
    equals. At most one shard is in memory. The bytes do not depend on the device. `beat` is called for each tensor.

    Raises:
        UsageError: a file is missing, the family is not registered, weights are quantised already, or a width is not
            divisible by 16.
        NonFiniteError: a weight is NaN or infinite; names folder and tensor.
    """
    config = read_plain_config(master)
    kind, block_scales = DTYPES[dtype], stored_block_scales(master, config)
    family = architecture_of(config, master / "config.json")

    def made(unit: _Unit) -> dict[str, Tensor]:
        beat()
        return _tensors(weights, unit, kind, block_scales, device or CPU)

    with open_weights(master) as weights, files.atomic_folder(out) as folder:
        units = _units(weights, stored_names(weights, config), family)
        write_weights(
            folder,
            units,
            lambda u: _size(u, kind),
            made,
            shard_bytes,
        )
        copy_side_files(master, folder)
        write_config(folder, config, dtype, quantization_config=NVFP4.quantization_config(dtype))
    for file in (*weight_files(master), *weight_files(out)):
        files.drop_cached(file)
