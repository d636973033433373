"""NVFP4, the reference: E2M1 codes, one E4M3 scale for each 16 columns, one power-of-two divisor for a tensor.

    weight[n, k] = E2M1[codes[n, k]] · scales[n, k // 16] / global_scale

Rounding is to nearest, ties to the even code; every division is a true division in float32. A power-of-two
`global_scale` makes each product exact in BF16 (6 significant bits), so that every dequantiser gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fgod.errors import FgodError, UsageError
from fgod.models.names import BLOCK as BLOCK

CHUNK = 2**16
"""Weights that layers quantise at once on the CPU: float32 temporaries are those of a chunk, not of a whole matrix."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of the codes 0 to 7; codes 8 to 15 are their negatives."""

E2M1_MAX = 6.0
E4M3_MAX = 448.0

AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""Weights that are packed or unpacked at once, by the type of their device: temporaries are those of a chunk, and on a
CPU they stay in its cache."""

GRID_FACTOR = 1.5 * 2.0**22
"""float32 numbers near this times p, a power of two, are p/2 apart."""

SCALE_MIN = 2.0**-6
"""Smallest block scale: E4M3's smallest normal number. vLLM's Marlin path on Hopper flushes smaller ones to zero."""

AMAX_MIN = 1e-35
"""A tensor whose largest magnitude is below this gets global scale 1: 2688 / amax would leave float32."""

HEADROOM = 2.0
"""Block scales use at most 224 of E4M3's 448, so that a tensor may grow between recomputations by a server."""

BLOCK_SCALES = ("amax", "four-over-six")
"""How a block's scale is chosen: amax/6, or of amax/6 and amax/4 the one with the smaller squared error."""

_THRESHOLDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Midpoints of neighbouring magnitudes; the first, third, … belong to the code below them (ties to the even code)."""


class NonFiniteError(FgodError):
    """A weight is NaN or infinite. The message names the tensor."""


class BadScaleError(FgodError):
    """A stored scale is zero, negative, NaN or infinite. The message names the tensor."""


@dataclass(frozen=True)
class Quantised:
    """codes: uint8 [N, K], 0 to 15; scales: float8_e4m3fn [N, K/16], 2⁻⁶ to 448; global_scale: a divisor."""

    codes: Tensor
    scales: Tensor
    global_scale: float


def power_of_two_global_scale(amax: float, name: str = "weight") -> float:
    """2^floor(log2(448·6 / (2·amax))) for the largest magnitude of a tensor (or of tensors that share it).

    Raises:
        NonFiniteError: `amax` is NaN or infinite.
    """
    if not math.isfinite(amax):
        raise NonFiniteError(f"{name}: the largest magnitude is {amax}: a weight is not finite and cannot be quantised")
    if amax < AMAX_MIN:
        return 1.0
    # frexp gives m·2^e with ½ ≤ m < 1, so e-1 is the floor of log2 without log2's rounding
    _, exponent = math.frexp(E4M3_MAX * E2M1_MAX / HEADROOM / amax)
    return math.ldexp(1.0, exponent - 1)


def device_global_scale(amax: Tensor) -> Tensor:
    """`power_of_two_global_scale` of many largest magnitudes (float32) without asking any of them: float32, same shape.

    The exponent is taken from the bits of a float64 quotient, as the host's is. NaN and infinity give some number.
    """
    quotient = (E4M3_MAX * E2M1_MAX / HEADROOM) / amax.double().clamp(min=AMAX_MIN)
    exponent = (quotient.view(torch.int64) >> 52 & 0x7FF) - 1023
    scale = (exponent.clamp(-126, 127) + 127 << 23).int().view(torch.float32)
    return torch.where(amax < AMAX_MIN, 1.0, scale)


def largest_magnitude(weight: Tensor) -> float:
    """max |w|; NaN if any element is NaN, infinity if any is infinite."""
    low, high = torch.aminmax(weight)
    return torch.maximum(-low, high).item()


def shared_global_scale(weights: list[Tensor], name: str) -> float:
    """The global scale of tensors that share one.

    Raises:
        NonFiniteError: a weight is NaN or infinite; names `name`.
    """
    magnitudes = [largest_magnitude(weight) for weight in weights]
    amax = math.nan if any(map(math.isnan, magnitudes)) else max(magnitudes)
    return power_of_two_global_scale(amax, name)


def rows_at_once(weight: Tensor) -> int:
    """Rows of a tensor [N, K] that are one chunk of `AT_ONCE`."""
    return max(1, AT_ONCE[weight.device.type] // max(1, weight.shape[-1]))


def block_view(weight: Tensor, name: str) -> Tensor:
    """View a float32 [N, K] as [N, K/16, 16]."""
    if weight.dtype != torch.float32:
        raise TypeError(f"{name}: {weight.dtype}; the quantiser divides in float32: convert first")
    matrix_of_blocks(weight.shape, name)
    return weight.contiguous().unflatten(1, (-1, BLOCK))


def matrix_of_blocks(shape: Sequence[int], name: str) -> tuple[int, int]:
    """Rows and columns of a weight that can be quantised.

    Raises:
        UsageError: it is no matrix, or a row is no whole number of blocks.
    """
    if len(shape) != 2 or shape[1] % BLOCK:
        raise UsageError(f"{name}: shape {tuple(shape)}; NVFP4 needs two dimensions, the second divisible by {BLOCK}")
    return shape[0], shape[1]


def _check_global_scale(global_scale: float, name: str) -> None:
    if not (math.isfinite(global_scale) and global_scale > 0):
        raise BadScaleError(f"{name}: global scale {global_scale}; expected a positive finite number")


def block_amax(blocks: Tensor) -> Tensor:
    """max |w| over the last dimension; NaN if any element is."""
    # magnitudes order as their bits do, NaN above all, and integer maxima are twice as fast on a CPU
    return blocks.abs().view(torch.int32).amax(-1).view(torch.float32)


def _to_grid(values: Tensor) -> Tensor:
    """float32 values to the nearest of E2M1's, ties to the even code, -0 to +0; changes and returns `values`.

    The grid has spacing p/2 at magnitudes in [p, 2p) for p = 1, 2, 4 (and ½ below 1). Adding and subtracting
    1.5·2²²·p, whose own spacing is p/2, rounds to it.
    """
    binades = _clamped_binades(values)  # times a power of two GRID_FACTOR is exact, fused with the sum or not
    return values.add_(binades, alpha=GRID_FACTOR).sub_(binades, alpha=GRID_FACTOR)


def _clamped_binades(values: Tensor) -> Tensor:
    """Clamp `values` to E2M1's range; p of each: the power of two at or below its magnitude, at least 1."""
    values.clamp_(-E2M1_MAX, E2M1_MAX)
    exponent_bits = 0x7F800000
    return values.view(torch.int32).bitwise_and(exponent_bits).view(torch.float32).clamp_(min=1.0)


def squared_errors(blocks: Tensor, scales: Tensor, global_scale: float | Tensor) -> Tensor:
    """Σ(Q(w) - w)² of each block [N, K/16, 16] under its scale; summed as a tree of halves, as kernels can."""
    steps = (scales / global_scale).unsqueeze(-1)
    errors = _to_grid(blocks / steps).mul_(steps).sub_(blocks).square_()
    while errors.shape[-1] > 1:
        half = errors.shape[-1] // 2
        errors = errors[..., :half] + errors[..., half:]
    return errors.squeeze(-1)


def scales_of_blocks(blocks: Tensor, global_scale: float | Tensor, rule: str) -> Tensor:
    """E4M3 block scales [N, K/16] of blocks [N, K/16, 16]: amax/6·global, clamped to [2⁻⁶, 448], rounded to E4M3.

    Under the rule four-over-six (Cook et al. 2025) a block takes amax/4 instead where its squared error is smaller.
    """
    amax = block_amax(blocks)
    scales = (amax / E2M1_MAX).mul_(global_scale).clamp_(SCALE_MIN, E4M3_MAX).to(torch.float8_e4m3fn)
    if rule == "amax":
        return scales
    sixes = scales.float()
    fours = amax.div_(4.0).mul_(global_scale).clamp_(SCALE_MIN, E4M3_MAX).to(torch.float8_e4m3fn).float()
    better = squared_errors(blocks, fours, global_scale) < squared_errors(blocks, sixes, global_scale)
    return torch.where(better, fours, sixes).to(torch.float8_e4m3fn)


@cache
def _edges(device: torch.device) -> Tensor:
    """Where codes change, on a device once: a CUDA graph cannot copy it from the host."""
    # bucketize counts thresholds < magnitude; a tie that rounds up must count, hence the next float below it
    edges = torch.tensor(_THRESHOLDS)
    edges[1::2] = torch.nextafter(edges[1::2], torch.zeros(()))
    return edges.to(device)


@cache
def _values(device: torch.device) -> Tensor:
    """Values of the codes 0 to 15, on a device once."""
    return torch.tensor(E2M1 + tuple(-value for value in E2M1), device=device)


def encode_e2m1(values: Tensor) -> Tensor:
    """Codes (uint8) of float32 values, by the definition: count the thresholds that a magnitude is past. −0 gives 0."""
    magnitudes = values.abs()
    codes = torch.bucketize(magnitudes, _edges(values.device))
    return torch.where((values < 0) & (codes > 0), codes + 8, codes).to(torch.uint8)


def encode_finite(values: Tensor) -> Tensor:
    """`encode_e2m1` of finite float32 values, the same codes in a tenth of the time; `values` are overwritten.

    A value in [p, 2p) becomes n steps of p/2, as in `_to_grid`: n is how far the bits of the sum are from those of
    GRID_FACTOR · p, and its code is |n| + 2 log2 p, plus 8 where n is negative.
    """
    sums = _clamped_binades(values).mul_(GRID_FACTOR)
    values.add_(sums)
    bits = sums.view(torch.int32)
    steps = values.view(torch.int32).sub_(bits).to(torch.int8)
    bits_of_one = 127 + 22 << 1 | 1  # of GRID_FACTOR, shifted as below: its exponent and the first bit of its fraction
    twice_log2 = bits.bitwise_right_shift_(22).sub_(bits_of_one).to(torch.int8)
    signs = (steps >> 7).bitwise_and_(8)
    return steps.abs_().add_(twice_log2).add_(signs).view(torch.uint8)


def decode_e2m1(codes: Tensor) -> Tensor:
    """Values (float32) of codes 0 to 15."""
    return _values(codes.device).index_select(0, codes.flatten().int()).view(codes.shape)


def quantise(
    weight: Tensor, global_scale: float | None = None, name: str = "weight", block_scales: str = "amax"
) -> Quantised:
    """Quantise a float32 [N, K]; the global scale is its own power of two unless given (tensors that share one).
    `block_scales` is one of `BLOCK_SCALES`.

    Doing it again to the dequantised weights with the same global scale gives the same bytes. With a recomputed one
    the values stay too, but for blocks whose scale the lower clamp holds (2¹³ below the tensor's largest weight).

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        BadScaleError: the given global scale is zero, negative, NaN or infinite.
        UsageError: K is not divisible by 16.
        TypeError: not float32 (rounding a BF16 quotient moves 1 to 13 % of the codes).
    """
    blocks = block_view(weight, name)
    own = shared_global_scale([weight], name)
    global_scale = own if global_scale is None else global_scale
    _check_global_scale(global_scale, name)
    scales = scales_of_blocks(blocks, global_scale, block_scales)
    steps = scales.float() / global_scale
    codes = encode_e2m1(blocks / steps.unsqueeze(-1))
    return Quantised(codes.flatten(1), scales, global_scale)


def in_chunks(weight: Tensor, made: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `made` gives for a weight [N, K] in float32: a chunk of rows at a time, each of its tensors in one piece."""
    out: tuple[Tensor, ...] = ()
    for start in range(0, len(weight), rows_at_once(weight)):
        chunk = weight[start : start + rows_at_once(weight)]
        parts = made(chunk.float())
        out = out or tuple(part.new_empty(len(weight), *part.shape[1:]) for part in parts)
        for whole, part in zip(out, parts, strict=True):
            whole[start : start + len(chunk)] = part
    return out


def quantise_chunks(
    weight: Tensor,
    global_scale: float,
    layout: Callable[[Quantised], tuple[Tensor, ...]],
    name: str = "weight",
    block_scales: str = "amax",
) -> tuple[Tensor, ...]:
    """`quantise` of a weight [N, K] of any float dtype, a chunk of rows at a time.

    Args:
        layout: what is made of a chunk's codes and scales, which have the bits of the whole weight's.

    Returns:
        Each tensor that `layout` makes, in one piece.

    Raises what `quantise` does.
    """
    _check_global_scale(global_scale, name)

    def made(chunk: Tensor) -> tuple[Tensor, ...]:
        blocks = block_view(chunk, name)
        shared_global_scale([chunk], name)  # a weight that is not finite has no code
        scales = scales_of_blocks(blocks, global_scale, block_scales)
        codes = encode_finite(blocks / (scales.float() / global_scale).unsqueeze(-1))
        return layout(Quantised(codes.flatten(1), scales, global_scale))

    return in_chunks(weight, made)


def dequantise(quantised: Quantised, name: str = "weight") -> Tensor:
    """The float32 [N, K] that codes and scales stand for.

    Raises:
        BadScaleError: a scale is zero, negative, NaN or infinite.
    """
    _check_global_scale(quantised.global_scale, name)
    scales = quantised.scales.float()
    bad = ~(torch.isfinite(scales) & (scales > 0))
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise BadScaleError(
            f"{name}: block scale [{row}, {column}] is {scales[row, column].item()}; expected a positive finite number"
        )
    steps, codes = scales / quantised.global_scale, quantised.codes
    out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    for part, its_codes, its_steps in zip(
        *(one.split(rows_at_once(codes)) for one in (out, codes, steps)), strict=True
    ):
        values = decode_e2m1(its_codes).unflatten(1, (-1, BLOCK))
        torch.mul(values, its_steps.unsqueeze(-1), out=part.unflatten(1, (-1, BLOCK)))
    return out


def fake_quantise(
    weight: Tensor,
    global_scale: float | Tensor,
    name: str = "weight",
    block_scales: str = "amax",
    out: Tensor | None = None,
) -> Tensor:
    """`dequantise(quantise(weight, global_scale))`, the same bits in few passes and without codes: [N, K].

    Weights are expected to be finite: whoever computed `global_scale` has checked that.

    Args:
        global_scale: may be float32 without dimensions, on the device (`device_global_scale`).
        out: [N, K] of any float dtype, which gets the result; None: a new float32 tensor does.
    """
    blocks = block_view(weight, name)
    steps = (scales_of_blocks(blocks, global_scale, block_scales).float() / global_scale).unsqueeze(-1)
    values = _to_grid(blocks / steps)
    return torch.mul(values, steps, out=values if out is None else out.unflatten(1, (-1, BLOCK))).flatten(1)


def pack(codes: Tensor) -> Tensor:
    """uint8 [N, K] codes to uint8 [N, K/2]: the low nibble is the even column."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(1)
