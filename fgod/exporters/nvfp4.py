"""NVFP4 as compressed-tensors packs it: what the workflow exports, and what training computes with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.errors import UsageError
from fgod.exporters import names
from fgod.exporters.exporter import EXPORTERS, Exporter
from fgod.models.names import BLOCK

if TYPE_CHECKING:
    import torch

    from fgod.nvfp4.folders import Weights


class Nvfp4(Exporter):
    """Each quantised weight X [N, K] becomes X_packed uint8 [N, K/2], X_scale float8_e4m3fn [N, K/16] and
    X_global_scale float32 [1] (a divisor). The rest is stored in the compute dtype.

    Args:
        name: of the format.
        head: quantise the head too. A tied one is made of the embedding: it is a weight of its own then, and
            config.json says so. Training does not round it, so that the logits are others than those of training.
    """

    engine = "nvfp4-pack-quantized"
    package = "compressed-tensors"
    readers = "transformers, vLLM"
    packed, scale, global_scale = "_packed", "_scale", "_global_scale"
    """Ends of the names of the three tensors that a quantised weight is stored as."""

    def __init__(self, name: str, head: bool = False) -> None:
        self.name, self.head = name, head

    def quantization_config(self, dtype: str) -> dict[str, Any]:
        """config.json's `quantization_config`: weights as NVFP4, activations as they are.

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
        targets = ["Linear", "re:.*lm_head$"] if self.head else ["Linear"]  # engines' heads are no Linear
        group = {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}
        config = {
            "quant_method": self.package,
            "format": self.engine,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [] if self.head else ["lm_head"],
        }
        return config if dtype == "bfloat16" else {**config, "dequantize": True}

    def stored(
        self, name: str, packed: torch.Tensor, scales: torch.Tensor, global_scale: float
    ) -> dict[str, torch.Tensor]:
        """The three tensors that a quantised weight is stored as; the last one lies on the host.

        Args:
            packed: two codes a byte (`fgod.nvfp4.codec.pack`).
        """
        return dict(zip(self.parts(name), (packed, scales, self.factor_of(global_scale)), strict=True))

    def factor_of(self, global_scale: float) -> torch.Tensor:
        """What is stored of a global scale, a divisor."""
        import torch

        return torch.tensor([global_scale])

    def divisor_of(self, factor: float) -> float:
        """The inverse of `factor_of`."""
        return factor

    def write(
        self,
        master: Path,
        out: Path,
        dtype: str,
        device: torch.device | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        from fgod.exporters.write import export

        export(master, out, dtype, device=device, beat=beat, exporter=self)

    def names(self, weights: Weights) -> list[str]:
        return [
            name.removesuffix(self.packed)
            for name in weights.names
            if not name.endswith((self.scale, self.global_scale))
        ]

    def shape(self, weights: Weights, name: str) -> tuple[int, ...]:
        if not self.quantises(weights, name):
            return weights.shape(name)
        rows, width = weights.shape(f"{name}{self.packed}")
        return rows, 2 * width

    def parts(self, name: str) -> list[str]:
        """Names of the three tensors that the weight `name` is stored as where it is quantised."""
        return [f"{name}{end}" for end in (self.packed, self.scale, self.global_scale)]

    def quantises(self, weights: Weights, name: str) -> bool:
        """Whether the weight `name` of an open folder is quantised."""
        return any(part != name and part in weights.files for part in self.parts(name))

    def read(self, weights: Weights, name: str, device: torch.device) -> torch.Tensor:
        """Raises BadScaleError too: a scale is zero, negative or not finite."""
        from fgod.exporters.read import read_quantised
        from fgod.nvfp4.codec import dequantise

        if self.quantises(weights, name):
            return dequantise(read_quantised(weights, name, device, self), f"{weights.folder}: {name}")
        if name not in weights.files:
            raise UsageError(
                f"{weights.folder}: the tensor {name} is in none of the weight files, expected by config.json"
            )
        return weights.read(name).to(device).float()


NVFP4 = Nvfp4(names.NVFP4)
NVFP4_HEAD = Nvfp4("nvfp4-head", head=True)
EXPORTERS.register(NVFP4.name, NVFP4)
EXPORTERS.register(NVFP4_HEAD.name, NVFP4_HEAD)
