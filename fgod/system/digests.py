"""SHA-256 of large files without reading them again: remembered by path, size, mtime_ns and ctime_ns.

A cache that is missing, torn or foreign costs a re-hash and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fgod.system.files import canonical_json, folder_files, sha256_file, write_text

CACHE = Path(".snakemake/fgod/digests.json")
"""Where a project keeps them; safe to delete."""

SETTLED_SECS = 2.0
"""A file changed so recently is not remembered: within a tick of a coarse clock it may change again unseen."""

MAX_ENTRIES = 5000
"""Past this many entries those of vanished files are dropped."""

Stamp = tuple[int, int, int]


def cached_sha256(path: Path, cache: Path) -> str:
    """SHA-256 hex digest of a file's bytes. Raises OSError when it cannot be read."""
    return cached_sha256_files([path], cache)[path]


def remembered_sha256(path: Path, cache: Path) -> str | None:
    """SHA-256 hex digest of a file's bytes without reading it; None where it is not remembered. Raises OSError."""
    entry = _read(cache).get(os.path.realpath(path))
    return entry[1] if entry and entry[0] == _stamp(path) else None


def cached_sha256_folder(folder: Path, cache: Path) -> str:
    """The same digest as `fgod.system.files.sha256_folder`."""
    digests = cached_sha256_files(folder_files(folder), cache)
    listing = [(path.relative_to(folder).as_posix(), digests[path]) for path in sorted(digests)]
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def cached_sha256_files(paths: Iterable[Path], cache: Path) -> dict[Path, str]:
    """Digest of each file, with one read and at most one write of the cache."""
    known = _read(cache)
    digests: dict[Path, str] = {}
    fresh: dict[str, tuple[Stamp, str]] = {}
    for path in paths:
        key, before = os.path.realpath(path), _stamp(path)
        entry = known.get(key)
        if entry and entry[0] == before:
            digests[path] = entry[1]
            continue
        digests[path] = sha256_file(path)
        if _stamp(path) == before and time.time() - before[1] / 1e9 > SETTLED_SECS:
            fresh[key] = (before, digests[path])
    if fresh:
        _remember(fresh, cache)
    return digests


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _remember(fresh: Mapping[str, tuple[Stamp, str]], cache: Path) -> None:
    with _locked(cache):
        entries = {**_read(cache), **fresh}
        if len(entries) > MAX_ENTRIES:
            entries = {key: entry for key, entry in entries.items() if os.path.exists(key)}
        write_text(cache, json.dumps({key: [*stamp, digest] for key, (stamp, digest) in entries.items()}) + "\n")


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Let one process at a time read, add and write, so that no entry is lost."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_name(cache.name + ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read(cache: Path) -> dict[str, tuple[Stamp, str]]:
    """The readable entries of the cache."""
    try:
        content = json.loads(cache.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):  # the files are hashed again
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: entry for key, value in content.items() if (entry := _entry(value))}


def _entry(value: object) -> tuple[Stamp, str] | None:
    match value:
        case [int(size), int(mtime_ns), int(ctime_ns), str(digest)] if len(digest) == 64:
            return (size, mtime_ns, ctime_ns), digest
    return None
