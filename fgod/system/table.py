r"""Tables on disk: TSV with a header, and values typed by their columns. Imports nothing slow.

    write_table(path, ("stage", "loss"), rows)
    read_table(path, {"stage": TEXT, "loss": NUMBER})     # values
    read_texts(path, ("stage", "loss"))                   # fields as they stand

UTF-8, a row a line, tabs between fields; backslash, tab, newline and return within a field are \\, \t, \n, \r. None is
an empty field, truth values are true and false, floats are written so that they read back to the bit.

`fgod.dataframes` reads and writes the same files with pandas, and takes columns and checks from here; CONTRIBUTING.md
says who uses which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from fgod.errors import FgodError, UsageError
from fgod.system.files import write_text

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {code: char for char, code in _ESCAPES.items()}
_TO_ESCAPES = str.maketrans(_ESCAPES)
_ESCAPED = re.compile(r"\\.")


def field(value: object) -> str:
    """A value as a field of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else str(value).translate(_TO_ESCAPES)


def unescaped(text: str) -> str:
    """What a field says; an escape that is none of the four is kept as it stands."""
    return _ESCAPED.sub(lambda code: _UNESCAPES.get(code[0], code[0]), text) if "\\" in text else text


def _fields(line: str) -> list[str]:
    return [unescaped(text) for text in line.split("\t")]


def line(values: Iterable[object]) -> str:
    """Values as a line of a table, with its end."""
    return "\t".join(map(field, values)) + "\n"


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table atomically.

    Raises:
        KeyError: a row lacks a column.
    """
    names = tuple(columns)
    write_text(path, line(names) + "".join(line(row[name] for name in names) for row in rows))


# -------------------------------------------------------------------------------------------------- typed columns


@dataclass(frozen=True)
class Column:
    """What the fields of a column are.

    `parse` makes a value of a field's text; of one that does not fit it raises ValueError, KeyError or TypeError.
    `expected` says in words what fits; with `detailed` the error of `parse` says more. Tables of older versions, or
    without a value in it, may lack a column that is `optional`: its key is missing in their rows. `dtype` is pandas'
    name of the values' type.
    """

    parse: Callable[[str], Any]
    expected: str
    dtype: str = "object"
    detailed: bool = False
    optional: bool = False


def _from_zero(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):  # as 64 bits hold
        raise ValueError(text)
    return int(text)


def one_of(names: Iterable[str]) -> Column:
    """A column of texts, each one of these."""
    known = {name: name for name in names}
    return Column(known.__getitem__, f"one of {', '.join(known)}", "string")


def or_nothing(column: Column) -> Column:
    """The column with fields that may be empty, which is None."""
    parse = column.parse
    return replace(column, parse=lambda text: parse(text) if text else None, expected=f"{column.expected} or nothing")


TEXT = Column(str, "text", "string")
COUNT = Column(_from_zero, "a whole number from 0 with at most 18 digits", "Int64")
WHOLE = or_nothing(COUNT)
FLOAT = Column(float, "a number", "Float64")
NUMBER = or_nothing(FLOAT)
TRUTH = Column({"true": True, "false": False}.__getitem__, "true or false", "boolean")
FLAG = replace(or_nothing(TRUTH), expected="true, false or nothing")
_BY_TYPE: Mapping[Any, Column] = {
    str: TEXT, int: COUNT, int | None: WHOLE, float: FLOAT, float | None: NUMBER, bool: TRUTH, bool | None: FLAG
}  # fmt: skip


def optional(column: Column) -> Column:
    """The column, where not every table has it."""
    return replace(column, optional=True)


def columns_of(model: type, **own: Column) -> dict[str, Column]:
    """A column for each field of a dataclass, by its type; `own` are those whose type does not say what they hold."""
    hints = get_type_hints(model)
    return {f.name: own[f.name] if f.name in own else _BY_TYPE[hints[f.name]] for f in fields(model)}


def read_texts(path: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """Read a table that `write_table` wrote; values are text.

    Raises:
        UsageError: the file is missing.
        FgodError: it is not UTF-8, a needed column is missing, or a row has another number of fields; names file and
            line.
    """
    return [row for _, row in _rows(_text(path), path, columns)]


def read_table(path: Path, columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """Read the given columns of a table that `write_table` wrote.

    Raises:
        UsageError: the file is missing.
        FgodError: besides what `read_texts` raises: a field does not fit its column; names file, line and column, what
            was found and what was expected.
    """
    return parse_table(_text(path), path, columns)


def parse_table(
    text: str, path: Path, columns: Mapping[str, Column], places: Iterable[int] | None = None
) -> list[dict[str, Any]]:
    """Read the given columns of a table's text.

    Args:
        path: where it stands, for messages.
        places: of the rows that are read, from 0; None: all.

    Raises:
        FgodError: as `read_table`.
    """
    rows = _rows(text, path, _needed(columns), places)
    return [
        {name: parsed(row[name], name, column, path, number) for name, column in columns.items() if name in row}
        for number, row in rows
    ]


def parsed(text: str, name: str, column: Column, path: Path, number: int) -> Any:
    """The value of a field that stands on a line of a table, without escapes.

    Raises:
        FgodError: it does not fit its column.
    """
    try:
        return column.parse(text)
    except (ValueError, KeyError, TypeError) as error:
        more = f": {error}" if column.detailed else ""
        said = f"{path}:{number}: {name}: found {text!r}, expected {column.expected}{more}"
        raise FgodError(said) from error


def checked_text(path: Path, columns: Mapping[str, Column]) -> str:
    """The text of a table that has these columns, and in each row as many fields as in its header.

    Raises:
        UsageError: the file is missing.
        FgodError: as `read_texts`.
    """
    text = _text(path)
    header, lines = _header_and_lines(text, path, _needed(columns))
    for number, line in enumerate(lines, start=2):
        _check_width(line.count("\t") + 1, header, path, number)
    return text


def _needed(columns: Mapping[str, Column]) -> list[str]:
    return [name for name, column in columns.items() if not column.optional]


def whole_lines(path: Path) -> str:
    """The lines that end, of a table that is written line by line: a kill, or a look while one is written, leaves a
    piece of one. Empty without the file.

    Raises:
        FgodError: they are not UTF-8; names file and line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    return _decoded(data[: data.rfind(b"\n") + 1], path)  # a piece may end inside a character


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    return re.sub("\r\n?", "\n", _decoded(data, path))  # line ends of other systems


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise FgodError(f"{path}:{number}: not UTF-8 at byte {error.start} of the file") from None


def _rows(
    text: str, path: Path, needed: Iterable[str], places: Iterable[int] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows at some places, each with the number of its line."""
    header, lines = _header_and_lines(text, path, needed)
    for place in range(len(lines)) if places is None else places:
        number, found = place + 2, _fields(lines[place])
        _check_width(len(found), header, path, number)
        yield number, dict(zip(header, found, strict=True))


def _header_and_lines(text: str, path: Path, needed: Iterable[str]) -> tuple[list[str], list[str]]:
    first, *lines = text.removesuffix("\n").split("\n")
    header = _fields(first)
    if missing := [name for name in needed if name not in header]:
        raise FgodError(f"{path}:1: columns {', '.join(missing)} are missing; found {', '.join(header)}")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise FgodError(f"{path}:1: found columns {', '.join(twice)} more than once, expected each once")
    return header, lines


def _check_width(fields: int, header: Sequence[str], path: Path, number: int) -> None:
    if fields != len(header):
        raise FgodError(f"{path}:{number}: {fields} fields, expected {len(header)}")
