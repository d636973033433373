"""Read an export back: its stored tensors, and the weights that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fgod.errors import UsageError
from fgod.exporters.exporter import Exporter
from fgod.exporters.nvfp4 import NVFP4, Nvfp4
from fgod.nvfp4.codec import Quantised, unpack
from fgod.nvfp4.folders import Weights, open_weights

CPU = torch.device("cpu")


def read_quantised(weights: Weights, name: str, device: torch.device = CPU, exporter: Nvfp4 = NVFP4) -> Quantised:
    """Codes and scales of the quantised weight `name` of an open export, unpacked on the device.

    Raises:
        UsageError: one of its three tensors is missing.
    """
    parts = exporter.parts(name)
    missing = [part for part in parts if part not in weights.files]
    if missing:
        raise UsageError(f"{weights.folder}: {missing[0]} is missing; {name} needs {', '.join(parts)}")
    packed, scales, factor = map(weights.read, parts)
    return Quantised(unpack(packed.to(device)), scales.to(device), exporter.divisor_of(factor.item()))


def read_export(
    folder: Path, device: torch.device = CPU, exporter: Nvfp4 = NVFP4
) -> Iterator[tuple[str, Quantised | Tensor]]:
    """Name and stored form of each weight: `Quantised`, or the tensor itself where it is not quantised."""
    with open_weights(folder) as weights:
        for name in exporter.names(weights):
            if exporter.quantises(weights, name):
                yield name, read_quantised(weights, name, device, exporter)
            else:
                yield name, weights.read(name).to(device)


def dequantised(folder: Path, device: torch.device = CPU, exporter: Exporter = NVFP4) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 weights of each tensor of an export, one at a time.

    Raises:
        BadScaleError: a scale is zero, negative or not finite; names the tensor.
    """
    with exporter.open(folder) as weights:
        for name in exporter.names(weights):
            yield name, exporter.read(weights, name, device)
