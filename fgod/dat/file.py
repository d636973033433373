"""TorchSharp's state-dict file: read by an index of its entries, written entry by entry.

    entry count, then of each entry: key length, key, element type, rank, each dim, data

Numbers are unsigned LEB128: seven bits a byte, the lowest first, the top bit set where more follow. Keys are UTF-8.
Data is row-major and little-endian, without padding. TorchSharp holds numbers as signed 64 bits, so that 2⁶³ and more
are refused. It looks entries up by key: any order is read.

Of a damaged file nothing is allocated that the file does not hold: sizes are compared with its rest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fgod.errors import UsageError
from fgod.system.files import atomic_file

SUFFIX = ".dat"

LARGEST = 2**63 - 1
"""Largest number that TorchSharp can hold."""

MOST_ENTRIES = 2**17
"""More entries than this no model has: the index of a damaged file stays below 100 MB."""

MOST_DIMS = 32
"""What numpy can hold in every version."""

LEAST_ENTRY = 5
"""Bytes of the smallest entry: a key of one letter, with a number or with a dim of 0."""

SHOWN = 80
"""Characters of a key that messages show."""


class Element(IntEnum):
    """Element types. All but the last are torch's own numbers."""

    UINT8 = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    FLOAT16 = 5
    FLOAT32 = 6
    FLOAT64 = 7
    BOOL = 11
    BFLOAT16 = 15
    FP8_E4M3 = 101

    @property
    def stored(self) -> np.dtype[Any]:
        """numpy's type of what is stored: the bits, where numpy has no such numbers (bfloat16, FP8-E4M3)."""
        return _STORED[self]


_STORED: Mapping[Element, np.dtype[Any]] = {
    Element.UINT8: np.dtype("u1"),
    Element.INT8: np.dtype("i1"),
    Element.INT16: np.dtype("<i2"),
    Element.INT32: np.dtype("<i4"),
    Element.INT64: np.dtype("<i8"),
    Element.FLOAT16: np.dtype("<f2"),
    Element.FLOAT32: np.dtype("<f4"),
    Element.FLOAT64: np.dtype("<f8"),
    Element.BOOL: np.dtype("?"),
    Element.BFLOAT16: np.dtype("<u2"),
    Element.FP8_E4M3: np.dtype("u1"),
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file. `at` is the entry's first byte, `start` its data's; `nbytes` the data's size."""

    key: str
    element: Element
    shape: tuple[int, ...]
    at: int
    start: int
    nbytes: int


@dataclass(frozen=True)
class DatFile:
    """A file whose index is read; entries by key, in the file's order."""

    path: Path
    size: int
    entries: Mapping[str, Entry]

    def read(self, key: str) -> NDArray[Any]:
        """The data of one entry, in the type `Element.stored`.

        Raises:
            UsageError: a bool is neither 0 nor 1, or the file has become shorter.
        """
        entry = self.entries[key]
        raw = np.fromfile(self.path, np.uint8, entry.nbytes, offset=entry.start)
        if len(raw) != entry.nbytes:
            raise self.wrong(entry.start, f"{entry.key}: found {len(raw)} bytes, expected {entry.nbytes}")
        if entry.element is Element.BOOL and (raw > 1).any():
            index = int((raw > 1).argmax())
            raise self.wrong(entry.start + index, f"{entry.key}: found the bool {raw[index]}, expected 0 or 1")
        return raw.view(entry.element.stored).reshape(entry.shape)

    def wrong(self, at: int, said: str) -> UsageError:
        """The error for what stands at a byte of the file."""
        return UsageError(f"{self.path}: byte {at}: {said}")


def read_dat(path: Path) -> DatFile:
    """Read the index of a file: all but the data.

    Raises:
        UsageError: the file is missing, cut short or damaged, or has a key twice or bytes after its last entry; names
            the byte.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file, expected a TorchSharp state dict (.dat)")
    with path.open("rb") as stream:
        return _Index(path, stream, path.stat().st_size).read()


class _Index:
    """A cursor over a file that skips the data."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.file, self.stream, self.size = DatFile(path, size, {}), stream, size
        self.at = 0

    def read(self) -> DatFile:
        count = self._number("the count of entries")
        most = min((self.size - self.at) // LEAST_ENTRY, MOST_ENTRIES)
        if count > most:
            expected = f"at most {most}: no more fit into its {self.size} bytes, or into any model"
            raise self.file.wrong(0, f"the count of entries: found {count}, expected {expected}")
        entries: dict[str, Entry] = {}
        for _ in range(count):
            entry = self._entry()
            if entry.key in entries:
                first = entries[entry.key].at
                raise self.file.wrong(entry.at, f"found the key {_shown(entry.key)} again, which byte {first} has")
            entries[entry.key] = entry
        if self.at != self.size:
            raise self.file.wrong(self.at, f"found {self.size - self.at} bytes after the last entry, expected none")
        return DatFile(self.file.path, self.size, entries)

    def _entry(self) -> Entry:
        at, key = self.at, self._key()
        shown = _shown(key)
        element = self._element(shown)
        rank_at, rank = self.at, self._number(f"the rank of {shown}")
        if rank > MOST_DIMS:
            raise self.file.wrong(rank_at, f"the rank of {shown}: found {rank}, expected at most {MOST_DIMS}")
        dims_at, shape = self.at, tuple(self._number(f"the dims of {shown}") for _ in range(rank))
        if math.prod(dim for dim in shape if dim) * element.stored.itemsize > LARGEST:
            raise self.file.wrong(dims_at, f"the dims of {shown}: found {list(shape)}, expected less than 2^63 bytes")
        nbytes = math.prod(shape) * element.stored.itemsize
        if nbytes > self.size - self.at:
            raise self.file.wrong(
                self.at,
                f"the data of {shown}: found {self.size - self.at} bytes up to the end of the file, expected {nbytes} "
                f"for {element.name} {list(shape)}: the file is cut short or damaged",
            )
        start = self.at
        self.at = self.stream.seek(start + nbytes)
        return Entry(key, element, shape, at, start, nbytes)

    def _key(self) -> str:
        at, length = self.at, self._number("the length of a key")
        if length == 0:
            raise self.file.wrong(at, "the length of a key: found 0, expected a name")
        start, raw = self.at, self._take(length, "a key")
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.file.wrong(start + error.start, f"a key: found {raw[:40]!r}, expected UTF-8") from error

    def _element(self, shown: str) -> Element:
        at, number = self.at, self._number(f"the element type of {shown}")
        try:
            return Element(number)
        except ValueError:
            known = ", ".join(f"{int(one)} {one.name}" for one in Element)
            found = f"the element type of {shown}: found {number}"
            raise self.file.wrong(at, f"{found}, expected one of {known}") from None

    def _number(self, what: str) -> int:
        at, value, shift = self.at, 0, 0
        while True:
            [byte] = self._take(1, what)
            value |= (byte & 0x7F) << shift
            shift += 7
            if value > LARGEST or (byte & 0x80 and shift >= 70):
                raise self.file.wrong(at, f"{what}: found 2^63 or more, expected a number that fits signed 64 bits")
            if not byte & 0x80:
                return value

    def _take(self, size: int, what: str) -> bytes:
        if size > self.size - self.at:
            raise self.file.wrong(
                self.at, f"the file ends at byte {self.size}, within {what}: it is cut short or damaged"
            )
        raw = self.stream.read(size)
        self.at += size
        return raw


def _shown(key: str) -> str:
    return repr(key if len(key) <= SHOWN else f"{key[:SHOWN]}…")


def encoded(number: int) -> bytes:
    """A number from 0 to 2⁶³ - 1 as unsigned LEB128."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def write_dat(path: Path, count: int, entries: Iterable[tuple[str, Element, NDArray[Any]]]) -> None:
    """Write a file, one entry at a time; it appears whole.

    Args:
        count: of the entries: it stands first in the file.
        entries: key, element type and data, in the type `Element.stored`.

    Raises:
        ValueError: there are more or fewer entries, a key is empty or comes twice, or data is of another type.
        StorageError: it could not be written; what stood there still does.
    """
    keys: set[str] = set()
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(encoded(count))
        for key, element, data in entries:
            if not key or key in keys:
                raise ValueError(f"{path}: the key {key!r}: expected names, each once")
            if data.dtype != element.stored:
                raise ValueError(f"{path}: {key}: {data.dtype}, expected {element.stored} for {element.name}")
            keys.add(key)
            name = key.encode()
            numbers = b"".join(map(encoded, (element, data.ndim, *data.shape)))
            stream.write(encoded(len(name)) + name + numbers)
            stream.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
            del data  # before the next one is made
        if len(keys) != count:
            raise ValueError(f"{path}: {len(keys)} entries, expected {count}")
