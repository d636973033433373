r"""The row format tsv: `prompt<TAB>target`, UTF-8, one row a line, `# …` comments.

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
from pathlib import Path

from fgod.data.formats import CONTROL, ROW_FORMATS, UTF8, Fault, FaultKind, RowFormat, UserFile, UserRow, field_fault
from fgod.data.text import BOM, excerpt, has_control
from fgod.errors import UsageError
from fgod.system.files import write_text

FIELDS = FaultKind("fields", "with more than one tab")
COMMENT_WITH_TAB = FaultKind(
    "comment_with_tab", "that begin with # and look like rows; they are skipped", severity="warning"
)


def _line_fault(fields: list[str]) -> FaultKind | None:
    """What is wrong with a line's stripped fields, or None for a sound row."""
    if len(fields) > 2:
        return FIELDS
    return field_fault(fields[0], fields[1] if len(fields) == 2 else "")


def _parse_line(number: int, raw: bytes) -> UserRow | Fault:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Fault(number, UTF8, excerpt(raw.decode("utf-8", "replace")))
    fields = [field.strip() for field in text.split("\t")]
    row = UserRow(number, fields[0], fields[1]) if len(fields) == 2 and all(fields) else None
    kind = CONTROL if any(map(has_control, text.split("\t"))) else _line_fault(fields)
    if kind:
        return Fault(number, kind, excerpt(text), row)
    return UserRow(number, fields[0], fields[1])


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
                faults.append(Fault(number, COMMENT_WITH_TAB, excerpt(raw.decode("utf-8", "replace"))))
        elif raw.strip(b" \t"):
            found = _parse_line(number, raw)
            rows.append(found) if isinstance(found, UserRow) else faults.append(found)
    return UserFile(tuple(rows), tuple(faults), tuple(comments), len(lines))


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


FORMAT = ROW_FORMATS.register("tsv", RowFormat("tsv", (".tsv", ".txt"), "prompt<TAB>target", parse))
