"""`fgod manifest show` and `why`: what commands did, and who made a file, from what, by which command."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fgod.errors import UsageError
from fgod.history.index import Entry, Index, Made, before, command_line, home_of, maker_of, words_of
from fgod.layout import RELEASE_RECORD, RunWeights
from fgod.manifest import shown_path
from fgod.names import run_name
from fgod.system.digests import CACHE, remembered_sha256
from fgod.system.files import sha256_file

READ_AT_ONCE = 2**26
"""Bytes that are read to compare a file with its record; of a larger one the digest that is remembered counts."""


def listing(entries: Sequence[Entry], run: str = "") -> Iterator[str]:
    """A line for each command, oldest first; of one run (`STAGE@LINEAGE`) its own alone, with what they made."""
    for entry in entries:
        if entry["state"] == "unreadable":
            yield f"{entry['file']}: unreadable: {entry['error']}"
        elif not run:
            yield _line(entry)
        elif run_name(entry["stage"], entry["lineage"]) == run:
            yield _line(entry)
            yield f"    {command_line(entry)}"
            yield from (f"    made {_digested(output)}" for output in entry.get("outputs", ()))


def _line(entry: Entry) -> str:
    took = f"{entry['seconds']:.1f} s" if "seconds" in entry else "–"
    fault = f"  {entry['error'].splitlines()[0]}" if entry.get("error") else ""
    code = f" {entry['exit_code']}" if entry.get("exit_code") else ""
    return f"{_when(entry)}  {entry['state'] + code:<10} {took:>9}  {words_of(entry)}{fault}"


def _when(entry: Entry) -> str:
    return str(entry["start"])[:19] + "Z"


def _digested(described: Entry) -> str:
    """A path with its digest, of an entry's inputs or outputs."""
    if not described["sha256"]:
        return f"{described['path']} ({described['kind']})"
    return f"{described['path']}  {described['bytes']:,} bytes, sha256 {described['sha256'][:12]}"


def why(root: Path, file: Path, entries: Sequence[Entry]) -> Iterator[str]:
    """Who made a file or folder, from what, by which command.

    Raises:
        UsageError: no command on record made it.
    """
    index = Index.of(entry for entry in entries if entry["state"] != "unreadable")
    place = shown_path(root, file)
    path = home_of(place)
    if not index.makers(path):
        path = home_of(shown_path(root, Path(os.path.realpath(file))))
    makers = index.makers(path)
    if not makers:
        there = "it is there, but" if (root / file).exists() else "it is not there, and"
        raise UsageError(f"{file}: {there} no command on record made it (results/manifest.d/ has {len(entries)})")
    made = _maker_of_content(root, path, place, makers)
    yield place
    yield f"  {_standing(root, path, place, made, index)}"
    yield f"made by {words_of(made.entry)}, {_when(made.entry)}, {made.entry.get('seconds', 0):.1f} s"
    yield f"  {command_line(made.entry)}"
    yield f"  in {made.entry['cwd']}; {_environment(made.entry)}"
    yield "from"
    for read in made.entry.get("inputs") or ():
        maker = maker_of(index, read["path"], read["sha256"], str(made.entry["start"]))
        by = f"made by {words_of(maker.entry)}, {_when(maker.entry)}" if maker else "made by no command on record"
        yield f"  {_digested(read)}: {by}"
    if earlier := before(index, made.entry):
        yield "before that"
        yield from (f"  {_line(entry)}" for entry in earlier)


def _environment(entry: Entry) -> str:
    commit = entry.get("commit")
    code = f"commit {commit['sha'][:12]}{' with changes' if commit['dirty'] else ''}" if commit else "no commit"
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items() if version)
    gpus = entry["machine"]["gpus"] or ()
    return f"{code}; {versions}; {entry['machine']['cpu']}{''.join(f', {gpu}' for gpu in gpus)}"


def _maker_of_content(root: Path, path: str, place: str, makers: Sequence[Made]) -> Made:
    """The command that made what stands there; the last one where none did, or where that is not known."""
    found = current(root / place)
    return next((made for made in reversed(makers) if made.path == path and made.sha256 == found), makers[-1])


def current(path: Path) -> str:
    """The digest of a file, as far as it is small or remembered; empty: it is neither, or no file."""
    if not path.is_file():
        return ""
    if path.stat().st_size <= READ_AT_ONCE:
        return sha256_file(path)
    return remembered_sha256(path, CACHE) or ""


def _standing(root: Path, path: str, place: str, made: Made, index: Index) -> str:
    """In words, whether it is still as it was made."""
    there = root / place
    if not there.exists():
        gone = index.removed_by(path, str(made.entry["start"]))
        trashed = trash_of(root / path)
        if trashed:
            return f"it lies in the trash: {shown_path(root, trashed)}"
        return f"it was removed by {words_of(gone.entry)}, {_when(gone.entry)}" if gone else "it is gone"
    if there.is_dir():
        return "a folder: `fgod manifest verify` compares all its files"
    recorded, found = (made.sha256 if made.path == path else _in_stamp(root / path)), current(there)
    size = f"{there.stat().st_size:,} bytes"
    if not recorded:
        return f"{size}; one file of {made.path}: `fgod manifest verify` compares all of them"
    if not found:
        return f"{size}; recorded sha256 {recorded}, not read now: `fgod manifest verify` compares it"
    return f"{size}, sha256 {found}: " + (
        "as it was made" if found == recorded else f"it has changed since ({recorded})"
    )


def trash_of(path: Path) -> Path | None:
    """Where a path of a run's weights lies in the trash; None if it does not."""
    for folder in path.parents:
        inside = RunWeights(folder).trash / path.relative_to(folder) if len(folder.parts) > 2 else folder
        if len(folder.parts) > 2 and inside.exists():
            return inside
    return None


def _in_stamp(path: Path) -> str:
    """The digest of a file of weights by the stamp beside their folder; empty without one."""
    from fgod.documents import Release  # which takes a third of a second to import
    from fgod.stamps import stamped

    for folder in path.parents:
        if (folder / RELEASE_RECORD).is_file():
            return Release.read(folder / RELEASE_RECORD).files.get(path.relative_to(folder).as_posix(), "")
        for weights, _, stamp in stamped(RunWeights(folder.parent)):
            if weights == folder:
                return stamp.weights_files.get(path.relative_to(folder).as_posix(), "")
    return ""
