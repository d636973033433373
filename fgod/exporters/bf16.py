"""The master weights as a plain Hugging Face folder in BF16, to merge and to train further elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fgod.exporters.exporter import EXPORTERS, Exporter

if TYPE_CHECKING:
    import torch

    from fgod.nvfp4.folders import Weights


class Bf16(Exporter):
    """Each weight rounded to the nearest number of BF16, and not to NVFP4: what training rounds in its forward pass is
    stored as it was before. The folder is one of plain weights, and recognised as such."""

    name = "bf16"
    engine = package = ""
    readers = "transformers, and whatever reads plain weights"

    def write(
        self,
        master: Path,
        out: Path,
        dtype: str,
        device: torch.device | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """All weights are BF16, whatever `dtype` is.

        Raises:
            NonFiniteError: a weight is no finite number of BF16; names folder and tensor.
        """
        from fgod.exporters.write import export_plain

        export_plain(master, out, "bfloat16", device, beat)

    def names(self, weights: Weights) -> list[str]:
        return weights.names

    def read(self, weights: Weights, name: str, device: torch.device) -> torch.Tensor:
        return weights.read(name).to(device).float()


EXPORTERS.register(Bf16.name, Bf16())
