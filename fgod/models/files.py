"""Which files of a model folder hold weights, and which lie beside them. Pure."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".dat", ".gguf"}
"""Suffixes of files of weights."""

MODELFILE = "Modelfile"
"""What Ollama is told of a GGUF file that lies beside it."""


def side_files(folder: Path) -> list[Path]:
    """Tokenizer, chat template, generation config and the like, sorted: all but weights, config.json, a Modelfile."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [
        path
        for path in files
        if path.suffix not in WEIGHTS and not path.name.endswith(".index.json") and path.name not in (CONFIG, MODELFILE)
    ]
