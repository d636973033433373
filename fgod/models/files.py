"""Which files of a model folder hold weights, and which lie beside them. Pure."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"

MODELOPT = "hf_quant_config.json"
"""What an export in ModelOpt's layout says besides of how its weights are stored."""

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".dat"}
"""Suffixes of files of weights."""


def side_files(folder: Path) -> list[Path]:
    """Tokenizer, chat template, generation config and the like, sorted: all files but weights and what says how they
    are stored."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [
        path
        for path in files
        if path.suffix not in WEIGHTS and not path.name.endswith(".index.json") and path.name not in (CONFIG, MODELOPT)
    ]
