"""The weights of a folder that lie in one GGUF file there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fgod.importing.gguf_file import read_gguf
from fgod.importing.gguf_weights import GgufModel, model_of
from fgod.models.architecture import architecture_of
from fgod.models.files import CONFIG
from fgod.nvfp4.folders import Weights
from fgod.system.files import read_json


class GgufWeights(Weights):
    """The tensors of a model in a file, by transformers' names: `read` gives float32."""

    def __init__(self, folder: Path, model: GgufModel) -> None:
        super().__init__(folder, dict.fromkeys(model.shapes, model.file.path))
        self.model = model

    def shape(self, name: str) -> tuple[int, ...]:
        return self.model.shapes[name]

    def read(self, name: str) -> Tensor:
        return torch.from_numpy(self.model.read(name))


@contextmanager
def open_gguf(folder: Path, name: str) -> Iterator[GgufWeights]:
    """The weights of an export; config.json says which ones the file has to hold.

    Raises:
        UsageError: the file is missing or broken, or holds other tensors than config.json says.
    """
    where = folder / CONFIG
    config = read_json(where)
    tied = architecture_of(config, where).sizes(config, where).tied
    yield GgufWeights(folder, model_of(read_gguf(folder / name), config, where, tied))
