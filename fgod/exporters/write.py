"""Write a folder of the formats of `fgod.exporters.nvfp4` and `fgod.exporters.modelopt`, or one of plain weights, from
master weights.

    fgod export --weights MASTER --stamp trained.json --dtype float32 --out artifacts/A/123/exported.json
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgod.exporters.nvfp4 import NVFP4, Nvfp4
from fgod.models.architecture import Architecture, architecture_of
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.codec import (
    BLOCK,
    NonFiniteError,
    Quantised,
    largest_magnitude,
    matrix_of_blocks,
    pack,
    quantise_chunks,
    shared_global_scale,
)
from fgod.nvfp4.folders import (
    DTYPES,
    SHARD_BYTES,
    Weights,
    copy_side_files,
    described,
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
    """Tensors that are quantised together, those of one scale group, or one plain tensor.

    `sources`: the master's tensor that each is made of, by name.
    """

    group: str
    sources: dict[str, str]
    quantised: bool


def _units(sources: Mapping[str, str], family: Architecture, head: bool) -> list[_Unit]:
    """`head`: quantise the head."""
    units: dict[str, _Unit] = {}
    for name, source in sources.items():
        group = TIED_HEAD if head and name == TIED_HEAD else family.scale_group(name)
        unit = units.setdefault(group or name, _Unit(group or name, {}, quantised=group is not None))
        unit.sources[name] = source
    return list(units.values())


def _planned(weights: Weights, unit: _Unit, dtype: torch.dtype, exporter: Nvfp4) -> dict[str, Tensor]:
    """What is stored of a unit, on the device meta."""
    out: dict[str, Tensor] = {}
    for name, source in unit.sources.items():
        shape = weights.shape(source)
        if not unit.quantised:
            out[name] = described(shape, dtype)
            continue
        rows, width = matrix_of_blocks(shape, f"{weights.folder}: {name}")
        scales = described((rows, width // BLOCK), torch.float8_e4m3fn)
        out.update(exporter.stored(name, described((rows, width // 2), torch.uint8), scales, 1.0))
    return out


def _plain(value: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """A weight that is not quantised.

    Raises:
        NonFiniteError: it is no finite number of the dtype.
    """
    made = value.to(dtype)
    if not math.isfinite(largest_magnitude(made)):
        kind = str(dtype).removeprefix("torch.")
        raise NonFiniteError(f"{where}: a weight is not finite in {kind} and cannot be exported")
    return made


def _tensors(
    weights: Weights, unit: _Unit, dtype: torch.dtype, block_scales: str, device: torch.device, exporter: Nvfp4
) -> dict[str, Tensor]:
    """What is stored of a unit, computed on the device."""
    masters = {name: weights.read(source).to(device) for name, source in unit.sources.items()}
    if not unit.quantised:
        return {name: _plain(master, dtype, f"{weights.folder}: {name}") for name, master in masters.items()}
    global_scale = shared_global_scale(list(masters.values()), f"{weights.folder}: {unit.group}")
    out: dict[str, Tensor] = {}
    for name, master in masters.items():
        packed, scales = quantise_chunks(master, global_scale, _packed, name, block_scales)
        out.update(exporter.stored(name, packed, scales, global_scale))
    return out


def _packed(quantised: Quantised) -> tuple[Tensor, Tensor]:
    return pack(quantised.codes), quantised.scales


CPU = torch.device("cpu")


def export(
    master: Path,
    out: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    device: torch.device | None = None,
    beat: Callable[[], None] = lambda: None,
    exporter: Nvfp4 = NVFP4,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Export a folder of plain weights (float32 masters, or a BF16 model: plain rounding). `out` appears whole.

    `dtype` (float32 or bfloat16) is that of embeddings, norms and head, and of the training forward that the export
    equals. The tensors of one scale group are in memory. The bytes do not depend on the device. `beat` is called for
    each tensor.

    Args:
        exporter: names the stored tensors, and says whether the head is quantised.
        beside: JSON files to write, by name.

    Raises:
        UsageError: a file is missing, the family is not registered, weights are quantised already, or a width is not
            divisible by 16.
        NonFiniteError: a weight is NaN or infinite; names folder and tensor.
    """
    config = read_plain_config(master)
    kind, block_scales = DTYPES[dtype], stored_block_scales(master, config)
    family = architecture_of(config, master / "config.json")

    def made(unit: _Unit) -> dict[str, Tensor]:
        for _ in unit.sources:
            beat()
        return _tensors(weights, unit, kind, block_scales, device or CPU, exporter)

    with open_weights(master) as weights, files.atomic_folder(out) as folder:
        sources = {name: name for name in stored_names(weights, config)}
        if exporter.head:
            sources.setdefault(TIED_HEAD, EMBEDDING)
            config = {**config, "tie_word_embeddings": False}
        units = _units(sources, family, exporter.head)
        write_weights(folder, units, lambda u: _planned(weights, u, kind, exporter), made, shard_bytes)
        copy_side_files(master, folder)
        for name, content in (beside or {}).items():
            files.write_json(folder / name, content)
        write_config(folder, config, dtype, quantization_config=exporter.quantization_config(dtype))
    for file in (*weight_files(master), *weight_files(out)):
        files.drop_cached(file)


def export_plain(
    master: Path,
    out: Path,
    dtype: str,
    device: torch.device | None = None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Write a folder of plain weights in another dtype (float32 or bfloat16), rounded to nearest. `out` appears whole.
    One tensor is in memory.

    Raises:
        UsageError: a file is missing, or the weights are quantised already.
        NonFiniteError: a weight is no finite number of the dtype; names folder and tensor.
    """
    config, kind = read_plain_config(master), DTYPES[dtype]

    def made(name: str) -> dict[str, Tensor]:
        beat()
        return {name: _plain(weights.read(name).to(device or CPU), kind, f"{master}: {name}")}

    with open_weights(master) as weights, files.atomic_folder(out) as folder:
        names = stored_names(weights, config)
        write_weights(folder, names, lambda name: {name: described(weights.shape(name), kind)}, made)
        copy_side_files(master, folder)
        write_config(folder, config, dtype)
    for file in (*weight_files(master), *weight_files(out)):
        files.drop_cached(file)
