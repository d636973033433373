"""NVFP4 as NVIDIA's ModelOpt lays it out, for TensorRT-LLM and vLLM: the bytes of `nvfp4` by other names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod import __version__
from fgod.exporters.exporter import EXPORTERS
from fgod.exporters.nvfp4 import Nvfp4
from fgod.models.files import MODELOPT
from fgod.models.names import BLOCK

if TYPE_CHECKING:
    import torch


class Modelopt(Nvfp4):
    """Each quantised weight X.weight [N, K] becomes X.weight uint8 [N, K/2], X.weight_scale float8_e4m3fn [N, K/16] and
    X.weight_scale_2 float32 without dimensions: 1 / global scale, a factor. The rest is stored in the compute dtype.

    ModelOpt's algorithm NVFP4 rounds activations too and needs their scales (input_scale), which training here does not
    make; W4A16_NVFP4 is the one whose weights alone are quantised.
    """

    engine = "W4A16_NVFP4"
    package = "modelopt"
    readers = "TensorRT-LLM, vLLM"
    packed, scale, global_scale = "", "_scale", "_scale_2"

    def quantization_config(self, dtype: str) -> dict[str, Any]:
        """config.json's `quantization_config`. transformers cannot load it."""
        weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": BLOCK}
        return {
            "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
            "ignore": ["lm_head"],
            "quant_algo": self.engine,
            "producer": PRODUCER,
            "quant_method": self.package,
        }

    def factor_of(self, global_scale: float) -> torch.Tensor:
        """Exact: a global scale is a power of two."""
        import torch

        return torch.tensor(1 / global_scale)

    def divisor_of(self, factor: float) -> float:
        return 1 / factor

    def write(
        self,
        master: Path,
        out: Path,
        dtype: str,
        device: torch.device | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        from fgod.exporters.write import export

        quantization = {
            "quant_algo": self.engine,
            "group_size": BLOCK,
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head"],
        }
        beside = {MODELOPT: {"producer": PRODUCER, "quantization": quantization}}
        export(master, out, dtype, device=device, beat=beat, exporter=self, beside=beside)

    def recognises(self, config: Mapping[str, Any]) -> bool:
        found = config.get("quantization_config") or {}
        return (found.get("quant_method"), found.get("quant_algo")) == (self.package, self.engine)


PRODUCER = {"name": "fgod", "version": __version__}
EXPORTERS.register("modelopt", Modelopt("modelopt"))
