"""Turn an NVFP4 export, or a release, into a folder of plain weights that can be a base: each code times its scales.

The weights are float32: what a code and its two scales stand for has more digits than BF16, and quantising it again
is to give the codes that were there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from fgod.chat import ChatSettings
from fgod.errors import UsageError
from fgod.importing import RECORD
from fgod.model.folder import FolderFacts, check_folder, checked_config
from fgod.models.architecture import tensors_of
from fgod.nvfp4.codec import dequantise
from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, Weights, copy_side_files, open_weights, write_config, write_weights
from fgod.nvfp4.reader import read_quantised
from fgod.system.files import atomic_folder, read_json, sha256_folder, write_json

DTYPE = "float32"


def decode_export(
    export: Path,
    out: Path,
    chat: ChatSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
    beat: Callable[[], None] = lambda: None,
) -> FolderFacts:
    """Write the weights that an export stands for. `out` appears whole; at most one shard is in memory.

    Args:
        chat: the config's `chat`.

    Raises:
        UsageError: the folder is no NVFP4 export of a known family, or a tensor is missing.
        BadScaleError: a scale is zero, negative or not finite.
    """
    config = checked_config(export, export_ok=True)
    wanted = tensors_of(config, export / "config.json")

    def made(name: str) -> dict[str, Tensor]:
        beat()
        return {name: stored_weight(weights, name)}

    say(f"base · {export} · an NVFP4 export, decoded to {DTYPE}")
    with open_weights(export) as weights, atomic_folder(out) as folder:
        write_weights(folder, list(wanted), lambda name: 4 * prod(wanted[name]), made, DEVICE_SHARD_BYTES)
        copy_side_files(export, folder)
        write_config(folder, {key: value for key, value in config.items() if key != "quantization_config"}, DTYPE)
        write_json(folder / RECORD, _record(export))
        return check_folder(folder, chat)


def _record(export: Path) -> dict[str, Any]:
    record = {"source": export.name, "sha256": sha256_folder(export), "dtype": DTYPE}
    earlier = export / RECORD
    return {**record, "from": read_json(earlier)} if earlier.is_file() else record


def stored_weight(weights: Weights, name: str) -> Tensor:
    """A tensor of an open export in float32, quantised or not.

    Raises:
        UsageError: it is not there.
    """
    if f"{name}_packed" in weights.files:
        return dequantise(read_quantised(weights, name), f"{weights.folder}: {name}")
    if name not in weights.files:
        raise UsageError(f"{weights.folder}: the tensor {name} is in none of the weight files, expected by config.json")
    return weights.read(name).float()
