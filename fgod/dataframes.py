"""Tables as pandas' DataFrames, in the commands that make tables, reports and model cards.

    frame = read(path, {"stage": TEXT, "loss": NUMBER})
    write(path, frame)

The files and the columns are those of `fgod.system.table`. Values have pandas' nullable types: an empty field is NA,
which is not a loss that is not a number (NaN).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from csv import QUOTE_NONE
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from fgod.system.files import write_text
from fgod.system.table import Column, checked_text, field, parsed, unescaped

pd.set_option("future.distinguish_nan_and_na", True)  # pandas would read both as NA


def read(path: Path, columns: Mapping[str, Column]) -> DataFrame:
    """Read the given columns of a table; the row of line 2 has the index 0. An optional column that the table lacks
    is read as empty fields.

    Raises:
        UsageError: the file is missing.
        FgodError: it is not UTF-8, a needed column is missing, a row has another number of fields than the header, or a
            field does not fit its column; names file, line and column, what was found and what was expected.
    """
    text = checked_text(path, columns)  # pandas would fill up rows that are too short, and cut a first one too long
    fields = pd.read_csv(
        StringIO(text),
        sep="\t",
        quoting=QUOTE_NONE,
        dtype=str,
        na_filter=False,
        skip_blank_lines=False,
        index_col=False,
    ).rename(columns=unescaped)
    empty = Series("", fields.index)
    return DataFrame({name: _typed(fields.get(name, empty), name, column, path) for name, column in columns.items()})


def _typed(fields: Series[str], name: str, column: Column, path: Path) -> Series[Any]:
    """The values of a column; each distinct field is parsed once, where it stands first."""
    first = fields.drop_duplicates()
    places = zip(first.index, first, strict=True)
    values = {text: parsed(unescaped(text), name, column, path, place + 2) for place, text in places}
    return Series([values[text] for text in fields], fields.index, column.dtype)


def made(rows: Iterable[Mapping[str, object]], columns: Iterable[str]) -> DataFrame:
    """A table of these rows, with values as they come.

    Raises:
        KeyError: a row lacks a column.
    """
    names = list(columns)
    return DataFrame([[row[name] for name in names] for row in rows], columns=names, dtype=object)


def write(path: Path, frame: DataFrame) -> None:
    """Write a table atomically, without its index.

    Raises:
        csv.Error: the only field of a row is empty, which pandas does not write; `write_table` does.
    """
    fields = frame.astype(object).map(lambda value: field(_none_for_na(value)))
    header = [field(name) for name in frame.columns]
    write_text(path, fields.to_csv(sep="\t", quoting=QUOTE_NONE, lineterminator="\n", header=header, index=False))


def rows(frame: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, with Python's values; None for NA."""
    names = list(frame.columns)
    values = frame.astype(object).itertuples(index=False, name=None)
    return [dict(zip(names, map(_none_for_na, row), strict=True)) for row in values]


def _none_for_na(value: object) -> object:
    return None if value is pd.NA else value
