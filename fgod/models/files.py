"""Which files of a model folder hold weights, and which lie beside them."""

from __future__ import annotations

from pathlib import Path

from fgod.errors import UsageError

CONFIG = "config.json"

MODELOPT = "hf_quant_config.json"
"""What an export in ModelOpt's layout says besides of how its weights are stored."""

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".dat", ".gguf"}
"""Suffixes of files of weights."""

MODELFILE = "Modelfile"
"""What Ollama is told of a GGUF file that lies beside it."""


def check_links(folder: Path) -> None:
    """Refuse links that lead out of a model folder: what lies elsewhere on this machine would be read as a part of the
    model, and copied into what is made of it. A Hugging Face cache's links into its own `blobs` are the exception.

    Raises:
        UsageError: names the link, and where it leads.
    """
    own = folder.resolve()
    blobs = (own.parent.parent / "blobs").resolve()
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and path.is_file():
            target = path.resolve()
            if not target.is_relative_to(own) and not (own.parent.name == "snapshots" and target.parent == blobs):
                raise UsageError(f"{path}: found a link to {target}, expected a file of this folder: copy it here")


def beside_weights(folder: Path) -> list[Path]:
    """All that a TorchSharp file takes of a folder: config.json first, even where it is missing, and the side files."""
    return [folder / CONFIG, *(side_files(folder) if folder.is_dir() else ())]


def side_files(folder: Path) -> list[Path]:
    """Tokenizer, chat template, generation config and the like, sorted: all files but weights, what says how they are
    stored, and a Modelfile. Raises what `check_links` does."""
    check_links(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [
        path
        for path in files
        if path.suffix not in WEIGHTS
        and not path.name.endswith(".index.json")
        and path.name not in (CONFIG, MODELOPT, MODELFILE)
    ]
