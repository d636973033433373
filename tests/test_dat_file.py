"""TorchSharp's state-dict file: what is written is read, byte by byte as described, and nothing damaged is taken."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fgod.dat.file import LARGEST, MOST_DIMS, DatFile, Element, encoded, read_dat, write_dat
from fgod.errors import UsageError

# by hand, from the description: two entries, 'w.qdata' uint8 [1, 3] and 'é' float16 [2] with 1 and -2; then a key of
# 130 letters, whose length takes two bytes, as does its dim of 300
GOLDEN = (
    b"\x03"
    b"\x07w.qdata\x00\x02\x01\x03\x10\x32\xff"
    b"\x02\xc3\xa9\x05\x01\x02\x00\x3c\x00\xc0"
    b"\x82\x01" + b"k" * 130 + b"\x65\x01\xac\x02" + bytes(range(150)) * 2
)  # fmt: skip

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.dat"
    path.write_bytes(content)
    return path


def read_all(path: Path) -> dict[str, tuple[Element, NDArray[Any]]]:
    file = read_dat(path)
    return {key: (entry.element, file.read(key)) for key, entry in file.entries.items()}


def test_the_bytes_are_those_of_the_description(tmp_path: Path) -> None:
    written: list[tuple[str, Element, NDArray[Any]]] = [
        ("w.qdata", Element.UINT8, np.array([[0x10, 0x32, 0xFF]], np.uint8)),
        ("é", Element.FLOAT16, np.array([1, -2], np.float16)),
        ("k" * 130, Element.FP8_E4M3, np.tile(np.arange(150, dtype=np.uint8), 2)),
    ]
    write_dat(tmp_path / "x.dat", 3, iter(written))
    assert (tmp_path / "x.dat").read_bytes() == GOLDEN
    found = read_all(file_of(tmp_path, GOLDEN))
    assert list(found) == [key for key, _, _ in written]
    for key, element, data in written:
        assert found[key][0] is element and np.array_equal(found[key][1], data)
    file = read_dat(tmp_path / "x.dat")
    assert [(e.at, e.start, e.nbytes) for e in file.entries.values()] == [(1, 13, 3), (16, 22, 4), (26, 162, 300)]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "00"), (127, "7f"), (128, "8001"), (151936, "80a309"), (LARGEST, "ffffffffffffffff7f")],
)
def test_numbers_are_leb128(number: int, expected: str) -> None:
    assert encoded(number).hex() == expected


@st.composite
def entries(draw: st.DrawFn) -> list[tuple[str, Element, NDArray[Any]]]:
    keys = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True, max_size=5))
    found = []
    for key in keys:
        element = draw(st.sampled_from(list(Element)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        size = int(np.prod(shape, dtype=int)) * element.stored.itemsize
        raw = draw(st.binary(min_size=size, max_size=size))
        if element is Element.BOOL:
            raw = bytes(one & 1 for one in raw)
        found.append((key, element, np.frombuffer(raw, element.stored).reshape(shape)))
    return found


@given(made=entries())
@quick
def test_what_is_written_is_read(made: list[tuple[str, Element, NDArray[Any]]], tmp_path: Path) -> None:
    write_dat(tmp_path / "x.dat", len(made), made)
    found = read_all(tmp_path / "x.dat")
    assert list(found) == [key for key, _, _ in made]
    for key, element, data in made:
        assert found[key][0] is element and found[key][1].shape == data.shape
        assert found[key][1].tobytes() == data.tobytes()


def test_a_file_that_ends_early_is_refused_at_each_byte(tmp_path: Path) -> None:
    for size in range(len(GOLDEN)):
        path = file_of(tmp_path, GOLDEN[:size])
        with pytest.raises(UsageError, match=r"x\.dat: byte \d+: "):
            read_dat(path)


@given(data=st.data())
@settings(quick, max_examples=300)
def test_mutated_bytes_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    raw = bytearray(GOLDEN[:-250])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 30) | st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_all(file_of(tmp_path, bytes(raw)))
    except UsageError as error:
        assert "x.dat: byte " in str(error)


@given(raw=st.binary(max_size=60))
@settings(quick, max_examples=300)
def test_any_bytes_are_read_or_refused(raw: bytes, tmp_path: Path) -> None:
    try:
        read_all(file_of(tmp_path, raw))
    except UsageError as error:
        assert "x.dat: byte " in str(error)


ONE = b"\x01\x01a"
HUGE = b"\xff" * 8 + b"\x7f"  # 2^63 - 1

REFUSED = {
    "nothing": (b"", r"byte 0: the file ends at byte 0, within the count of entries"),
    "a number of 64 bits": (b"\x80" * 9 + b"\x01", r"byte 0: the count of entries: found 2\^63 or more"),
    "a number without an end": (b"\x80" * 30, r"byte 0: the count of entries: found 2\^63 or more"),
    "2^63 - 1 entries": (HUGE + b"\x01a", r"byte 0: the count of entries: found 9223372036854775807, .* most 0"),
    "more entries than fit": (b"\x02" + ONE[1:] + b"\x00\x00\x07", r"byte 0: the count of entries: found 2, .* most 1"),
    "no key": (b"\x01\x00\x00\x01\x01\x07", r"byte 1: the length of a key: found 0"),
    "a long key": (b"\x01" + HUGE + b"aaaa", r"byte 10: the file ends at byte 14, within a key"),
    "a key of other letters": (b"\x01\x02a\xff\x00\x00\x07", r"byte 3: a key: found b'a\\xff', expected UTF-8"),
    "an unknown type": (ONE + b"\x63\x00\x07", r"byte 3: the element type of 'a': found 99, expected one of 0 UI.*101"),
    "a large rank": (ONE + b"\x00\x21" + b"\x01" * 40, r"byte 4: the rank of 'a': found 33, expected at most 32"),
    "dims that overflow": (ONE + b"\x00\x02" + HUGE * 2, r"byte 5: the dims of 'a': found .*, expected less than 2"),
    "dims that overflow beside 0": (ONE + b"\x00\x03" + HUGE * 2 + b"\x00", r"byte 5: the dims of 'a'"),
    "items that overflow": (ONE + b"\x07\x01" + HUGE, r"byte 5: the dims of 'a': .*, expected less than 2\^63 bytes"),
    "more data than there is": (ONE + b"\x06\x01\x03" + b"\x00" * 11, r"byte 6: the data of 'a': found 11 bytes .*12 "),
    "bytes after the end": (ONE + b"\x00\x01\x01\x07\x08\x09", r"byte 7: found 2 bytes after the last entry"),
    "a key twice": (b"\x02" + (ONE[1:] + b"\x00\x01\x01\x07") * 2, r"byte 7: found the key 'a' again, .* byte 1 has"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_is_refused_with_its_byte(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    path = file_of(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(UsageError, match=rf"x\.dat: {words}"):
        read_dat(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_bool_is_0_or_1_and_a_missing_file_is_said(tmp_path: Path) -> None:
    file = read_dat(file_of(tmp_path, ONE + b"\x0b\x01\x03\x01\x00\x02"))
    with pytest.raises(UsageError, match=r"byte 8: a: found the bool 2, expected 0 or 1"):
        file.read("a")
    (tmp_path / "x.dat").write_bytes(ONE)
    with pytest.raises(UsageError, match=r"byte 6: a: found 0 bytes, expected 3"):
        file.read("a")
    with pytest.raises(UsageError, match=r"none\.dat: no such file"):
        read_dat(tmp_path / "none.dat")


def test_numbers_may_be_padded_and_ranks_as_large_as_numpys(tmp_path: Path) -> None:
    file: DatFile = read_dat(file_of(tmp_path, b"\x81\x80\x00\x01a\x00" + bytes([MOST_DIMS]) + b"\x01" * 32 + b"\x07"))
    assert file.read("a").shape == (1,) * MOST_DIMS


@pytest.mark.parametrize("found", [[], ["a", "a"], ["a", "b", "c"], ["a", ""]])
def test_a_writer_that_breaks_its_word_leaves_nothing(found: list[str], tmp_path: Path) -> None:
    made = [(key, Element.UINT8, np.zeros(2, np.uint8)) for key in found]
    with pytest.raises(ValueError):
        write_dat(tmp_path / "x.dat", 2, made)
    with pytest.raises(ValueError, match="a: float32, expected"):
        write_dat(tmp_path / "x.dat", 1, [("a", Element.FLOAT16, np.zeros(2, np.float32))])
    assert list(tmp_path.iterdir()) == []
