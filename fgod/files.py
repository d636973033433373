"""Files and folders: digests, and writes that leave either the old or the new state."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgod.errors import FgodError, UsageError

ID_LENGTH = 12
"""Hex digits of a short digest (48 bits: a collision among 10⁵ runs has probability 2·10⁻⁵)."""


def canonical_json(value: Any) -> str:
    """Sorted, compact JSON: the same text for equal values. Non-finite numbers raise ValueError."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(*values: Any) -> str:
    """Short SHA-256 hex digest of JSON-serialisable values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:ID_LENGTH]


def sha256_file(path: Path) -> str:
    """SHA-256 hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_files(folder: Path) -> list[Path]:
    """All regular files below a folder, sorted by relative path."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def sha256_files(folder: Path, paths: Iterable[Path]) -> str:
    """SHA-256 hex digest of files' names (relative to the folder) and contents, in sorted order."""
    listing = [(p.relative_to(folder).as_posix(), sha256_file(p)) for p in sorted(paths)]
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def sha256_folder(folder: Path) -> str:
    """SHA-256 hex digest of the names and contents of all files below a folder."""
    return sha256_files(folder, folder_files(folder))


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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it over `path`, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success fsync its files and move it to `path`, else remove it.

    An existing `path` is moved aside first and deleted after the new one stands; between the two renames neither
    name holds a half-written folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in folder_files(temporary):
            file.chmod(0o644)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if path.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.replace(aside)
            temporary.replace(path)
            shutil.rmtree(aside)
        else:
            temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically, keys in the given order."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UsageError: the file is missing.
        FgodError: it is not JSON; names file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise FgodError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {code[1]: char for char, code in _ESCAPES.items()}


def escape_field(text: str) -> str:
    r"""A TSV field on one line: backslash, tab, newline and return become \\, \t, \n, \r."""
    return "".join(_ESCAPES.get(c, c) for c in text)


def unescape_field(text: str) -> str:
    """The inverse of `escape_field`; an unknown escape is kept as it stands."""
    out, chars = [], iter(text)
    for c in chars:
        if c != "\\":
            out.append(c)
            continue
        code = next(chars, "")
        out.append(_UNESCAPES.get(code, "\\" + code))
    return "".join(out)


def _field(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return escape_field(str(value))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a TSV table with a header atomically. None is empty, booleans are true and false.

    Raises:
        KeyError: a row lacks a column.
    """
    lines = ["\t".join(columns)] + ["\t".join(_field(row[c]) for c in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a TSV table that `write_table` wrote; values are text.

    Raises:
        FgodError: a needed column is missing or a row has another number of fields; names file and line.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    lines = path.read_text(encoding="utf-8").split("\n")
    header = lines[0].split("\t")
    missing = [c for c in columns if c not in header]
    if missing:
        raise FgodError(f"{path}:1: columns {', '.join(missing)} are missing; found {', '.join(header)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line and number == len(lines):
            break
        fields = line.split("\t")
        if len(fields) != len(header):
            raise FgodError(f"{path}:{number}: {len(fields)} fields, expected {len(header)}")
        rows.append(dict(zip(header, map(unescape_field, fields), strict=True)))
    return rows
