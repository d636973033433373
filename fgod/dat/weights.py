"""The weights of a model in a TorchSharp file: which entries a tensor is made of, and what it is in floating point.

A quantised weight W [N, K] is two entries: W.qdata uint8 [N, K/2] and W.scale [N, K/16], of type FP8-E4M3 or float16. W
is the parameter's name in transformers' model, with its `.weight` or without. All else is one entry, by its own name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fgod.dat.codec import SCALES, TORCH, Packed, dequantise
from fgod.dat.file import DatFile, Element, Entry, read_dat
from fgod.errors import UsageError
from fgod.models.names import BLOCK
from fgod.nvfp4.codec import BadScaleError
from fgod.nvfp4.folders import Weights

QDATA, SCALE, WEIGHT = ".qdata", ".scale", ".weight"

PLAIN = (Element.FLOAT16, Element.BFLOAT16, Element.FLOAT32)
"""Element types of weights that are not quantised."""


@dataclass(frozen=True)
class Stored:
    """A tensor of the model. `scale`: that of a quantised weight, whose codes are `data`; None: `data` are numbers."""

    data: Entry
    scale: Entry | None

    @property
    def shape(self) -> tuple[int, ...]:
        rows = self.data.shape
        return rows if self.scale is None else (rows[0], 2 * rows[1])


def stored_weights(file: DatFile) -> dict[str, Stored]:
    """The model's tensors in a file, by the names of transformers' model, in the file's order.

    Raises:
        UsageError: there are none; codes without scales or scales without codes, a tensor twice, or an element type or
            a shape that such an entry cannot have; names the byte.
    """
    found: dict[str, Stored] = {}
    for key, entry in file.entries.items():
        name, scale = key, None
        if key.endswith(SCALE):
            _check_codes(file, entry)
            continue
        if key.endswith(QDATA):
            name, scale = _parameter(key.removesuffix(QDATA)), _scale_of(file, entry)
        elif entry.element not in PLAIN:
            raise file.wrong(entry.at, _unlike("type", key, entry.element.name, _names(PLAIN)))
        if name in found:
            first = found[name].data
            raise file.wrong(
                entry.at, f"{key}: found the tensor {name} again, which byte {first.at} has as {first.key}"
            )
        found[name] = Stored(entry, scale)
    if not found:
        raise UsageError(f"{file.path}: found no tensors, expected the weights of a model")
    return found


def _parameter(stem: str) -> str:
    return stem if stem.endswith(WEIGHT) else f"{stem}{WEIGHT}"


def _names(elements: Iterable[Element]) -> str:
    return " or ".join(f"{int(one)} {one.name}" for one in elements)


def _unlike(what: str, key: str, found: object, expected: object) -> str:
    return f"{what} of {key}: found {found}, expected {expected}"


def _check_codes(file: DatFile, scale: Entry) -> None:
    codes = f"{scale.key.removesuffix(SCALE)}{QDATA}"
    if codes not in file.entries:
        raise file.wrong(scale.at, f"{scale.key}: found scales without codes, expected {codes} too")


def _scale_of(file: DatFile, codes: Entry) -> Entry:
    """The scales of a weight's codes, both of which are checked."""
    key = f"{codes.key.removesuffix(QDATA)}{SCALE}"
    if codes.element is not Element.UINT8:
        raise file.wrong(codes.at, _unlike("type", codes.key, codes.element.name, _names((Element.UINT8,))))
    if len(codes.shape) != 2 or not all(codes.shape) or codes.shape[1] % (BLOCK // 2):
        expected = f"[rows, columns / 2] with a multiple of {BLOCK} columns"
        raise file.wrong(codes.at, _unlike("shape", codes.key, list(codes.shape), expected))
    if key not in file.entries:
        raise file.wrong(codes.at, f"{codes.key}: found codes without scales, expected {key} too")
    scale, shape = file.entries[key], (codes.shape[0], codes.shape[1] * 2 // BLOCK)
    if scale.element not in SCALES:
        raise file.wrong(scale.at, _unlike("type", key, scale.element.name, _names(SCALES)))
    if scale.shape != shape:
        expected = f"{list(shape)}, as {codes.key} is {list(codes.shape)}"
        raise file.wrong(scale.at, _unlike("shape", key, list(scale.shape), expected))
    return scale


def tensor_of(file: DatFile, entry: Entry) -> Tensor:
    """An entry as torch's tensor; its element type is one of `TORCH`."""
    return torch.from_numpy(file.read(entry.key)).view(TORCH[entry.element])


def packed_of(file: DatFile, stored: Stored) -> Packed:
    """Codes and scales of a quantised weight, as they are in the file."""
    assert stored.scale is not None
    return Packed(tensor_of(file, stored.data), tensor_of(file, stored.scale))


def read_weight(file: DatFile, stored: Stored, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of the model; float32 holds it exactly.

    Raises:
        BadScaleError: a scale is negative, NaN or infinite; names the byte. A scale of 0 makes its block zeros.
        UsageError: a weight is not finite; names the entry's byte.
    """
    if stored.scale is not None:
        packed = packed_of(file, stored)
        _check_scales(file, stored.scale, packed.scales)
        return dequantise(packed, dtype)
    values = tensor_of(file, stored.data)
    if not torch.isfinite(values).all():
        raise file.wrong(stored.data.start, f"{stored.data.key}: a weight is not finite: the file is damaged")
    return values.to(dtype)


def _check_scales(file: DatFile, entry: Entry, scales: Tensor) -> None:
    values = scales.float()
    bad = ~torch.isfinite(values) | torch.signbit(values)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        at = entry.start + (row * entry.shape[1] + column) * entry.element.stored.itemsize
        found = f"found {values[row, column].item():g}, expected a finite number of at least 0"
        raise BadScaleError(f"{file.path}: byte {at}: {entry.key}: scale [{row}, {column}]: {found}")


def element_counts(file: DatFile) -> dict[str, int]:
    """How many entries there are of each element type, by its name."""
    return dict(sorted(Counter(entry.element.name for entry in file.entries.values()).items()))


class DatWeights(Weights):
    """The tensors of a model in an open file: `read` gives float32."""

    def __init__(self, folder: Path, file: DatFile) -> None:
        self.file, self.stored = file, stored_weights(file)
        super().__init__(folder, dict.fromkeys(self.stored, file.path))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored[name].shape

    def read(self, name: str) -> Tensor:
        return read_weight(self.file, self.stored[name])


@contextmanager
def open_dat(folder: Path, name: str) -> Iterator[DatWeights]:
    """The weights of a folder that lie in one file there.

    Raises:
        UsageError: the file is missing or broken, or what it holds are no weights.
    """
    yield DatWeights(folder, read_dat(folder / name))
