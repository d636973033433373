"""Read a GGUF file: its metadata, and where its tensors lie. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

The header is read here and not by `gguf.GGUFReader`, which takes half a minute for a vocabulary of 150 thousand tokens
and answers a damaged file with an IndexError. Names of types, sizes of blocks and decoding are the gguf package's.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from fgod.errors import UsageError

MAGIC = b"GGUF"
WEIGHT, SCALE = ".weight", ".scale"
"""Ends of the names of a weight and of the number that its product, and so the weight, is multiplied by."""

VERSIONS = (2, 3)
ALIGNMENT = 32
"""Bytes to a multiple of which the tensors begin, unless general.alignment says otherwise."""

AT_ONCE = 2**22
"""Weights that are decoded at once."""

MOST_NESTED = 8
"""Arrays within each other: nobody writes more than two."""

_SCALARS = {
    GGUFValueType.UINT8: "<B", GGUFValueType.INT8: "<b", GGUFValueType.UINT16: "<H", GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i", GGUFValueType.FLOAT32: "<f", GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q", GGUFValueType.INT64: "<q", GGUFValueType.FLOAT64: "<d",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. `shape` has the rows first, as torch has it; `start` is its first byte in the file."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Bits of a weight."""
        return 8 * self.nbytes / math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file with its header read. float32 metadata are as their shortest decimal: 1e-5, not 9.99999975e-06."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def stored(self, name: str, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """The bytes of a tensor, or of some of its rows, a copy: the last dimension is that of a row's bytes."""
        tensor = self.tensors[name]
        mapped = np.memmap(self.path, np.uint8, "r", tensor.start, (tensor.nbytes,))
        return np.array(mapped.reshape(*tensor.shape[:-1], -1)[rows])

    def read(self, name: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """float32 weights of a tensor, or of some of its rows, times its scale where the file has one for it.

        Raises:
            UsageError: the scale is not one positive finite number.
        """
        tensor, scale = self.tensors[name], self.scale(name)
        if len(tensor.shape) == 1:
            values = np.array(dequantize(self.stored(name), tensor.type)[rows], dtype=np.float32)
        else:
            values = self._decoded(tensor, range(tensor.shape[0])[rows])
        if scale is not None:
            values *= scale
        return values

    def _decoded(self, tensor: GgufTensor, rows: range) -> NDArray[np.float32]:
        """Rows of a tensor as they are stored, decoded some at a time."""
        values = np.empty((len(rows), *tensor.shape[1:]), np.float32)
        step = max(1, AT_ONCE // math.prod(tensor.shape[1:]))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            stored = self.stored(tensor.name, slice(some.start, some.stop, some.step))
            values[start : start + len(some)] = dequantize(stored, tensor.type)
        return values

    def scale(self, name: str) -> np.float32 | None:
        """What a weight is to be multiplied by: X.scale of X.weight, as NVFP4 has it; None: there is no such tensor.

        Raises:
            UsageError: it is not one positive finite number.
        """
        beside = f"{name.removesuffix(WEIGHT)}{SCALE}"
        if not name.endswith(WEIGHT) or beside not in self.tensors:
            return None
        found = self.read(beside)
        if found.shape != (1,) or not (np.isfinite(found[0]) and found[0] > 0):
            raise UsageError(f"{self.path}: {beside}: found {found.tolist()}, expected one positive finite number")
        return np.float32(found[0])


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file, and check that the file is whole and that all its tensors can be decoded.

    Raises:
        UsageError: it is missing, cut short, damaged, of another format, or holds a type that nobody decodes.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file, expected a GGUF file")
    if path.stat().st_size < len(MAGIC):
        raise UsageError(f"{path}: found {path.stat().st_size} bytes, expected a GGUF file")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Header(path, data).read()


class _Header:
    """A cursor over the header of a file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def read(self) -> GgufFile:
        self._check_format()
        tensor_count, metadata_count = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self._text("the name of a key")
            if key in metadata:
                raise self._wrong("the keys", key, "each once: the file is damaged")
            metadata[key] = self._value(self._value_type(key), key)
        self._check_alone(metadata.get("split.count"))
        found = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._wrong("general.alignment", alignment, "a whole number above 0")
        begin = self.at + -self.at % alignment
        placed = [self._placed(tensor, begin) for tensor in found]
        self._check_apart(placed)
        return GgufFile(self.path, metadata, {tensor.name: tensor for tensor in placed})

    def _check_format(self) -> None:
        magic = self._take(len(MAGIC), "the format")
        if magic != MAGIC:
            raise self._wrong("the first bytes", magic, f"{MAGIC!r}: a GGUF file")
        version = self._number("<I")
        if version not in VERSIONS:
            old = "big-endian or of a newer version" if version > max(VERSIONS) else "of an old version"
            raise self._wrong("version", version, f"2 or 3, little-endian: this file is {old}; convert the model anew")

    def _check_alone(self, parts: object) -> None:
        if parts not in (None, 0, 1):
            raise self._wrong("split.count", parts, "one file: join the parts first (llama-gguf-split --merge)")

    def _check_apart(self, tensors: Sequence[GgufTensor]) -> None:
        """Tensors have names of their own, and bytes of their own: else a small file could stand for a large model."""
        names = Counter(tensor.name for tensor in tensors)
        for name, count in names.items():
            if count > 1:
                raise self._wrong("the tensors", f"{name} {count} times", "each once: the file is damaged")
        for first, second in pairwise(sorted(tensors, key=lambda tensor: tensor.start)):
            if second.start < first.start + first.nbytes:
                raise self._wrong(second.name, f"bytes of {first.name}", "bytes of its own: the file is damaged")

    def _wrong(self, key: str, found: object, expected: str) -> UsageError:
        return UsageError(f"{self.path}: {key}: found {found!r}, expected {expected}")

    def _take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            raise UsageError(
                f"{self.path}: the file ends at byte {len(self.data)}, within {what}: it is cut short or damaged; "
                "fetch it anew"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def _number(self, form: str, what: str = "the header") -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form), what))[0]

    def _text(self, what: str) -> str:
        raw = self._take(self._number("<Q", what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(what, raw[:40], "text in UTF-8: the file is damaged") from error

    def _value_type(self, key: str) -> GGUFValueType:
        number = self._number("<I", key)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self._wrong(f"type of {key}", number, "one of GGUF's types of values: the file is damaged") from None

    def _value(self, kind: GGUFValueType, key: str, nested: int = 0) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text(key)
        if kind == GGUFValueType.ARRAY:
            return self._array(key, nested + 1)
        value = self._number(_SCALARS[kind], key)
        return _shortest(value) if kind == GGUFValueType.FLOAT32 else value

    def _array(self, key: str, nested: int) -> list[Any]:
        if nested > MOST_NESTED:
            raise self._wrong(key, f"{nested} arrays within each other", f"at most {MOST_NESTED}: the file is damaged")
        kind, count = self._value_type(key), self._number("<Q", key)
        if kind in (GGUFValueType.STRING, GGUFValueType.ARRAY):
            return [self._value(kind, key, nested) for _ in range(count)]
        form = _SCALARS[kind]
        raw = self._take(struct.calcsize(form) * count, key)
        return [value for (value,) in struct.iter_unpack(form, raw)]

    def _tensor(self) -> GgufTensor:
        """A tensor whose `start` is still relative to the first tensor's."""
        name = self._text("the name of a tensor")
        dimensions = self._number("<I", name)
        if not 1 <= dimensions <= 4:
            raise self._wrong(f"dimensions of {name}", dimensions, "1 to 4: the file is damaged")
        shape = tuple(reversed(struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions, name))))
        kind = self._tensor_type(name)
        block, size = GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise self._wrong(f"shape of {name}", list(shape), f"rows of whole blocks of {block} ({kind.name})")
        return GgufTensor(name, kind, shape, self._number("<Q", name), math.prod(shape) // block * size)

    def _tensor_type(self, name: str) -> GGMLQuantizationType:
        number = self._number("<I", name)
        kinds = {int(kind): kind for kind in GGMLQuantizationType}
        if number in kinds and decodable(kinds[number]):
            return kinds[number]
        found = kinds[number].name if number in kinds else number
        known = ", ".join(kind.name for kind in GGMLQuantizationType if decodable(kind))
        raise self._wrong(f"type of {name}", found, f"one that can be decoded: {known}")

    def _placed(self, tensor: GgufTensor, begin: int) -> GgufTensor:
        start = begin + tensor.start
        if start + tensor.nbytes > len(self.data):
            raise UsageError(
                f"{self.path}: {tensor.name}: found {max(0, len(self.data) - start)} bytes, expected {tensor.nbytes}: "
                "the file is cut short; fetch it anew"
            )
        return GgufTensor(tensor.name, tensor.type, tensor.shape, start, tensor.nbytes)


@cache
def decodable(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package decodes a type to float32."""
    size = GGML_QUANT_SIZES[kind][1]
    try:
        dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:  # how the package says that it has no decoder; the caller refuses the file
        return False
    return True


def _shortest(value: float) -> float:
    """A float32 number as the shortest decimal that it is the nearest float32 of."""
    return float(str(np.float32(value)))
