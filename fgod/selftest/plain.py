"""The cases of the CPU: the NVFP4 codec, its products, random bits and packed moments, against loops in Python.

The references follow the definitions number by number, in float32 where those divide in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from fgod.nvfp4 import codec, rounding
from fgod.nvfp4.layers import ScaleGroup, StraightThroughLinear
from fgod.selftest.case import Case, Difference, near, noise, same_bits
from fgod.train import codecs

Found = Iterator[Difference]

_E4M3_BIAS, _E4M3_MANTISSA = 7, 3
SHAPE = (6, 96)
"""Of the matrices: 36 blocks."""


def cpu_cases() -> list[Case]:
    """All of them."""
    weights = {"weights of many sizes": _many_sizes(), "ties": _ties(), "zeros and next to nothing": _tiny()}
    return [
        Case("NVFP4 codec", "every pair of codes", _pairs),
        *(
            Case("NVFP4 quantiser", f"{name}, {rule}", partial(_quantiser, weight, rule))
            for name, weight in weights.items()
            for rule in codec.BLOCK_SCALES
        ),
        Case("product with quantised weights", "float32", partial(_product, torch.float32, 1e-5)),
        Case("product with quantised weights", "bfloat16", partial(_product, torch.bfloat16, 2e-2)),
        Case("random bits", "of two steps", _random_bits),
        Case("stochastic rounding to BF16", "weights of many sizes", _stochastic),
        *(Case("packed moments", name, partial(_moments, name)) for name in ("int8", "uint8", "nvfp4")),
    ]


def _many_sizes() -> Tensor:
    return noise(SHAPE, 3) ** 3 * torch.exp2(torch.arange(SHAPE[0]) * 2 - 8.0).unsqueeze(1)


def _ties() -> Tensor:
    """Quarters up to 6: each block has one of 6, so that the thresholds between codes are among them."""
    made = (noise(SHAPE, 2) * 48).round().clamp(-24, 24).mul(0.25)
    made[:, :: codec.BLOCK] = 6.0
    return made


def _tiny() -> Tensor:
    made = noise(SHAPE, 1)
    made[:, : codec.BLOCK] = 0.0
    made[:, codec.BLOCK : 2 * codec.BLOCK] *= 1e-6
    return made


# ---------------------------------------------------------------------------------------------------------- references


def e4m3(byte: int) -> float:
    """What a byte of E4M3 without a sign stands for: 4 bits of exponent, 3 of mantissa."""
    exponent, mantissa = byte >> _E4M3_MANTISSA, byte & 7
    if exponent == 0:
        return math.ldexp(mantissa, 1 - _E4M3_BIAS - _E4M3_MANTISSA)
    return math.ldexp(8 + mantissa, exponent - _E4M3_BIAS - _E4M3_MANTISSA)


@cache
def _e4m3_values() -> list[float]:
    return [e4m3(byte) for byte in range(0x7F)]  # 0x7F is NaN


def _nearest(value: float, values: list[float]) -> int:
    """The place of the nearest of rising values; of two that are as near the even place."""
    return min(range(len(values)), key=lambda place: (abs(values[place] - value), place % 2))


def code_of(value: float) -> int:
    """E2M1's code of a number."""
    size = _nearest(min(abs(value), codec.E2M1_MAX), list(codec.E2M1))
    return size + 8 if value < 0 and size else size


def global_scale(weights: list[list[float]]) -> float:
    """The largest power of two by which the largest weight stays within half of what codes and scales reach."""
    amax, scale = max(abs(w) for row in weights for w in row), 1.0
    most = codec.E4M3_MAX * codec.E2M1_MAX / codec.HEADROOM
    if amax < codec.AMAX_MIN:
        return scale
    while scale * amax > most:
        scale /= 2
    while 2 * scale * amax <= most:
        scale *= 2
    return scale


def _scale_byte(largest: np.float32, part: float, scale: float) -> int:
    wanted = float(np.float32(largest / np.float32(part)) * np.float32(scale))
    return _nearest(min(max(wanted, codec.SCALE_MIN), codec.E4M3_MAX), _e4m3_values())


def _with_scale(block: list[np.float32], byte: int, scale: float) -> tuple[list[int], list[float]]:
    """Codes of a block under a block scale, and what they stand for."""
    step = np.float32(np.float32(e4m3(byte)) / np.float32(scale))
    codes = [code_of(float(w / step)) for w in block]
    return codes, [float(step) * (-1 if code > 7 else 1) * codec.E2M1[code & 7] for code in codes]


def _error(block: list[np.float32], values: list[float]) -> np.float32:
    """Σ(Q(w) - w)² in float32, as a tree of halves."""
    errors = [(np.float32(v) - w) * (np.float32(v) - w) for v, w in zip(values, block, strict=True)]
    while len(errors) > 1:
        half = len(errors) // 2
        errors = [a + b for a, b in zip(errors[:half], errors[half:], strict=True)]
    return errors[0]


def quantised(weight: Tensor, rule: str) -> tuple[float, list[list[int]], list[list[int]], list[list[float]]]:
    """Global scale, codes, bytes of block scales, and the values that they stand for."""
    rows = [[np.float32(w) for w in row] for row in weight.tolist()]
    scale = global_scale(weight.tolist())
    codes, scales, values = [], [], []
    for row in rows:
        made: tuple[list[int], list[int], list[float]] = ([], [], [])
        for first in range(0, len(row), codec.BLOCK):
            block = row[first : first + codec.BLOCK]
            largest = np.float32(max(abs(w) for w in block))
            byte = _scale_byte(largest, codec.E2M1_MAX, scale)
            found = _with_scale(block, byte, scale)
            if rule == "four-over-six":
                four = _scale_byte(largest, 4.0, scale)
                other = _with_scale(block, four, scale)
                if _error(block, other[1]) < _error(block, found[1]):
                    byte, found = four, other
            made[0].extend(found[0])
            made[1].append(byte)
            made[2].extend(found[1])
        codes.append(made[0])
        scales.append(made[1])
        values.append(made[2])
    return scale, codes, scales, values


# --------------------------------------------------------------------------------------------------------------- cases


def _pairs(device: torch.device) -> Found:
    codes = [[low, high] for low in range(16) for high in range(16)]
    packed = codec.pack(torch.tensor(codes, dtype=torch.uint8))
    yield same_bits("packed codes", packed, torch.tensor([[low + 16 * high] for low, high in codes]).to(torch.uint8))
    yield same_bits("unpacked codes", codec.unpack(packed), torch.tensor(codes, dtype=torch.uint8))
    values = [[(-1.0 if code > 7 else 1.0) * codec.E2M1[code & 7] for code in pair] for pair in codes]
    yield same_bits("values", codec.decode_e2m1(torch.tensor(codes, dtype=torch.uint8)), torch.tensor(values))


def _quantiser(weight: Tensor, rule: str, device: torch.device) -> Found:
    scale, codes, scales, values = quantised(weight, rule)
    made = codec.quantise(weight, block_scales=rule)
    yield Difference("the global scale, as a quotient less 1,", abs(made.global_scale / scale - 1), 0.0)
    yield same_bits("codes", made.codes, torch.tensor(codes, dtype=torch.uint8))
    [exported] = codec.quantise_chunks(weight.to(device), scale, lambda one: (one.codes,), block_scales=rule)
    yield same_bits("codes of an export", exported.cpu(), torch.tensor(codes, dtype=torch.uint8))
    yield same_bits("block scales", made.scales.view(torch.uint8), torch.tensor(scales, dtype=torch.uint8))
    expected = torch.tensor(values) + 0.0  # no zero has a sign
    yield same_bits("what is unpacked", codec.dequantise(made) + 0.0, expected)
    yield same_bits("Q(W)", codec.fake_quantise(weight, scale, block_scales=rule) + 0.0, expected)


def _product(dtype: torch.dtype, most: float, device: torch.device) -> Found:
    """A layer as it trains: forwards, and backwards past the quantiser."""
    weight, x, grad = _many_sizes(), noise((5, SHAPE[1]), 4), noise((5, SHAPE[0]), 5)
    layer = StraightThroughLinear(SHAPE[1], SHAPE[0], bias=False)
    layer.weight.data.copy_(weight)
    layer.group, layer.compute_dtype = ScaleGroup("self-test"), dtype
    layer.block_scales, layer.keep_quantised = codec.BLOCK_SCALES[0], False
    layer.group.members.append(layer)
    inputs = x.to(dtype).requires_grad_()
    out = layer(inputs)
    out.backward(grad.to(dtype))
    q = quantised(weight, codec.BLOCK_SCALES[0])[3]
    xs, gs = inputs.tolist(), grad.to(dtype).tolist()
    yield near("x·Q(W)ᵀ", out.detach(), _sums(xs, q), most)
    yield near("g·Q(W)", inputs.grad, _sums(gs, _turned(q)), most)
    yield near("gᵀ·x", layer.weight.grad, _sums(_turned(gs), _turned(xs)), most)


def _sums(left: list[list[float]], right: list[list[float]]) -> Tensor:
    """left · rightᵀ, each sum exact and rounded once."""
    products = [[math.fsum(a * b for a, b in zip(row, other, strict=True)) for other in right] for row in left]
    return torch.tensor(products, dtype=torch.float64)


def _turned(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _words(tensor: Tensor) -> list[int]:
    """The bits of 4-byte numbers, from 0 to 2³²-1."""
    return [word & 0xFFFFFFFF for word in tensor.contiguous().view(torch.int32).flatten().tolist()]


def _bits_of(key: rounding.Key, index: int) -> int:
    return rounding.mix_word(rounding.mix_word((index + key.k0) & 0xFFFFFFFF) ^ key.k1)


def _random_bits(device: torch.device) -> Found:
    for step in (1, 2**31):
        key = rounding.step_key(rounding.stream(20260226, "model.norm.weight"), step)
        made = _words(rounding.random_bits(key, 5, (64,)))
        wrong = sum(bits != _bits_of(key, 5 + place) for place, bits in enumerate(made))
        yield Difference(f"words of step {step}", wrong / len(made), 0.0)


def _stochastic(device: torch.device) -> Found:
    weight, key = _many_sizes(), rounding.Key(1, 2)
    made = rounding.stochastic_bf16(weight, rounding.random_bits(key, 0, weight.shape)).float()
    expected = [(word + (_bits_of(key, place) & 0xFFFF)) & 0xFFFF0000 for place, word in enumerate(_words(weight))]
    wrong = sum(a != b for a, b in zip(_words(made), expected, strict=True))
    yield Difference("weights", wrong / len(expected), 0.0)


def _moments(name: str, device: torch.device) -> Found:
    """Each number is to come back within half a step of its block: of E2M1's coarse grid within one, and with what its
    two scales are rounded by."""
    values = _many_sizes() if name != "uint8" else _many_sizes().abs()
    if name == "nvfp4":
        back, width, steps = codecs.decode_nvfp4(*codecs.encode_nvfp4(values.clone())), codec.BLOCK, 6
        room = 1 + 1 / 8
    else:
        parts = codecs.encode_int8(values.clone()) if name == "int8" else codecs.encode_root_uint8(values.clone())
        back, width = codecs.decode_eight_bits(*parts), codecs.block_width(SHAPE[1])
        steps, room = (127, 0.5) if name == "int8" else (255, 1.0)  # the smallest code of a root is 1
    worst = 0.0
    for row, made in zip(values.tolist(), back.tolist(), strict=True):
        for first in range(0, len(row), width):
            part = range(first, first + width)
            largest = max(abs(row[at]) for at in part)
            worst = max([worst, *(abs(made[at] - row[at]) / (largest / steps) for at in part)], key=_nan_first)
    yield Difference("the worst number, in steps of its block,", worst, room * (1 + 1e-5))


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value
