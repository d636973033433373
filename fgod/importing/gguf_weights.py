"""The weights of a model in a GGUF file, by the names, in the shapes and with the order of rows of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgod.errors import UsageError
from fgod.importing.gguf_config import family_of, heads_of_rows, sources_of, unpermuted
from fgod.importing.gguf_file import GgufFile
from fgod.models.architecture import Sizes, architecture_of


@dataclass(frozen=True)
class GgufModel:
    """A model's tensors in a file.

    Args:
        shapes: by transformers' names, in transformers' order.
        sources: GGUF's name of each.
        sizes: of the model.
    """

    file: GgufFile
    shapes: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, str]
    sizes: Sizes

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32, decoded, times its scale where it has one.

        Raises:
            UsageError: a weight or the scale is not finite, or the scale is not above 0.
        """
        source = self.sources[name]
        values = self.file.read(source)
        if not np.isfinite(values).all():
            raise UsageError(f"{self.file.path}: {source}: a weight is not finite: the file is damaged; fetch it anew")
        heads = heads_of_rows(name, self.sizes) if family_of(self.file).permuted else None
        return values if heads is None else unpermuted(values, heads)


def model_of(file: GgufFile, config: Mapping[str, Any], where: Path, tied: bool) -> GgufModel:
    """The model of a config.json in a file.

    Args:
        where: what the config is from, for messages.
        tied: head and embedding are one tensor.

    Raises:
        UsageError: a tensor is missing, there is one that the family has no place for, or one has another shape.
    """
    family = architecture_of(config, where)
    family.check(config, where)
    shapes = family.tensors(config, where)
    sources = sources_of(shapes, file, tied)
    for name, shape in shapes.items():
        found = file.tensors[sources[name]]
        if found.shape != shape:
            by = "its metadata" if where == file.path else where
            raise UsageError(
                f"{file.path}: shape of {found.name}: found {list(found.shape)}, expected {list(shape)} by {by}"
            )
    return GgufModel(file, shapes, sources, family.sizes(config, where))
