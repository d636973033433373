"""TorchSharp's state-dict file: one file of weights beside config.json and the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.dat.file import Element
from fgod.exporters.exporter import EXPORTERS
from fgod.exporters.single_file import SingleFile
from fgod.models.names import BLOCK

if TYPE_CHECKING:
    import torch

    from fgod.nvfp4.folders import Weights

FILE = "weights.dat"
"""The weights in the folder of an export."""


class Dat(SingleFile):
    """Each projection X [N, K], and the head, becomes X.qdata uint8 [N, K/2] and X.scale [N, K/16], by the parameter's
    name: `model.layers.0.mlp.up_proj.weight.qdata`. There is no tensor scale. The rest is stored as float16.

    Args:
        name: of the format.
        scales: the element type of the scales, FP8_E4M3 or FLOAT16.
    """

    package = "torchsharp"
    file = FILE
    readers = "TorchSharp programs"

    def __init__(self, name: str, scales: Element) -> None:
        self.name, self.scales = name, scales
        self.engine = f"{self.package}-{scales.name.lower().replace('_', '-')}"

    def quantization_config(self) -> dict[str, Any]:
        """config.json's `quantization_config`. transformers cannot load it."""
        return {
            "quant_method": self.package,
            "format": self.engine,
            "file": FILE,
            "group_size": BLOCK,
            "scale_type": int(self.scales),
        }

    def write(
        self,
        master: Path,
        out: Path,
        dtype: str,
        device: torch.device | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`dtype` is what it is computed in where it is loaded here: what stays unquantised is float16 in the file."""
        from fgod.dat.export import export_dat

        export_dat(master, out, FILE, self.scales, dtype, self.quantization_config(), device, beat)

    def open(self, folder: Path) -> AbstractContextManager[Weights]:
        from fgod.dat.weights import open_dat

        return open_dat(folder, FILE)


DAT = Dat("dat", Element.FP8_E4M3)
DAT_FLOAT16 = Dat("dat-float16", Element.FLOAT16)
EXPORTERS.register(DAT.name, DAT)
EXPORTERS.register(DAT_FLOAT16.name, DAT_FLOAT16)
