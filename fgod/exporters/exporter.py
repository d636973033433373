"""What the package needs to know of a format that weights are exported to.

A plugin file adds one (tests/plugins/fp8.py):

    class Fp8(Exporter):
        name, engine, package = "fp8", "float-quantized", "compressed-tensors"
        …

    EXPORTERS.register(Fp8.name, Fp8())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.plugins import Registry

if TYPE_CHECKING:
    import torch

    from fgod.nvfp4.folders import Weights

EXPORTERS: Registry[Exporter] = Registry(
    "export format",
    [
        "fgod.exporters.nvfp4",
        "fgod.exporters.modelopt",
        "fgod.exporters.bf16",
        "fgod.dat.exporter",
        "fgod.gguf.exporter",
    ],
)


class Exporter(ABC):
    """A format of exported weights: config.json, files of weights (safetensors, where `open` is not overridden), and
    what else lay beside the weights.

    Reading back takes an open folder (`open`) and gives the model's tensors one at a time: those that config.json asks
    for, whatever they are stored as.
    """

    name: str
    """The folder beside the stamp, and `fgod export --format`."""
    engine: str
    """What inference engines call it: `format` of config.json's `quantization_config`; empty: plain weights."""
    package: str
    """`quant_method` of the `quantization_config`: the package that transformers needs to load it, if it can."""
    readers: str = ""
    """Who reads such folders besides this package, in words, for model cards."""
    not_embedded: str = ""
    """Why it cannot hold the embedded base; empty: it can."""

    @abstractmethod
    def write(
        self, master: Path, out: Path, dtype: str, device: torch.device | None = None, beat: Callable[[], None] = ...
    ) -> None:
        """Export a folder of plain weights. `out` appears whole.

        Args:
            dtype: of what stays unquantised, float32 or bfloat16.
            device: where it is computed; None: on the CPU.
            beat: called for each tensor.

        Raises:
            UsageError: the weights cannot be exported; names the file.
        """

    def open(self, folder: Path) -> AbstractContextManager[Weights]:
        """The weights of a folder, of which headers alone are read at first.

        Raises:
            UsageError: a file of weights is missing or broken.
        """
        from fgod.nvfp4.folders import open_weights

        return open_weights(folder)

    @abstractmethod
    def names(self, weights: Weights) -> list[str]:
        """The tensors of the model that an open folder holds."""

    def shape(self, weights: Weights, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the model."""
        return weights.shape(name)

    @abstractmethod
    def read(self, weights: Weights, name: str, device: torch.device) -> torch.Tensor:
        """A tensor of the model in float32, on the device.

        Raises:
            UsageError: a stored tensor that it is made of is missing; names it.
        """

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is that of such a folder."""
        return (config.get("quantization_config") or {}).get("format") == self.engine


def exporter_of(config: Mapping[str, Any]) -> Exporter | None:
    """The format of a folder with this config.json; None: plain weights, or quantised by something else."""
    return next((exporter for _, exporter in EXPORTERS.items() if exporter.recognises(config)), None)
