"""Random bits from counters, and stochastic rounding with them: one definition for torch and for kernels.

Everything up to the last division is 32-bit integer arithmetic that wraps, so that torch and Triton give the same bits:

    mix(x)            x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16   (logical shifts)
    stream            the first 8 bytes of SHA-256 of "seed|tensor name", two little-endian words s0, s1
    key of a step     k0 = mix(s0 + step · 0x9e3779b9),  k1 = mix(s1 ^ k0)
    bits of element i mix(mix(i + k0) ^ k1), i = row · columns + column

The mixer is lowbias32 (Wellons, "Prospecting for Hash Functions", 2018). Nothing is kept between steps: a run that is
resumed, or a tensor cut into other chunks, meets the same bits.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from fgod.errors import UsageError
from fgod.nvfp4.codec import AMAX_MIN, E2M1_MAX, E4M3_MAX, SCALE_MIN, block_amax, block_view

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
SHIFTS = (16, 15, 16)
STEP_MULTIPLIER = 0x9E3779B9

BF16_DROPPED = 16
"""Low bits of a float32 that BF16 has not."""

E4M3_DROPPED = 20
"""Low bits of a float32 that a normal E4M3 number has not."""

MAX_ELEMENTS = 2**32

_WORD = 0xFFFFFFFF
_EXPONENT = 0x7F800000


class Key(NamedTuple):
    """Two 32-bit words: a tensor's stream, or its key in one step."""

    k0: int
    k1: int


def mix_word(x: int) -> int:
    """`mix` of one word, 0 to 2³²-1."""
    x ^= x >> SHIFTS[0]
    x = x * MULTIPLIERS[0] & _WORD
    x ^= x >> SHIFTS[1]
    x = x * MULTIPLIERS[1] & _WORD
    return x ^ x >> SHIFTS[2]


def stream(seed: int, name: str) -> Key:
    """The two words of a tensor in a run with this seed."""
    words = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    return Key(int.from_bytes(words[:4], "little"), int.from_bytes(words[4:8], "little"))


def step_key(stream: Key, step: int) -> Key:
    """The key of a step (any integer; its low 32 bits count)."""
    k0 = mix_word((stream.k0 + step * STEP_MULTIPLIER) & _WORD)
    return Key(k0, mix_word(stream.k1 ^ k0))


def _signed(word: int) -> int:
    """A word as the int32 of the same bits."""
    return word - 2**32 if word >= 2**31 else word


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift right of int32."""
    return x.bitwise_right_shift(by).bitwise_and_((1 << (32 - by)) - 1)


def mix(x: Tensor) -> Tensor:
    """`mix` of int32 words; changes and returns `x`."""
    x.bitwise_xor_(_shifted(x, SHIFTS[0])).mul_(_signed(MULTIPLIERS[0]))
    x.bitwise_xor_(_shifted(x, SHIFTS[1])).mul_(_signed(MULTIPLIERS[1]))
    return x.bitwise_xor_(_shifted(x, SHIFTS[2]))


def random_bits(
    key: Key, start: int, shape: torch.Size | tuple[int, ...], device: torch.device | None = None
) -> Tensor:
    """int32 words of the elements `start`, `start` + 1, … in the given shape.

    Raises:
        UsageError: an index is 2³² or more: its word would repeat an earlier one.
    """
    count = torch.Size(shape).numel()
    if start + count > MAX_ELEMENTS:
        raise UsageError(f"stochastic rounding: element {start + count}; a tensor may have 2^32 elements")
    return random_words(torch.tensor(key_words(key), dtype=torch.int32, device=device), start, shape)


def random_words(key: Tensor, start: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """`random_bits` of a key that lies on the device: int32 [2], the numbers of `key_words`."""
    index = torch.arange(start, start + torch.Size(shape).numel(), device=key.device).to(torch.int32)
    return mix(mix(index + key[0]).bitwise_xor_(key[1])).view(shape)


def key_words(key: Key) -> tuple[int, int]:
    """A key as two int32 of the same bits."""
    return _signed(key.k0), _signed(key.k1)


def stochastic_drop(values: Tensor, bits: Tensor, dropped: int) -> Tensor:
    """float32 whose low `dropped` mantissa bits are gone: up or down with probabilities that keep the expectation.

    Adds the low `dropped` bits of `bits` to the magnitude and cuts it. What is representable stays; NaN and infinities
    stay; a finite number never becomes infinite.
    """
    low = (1 << dropped) - 1
    raw = values.contiguous().view(torch.int32)
    rounded = raw.add(bits.bitwise_and(low)).bitwise_and_(~low)
    rounded = torch.where(rounded.bitwise_and(_EXPONENT) == _EXPONENT, raw.bitwise_and(~low), rounded)
    return torch.where(torch.isfinite(values), rounded.view(torch.float32), values)


def stochastic_bf16(values: Tensor, bits: Tensor) -> Tensor:
    """bfloat16 of float32 values, rounded stochastically."""
    return stochastic_drop(values, bits, BF16_DROPPED).bfloat16()


def stochastic_nvfp4(weight: Tensor, global_scale: float | Tensor, bits: Tensor, name: str = "weight") -> Tensor:
    """float32 [N, K] on NVFP4's grid whose expectation is `weight`; the grid's points stay where they are.

    A block's scale, amax/6 · global, is rounded stochastically to E4M3 (by `mix` of its first word), and its
    largest magnitude takes code 6; so its expectation is right, and the result's own scales are again these: packing it
    changes nothing. The others go up or down with probability (word >> 8) / 2²⁴ < fraction. Not unbiased are only
    those that lie above 6 rounded-down scales (at most an eighth inwards), and blocks that a scale's ends clamp above.

    Raises:
        UsageError: K is not divisible by 16.
    """
    blocks, words = block_view(weight, name), bits.unflatten(1, (-1, 16))
    amax = block_amax(blocks)
    exact = (amax / E2M1_MAX).mul_(global_scale)
    scales = stochastic_drop(exact.clamp(SCALE_MIN, E4M3_MAX), mix(words[..., 0].clone()), E4M3_DROPPED)
    steps = (scales / global_scale).unsqueeze(-1)
    magnitudes = blocks.abs()
    largest = (magnitudes == amax.unsqueeze(-1)) & ((exact >= SCALE_MIN) & (amax > AMAX_MIN)).unsqueeze(-1)
    values = (magnitudes / steps).clamp_(max=E2M1_MAX)
    spacing = torch.where(values < 2, 0.5, torch.where(values < 4, 1.0, 2.0))
    values.div_(spacing)
    lower = values.floor()
    uniform = _shifted(words, 8).float().mul_(2.0**-24)
    values = lower.add_(uniform < values - lower).mul_(spacing).masked_fill_(largest, E2M1_MAX)
    return values.mul_(blocks.sign()).mul_(steps).flatten(1)
