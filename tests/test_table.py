"""Tables on disk: what is written reads back, and what does not fit is named by file, line and column."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod.errors import FgodError, UsageError
from fgod.system.table import (
    COUNT,
    FLAG,
    FLOAT,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    Column,
    columns_of,
    line,
    one_of,
    optional,
    or_nothing,
    parse_table,
    read_table,
    read_texts,
    whole_lines,
    write_table,
)

AWKWARD = "a\\tnr\t\n\r\"'\x00\x85\u2028\ufeff"
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from(AWKWARD))


@dataclass(frozen=True)
class Kept:
    name: str
    count: int
    place: int | None
    share: float | None
    loss: float
    passed: bool
    agrees: bool | None


COLUMNS = columns_of(Kept)
FLAGS = st.booleans()
COUNTS = st.integers(0, 10**18 - 1)
NUMBERS = st.floats(allow_nan=False)
ROWS = st.builds(Kept, TEXTS, COUNTS, st.none() | COUNTS, st.none() | NUMBERS, NUMBERS, FLAGS, st.none() | FLAGS)
HERE = Path("t.tsv")


@given(TEXTS, TEXTS)
def test_any_texts_are_one_line_and_read_back(one: str, other: str) -> None:
    made = line((one, other))
    assert (made.count("\t"), made.count("\n"), made.count("\r")) == (1, 1, 0)
    assert parse_table("a\tb\n" + made, HERE, {"a": TEXT, "b": TEXT}) == [{"a": one, "b": other}]


@given(TEXTS)
def test_an_unknown_escape_stays_as_it_stands(text: str) -> None:
    unknown = re.sub(r"\\[\\tnr]", "", re.sub(r"[\t\n]", "", text))
    assert parse_table(f"a\n{unknown}\n", HERE, {"a": TEXT}) == [{"a": unknown}]


def test_of_some_rows_each_has_the_number_of_its_line() -> None:
    text = "a\n0\n1\nx\n3\n"
    assert parse_table(text, HERE, {"a": COUNT}, (0, 3)) == [{"a": 0}, {"a": 3}]
    with pytest.raises(FgodError, match=r"^t\.tsv:4: a: found 'x', expected a whole number from 0 "):
        parse_table(text, HERE, {"a": COUNT}, (0, 2))


@settings(max_examples=50)
@given(st.lists(ROWS, max_size=5))
def test_typed_rows_read_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, rows: list[Kept]) -> None:
    path = tmp_path_factory.mktemp("table") / "kept.tsv"
    write_table(path, COLUMNS, map(asdict, rows))
    assert [Kept(**row) for row in read_table(path, COLUMNS)] == rows


@settings(max_examples=50)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_what_was_read_as_text_is_written_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("table") / "texts.tsv"
    write_table(path, ("a", "b"), [{"a": a, "b": b} for a, b in rows])
    before = path.read_bytes()
    write_table(path, ("a", "b"), read_texts(path, ("a", "b")))
    assert path.read_bytes() == before


def test_the_bytes_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    row = {"a": 'one\ttab, "quotes"', "b": None, "c": True, "d": 1e-05, "e": 7, "f": math.nan}
    write_table(path, row, [row])
    assert path.read_bytes() == b'a\tb\tc\td\te\tf\none\\ttab, "quotes"\t\ttrue\t1e-05\t7\tnan\n'


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        (WHOLE, "1.5", "a whole number from 0 with at most 18 digits or nothing"),
        (WHOLE, "1_000", "a whole number from 0 with at most 18 digits or nothing"),
        (COUNT, "-1", "a whole number from 0 with at most 18 digits"),
        (COUNT, "1" * 19, "a whole number from 0 with at most 18 digits"),
        (COUNT, "", "a whole number from 0 with at most 18 digits"),
        (NUMBER, "1 GiB", "a number or nothing"),
        (FLOAT, "", "a number"),
        (TRUTH, "yes", "true or false"),
        (TRUTH, "", "true or false"),
        (FLAG, "True", "true, false or nothing"),
        (one_of(("last", "all")), "first", "one of last, all"),
        (or_nothing(one_of(("last", "all"))), "first", "one of last, all or nothing"),
    ],
)
def test_a_field_that_does_not_fit_is_named(tmp_path: Path, column: Column, text: str, expected: str) -> None:
    path = tmp_path / "t.tsv"
    write_table(path, ("name", "x"), [{"name": "a", "x": text}])
    with pytest.raises(FgodError) as error:
        read_table(path, {"name": TEXT, "x": column})
    assert str(error.value) == f"{path}:2: x: found {text!r}, expected {expected}"


def test_empty_fields_are_none_where_they_may_be(tmp_path: Path) -> None:
    path, columns = tmp_path / "t.tsv", {"a": WHOLE, "b": NUMBER, "c": FLAG, "d": TEXT}
    write_table(path, columns, [dict.fromkeys(columns)])
    assert read_table(path, columns) == [{"a": None, "b": None, "c": None, "d": ""}]


def test_a_column_may_be_missing_only_where_it_is_optional(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    write_table(path, ("a",), [{"a": 1}])
    assert read_table(path, {"a": COUNT, "b": optional(TEXT)}) == [{"a": 1}]
    with pytest.raises(FgodError, match=r"t\.tsv:1: columns b are missing; found a"):
        read_table(path, {"a": COUNT, "b": TEXT})


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    with pytest.raises(UsageError, match=r"t\.tsv: no such file"):
        read_texts(path)
    path.write_bytes(b"a\tb\n1\t2\n1\t2\t3\n")
    with pytest.raises(FgodError, match=r"t\.tsv:3: 3 fields, expected 2"):
        read_texts(path)
    path.write_bytes(b"a\tb\n\n1\t2\n")
    with pytest.raises(FgodError, match=r"t\.tsv:2: 1 fields, expected 2"):
        read_texts(path)
    path.write_bytes(b"a\n1\n\xff\n")
    with pytest.raises(FgodError, match=r"t\.tsv:3: not UTF-8 at byte 4 of the file"):
        read_texts(path)


def test_a_piece_of_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    assert whole_lines(path) == ""
    path.write_bytes("a\n1\n我".encode()[:-1])
    assert whole_lines(path) == "a\n1\n"
    path.write_bytes(b"a\n\xff\n2")
    with pytest.raises(FgodError, match=r"t\.tsv:2: not UTF-8 at byte 2 of the file"):
        whole_lines(path)


def test_line_ends_of_another_system_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"a\tb\r\n1\t2\r\n")
    assert read_texts(path) == [{"a": "1", "b": "2"}]
