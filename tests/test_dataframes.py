"""Tables read and written by pandas: the same bytes and the same refusals as without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod import dataframes
from fgod.data.rows import HISTORY
from fgod.errors import FgodError, UsageError
from fgod.system.table import COUNT, FLOAT, NUMBER, TEXT, TRUTH, Column, optional, read_table, write_table
from tests.test_table import COLUMNS, ROWS, TEXTS, Kept

Reader = Callable[[Path, Mapping[str, Column]], object]


@settings(max_examples=50)
@given(st.lists(ROWS, max_size=5))
def test_each_reads_what_the_other_wrote(tmp_path_factory: pytest.TempPathFactory, kept: list[Kept]) -> None:
    path, rows = tmp_path_factory.mktemp("table") / "kept.tsv", [asdict(row) for row in kept]
    write_table(path, COLUMNS, rows)
    before, frame = path.read_bytes(), dataframes.read(path, COLUMNS)
    assert dataframes.rows(frame) == rows == read_table(path, COLUMNS)
    for same in (frame, dataframes.made(rows, COLUMNS)):
        dataframes.write(path, same)
        assert path.read_bytes() == before
    assert read_table(path, COLUMNS) == rows


@settings(max_examples=50)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_what_was_read_as_text_is_written_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "texts.tsv"
    write_table(path, ("a\tb", "c"), [{"a\tb": a, "c": c} for a, c in texts])
    before = path.read_bytes()
    dataframes.write(path, dataframes.read(path, {"a\tb": TEXT, "c": TEXT}))
    assert path.read_bytes() == before


def test_an_empty_field_is_not_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"step\tloss\n1\t\n2\tnan\n3\t-inf\n")
    frame = dataframes.read(path, {"step": COUNT, "loss": NUMBER})
    assert list(frame["loss"].isna()) == [True, False, False]
    known = frame.dropna(subset="loss")
    assert list(known["step"]) == [2, 3] and math.isnan(known["loss"].iloc[0])
    assert dataframes.rows(frame)[0] == {"step": 1, "loss": None} and math.isnan(dataframes.rows(frame)[1]["loss"])
    for same in (frame, pd.concat([dataframes.made((), frame), frame])):
        dataframes.write(tmp_path / "again.tsv", same)
        assert (tmp_path / "again.tsv").read_bytes() == path.read_bytes()


def test_columns_have_the_types_that_pandas_has_for_them(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    write_table(path, COLUMNS, [])
    types = {name: str(dtype) for name, dtype in dataframes.read(path, COLUMNS).dtypes.items()}
    assert types == {
        **{"name": "string", "count": "Int64", "place": "Int64", "share": "Float64", "loss": "Float64"},
        **{"passed": "boolean", "agrees": "boolean"},
    }


def test_an_optional_column_that_is_missing_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"a\n1\n")
    frame = dataframes.read(path, {"a": COUNT, "b": optional(TEXT), "c": optional(HISTORY)})
    assert dataframes.rows(frame) == [{"a": 1, "b": "", "c": ()}]


def test_line_ends_of_another_system_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"a\tb\r\n1\t2\r\n")
    assert dataframes.rows(dataframes.read(path, {"b": COUNT})) == [{"b": 2}]


def test_a_row_without_a_column_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="b"):
        dataframes.made([{"a": 1}], ("a", "b"))


TWO = {"a": TEXT, "b": FLOAT}


@pytest.mark.parametrize("read", [read_table, dataframes.read])
@pytest.mark.parametrize(
    ("data", "columns", "said"),
    [
        (b"", TWO, ":1: columns a, b are missing; found "),
        (b"a\tc\n1\t2\n", TWO, ":1: columns b are missing; found a, c"),
        (b"a\tb\ta\n1\t2\t3\n", TWO, ":1: found columns a more than once, expected each once"),
        (b"a\tb\n1\n", TWO, ":2: 1 fields, expected 2"),
        (b"a\tb\n1\t2\t3\n", TWO, ":2: 3 fields, expected 2"),
        (b"a\tb\n1\t2\t3\n1\t2\t3\n", TWO, ":2: 3 fields, expected 2"),
        (b"a\tb\n1\t2\n1\n", TWO, ":3: 1 fields, expected 2"),
        (b"a\tb\n1\t2\n1\t2\t3\n", TWO, ":3: 3 fields, expected 2"),
        (b"a\tb\n\n1\t2\n", TWO, ":2: 1 fields, expected 2"),
        (b"a\tb\n1\t2\n\n", TWO, ":3: 1 fields, expected 2"),
        (b"a\tb\n1\t2\n1\tx\n1\tx\n", TWO, ":3: b: found 'x', expected a number"),
        (b"a\tb\n1\t\n", TWO, ":2: b: found '', expected a number"),
        (b"a\tb\n1\t\xff\n", TWO, ":2: not UTF-8 at byte 6 of the file"),
        (b"a\n1\n1.0\n", {"a": COUNT}, ":3: a: found '1.0', expected a whole number from 0 with at most 18 digits"),
        (b"a\n" + b"9" * 19 + b"\n", {"a": COUNT}, f":2: a: found '{'9' * 19}', expected a whole number from 0"),
        (b"a\nTrue\n", {"a": TRUTH}, ":2: a: found 'True', expected true or false"),
    ],
)
def test_faults_are_named(read: Reader, data: bytes, columns: dict[str, Column], said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(data)
    with pytest.raises(FgodError) as error:
        read(path, columns)
    assert str(error.value).startswith(f"{path}{said}")


@pytest.mark.parametrize("read", [read_table, dataframes.read])
def test_a_missing_file_is_named(read: Reader, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.tsv: no such file"):
        read(tmp_path / "none.tsv", TWO)
