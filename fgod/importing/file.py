"""A file of a model as a folder of plain weights: by its suffix a GGUF or a TorchSharp file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fgod.dat.file import SUFFIX
from fgod.errors import UsageError
from fgod.model.folder import FolderFacts

SUFFIXES = (".gguf", SUFFIX)
"""Of files that are asked as models."""


def import_file(
    path: Path,
    out: Path,
    like: Path | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    beat: Callable[[], None] = lambda: None,
) -> FolderFacts:
    """`import_dat` of a file that ends in .dat, else `import_gguf`.

    Args:
        like: the folder with config and tokenizer of a TorchSharp file; None: where it lies.
        dtype: of the weights; None: bfloat16, of a TorchSharp file float32.

    Raises:
        UsageError: `like` is given for a GGUF file; and what these raise.
    """
    if path.suffix.lower() == SUFFIX:
        from fgod.importing.dat import import_dat

        return import_dat(path, out, like, dtype or "float32", say=say, beat=beat)
    if like is not None:
        raise UsageError(f"--like: found {like} with {path}, which has a config and a tokenizer of its own")
    from fgod.importing.gguf import import_gguf

    return import_gguf(path, out, dtype or "bfloat16", say=say, beat=beat)
