"""Prompts and rows, their tables on disk, and an order that is the same on every machine."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from fgod.errors import FgodError
from fgod.system.files import read_table, write_table

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """A question without its answer.

    `part` is the part of a mix that it may stand in (identity, disambiguation, pairs, general, replay), `kind` says
    what is asked, `topic` which fact, `style` how (natural, control, multilingual), `group` names its minimal pair.
    """

    text: str
    language: str
    part: str
    kind: str
    topic: str = ""
    style: str = ""
    group: str = ""

    def row(self, target: str) -> Row:
        """This prompt with its answer."""
        return Row(self.text, target, self.language, self.part, self.kind, self.topic, self.style, self.group)


@dataclass(frozen=True)
class Row:
    """A training row: a prompt with the answer to be learned; the other fields are those of `Prompt`."""

    prompt: str
    target: str
    language: str
    part: str
    kind: str
    topic: str = ""
    style: str = ""
    group: str = ""


ROW_COLUMNS = tuple(field.name for field in fields(Row))


def shuffled(items: Iterable[T], seed: int | str, key: Callable[[T], object]) -> list[T]:
    """The items in the order of sha256(seed|key(item)): the same on every machine and Python version.

    Items with equal keys keep their given order.
    """
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}|{key(item)}".encode()).digest())


class _Mute(dict[int, int | None]):
    """A table for `str.translate` that drops white space, punctuation, control and format characters."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        self[code] = None if char.isspace() or unicodedata.category(char)[0] in "PC" else code
        return self[code]


_MUTE = _Mute()


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def normalise(prompt: str) -> str:
    """Two prompts are the same if this is equal: NFKC, case folded, without white space and punctuation.

    Symbols (`+`, `=`) stay, for they carry the meaning of a sum.
    """
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    # what is left may compose anew, as a letter and an accent that a space kept apart
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded).translate(_MUTE))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a TSV table with the header `ROW_COLUMNS`, atomically."""
    write_table(path, ROW_COLUMNS, (asdict(row) for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Read rows that `write_rows` wrote.

    Raises:
        UsageError: the file is missing.
        FgodError: a column is missing or a row has no prompt; names file and line.
    """
    rows = []
    for number, record in enumerate(read_table(path, ROW_COLUMNS), start=2):
        if not record["prompt"]:
            raise FgodError(f"{path}:{number}: the prompt is empty")
        rows.append(Row(**{name: record[name] for name in ROW_COLUMNS}))
    return rows
