"""Turn an export, or a release, into a folder of plain weights that can be a base.

The weights are float32: what a code of NVFP4 and its two scales stand for has more digits than BF16, and quantising it
again is to give the codes that were there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgod.chat import ChatSettings
from fgod.exporters.exporter import exporter_of
from fgod.importing import RECORD
from fgod.model.folder import FolderFacts, check_folder, checked_config
from fgod.models.architecture import tensors_of, wrong
from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, copy_side_files, described, write_config, write_weights
from fgod.system.files import atomic_folder, read_json, sha256_folder, write_json

DTYPE = "float32"
CPU = torch.device("cpu")


def decode_export(
    export: Path,
    out: Path,
    chat: ChatSettings | None = None,
    say: Callable[[str], None] = lambda text: None,
    beat: Callable[[], None] = lambda: None,
) -> FolderFacts:
    """Write the weights that an export stands for. `out` appears whole; one tensor is in memory.

    Args:
        chat: the config's `chat`.

    Raises:
        UsageError: the folder is no export of a known format and family, or a tensor is missing.
        BadScaleError: a scale is zero, negative or not finite.
    """
    config = checked_config(export, export_ok=True)
    wanted, exporter = tensors_of(config, export / "config.json"), exporter_of(config)
    if exporter is None:
        raise wrong(export / "config.json", "quantization_config", None, "that of an export")

    def planned(name: str) -> dict[str, Tensor]:
        return {name: described(wanted[name], torch.float32)}

    def made(name: str) -> dict[str, Tensor]:
        beat()
        return {name: exporter.read(weights, name, CPU)}

    say(f"base · {export} · an export in {exporter.name}, decoded to {DTYPE}")
    with exporter.open(export) as weights, atomic_folder(out) as folder:
        write_weights(folder, list(wanted), planned, made, DEVICE_SHARD_BYTES)
        copy_side_files(export, folder)
        write_config(folder, {key: value for key, value in config.items() if key != "quantization_config"}, DTYPE)
        write_json(folder / RECORD, _record(export))
        return check_folder(folder, chat)


def _record(export: Path) -> dict[str, Any]:
    record = {"source": export.name, "sha256": sha256_folder(export), "dtype": DTYPE}
    earlier = export / RECORD
    return {**record, "from": read_json(earlier)} if earlier.is_file() else record
