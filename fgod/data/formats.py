"""Files of a user's own rows, in whatever format.

A format is one `RowFormat`, registered in `fgod.registry.ROW_FORMATS`: the project's own, or those of plugin files. Its
reader never fails on what stands in a file: what cannot be trained on is a `Fault` with its line, the rest are rows.
The audit shows the faults; a mix is not made of a file that has one which is an error. `fgod.data.tsv` is an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fgod.data.rows import Row
from fgod.data.text import guess_language, has_control, is_header
from fgod.errors import UsageError
from fgod.registry import ROW_FORMATS

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class UserRow:
    """A row of a user's file; `line` counts from 1.

    `prompt` and `target` are the last exchange of a chat. Turns before it, once they can be trained on, are a further
    field that is empty by default: formats of single exchanges stay as they are.
    """

    line: int
    prompt: str
    target: str


@dataclass(frozen=True)
class FaultKind:
    """What can be wrong with a line. `words` follow a count of rows: "3 of 20 rows {words}".

    A fault that is an error is no row. One that is a warning is said, and the file can be trained on.
    """

    code: str
    words: str
    severity: Severity = "error"


UTF8 = FaultKind("utf8", "not in UTF-8")
HEADER = FaultKind("header", "of column names instead of a sample")
MISSING_TARGET = FaultKind("missing_target", "without a target")
EMPTY_PROMPT = FaultKind("empty_prompt", "without a prompt")
CONTROL = FaultKind("control", "with control characters")


@dataclass(frozen=True)
class Fault:
    """A line that is no row, or one that may not be what it seems; `text` is an excerpt that can be printed."""

    line: int
    kind: FaultKind
    text: str

    @property
    def code(self) -> str:
        return self.kind.code


@dataclass(frozen=True)
class UserFile:
    """What a reader found. `comments` are the numbers of lines that are skipped on purpose, `lines` is how many there
    are.
    """

    rows: tuple[UserRow, ...]
    faults: tuple[Fault, ...]
    comments: tuple[int, ...]
    lines: int

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The faults that keep the file from being trained on."""
        return tuple(fault for fault in self.faults if fault.kind.severity == "error")


def _any(data: bytes) -> bool:
    return True


@dataclass(frozen=True)
class RowFormat:
    """A format of files of rows.

    `suffixes` are the ends of file names, lower case, with their points. `recognises` looks at a file's bytes where
    formats share a suffix. `row` says what a row looks like, for messages. `read` parses a file's bytes.
    """

    name: str
    suffixes: tuple[str, ...]
    row: str
    read: Callable[[bytes], UserFile]
    recognises: Callable[[bytes], bool] = _any

    def matches(self, path: Path, data: bytes) -> bool:
        """Whether a file with these bytes is of this format."""
        return path.suffix.lower() in self.suffixes and self.recognises(data)


def format_of(path: Path, data: bytes) -> RowFormat:
    """The first registered format that matches a file.

    Raises:
        UsageError: there is none; names the formats.
    """
    formats: list[RowFormat] = [entry for _, entry in ROW_FORMATS.items()]
    for entry in formats:
        if entry.matches(path, data):
            return entry
    known = "; ".join(f"{entry.name} ({', '.join(entry.suffixes)}): {entry.row}" for entry in formats)
    raise UsageError(f"{path}: found no row format that reads it, expected one of: {known}")


def _read(path: Path) -> tuple[RowFormat, UserFile]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    entry = format_of(path, data)
    return entry, entry.read(data)


def read_user_file(path: Path) -> UserFile:
    """Read and parse a user's file.

    Raises:
        UsageError: it cannot be read, or no format matches it.
    """
    return _read(path)[1]


def user_rows(path: Path, part: str) -> list[Row]:
    """The rows of a user's file as rows of a mix's part.

    Raises:
        UsageError: the file cannot be read, or a line of it is no row (`fgod data audit` shows all of them).
    """
    entry, parsed = _read(path)
    if parsed.errors:
        first = parsed.errors[0]
        more = f" and {len(parsed.errors) - 1} more lines" if len(parsed.errors) > 1 else ""
        raise UsageError(
            f"{path}:{first.line}: {first.code}: {first.text!r}{more}; expected {entry.row}. "
            f"`fgod data audit {path}` lists every line"
        )
    return [Row(row.prompt, row.target, guess_language(row.prompt), part, "user") for row in parsed.rows]


def field_fault(prompt: str, target: str) -> FaultKind | None:
    """What is wrong with the stripped prompt and target of any format, or None for a sound row."""
    if has_control(prompt) or has_control(target):
        return CONTROL
    if not prompt:
        return EMPTY_PROMPT
    if not target:
        return MISSING_TARGET
    return HEADER if is_header(prompt, target) else None
