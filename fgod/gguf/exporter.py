"""A GGUF file, as llama.cpp and Ollama read it, beside config.json, the tokenizer and a Modelfile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fgod.exporters.exporter import EXPORTERS
from fgod.exporters.single_file import SingleFile

if TYPE_CHECKING:
    import torch

    from fgod.nvfp4.folders import Weights

FILE = "model.gguf"
"""The weights in the folder of an export."""


class Gguf(SingleFile):
    """The whole model in one file: weights, metadata, tokenizer, chat template.

    Args:
        name: of the format.
        kind: GGML's type of the projections: NVFP4 with the codes and scales of the NVFP4 export, or BF16.
    """

    package = "gguf"
    file = FILE
    readers = "llama.cpp, Ollama"
    not_embedded = "GGUF has no name for the rule by which its tokenizer cuts texts"

    def __init__(self, name: str, kind: Literal["NVFP4", "BF16"]) -> None:
        self.name, self.kind = name, kind
        self.engine = f"{self.package}-{kind.lower()}"

    def quantization_config(self) -> dict[str, Any]:
        """config.json's `quantization_config`. transformers cannot load it."""
        return {"quant_method": self.package, "format": self.engine, "file": FILE}

    def write(
        self,
        master: Path,
        out: Path,
        dtype: str,
        device: torch.device | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        from gguf.constants import GGMLQuantizationType

        from fgod.gguf.export import export_gguf

        kind = GGMLQuantizationType[self.kind]
        export_gguf(master, out, FILE, kind, dtype, self.quantization_config(), device, beat)

    def open(self, folder: Path) -> AbstractContextManager[Weights]:
        from fgod.gguf.weights import open_gguf

        return open_gguf(folder, FILE)


GGUF = Gguf("gguf", "NVFP4")
GGUF_BF16 = Gguf("gguf-bf16", "BF16")
EXPORTERS.register(GGUF.name, GGUF)
EXPORTERS.register(GGUF_BF16.name, GGUF_BF16)
