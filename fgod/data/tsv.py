r"""A user's own training file: `prompt<TAB>target`, UTF-8, one row a line, `# …` comments.

`parse` never fails: what cannot be trained on is a fault with its line, the rest are rows. Faults by code:

| code | line |
|---|---|
| utf8 | bytes that are not UTF-8 |
| header | column names instead of a sample (`prompt<TAB>target`) |
| missing_target | no tab, or nothing after it |
| empty_prompt | nothing before the tab |
| fields | more than one tab |
| control | control characters, U+FFFD (a former decoding error), bidirectional overrides, zero-width spaces |
| comment_with_tab | a comment that looks like a row: it is skipped |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fgod.data.rows import Row
from fgod.data.text import BOM, excerpt, guess_language, has_control, is_header
from fgod.errors import UsageError
from fgod.system.files import write_text


@dataclass(frozen=True)
class UserRow:
    """A row of a user's file; `line` counts from 1."""

    line: int
    prompt: str
    target: str


@dataclass(frozen=True)
class Fault:
    """A line that is no row, or one that may not be what it seems; `text` is an excerpt that can be printed."""

    line: int
    code: str
    text: str


@dataclass(frozen=True)
class UserFile:
    """What `parse` found. `comments` are line numbers."""

    rows: tuple[UserRow, ...]
    faults: tuple[Fault, ...]
    comments: tuple[int, ...]
    lines: int


def _row_fault(fields: list[str]) -> str | None:
    """The fault code of a line's stripped fields, or None for a sound row."""
    if len(fields) > 2:
        return "fields"
    if not fields[0]:
        return "empty_prompt"
    if len(fields) < 2 or not fields[1]:
        return "missing_target"
    return "header" if is_header(*fields) else None


def _parse_line(number: int, raw: bytes) -> UserRow | Fault:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Fault(number, "utf8", excerpt(raw.decode("utf-8", "replace")))
    fields = [field.strip() for field in text.split("\t")]
    code = "control" if any(map(has_control, text.split("\t"))) else _row_fault(fields)
    return Fault(number, code, excerpt(text)) if code else UserRow(number, fields[0], fields[1])


def _is_comment(raw: bytes) -> bool:
    return re.match(rb"#(\s|$)", raw) is not None


def parse(data: bytes) -> UserFile:
    """Parse a file's bytes. A byte-order mark and CRLF line ends are allowed; blank lines are skipped.

    A comment is a line that begins with `#` and white space or the line's end (`#include …` is a prompt).
    """
    lines = data.removeprefix(BOM.encode()).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    rows: list[UserRow] = []
    faults: list[Fault] = []
    comments: list[int] = []
    for number, raw in enumerate((line.removesuffix(b"\r") for line in lines), start=1):
        if _is_comment(raw):
            comments.append(number)
            if b"\t" in raw.strip():
                faults.append(Fault(number, "comment_with_tab", excerpt(raw.decode("utf-8", "replace"))))
        elif raw.strip(b" \t"):
            found = _parse_line(number, raw)
            rows.append(found) if isinstance(found, UserRow) else faults.append(found)
    return UserFile(tuple(rows), tuple(faults), tuple(comments), len(lines))


def read_user_tsv(path: Path) -> UserFile:
    """Read and parse a user's file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def user_rows(path: Path, part: str) -> list[Row]:
    """The rows of a user's file as rows of a mix's part.

    Raises:
        UsageError: the file cannot be read, or a line of it is no row (`fgod data audit` shows all of them).
    """
    parsed = read_user_tsv(path)
    broken = [fault for fault in parsed.faults if fault.code != "comment_with_tab"]
    if broken:
        first = broken[0]
        more = f" and {len(broken) - 1} more lines" if len(broken) > 1 else ""
        raise UsageError(
            f"{path}:{first.line}: {first.code}: {first.text!r}{more}; expected prompt<TAB>target. "
            f"`fgod data audit {path}` lists every line"
        )
    return [Row(row.prompt, row.target, guess_language(row.prompt), part, "user") for row in parsed.rows]


def write_user_tsv(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write rows that `parse` reads back unchanged.

    Raises:
        UsageError: a row that the format cannot hold (a tab, an empty field, a leading `# `, …).
    """
    lines = []
    for number, (prompt, target) in enumerate(rows, start=1):
        line = f"{prompt}\t{target}"
        encoded = line.encode("utf-8", "surrogatepass")
        if b"\n" in encoded or _is_comment(encoded) or _parse_line(number, encoded) != UserRow(number, prompt, target):
            raise UsageError(f"{path}: row {number}: {excerpt(line)!r} cannot be written as prompt<TAB>target")
        lines.append(line)
    write_text(path, "".join(f"{line}\n" for line in lines))
