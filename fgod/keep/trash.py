"""The trash of weights: artifacts/.trash/STAGE/LINEAGE/, by renames alone; only emptying it deletes.

The stamps stay where they are, so that for snakemake nothing is missing and nothing trains again; whatever reads the
weights is told by `fgod.stamps.check_weights` that they are in the trash. Each folder of weights is, at any moment,
whole in one of the two places. What a kill leaves half done is finished, or taken back, by the same commands.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgod.documents import Stamp, Trashed, TrashedFolder
from fgod.errors import FgodError, UsageError
from fgod.layout import ARTIFACTS, RESULTS, TRASH, RunRecords, RunWeights, run_records, run_weights
from fgod.names import name_of_folder, parts_of
from fgod.runs import matching, name_of
from fgod.stamps import stamped
from fgod.system.files import copy_file, folder_files, fsync_folder, remove_folder, storage_explained
from fgod.system.times import now_iso


@dataclass(frozen=True)
class Move:
    """A folder of weights of a run (`STAGE@LINEAGE`) and where it goes; its bytes, its digest by its stamp."""

    run: str
    source: Path
    target: Path
    bytes: int
    sha256: str

    @property
    def done(self) -> bool:
        """Whether the folder has moved."""
        return self.target.is_dir() and not self.source.exists()

    def facts(self) -> dict[str, object]:
        """For the manifest."""
        return {
            "run": self.run,
            "from": self.source.as_posix(),
            "to": self.target.as_posix(),
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder_files(folder))


def weights_of(run: RunRecords, artifacts: Path = ARTIFACTS) -> RunWeights:
    """The weights of a run on record."""
    return run_weights(run.folder.parent.name, run.folder.name, artifacts)


def weights_named(name: str, artifacts: Path = ARTIFACTS) -> RunWeights:
    """The weights of `STAGE@LINEAGE`."""
    return run_weights(*parts_of(name), artifacts)


def weights_there(weights: RunWeights) -> bool:
    """Whether some folder of a run's weights stands at its place.

    Raises:
        FgodError: a stamp was edited; names it.
    """
    return any(folder.is_dir() for folder, _, _ in stamped(weights))


def moves_to_trash(run: RunRecords, artifacts: Path = ARTIFACTS) -> list[Move]:
    """What throwing away a run's weights moves.

    Raises:
        UsageError: it has none at their place; or what is in the trash already, a link or another file system is in the
            way of a rename. Names the folder.
    """
    weights = weights_of(run, artifacts)
    found = [
        Move(name_of(run), folder, weights.trash / folder.name, size_of(folder), stamp.weights_sha256)
        for folder, _, stamp in stamped(weights)
        if folder.is_dir()
    ]
    if not found:
        in_trash = [path.name for path in _folders(weights.trash)]
        why = f"{', '.join(in_trash)} lie in the trash already" if in_trash else f"{weights.folder} has none"
        raise UsageError(f"{name_of(run)}: no weights that could be thrown away: {why}")
    for move in found:
        _check_rename(move)
    return found


def _check_rename(move: Move) -> None:
    if move.source.is_symlink():
        raise UsageError(f"{move.source}: found a link, expected a folder of weights; nothing was moved")
    if os.path.lexists(move.target):
        raise UsageError(
            f"{move.target}: found something there already, expected nothing; nothing was moved. "
            + (
                f"It is of an earlier training: empty the trash of it with `fgod trash {move.run} --empty`"
                if TRASH in move.target.parts
                else f"These weights were made again since: throw those away, or leave {move.source} in the trash"
            )
        )
    above = next(path for path in move.target.parents if path.exists())
    if above.stat().st_dev != move.source.stat().st_dev:
        raise _not_renamed(move, above)


def _not_renamed(move: Move, above: Path) -> UsageError:
    return UsageError(
        f"{move.source}: it lies on another file system than {above}, or in another mount or layer of it, so that it "
        f"cannot be renamed to {move.target}; it stays where it is"
    )


def throw_away(run: RunRecords, moves: Sequence[Move], artifacts: Path = ARTIFACTS) -> None:
    """Move a run's weights to the trash, with copies of their stamps; what they were is on record before the first
    rename. The exports go first: without its export a run counts as pruned.

    Raises:
        StorageError: a file could not be written, or a folder not renamed.
    """
    weights = weights_of(run, artifacts)
    before = Trashed.read(run.trashed).folders if run.trashed.exists() else {}
    folders = {_below(artifacts, move.source): TrashedFolder(bytes=move.bytes, sha256=move.sha256) for move in moves}
    Trashed(since=now_iso(), folders={**before, **folders}).write(run.trashed)
    for _, stamp_file, _ in stamped(weights):
        copy_file(stamp_file, weights.trash / stamp_file.name)
    for move in moves:
        rename(move)


def rename(move: Move) -> None:
    """Do one move; durable when it returns.

    Raises:
        StorageError: the folder could not be renamed; it stands where it was.
        UsageError: nor can it be: another mount or layer lies between, though the number of the file system is one.
    """
    with storage_explained(move.target):
        move.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            move.source.rename(move.target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise _not_renamed(move, move.target.parent) from error
        fsync_folder(move.target.parent)
        fsync_folder(move.source.parent)


def _below(artifacts: Path, folder: Path) -> str:
    return folder.relative_to(artifacts).as_posix()


# What lies in the trash


def _folders(trash: Path) -> list[Path]:
    """Folders of weights below a run's folder of the trash; those being deleted have names that begin with a dot."""
    if not trash.is_dir():
        return []
    return sorted(path for path in trash.iterdir() if path.is_dir() and not path.name.startswith("."))


def in_trash(artifacts: Path = ARTIFACTS) -> dict[str, list[Path]]:
    """Folders of weights in the trash, by the name of their run."""
    places = sorted(path for path in (artifacts / TRASH).glob("*/*") if not path.name.startswith("."))
    found = {name_of_folder(place): _folders(place) for place in places}
    return {name: folders for name, folders in found.items() if folders}


def only_in_trash(weights: RunWeights) -> list[Path]:
    """Folders of a run's weights in the trash that are not at their place too, as what was made again since is."""
    return [folder for folder in _folders(weights.trash) if not (weights.folder / folder.name).is_dir()]


def to_restore(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> dict[str, list[Path]]:
    """Folders of weights that can be brought back, by the name of their run; none where only stamps or the record of
    the move are left, which a kill does."""
    left = {name: list[Path]() for name in sorted(_left_behind(results, artifacts))}
    return {**left, **in_trash(artifacts)}


def _left_behind(results: Path, artifacts: Path) -> Iterator[str]:
    for copy in (artifacts / TRASH).glob("*/*/*.json"):
        if not copy.parent.name.startswith("."):
            yield name_of_folder(copy.parent)
    for file in (results / "runs").glob("*/*/trashed.json"):
        if any((artifacts / path).is_dir() for path in Trashed.read(file).folders):
            yield name_of(RunRecords(file.parent))


def trashed_runs(names: Iterable[str], there: Collection[str]) -> list[str]:
    """The runs in the trash that a person names, as `fgod.runs.resolve` reads names; STAGE is its only one there.

    Args:
        there: names of the runs in the trash.

    Raises:
        UsageError: a name is of none, or of several; names those that there are.
    """
    return list(dict.fromkeys(matching(name, there, "run in the trash") for name in names))


def moves_back(name: str, artifacts: Path = ARTIFACTS) -> list[Move]:
    """What bringing back the weights of a run that is in the trash moves, the exports last.

    Raises:
        UsageError: something stands where they go; or a link or another file system is in the way of a rename.
    """
    weights = weights_named(name, artifacts)
    files = RunWeights(weights.trash).stamps() | {weights.trash / weights.master.name: weights.trash / "trained.json"}
    found = []
    for folder in _folders(weights.trash):
        stamp_file = files.get(folder)
        sha256 = Stamp.read(stamp_file).weights_sha256 if stamp_file and stamp_file.exists() else ""
        found.append(Move(name, folder, weights.folder / folder.name, size_of(folder), sha256))
    found.sort(key=lambda move: move.target != weights.master)
    for move in found:
        _check_rename(move)
    return found


def bring_back(name: str, moves: Sequence[Move], results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> None:
    """Move a run's weights back to their places, and copies of stamps that are missing there.

    Raises:
        StorageError: a file could not be written, or a folder not renamed.
    """
    weights, run = weights_named(name, artifacts), run_records(*parts_of(name), results)
    for copy in sorted(weights.trash.glob("*.json")):
        if not (weights.folder / copy.name).exists():
            copy_file(copy, weights.folder / copy.name)
    for move in moves:
        rename(move)
    for copy in weights.trash.glob("*.json"):
        copy.unlink()
    if weights.trash.is_dir() and not any(weights.trash.iterdir()):
        weights.trash.rmdir()
    if run.trashed.exists():
        before = Trashed.read(run.trashed)
        left = {path: facts for path, facts in before.folders.items() if not (artifacts / path).is_dir()}
        if left:  # emptied from the trash before
            before.model_copy(update={"folders": left}).write(run.trashed)
        else:
            run.trashed.unlink()


def check_empty(name: str, artifacts: Path = ARTIFACTS) -> None:
    """What lies in the trash of a run must be what fgod put there.

    Raises:
        FgodError: something else is there; names it.
    """
    trash = weights_named(name, artifacts).trash
    known = {path.name for path in _folders(trash)} | {path.name for path in trash.glob("*.json")}
    if foreign := sorted(path.name for path in trash.iterdir() if path.name not in known and path.name[0] != "."):
        raise FgodError(f"{trash}: found {', '.join(foreign)}, which fgod did not put there; nothing was deleted")


def empty(name: str, artifacts: Path = ARTIFACTS) -> None:
    """Delete the weights of a run that lie in the trash. Their stamps and records stay."""
    remove_folder(weights_named(name, artifacts).trash)
