"""Which files of a model folder hold weights, and which lie beside them."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"

MODELOPT = "hf_quant_config.json"
"""What an export in ModelOpt's layout says besides of how its weights are stored."""

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".dat", ".gguf"}
"""Suffixes of files of weights."""

MODELFILE = "Modelfile"
"""What Ollama is told of a GGUF file that lies beside it."""


def beside_weights(folder: Path) -> list[Path]:
    """All that a TorchSharp file takes of a folder: config.json first, even where it is missing, and the side files."""
    return [folder / CONFIG, *(side_files(folder) if folder.is_dir() else ())]


def side_files(folder: Path) -> list[Path]:
    """Tokenizer, chat template, generation config and the like, sorted: all files but weights, what says how they are
    stored, and a Modelfile."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [
        path
        for path in files
        if path.suffix not in WEIGHTS
        and not path.name.endswith(".index.json")
        and path.name not in (CONFIG, MODELOPT, MODELFILE)
    ]
