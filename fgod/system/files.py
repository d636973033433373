"""Files and folders: digests, and writes that leave either the old or the new state.

Whatever is written has a temporary name first, `.NAME.RANDOM.tmp` beside its own. The writer holds a lock on it as
long as it lives, so that `sweep` distinguishes what a kill left behind from what is being written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgod.errors import FgodError, StorageError, UsageError

ID_LENGTH = 12
"""Hex digits of a short digest (48 bits: a collision among 10⁵ runs has probability 2·10⁻⁵)."""

LEAST_FREE = 2**20
"""Bytes without which a run cannot even record that it fails."""


def check_room(folder: Path) -> None:
    """Refuse to begin on a full disk.

    Raises:
        StorageError: names the folder.
    """
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise StorageError(
            f"{folder.resolve()}: this disk is full: {free // 1024} KiB are free, expected at least "
            f"{LEAST_FREE // 1024}; free some room, then run it again. What stands is whole"
        )


def canonical_json(value: Any) -> str:
    """Sorted, compact JSON: the same text for equal values. Non-finite numbers raise ValueError."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(*values: Any) -> str:
    """Short SHA-256 hex digest of JSON-serialisable values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:ID_LENGTH]


HASHED_AT_ONCE = 8
"""Files that are hashed beside each other: shards of gigabytes, where there are cores."""

SMALL_BYTES = 2**24
"""Files of so many bytes together are hashed one after another: that takes no longer than to start threads."""


def sha256_file(path: Path) -> str:
    """SHA-256 hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_files(folder: Path) -> list[Path]:
    """All regular files below a folder, sorted by relative path."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def file_digests(folder: Path, paths: Iterable[Path] | None = None) -> dict[str, str]:
    """SHA-256 hex digest of each file (all below the folder by default) by its path relative to the folder, sorted."""
    found = sorted(folder_files(folder) if paths is None else paths)
    names = [path.relative_to(folder).as_posix() for path in found]
    if sum(path.stat().st_size for path in found) <= SMALL_BYTES:
        return dict(zip(names, map(sha256_file, found), strict=True))
    from concurrent.futures import ThreadPoolExecutor  # short commands hash nothing large, and need not import it

    with ThreadPoolExecutor(min(HASHED_AT_ONCE, len(found))) as pool:
        return dict(zip(names, pool.map(sha256_file, found), strict=True))


def sha256_listing(listing: Mapping[str, str]) -> str:
    """SHA-256 hex digest of a folder from the digests of its files, as `file_digests` gives them."""
    return hashlib.sha256(canonical_json(list(listing.items())).encode()).hexdigest()


def sha256_files(folder: Path, paths: Iterable[Path]) -> str:
    """SHA-256 hex digest of files' names (relative to the folder) and contents, in sorted order."""
    return sha256_listing(file_digests(folder, paths))


def sha256_folder(folder: Path) -> str:
    """SHA-256 hex digest of the names and contents of all files below a folder."""
    return sha256_listing(file_digests(folder))


def differing(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In words, which files are not as they were recorded: changed, missing, or new. Both as of `file_digests`."""
    changed = [f"{name} has changed" for name in recorded if name in found and found[name] != recorded[name]]
    gone = [f"{name} is gone" for name in recorded if name not in found]
    return [*changed, *gone, *(f"{name} is new" for name in found if name not in recorded)]


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def drop_cached(path: Path) -> None:
    """Give a file's page cache back: on unified memory it counts as used. What is not on the disk is written first."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


_STORAGE = {
    errno.ENOSPC: "free some room there, then run it again",
    errno.EDQUOT: "free some room there, then run it again",
    errno.EFBIG: "allow larger files there (ulimit -f), then run it again",
    errno.EROFS: "make the folder writable, then run it again",
    errno.EACCES: "give this user the right to write there, then run it again",
    errno.EPERM: "give this user the right to write there, then run it again",
    errno.EIO: "look after the disk, then run it again",
}
"""What helps when a disk or a folder does not take what is written."""


@contextmanager
def storage_explained(path: Path) -> Iterator[None]:
    """Turn an error of the disk while `path` is written into a `StorageError` that names it."""
    try:
        yield
    except StorageError:  # a file inside has been named
        raise
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        raise StorageError(
            f"{path}: it could not be written: {os.strerror(error.errno)}. What stood under this name still does; "
            f"{_STORAGE[error.errno]}"
        ) from error


def _claimed(make: Callable[[], str]) -> tuple[Path, int]:
    """A new temporary and the descriptor that locks it."""
    while True:
        temporary = Path(make())
        try:
            handle = _open_to_lock(temporary)
        except FileNotFoundError:  # swept before it was locked
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, handle
        os.close(handle)


def _open_to_lock(path: Path) -> int:
    """A descriptor. NFS locks a file for one alone only where it is open for writing, and a folder on one node only."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _new_file(path: Path) -> str:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    return name


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, else remove it.

    Raises:
        StorageError: the disk is full, the folder cannot be written to, or the like; `path` is as before.
    """
    with storage_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _claimed(lambda: _new_file(path))
        try:
            yield temporary
            temporary.chmod(0o644)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success fsync its files and move it to `path`, else remove it.

    An existing `path` is moved aside first (`.NAME.RANDOM.old`) and deleted after the new one stands. A kill between
    the two renames leaves it there, and `sweep` puts it back.

    Raises:
        StorageError: the disk is full, the folder cannot be written to, or the like; `path` is as before.
    """
    with storage_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _claimed(lambda: tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in folder_files(temporary):
                file.chmod(0o644)
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            _move_over(temporary, path)
            fsync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(lock)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a path, which is removed at the end.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_explained(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        made = lambda: tempfile.mkdtemp(prefix=f".{beside.name}.", suffix=".tmp", dir=beside.parent)  # noqa: E731
        temporary, lock = _claimed(made)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _move_over(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.replace(path)
        return
    aside, lock = _claimed(lambda: tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        path.replace(aside)
        try:
            temporary.replace(path)
        except OSError:
            aside.replace(path)
            raise
        shutil.rmtree(aside)
    finally:
        os.close(lock)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there; a kill in between leaves no half of it under its name."""
    if not path.exists():
        return
    temporary, lock = _claimed(lambda: tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        path.replace(temporary)
        shutil.rmtree(temporary)
    finally:
        os.close(lock)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes atomically."""
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)


_LEFT = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.(?P<kind>tmp|old)")


def sweep(*roots: Path) -> list[str]:
    """Clear up below folders what killed processes left under temporary names; returns in words what was done.

    Half-written files and folders are removed. A folder that was moved aside for a new one that never arrived is put
    back. What a living process writes is left alone.
    """
    found = sorted(p for root in roots for p in root.rglob(".*") if _LEFT.fullmatch(p.name))
    return [done for path in found if (done := _swept(path))]


def _swept(path: Path) -> str:
    if path.is_symlink():  # of `replace_link`; what it points to is not touched
        path.unlink(missing_ok=True)
        return f"removed {path}, left by a killed process"
    try:
        handle = _open_to_lock(path)
    except FileNotFoundError:  # its writer was done just now, or it lay in a folder that was removed
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _cleared(path)
    except BlockingIOError:  # it is being written
        return ""
    finally:
        os.close(handle)


def _cleared(path: Path) -> str:
    named = _LEFT.fullmatch(path.name)
    if named and named["kind"] == "old" and path.is_dir() and any(path.iterdir()):
        target = path.with_name(named["name"])
        if not target.exists():
            path.replace(target)
            return f"put back {target}, which a killed process had moved aside"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return f"removed {path}, left by a killed process"


def replace_link(link: Path, target: Path) -> None:
    """Let a symbolic link point, relatively, to a folder; there is the old link or the new one at any moment."""
    with storage_explained(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mktemp(prefix=f".{link.name}.", suffix=".tmp", dir=link.parent))
        temporary.symlink_to(os.path.relpath(target, link.parent))
        temporary.replace(link)
        fsync_folder(link.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically, keys in the given order."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON: as the standard has it, so without NaN and infinity, and each key of an object once.

    Raises:
        UsageError: the file is missing.
        FgodError: it is not JSON; names file and, where that is known, line.
    """
    try:
        return json.loads(path.read_bytes().decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise FgodError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise FgodError(f"{path}: not JSON: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise FgodError(f"{path}: not JSON that can be read: lists or objects within each other too deep") from error
    except ValueError as error:  # a repeated key, NaN, or a number of thousands of digits
        raise FgodError(f"{path}: not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise ValueError(f"found the key {twice!r} twice in an object, expected each once")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"found {text}, expected a finite number")
