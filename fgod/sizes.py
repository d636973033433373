"""How large a config's base is, before it is made or loaded: from its spec, its config.json or its file's header.

Imports no torch, and the gguf package for a GGUF file alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fgod.errors import UsageError
from fgod.model.spec import SHAPES, EmbeddedSpec
from fgod.models.architecture import Shape, architecture_of, tensors_of
from fgod.models.files import CONFIG
from fgod.models.names import BLOCK
from fgod.system.files import read_json

FLOAT32, BF16 = 4, 2
"""Bytes of a weight."""


class NotHereError(UsageError):
    """The weights that a config names are not on this machine. The message names them, and what to do."""


@dataclass(frozen=True)
class BaseSizes:
    """Of a base.

    Args:
        config: as its config.json has it, as far as sizes go.
        stored: bytes of a weight in the folder that is made of it; 0 where the user's own folder is used as it stands.
    """

    config: Mapping[str, Any]
    where: str
    stored: int

    @property
    def shapes(self) -> dict[str, Shape]:
        return tensors_of(self.config, self.where)

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def quantised(self) -> int:
        """Parameters that an NVFP4 export quantises."""
        family = architecture_of(self.config, self.where)
        return sum(prod(shape) for name, shape in self.shapes.items() if family.scale_group(name) is not None)


def base_sizes(base: Mapping[str, Any]) -> BaseSizes:
    """The sizes of a checked config's `base`. Of an embedded one at most: its vocabulary is known once it is made.

    Raises:
        NotHereError: weights that it names are not here.
        UsageError: their config or header is damaged, or of no family that is known.
    """
    match base["kind"]:
        case "random":
            return BaseSizes(SHAPES[base["shape"]], f"base.shape {base['shape']}", BF16)
        case "embedded":
            return BaseSizes(_embedded(EmbeddedSpec.from_dict(base)), "the embedded base", FLOAT32)
        case "gguf":
            return BaseSizes(_gguf(_there(base["path"])), base["path"], BF16)
        case "dat":
            _there(base["path"])
            return BaseSizes(_json(base["like"]), base["like"], FLOAT32)
    config = _json(base["path"])
    return BaseSizes(config, base["path"], FLOAT32 if "quantization_config" in config else 0)


def require_weights(base: Mapping[str, Any]) -> None:
    """Raises NotHereError where a file or folder that a config's `base` names is missing; it may be unchecked."""
    for key in ("path", "like"):
        if isinstance(base.get(key), str):
            _there(base[key])


def _there(path: str) -> Path:
    if not Path(path).exists():
        raise NotHereError(
            f"{path}: not here, so its size is not known; put the model there (the first lines of the config say which "
            "it is), or name in base.path where it lies"
        )
    return Path(path)


def _json(folder: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_json(_there(folder) / CONFIG)
    return found


def _embedded(spec: EmbeddedSpec) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.mlp,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": math.ceil(spec.vocab / BLOCK) * BLOCK,
        "tie_word_embeddings": spec.tied,
    }


def _gguf(path: Path) -> Mapping[str, Any]:
    from fgod.importing.gguf_config import HEAD, config_of
    from fgod.importing.gguf_file import read_gguf

    file = read_gguf(path)
    return config_of(file, tied=HEAD not in file.tensors)
