"""Seals: a JSON object on disk that holds the sha256 of its own content under the key `seal`.

Apart from the models of `fgod.documents`, whose import takes longer than all that `fgod status` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgod.errors import FgodError
from fgod.system.files import canonical_json, read_json

SEAL = "seal"


def seal_of(value: Mapping[str, Any]) -> str:
    """The seal of an object, which is given without one."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: the file is missing.
        FgodError: it is no JSON, or no object; names the file.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise FgodError(f"{path}: found {type(value).__name__}, expected an object")
    return value


def read_sealed(path: Path, anew: str = "") -> dict[str, Any]:
    """Read a sealed object, without its seal.

    Args:
        anew: what a person does to have it made anew; by default snakemake makes what is deleted.

    Raises:
        UsageError: the file is missing.
        FgodError: it is no JSON object, has no seal or was edited since it was written; names the file.
    """
    value = read_object(path)
    seal = value.pop(SEAL, None)
    if seal != seal_of(value):
        how = "it has no seal" if seal is None else "it has changed since it was written (its seal differs)"
        anew = anew or f"delete {path} and run snakemake again to make it anew"
        raise FgodError(f"{path}: {how}; records are not edited: bring it back, or {anew}")
    return value
