"""Files of a user's own rows, in whatever format.

A format is one `RowFormat`, registered in `fgod.registry.ROW_FORMATS`: the project's own, or those of plugin files. Its
reader never fails on what stands in a file: what cannot be trained on is a `Fault` with its line, the rest are rows.
The audit shows the faults; a mix is not made of a file that has one which is an error. `fgod.data.tsv` is an example.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fgod.data.rows import USER, LossOn, Message, Row
from fgod.data.text import excerpt, guess_language, has_control, is_header
from fgod.errors import UsageError, did_you_mean
from fgod.plugins import Registry

ROW_FORMATS: Registry[RowFormat] = Registry("row format", ["fgod.data.tsv", "fgod.data.conversations"])

Severity = Literal["error", "accepted", "warning", "note"]
SHOWN_FAULTS = 10
"""Faults of a file that one message lists."""


@dataclass(frozen=True)
class UserRow:
    """A row of a user's file; `line` counts from 1.

    `prompt` and `target` are the last exchange of a chat, `history` the turns before it, `system` the text of its
    system turn ("": it has none of its own, and gets what the config's chat.system says).
    """

    line: int
    prompt: str
    target: str
    system: str = ""
    history: tuple[Message, ...] = ()

    def row(self, part: str, loss_on: LossOn = "last") -> Row:
        """This row as one of a mix's part. Without earlier turns all of its answers are the last one."""
        return Row(
            self.prompt, self.target, guess_language(self.prompt), part, "user", system=self.system,
            history=self.history, loss_on=loss_on if self.history else "last", answered_by=USER,
        )  # fmt: skip


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
    """A line that is no row, or one that may not be what it seems; `text` is an excerpt that can be printed.

    `row` is what would be trained on if the fault was accepted; None where there is no row to speak of.
    """

    line: int
    kind: FaultKind
    text: str
    row: UserRow | None = None

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

    def accepting(self, codes: Collection[str]) -> UserFile:
        """This file with the faults of these codes as rows, at their places, as far as they have one."""
        taken = [fault for fault in self.errors if fault.row and fault.code in codes]
        added = (fault.row for fault in taken if fault.row)
        rows = sorted((*self.rows, *added), key=lambda row: row.line)
        return replace(self, rows=tuple(rows), faults=tuple(fault for fault in self.faults if fault not in taken))


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


@dataclass(frozen=True)
class UserSource:
    """A file of the user's own, as `data.sources` names it.

    `format` is the name of a row format; "" for the one that the file's name and content tell. `loss_on` says what is
    learned of its chats. Faults with the codes of `accept` are let through, and said.
    """

    path: Path
    format: str = ""
    loss_on: LossOn = "last"
    accept: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, value: str | Mapping[str, Any]) -> UserSource:
        """The source of an entry of `data.sources`: a path, or a table with the keys path, format, loss_on, audit."""
        if isinstance(value, str):
            return cls(Path(value))
        accept = (value.get("audit") or {}).get("accept", ())
        return cls(Path(value["path"]), value.get("format") or "", value.get("loss_on") or "last", tuple(accept))

    def settings(self) -> dict[str, Any]:
        """All that decides which rows the file gives, but for its path and content; without what is as by default."""
        accept = sorted(self.accept)
        entries = {"format": self.format, "loss_on": self.loss_on, "accept": accept}
        return {key: value for key, value in entries.items() if value not in ("", "last", [])}


def user_sources(entries: Mapping[str, str | Mapping[str, Any]]) -> dict[str, UserSource]:
    """The sources of the config's key `data.sources`, by name."""
    return {name: UserSource.from_config(value) for name, value in entries.items()}


def format_of(path: Path, data: bytes, name: str = "") -> RowFormat:
    """The row format of this name, or the first registered one that matches a file.

    Raises:
        UsageError: there is none; names the formats.
    """
    formats: list[RowFormat] = [entry for _, entry in ROW_FORMATS.items()]
    for entry in formats:
        if entry.name == name or (not name and entry.matches(path, data)):
            return entry
    known = "; ".join(f"{entry.name} ({', '.join(entry.suffixes)}): {entry.row}" for entry in formats)
    if name:
        hint = did_you_mean(name, [entry.name for entry in formats])
        raise UsageError(f"{path}: found no row format {name!r}{hint}, expected one of: {known}")
    begins = excerpt(data[:400].decode("utf-8", "replace").lstrip("\ufeff"), 60)
    raise UsageError(f"{path}: found no row format that reads it (it begins {begins!r}), expected one of: {known}")


def _read(path: Path, name: str = "") -> tuple[RowFormat, UserFile]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    entry = format_of(path, data, name)
    return entry, entry.read(data)


def read_user_file(path: Path, name: str = "") -> UserFile:
    """Read and parse a user's file, in the row format of this name or in the one that matches it.

    Raises:
        UsageError: it cannot be read, or no format matches it.
    """
    return _read(path, name)[1]


def user_rows(source: UserSource, part: str) -> list[Row]:
    """The rows of a user's file, in its order, as rows of a mix's part.

    Raises:
        UsageError: the file cannot be read, or lines of it are no rows: lists them.
    """
    entry, parsed = _read(source.path, source.format)
    parsed = parsed.accepting(source.accept)
    if parsed.errors:
        raise UsageError(_faults_in_words(source.path, entry, parsed.errors))
    return [row.row(part, source.loss_on) for row in parsed.rows]


def _faults_in_words(path: Path, entry: RowFormat, faults: tuple[Fault, ...]) -> str:
    shown = [f"{path}:{fault.line}: {fault.code}: {fault.text}" for fault in faults[:SHOWN_FAULTS]]
    more = len(faults) - len(shown)
    return "\n".join([
        *shown,
        *([f"{path}: and {more} more lines"] if more else []),
        f"{path}: expected {entry.row}. `fgod data audit {path}` lists every line",
    ])  # fmt: skip


def field_fault(prompt: str, target: str) -> FaultKind | None:
    """What is wrong with the stripped prompt and target of any format, or None for a sound row."""
    if has_control(prompt) or has_control(target):
        return CONTROL
    if not prompt:
        return EMPTY_PROMPT
    if not target:
        return MISSING_TARGET
    return HEADER if is_header(prompt, target) else None
