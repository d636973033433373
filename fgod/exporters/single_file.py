"""Formats whose weights are one file beside config.json and the tokenizer, read as the model's own tensors."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from fgod.errors import UsageError
from fgod.exporters.exporter import Exporter

if TYPE_CHECKING:
    import torch

    from fgod.nvfp4.folders import Weights


class SingleFile(Exporter):
    """What such formats share: `open` gives the model's tensors by their names."""

    file: str
    """The weights in the folder of an export."""

    @abstractmethod
    def open(self, folder: Path) -> AbstractContextManager[Weights]: ...

    def names(self, weights: Weights) -> list[str]:
        return weights.names

    def read(self, weights: Weights, name: str, device: torch.device) -> torch.Tensor:
        """Raises BadScaleError too, where the format has scales: one is no number that the format allows."""
        if name not in weights.files:
            raise UsageError(f"{weights.folder / self.file}: the tensor {name} is missing, expected by config.json")
        return weights.read(name).to(device)
