"""Decoders of the formats of exports from their public descriptions: numpy, struct and json alone.

safetensors        https://github.com/huggingface/safetensors (Format)
E2M1, E4M3         OCP Microscaling Formats (MX) 1.0, OCP 8-bit Floating Point (OFP8) 1.0
NVFP4              E2M1 codes, an E4M3 scale for 16 columns, a scale of the tensor: in compressed-tensors'
                   nvfp4-pack-quantized a divisor, in ModelOpt's layout a factor
GGUF               https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; ggml-common.h has block_nvfp4
TorchSharp .dat    docs/formats.md
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = np.concatenate([GRID, -GRID])


def e4m3(raw: NDArray[np.uint8]) -> Floats:
    """Numbers of FP8-E4M3 by its definition: 1 sign, 4 exponent bits with bias 7, 3 of the fraction; no infinity."""
    sign, exponent, fraction = raw >> 7, (raw >> 3 & 15).astype(int), raw & 7
    values = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    return np.where(raw & 0x7F == 0x7F, np.nan, np.where(sign, -values, values))


def bfloat16(raw: NDArray[Any]) -> Floats:
    """The upper half of a float32."""
    return (raw.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)


def nibbles(packed: NDArray[np.uint8]) -> Floats:
    """Values of codes, the low nibble first, along the last dimension."""
    return E2M1[np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)]


# -------------------------------------------------------------------------------------------------------- safetensors


def safetensors(path: Path) -> dict[str, Floats]:
    """The stored tensors of a file."""
    raw = path.read_bytes()
    [length] = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__", None)
    out = {}
    for name, one in header.items():
        bytes_ = np.frombuffer(data[slice(*one["data_offsets"])], np.uint8)
        decode = {
            "F32": lambda b: b.view("<f4").astype(np.float64),
            "BF16": bfloat16,
            "U8": lambda b: b.astype(np.float64),
            "F8_E4M3": e4m3,
        }[one["dtype"]]
        out[name] = decode(bytes_).reshape(one["shape"])
    return out


def nvfp4(path: Path, packed: str, scale: str, of_tensor: str, divides: bool) -> dict[str, Floats]:
    """Weights of a file whose quantised ones are three tensors each, with these ends of their names."""
    stored = safetensors(path)
    out = {}
    for name, values in stored.items():
        weight = name.removesuffix(packed) if name.endswith(packed) else ""
        if f"{weight}{of_tensor}" in stored:
            factor = stored[f"{weight}{of_tensor}"].item()
            steps = stored[f"{weight}{scale}"] / factor if divides else stored[f"{weight}{scale}"] * factor
            out[weight] = nibbles(values.astype(np.uint8)) * steps.repeat(16, 1)
        elif not name.endswith((scale, of_tensor)):
            out[name] = values
    return out


# ------------------------------------------------------------------------------------------------------ TorchSharp .dat


def dat(path: Path) -> dict[str, Floats]:
    """The weights of a file."""
    raw, at = path.read_bytes(), 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = raw[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    stored: dict[str, tuple[int, NDArray[Any]]] = {}
    for _ in range(number()):
        length = number()
        key, at = raw[at : at + length].decode(), at + length
        kind, shape = number(), [number() for _ in range(number())]
        dtype = {0: "u1", 5: "<f2", 101: "u1"}[kind]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        stored[key], at = (kind, np.frombuffer(raw[at : at + size], dtype).reshape(shape)), at + size
    assert at == len(raw)
    weights: dict[str, Floats] = {}
    for key, (_, data) in stored.items():
        if key.endswith(".qdata"):
            kind, scale = stored[key.replace(".qdata", ".scale")]
            scales = e4m3(scale) if kind == 101 else scale.astype(np.float64)
            weights[key.removesuffix(".qdata")] = nibbles(data) * scales.repeat(16, 1)
        elif not key.endswith(".scale"):
            weights[key] = data.astype(np.float64)
    return weights


# --------------------------------------------------------------------------------------------------------------- GGUF

SCALARS = "BbHhIif?sAQqd"
"""struct's letters by the number of GGUF's type; s (8) is a text and A (9) an array."""


def gguf(path: Path) -> dict[str, Floats]:
    """The weights of a file by its own names; what has a scale is multiplied by it."""
    raw, at = path.read_bytes(), 0

    def number(letter: str) -> Any:
        nonlocal at
        [value] = struct.unpack_from(f"<{letter}", raw, at)
        at += struct.calcsize(f"<{letter}")
        return value

    def text() -> str:
        nonlocal at
        length = number("Q")
        at += length
        return raw[at - length : at].decode()

    def value(kind: int) -> Any:
        if SCALARS[kind] == "s":
            return text()
        if SCALARS[kind] == "A":
            inner = number("I")
            return [value(inner) for _ in range(number("Q"))]
        return number(SCALARS[kind])

    assert raw[:4] == b"GGUF"
    at = 4
    assert number("I") == 3
    tensors, keys = number("Q"), number("Q")
    metadata = {text(): value(number("I")) for _ in range(keys)}
    entries = [(text(), [number("Q") for _ in range(number("I"))], number("I"), number("Q")) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    begin = at + -at % alignment
    found = {}
    for name, dims, kind, offset in entries:
        shape, count = dims[::-1], int(np.prod(dims))
        size = {0: 4 * count, 30: 2 * count, 40: count // 64 * 36}[kind]
        bytes_ = np.frombuffer(raw, np.uint8, size, begin + offset)
        if kind == 40:
            blocks = bytes_.reshape(-1, 36)
            scales = np.where(blocks[:, :4] & 0x7F == 0x7F, 0.0, e4m3(blocks[:, :4] & 0x7F))
            codes = blocks[:, 4:].reshape(-1, 4, 8)
            values = np.concatenate([E2M1[codes & 15], E2M1[codes >> 4]], -1) * scales[..., None]
        else:
            values = bytes_.view("<f4").astype(np.float64) if kind == 0 else bfloat16(bytes_)
        found[name] = values.reshape(shape)
    scales = {name: one.item() for name, one in found.items() if name.endswith(".scale")}
    return {
        name: one * scales.get(f"{name.removesuffix('.weight')}.scale", 1.0)
        for name, one in found.items()
        if name not in scales
    }
