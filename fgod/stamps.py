"""Weights and the stamps that speak of them: a command that reads weights checks first that they are still those."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fgod.documents import Stamp
from fgod.errors import FgodError
from fgod.layout import Export, RunWeights, remade_by_deleting
from fgod.names import name_of_folder
from fgod.system.files import differing, file_digests, sha256_listing


def digests_of(folder: Path) -> dict[str, Any]:
    """What a stamp says of a folder of weights: its sha256, and that of each file."""
    listing = file_digests(folder)
    return {"weights_sha256": sha256_listing(listing), "weights_files": listing}


def check_weights(folder: Path, stamp_file: Path) -> None:
    """Weights must be, byte for byte, those that their stamp speaks of.

    Raises:
        FgodError: they are gone or changed; says what to do about it.
    """
    stamp = Stamp.read(stamp_file)
    if not folder.is_dir():
        raise FgodError(f"{folder}: these weights are gone, though {stamp_file} stands; {_anew(folder, stamp_file)}")
    if changed := differing(stamp.weights_files, file_digests(folder)):
        raise FgodError(f"{folder}: {', '.join(changed)} since these weights were written (sha256 differs from "
                        f"{stamp_file}); {_anew(folder, stamp_file)}")  # fmt: skip


def _anew(folder: Path, stamp_file: Path) -> str:
    """What is to be done about weights that are not what they were."""
    if folder.parent != stamp_file.parent:  # the user's own base
        return "bring back the files that it had, or name another folder in base.path"
    return remedy(folder)


def remedy(weights: Path) -> str:
    """What a person does about weights of a run or of the base that are not what they were, or are gone."""
    run = RunWeights(weights.parent)
    if not weights.is_dir() and (run.trash / weights.name).is_dir():
        name = name_of_folder(run.folder)
        return f"they are in the trash: bring them back with `fgod restore {name}`, then run snakemake again"
    return remade_by_deleting(weights)


def stamped(place: Export) -> Iterator[tuple[Path, Path, Stamp]]:
    """Each folder of weights that a stamp beside it speaks of, the exported ones first, whether it is there or not:
    the folder, the file of the stamp, the stamp. Stamps that say why there are no weights are left out.

    Raises:
        FgodError: a stamp was edited; names it.
    """
    files = place.stamps()
    if isinstance(place, RunWeights):
        files[place.master] = place.trained
    for folder, file in files.items():
        if file.exists():
            stamp = Stamp.read(file)
            if stamp.weights_files:
                yield folder, file, stamp


def check_export(stamp_file: Path) -> None:
    """The export beside a stamp must be the one that it speaks of (see `check_weights`)."""
    check_weights(Export(stamp_file.parent).exported, stamp_file)


def check_start(weights: Path, stamp_file: Path) -> None:
    """The weights from which a training starts must be trained, and those of their stamp (see `check_weights`)."""
    status = Stamp.read(stamp_file).status
    if status != "trained":
        raise FgodError(f"{stamp_file}: found status {status!r}, expected weights to start from")
    check_weights(weights, stamp_file)
