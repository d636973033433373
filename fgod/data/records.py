"""JSON records of a user's file with their lines: JSONL, or an array of records. Never fails on what stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fgod.data.formats import UTF8, Fault, FaultKind
from fgod.data.text import BOM, excerpt

BROKEN = FaultKind("json", "that are not JSON")
LOOKED_AT = 100
"""Records whose keys tell a file's format."""


@dataclass(frozen=True)
class Record:
    """A JSON value and the line on which it begins (from 1)."""

    line: int
    value: Any


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python's own parser silently takes the last of two equal keys."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} stands twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def read_records(data: bytes) -> Iterator[Record | Fault]:
    """The records of a file in their order. A byte-order mark is allowed; blank lines are skipped.

    A file that begins with `[` is one array; after a fault in it nothing more can be read. Else each line is a record.
    """
    data = data.removeprefix(BOM.encode())
    if data.lstrip()[:1] == b"[":
        yield from _array(data)
        return
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if raw.strip():
            yield _line(number, raw)


def _line(number: int, raw: bytes) -> Record | Fault:
    try:
        text = raw.decode("utf-8")
        return Record(number, _parsed(text))
    except UnicodeDecodeError:
        return Fault(number, UTF8, excerpt(raw.decode("utf-8", "replace")))
    except (ValueError, RecursionError) as error:
        return Fault(number, BROKEN, f"{reason(error)}: {excerpt(text.strip())}")


def _parsed(text: str) -> Any:
    value, end = _DECODER.raw_decode(text.strip())
    if end != len(text.strip()):
        raise ValueError(f"more follows after column {end}")
    return value


def reason(error: Exception) -> str:
    """Why a text is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _array(data: bytes) -> Iterator[Record | Fault]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        yield Fault(number, UTF8, excerpt(data.split(b"\n")[number - 1].decode("utf-8", "replace")))
        return
    number, counted = 1, 0
    try:
        for place, value in _elements(text):
            number, counted = number + text.count("\n", counted, place), place
            yield Record(number, value)
    except (ValueError, RecursionError) as error:
        place = error.pos if isinstance(error, json.JSONDecodeError) else counted
        number = text.count("\n", 0, place) + 1
        yield Fault(number, BROKEN, f"{reason(error)}: {excerpt(text.split(chr(10))[number - 1].strip())}")


def _elements(text: str) -> Iterator[tuple[int, Any]]:
    """(place, value) of each element of an array."""
    place = _skip(text, text.index("[") + 1)
    more = text[place : place + 1] != "]"
    while more:
        value, end = _DECODER.raw_decode(text, place)
        yield place, value
        place = _skip(text, end)
        more = text[place : place + 1] == ","
        place = _skip(text, place + 1) if more else place
    if text[place : place + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' or the end of the array", text, place)
    if _skip(text, place + 1) != len(text):
        raise json.JSONDecodeError("More after the end of the array", text, _skip(text, place + 1))


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def has_keys(data: bytes, *keys: str) -> bool:
    """Whether one of a file's first records is an object with all of these keys."""
    records = islice(read_records(data), LOOKED_AT)
    return any(
        isinstance(record, Record) and isinstance(record.value, dict) and all(key in record.value for key in keys)
        for record in records
    )
