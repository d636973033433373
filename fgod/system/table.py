r"""Tables on disk: TSV with a header, and values typed by their columns. The one parser and writer of them.

    write_table(path, ("stage", "loss"), rows)
    read_table(path, {"stage": TEXT, "loss": NUMBER})     # values
    read_texts(path, ("stage", "loss"))                   # fields as they stand

UTF-8, a row a line, tabs between fields; backslash, tab, newline and return within a field are \\, \t, \n, \r. None is
an empty field, truth values are true and false, floats are written so that they read back to the bit.

No pandas: it takes a first row with a field too many, or any with one too few, without a word, and knows no empty
field beside nan. With the checks that this needs 40,000 rows take it .41 s of CPU, and .46 s the import (this: .47 s).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from fgod.errors import FgodError, UsageError
from fgod.system.files import write_text

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {code: char for char, code in _ESCAPES.items()}
_TO_ESCAPES = str.maketrans(_ESCAPES)
_ESCAPED = re.compile(r"\\.")


def escape_field(text: str) -> str:
    r"""A text as a field on one line: backslash, tab, newline and return become \\, \t, \n, \r."""
    return text.translate(_TO_ESCAPES)


def unescape_field(text: str) -> str:
    """The inverse of `escape_field`; an unknown escape is kept as it stands."""
    return _ESCAPED.sub(lambda code: _UNESCAPES.get(code[0], code[0]), text) if "\\" in text else text


def field(value: object) -> str:
    """A value as a field of a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else escape_field(str(value))


def line(values: Iterable[object]) -> str:
    """Values as a line of a table, with its end."""
    return "\t".join(map(field, values)) + "\n"


def line_fields(text: str) -> list[str]:
    """The fields of a line of a table."""
    return [unescape_field(part) for part in text.split("\t")]


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
    without a value in it, may lack a column that is `optional`: its key is missing in their rows.
    """

    parse: Callable[[str], Any]
    expected: str
    detailed: bool = False
    optional: bool = False


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: parse(text) if text else None


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]+", text):
        raise ValueError(text)
    return int(text)


def _from_zero(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise ValueError(text)
    return int(text)


def one_of(names: Iterable[str]) -> Column:
    """A column of texts, each one of these."""
    known = {name: name for name in names}
    return Column(known.__getitem__, f"one of {', '.join(known)}")


def or_nothing(column: Column) -> Column:
    """The column with fields that may be empty, which is None."""
    return replace(column, parse=_or_none(column.parse), expected=f"{column.expected} or nothing")


TEXT = Column(str, "text")
WHOLE = or_nothing(Column(_whole, "a whole number"))
COUNT = Column(_from_zero, "a whole number from 0")
NUMBER = or_nothing(Column(float, "a number"))
TRUTH = Column({"true": True, "false": False}.__getitem__, "true or false")
FLAG = replace(or_nothing(TRUTH), expected="true, false or nothing")
_BY_TYPE: Mapping[Any, Column] = {
    str: TEXT, int: COUNT, int | None: WHOLE, float | None: NUMBER, bool: TRUTH, bool | None: FLAG
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
        FgodError: it is not UTF-8, or what `parse_texts` raises.
    """
    return parse_texts(_text(path), path, columns)


def parse_texts(text: str, path: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a table's text. `path` is only named in messages.

    Raises:
        FgodError: a needed column is missing, or a row has another number of fields; names file and line.
    """
    lines = text.split("\n")
    header = line_fields(lines[0])
    missing = [name for name in columns if name not in header]
    if missing:
        raise FgodError(f"{path}:1: columns {', '.join(missing)} are missing; found {', '.join(header)}")
    rows = []
    for number, one in enumerate(lines[1:], start=2):
        if not one and number == len(lines):
            break
        found = line_fields(one)
        if len(found) != len(header):
            raise FgodError(f"{path}:{number}: {len(found)} fields, expected {len(header)}")
        rows.append(dict(zip(header, found, strict=True)))
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise FgodError(f"{path}:{number}: not UTF-8 at byte {error.start} of the file") from None


def read_table(path: Path, columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """Read the given columns of a table that `write_table` wrote.

    Raises:
        UsageError: the file is missing.
        FgodError: besides what `read_texts` raises: a field does not fit its column; names file, line and column, what
            was found and what was expected.
    """
    rows = read_texts(path, (name for name, column in columns.items() if not column.optional))
    return [_typed(row, columns, f"{path}:{number}") for number, row in enumerate(rows, start=2)]


def _typed(row: Mapping[str, str], columns: Mapping[str, Column], where: str) -> dict[str, Any]:
    out = {}
    for name, column in columns.items():
        if name not in row:
            continue
        try:
            out[name] = column.parse(row[name])
        except (ValueError, KeyError, TypeError) as error:
            more = f": {error}" if column.detailed else ""
            said = f"{where}: {name}: found {row[name]!r}, expected {column.expected}{more}"
            raise FgodError(said) from error
    return out
