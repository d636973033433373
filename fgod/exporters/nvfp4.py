"""NVFP4 as compressed-tensors packs it: what the workflow exports, and what training computes with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.errors import UsageError
from fgod.exporters.exporter import Exporter
from fgod.models.names import BLOCK
from fgod.registry import EXPORTERS

if TYPE_CHECKING:
    import torch

    from fgod.nvfp4.folders import Weights

PACKED, SCALE, GLOBAL_SCALE = "_packed", "_scale", "_global_scale"
"""Ends of the names of the three tensors that a quantised weight X is stored as."""


class Nvfp4(Exporter):
    """Each quantised weight X [N, K] becomes X_packed uint8 [N, K/2], X_scale float8_e4m3fn [N, K/16] and
    X_global_scale float32 [1] (a divisor). The rest is stored in the compute dtype."""

    name = "nvfp4"
    engine = "nvfp4-pack-quantized"
    package = "compressed-tensors"

    def quantization_config(self, dtype: str) -> dict[str, Any]:
        """config.json's `quantization_config`: weights as NVFP4, activations as they are, the head left out.

        compressed-tensors decompresses to BF16 at the first forward, which a float32 model then cannot multiply with;
        for that dtype transformers is told to decompress (to the model's dtype) while it loads. transformers 5.17
        decompresses to BF16 even so, and cannot use a float32 export; `fgod.model.load` unpacks exports itself.
        """
        weights = {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": BLOCK,
            "symmetric": True,
            "dynamic": False,
            "scale_dtype": "torch.float8_e4m3fn",
            "zp_dtype": "torch.float8_e4m3fn",
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        config = {
            "quant_method": self.package,
            "format": self.engine,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
        }
        return config if dtype == "bfloat16" else {**config, "dequantize": True}

    def write(
        self,
        master: Path,
        out: Path,
        dtype: str,
        device: torch.device | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        from fgod.nvfp4.export import export

        export(master, out, dtype, device=device, beat=beat)

    def names(self, weights: Weights) -> list[str]:
        return [name.removesuffix(PACKED) for name in weights.names if not name.endswith(SCALE)]

    def shape(self, weights: Weights, name: str) -> tuple[int, ...]:
        if name in weights.files:
            return weights.shape(name)
        rows, width = weights.shape(f"{name}{PACKED}")
        return rows, 2 * width

    def read(self, weights: Weights, name: str, device: torch.device) -> torch.Tensor:
        """Raises BadScaleError too: a scale is zero, negative or not finite."""
        from fgod.nvfp4.codec import dequantise
        from fgod.nvfp4.reader import read_quantised

        if f"{name}{PACKED}" in weights.files:
            return dequantise(read_quantised(weights, name, device), f"{weights.folder}: {name}")
        if name not in weights.files:
            raise UsageError(
                f"{weights.folder}: the tensor {name} is in none of the weight files, expected by config.json"
            )
        return weights.read(name).to(device).float()


NVFP4 = Nvfp4()
EXPORTERS.register(NVFP4.name, NVFP4)
