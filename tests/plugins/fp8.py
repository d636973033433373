"""A plugin: exports in FP8, one scale for each row of a weight, as compressed-tensors stores it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgod.exporters.exporter import Exporter
from fgod.models.architecture import architecture_of
from fgod.nvfp4.folders import (
    DTYPES,
    SHARD_BYTES,
    Weights,
    copy_side_files,
    described,
    open_weights,
    read_plain_config,
    stored_names,
    write_config,
    write_weights,
)
from fgod.registry import EXPORTERS
from fgod.system.files import atomic_folder

LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Fp8(Exporter):
    """A quantised weight X [N, K] is stored as X float8_e4m3fn [N, K] and X_scale float32 [N, 1], a factor."""

    name = "fp8"
    engine = "float-quantized"
    package = "compressed-tensors"

    def quantization_config(self) -> dict[str, Any]:
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
        group = {"targets": ["Linear"], "weights": weights}
        config = {"quant_method": self.package, "format": self.engine, "quantization_status": "compressed"}
        return {**config, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}

    def write(
        self,
        master: Path,
        out: Path,
        dtype: str,
        device: torch.device | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        config = read_plain_config(master)
        family = architecture_of(config, master / "config.json")

        def planned(name: str) -> dict[str, Tensor]:
            shape = weights.shape(name)
            if family.scale_group(name) is None:
                return {name: described(shape, DTYPES[dtype])}
            scale = described((shape[0], 1), torch.float32)
            return {name: described(shape, torch.float8_e4m3fn), f"{name}_scale": scale}

        def made(name: str) -> dict[str, Tensor]:
            beat()
            weight = weights.read(name).to(device).float()
            if family.scale_group(name) is None:
                return {name: weight.to(DTYPES[dtype])}
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST
            return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}

        with open_weights(master) as weights, atomic_folder(out) as folder:
            names = stored_names(weights, config)
            write_weights(folder, names, planned, made, SHARD_BYTES)
            copy_side_files(master, folder)
            write_config(folder, config, dtype, quantization_config=self.quantization_config())

    def names(self, weights: Weights) -> list[str]:
        return [name for name in weights.names if not name.endswith("_scale")]

    def read(self, weights: Weights, name: str, device: torch.device) -> Tensor:
        stored = weights.read(name).to(device).float()
        scale = f"{name}_scale"
        return stored * weights.read(scale).to(device) if scale in weights.files else stored


EXPORTERS.register(Fp8.name, Fp8())
