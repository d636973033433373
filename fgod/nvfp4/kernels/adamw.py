"""One step of AdamW as one pass over a tensor: what `fgod.train.update` does with AdamW (`fgod.train.adamw`).

    reads   gradient, master, m, v (and the starting weights, where the recipe has l2_sp), each once
    writes  master, m, v, and `SLOTS` sums of each program

Everything between is registers. The step's numbers come from a small tensor on the device and the sums stay there: no
call waits for the GPU, and a captured graph is replayed with other numbers. Results do not depend on the order in which
programs run: each adds up its own tiles in order.

Against the plain torch the arithmetic differs in its last bits: √v̂ is √v times a constant, quotients are products with
the reciprocal, and products and sums fuse. With `exact` they are those of a few lines of plain torch to the bit
(tests), at several times the instructions: a correctly rounded quotient takes a branch, and half of the registers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgod.nvfp4.kernels.device import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    SCALE_MIN,
    divide,
    divide_by_constant,
    e2m1_codes,
    e2m1_values,
    e4m3_bytes,
    flat,
    flushed,
    from_e4m3_bytes,
    integer_byte,
    nearest_bf16,
    pack_pairs,
    per_block,
    quotients_of_blocks,
    square_root,
    step_key,
    stochastic_bf16,
    to_e4m3,
    to_grid,
    unpack_pairs,
)

SLOTS = ("realised", "intended", "moved", "largest", "clamped", "squares", "amax", "elements")
"""What each program writes: see `fgod.train.efficiency.Projection`; `squares` is Σ g² of the gradient before it is
clipped, `largest` is before the division by 1 - β₁ᵗ, `amax` the largest magnitude of the new weights, `elements` how
many were stepped: none by a gradient that is not finite, whose `squares` are infinite then. All are sums but `largest`
and `amax`."""

NORM_PROGRAMS = 512
"""Most partial sums of a gradient's squares."""

NORM = (4096, 8)
"""Tile and warps of the pass that makes them."""

NUMBERS = ("minus_lr", "lr", "root_factor", "limit", "step")
"""Of a step, float32: -lr / (1 - β₁ᵗ), lr, 1 / √(1 - β₂ᵗ), update_clip · (1 - β₁ᵗ), and t itself as int32 bits."""


@dataclass(frozen=True)
class Tuning:
    """How the pass is launched: elements of a tile (a multiple of 512), warps that share it, most programs, stages of
    the loop over a program's tiles (1: not pipelined), whether arithmetic is `exact`, most registers of a thread."""

    tile: int = 1024
    warps: int = 4
    programs: int = 132 * 12
    stages: int = 1
    exact: bool = False
    registers: int | None = None


ADAMW = Tuning()

FASTEST = {"int8": Tuning(2048, 4, 132 * 4, registers=128), "nvfp4": Tuning(1024, 2, 132 * 8, registers=128)}
"""By the format of m, where another launch than `ADAMW` was measured to be faster on an H100."""


@triton.jit
def _load(pointer, begin, places, left, EVEN: tl.constexpr):
    """Elements `begin` + `places`; 0 from `left` on."""
    if EVEN:
        return tl.load(pointer + begin + places)
    else:
        return tl.load(pointer + begin + places, mask=places < left, other=0)


@triton.jit
def _store(pointer, begin, places, values, left, EVEN: tl.constexpr):
    if EVEN:
        tl.store(pointer + begin + places, values.to(pointer.dtype.element_ty))
    else:
        tl.store(pointer + begin + places, values.to(pointer.dtype.element_ty), mask=places < left)


@triton.jit
def _read(
    codes, scales, segments, begin, left,
    KIND: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, SEGMENT: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """float32 [TILE] of a moment as it is stored."""
    places = tl.arange(0, TILE)
    if KIND == "int8" or KIND == "uint8":
        found = _load(codes, begin, places, left, EVEN).to(tl.float32)
        steps = _load(scales, begin // WIDTH, tl.arange(0, TILE // WIDTH), left // WIDTH, EVEN)
        return flat(per_block(found, WIDTH) * steps[:, None])
    elif KIND == "nvfp4":
        packed = _load(codes, begin // 2, tl.arange(0, TILE // 2), left // 2, EVEN)
        found = e2m1_values(unpack_pairs(packed))
        steps = from_e4m3_bytes(_load(scales, begin // BLOCK, tl.arange(0, TILE // BLOCK), left // BLOCK, EVEN))
        factors = _load(segments, begin // SEGMENT, tl.arange(0, TILE // SEGMENT), left // SEGMENT, EVEN)
        steps = flat(per_block(steps, SEGMENT // BLOCK) * factors[:, None])
        return flat(per_block(found, BLOCK) * steps[:, None])
    else:
        return _load(codes, begin, places, left, EVEN).to(tl.float32)


@triton.jit
def _write_eight_bits(
    codes, scales, values, begin, left,
    LARGEST: tl.constexpr, LEAST: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """`codecs.encode_int8` and, with LEAST 1, `codecs.encode_root_uint8`; blocks below 10⁻³⁴ become zero."""
    blocks = per_block(values, WIDTH)
    steps = flushed(divide_by_constant(tl.max(tl.abs(blocks), 1), LARGEST, EXACT))
    quotients = quotients_of_blocks(blocks, steps, EXACT)
    if LEAST > 0:
        quotients = tl.maximum(quotients, LEAST)
    _store(scales, begin // WIDTH, tl.arange(0, TILE // WIDTH), steps, left // WIDTH, EVEN)
    _store(codes, begin, tl.arange(0, TILE), flat(integer_byte(quotients)), left, EVEN)


@triton.jit
def _write_nvfp4(
    codes, scales, segments, values, begin, left,
    LEAST: tl.constexpr, TILE: tl.constexpr, SEGMENT: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """`codecs.encode_nvfp4` and `codecs.encode_root_nvfp4`."""
    blocks = per_block(values, BLOCK)
    amax = per_block(tl.max(tl.abs(blocks), 1), SEGMENT // BLOCK)
    factors = flushed(divide_by_constant(tl.max(amax, 1), E2M1_MAX * E4M3_MAX, EXACT))
    safe = tl.where(factors > 0.0, factors, 1.0)[:, None]
    found = divide(divide_by_constant(amax, E2M1_MAX, EXACT), safe, EXACT)
    found = to_e4m3(tl.minimum(tl.maximum(found, SCALE_MIN), E4M3_MAX))
    grid = to_grid(quotients_of_blocks(blocks, flat(found * safe), EXACT))
    whole = tl.maximum(e2m1_codes(flat(grid)), LEAST)
    _store(segments, begin // SEGMENT, tl.arange(0, TILE // SEGMENT), factors, left // SEGMENT, EVEN)
    _store(scales, begin // BLOCK, tl.arange(0, TILE // BLOCK), e4m3_bytes(flat(found)), left // BLOCK, EVEN)
    _store(codes, begin // 2, tl.arange(0, TILE // 2), pack_pairs(whole.to(tl.uint8)), left // 2, EVEN)


@triton.jit
def _lanes(values):
    """Sums of 16 neighbours: what one thread holds."""
    return tl.sum(per_block(values, 16), 1)


@triton.jit
def _most_of_lanes(values):
    return tl.max(per_block(tl.abs(values), 16), 1)


@triton.jit
def _together(a0, a1, a2, a3, a4, a5, a6, b0, b1, b2, b3, b4, b5, b6):
    """The first seven `SLOTS` of two parts: in one reduction they share its barriers."""
    return a0 + b0, a1 + b1, a2 + b2, tl.maximum(a3, b3), a4 + b4, a5 + b5, tl.maximum(a6, b6)


@triton.jit
def _squares_kernel(grad, partials, count, programs, TILE: tl.constexpr):
    """partials[p]: Σ g² of its tiles, float32."""
    program = tl.program_id(0)
    total = tl.zeros([TILE], tl.float32)
    for turn in range(0, tl.cdiv(tl.cdiv(count, TILE) - program, programs)):
        begin = (program + turn * programs).to(tl.int64) * TILE
        inside = tl.arange(0, TILE)
        values = tl.load(grad + begin + inside, mask=inside < count - begin, other=0.0).to(tl.float32)
        total += values * values
    tl.store(partials + program, tl.sum(total, 0))


@triton.jit(do_not_specialize=["programs", "stride", "partials", "stream0", "stream1", "element"])
def _adamw_kernel(
    weight, grad, m, m_scales, m_segments, v, v_scales, v_segments, start, squares, numbers, sums,
    count, programs, stride, stream0, stream1, element, partials, factor, rate1, beta2, rate2, eps, decay, l2_sp, clip,
    MASTER: tl.constexpr, M: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, L2_SP: tl.constexpr,
    CLIP: tl.constexpr,
    WIDTH: tl.constexpr, SEGMENT: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
    EXACT: tl.constexpr, NORM_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The tiles p, p + programs, … of program p. sums: float32 [len(SLOTS), programs],
    rows `stride` apart.

    `squares` holds `partials` partial sums of the gradient's squares where CLIP is set. `element`: the index of the
    first element within its tensor, of which these may be rows.
    """
    program = tl.program_id(0)
    minus_lr, lr = tl.load(numbers) * factor, tl.load(numbers + 1) * factor
    root_factor, limit = tl.load(numbers + 2), tl.load(numbers + 3)
    step = tl.load(numbers + 4).to(tl.uint32, bitcast=True)
    first = element.to(tl.uint32, bitcast=True)
    k0, k1 = step_key(stream0.to(tl.uint32, bitcast=True), stream1.to(tl.uint32, bitcast=True), step)
    turns = tl.cdiv(tl.cdiv(count, TILE) - program, programs)
    shrink = 1.0
    if CLIP:
        parts = tl.arange(0, NORM_PROGRAMS)
        norm = tl.sqrt_rn(tl.sum(tl.load(squares + parts, mask=parts < partials, other=0.0), 0))
        shrink = tl.where(norm > clip, tl.div_rn(clip, norm), 1.0)
        turns = tl.where(norm < float("inf"), turns, 0)
    realised = tl.zeros([TILE // 16], tl.float32)
    intended = tl.zeros([TILE // 16], tl.float32)
    moved = tl.zeros([TILE // 16], tl.float32)
    largest = tl.zeros([TILE // 16], tl.float32)
    clamped = tl.zeros([TILE // 16], tl.float32)
    total = tl.zeros([TILE // 16], tl.float32)
    amax = tl.zeros([TILE // 16], tl.float32)
    elements = 0.0
    places = tl.arange(0, TILE)
    for turn in tl.range(0, turns, num_stages=STAGES):
        begin = (program + turn * programs).to(tl.int64) * TILE
        left = count - begin
        g = _load(grad, begin, places, left, EVEN).to(tl.float32)
        w = _load(weight, begin, places, left, EVEN).to(tl.float32)
        mean = _read(m, m_scales, m_segments, begin, left, M, TILE, WIDTH, SEGMENT, EVEN)
        square = _read(v, v_scales, v_segments, begin, left, V, TILE, WIDTH, SEGMENT, EVEN)
        if V != "fp32":
            square = square * square
        total += _lanes(g * g)
        if CLIP:
            g = g * shrink
        mean = mean + rate1 * (g - mean)
        square = square * beta2 + rate2 * (g * g)
        root = square_root(square, EXACT)
        ratio = divide(mean, root * root_factor + eps, EXACT)
        size = tl.abs(ratio)
        largest = tl.maximum(largest, _most_of_lanes(ratio))
        clamped += _lanes(tl.where(size > limit, 1.0, 0.0))
        update = tl.minimum(tl.maximum(ratio, -limit), limit) * minus_lr
        if DECAY:
            update = update - w * (lr * decay)
        if L2_SP:
            update = update + (_load(start, begin, places, left, EVEN).to(tl.float32) - w) * (lr * l2_sp)
        wanted = w + update
        if MASTER == "bf16":
            kept = stochastic_bf16(wanted, first + begin.to(tl.uint32) + places.to(tl.uint32), k0, k1)
        else:
            kept = wanted
        _store(weight, begin, places, kept, left, EVEN)
        if M == "int8":
            _write_eight_bits(m, m_scales, mean, begin, left, 127.0, 0.0, TILE, WIDTH, EVEN, EXACT)
        elif M == "nvfp4":
            _write_nvfp4(m, m_scales, m_segments, mean, begin, left, 0, TILE, SEGMENT, EVEN, EXACT)
        elif M == "bf16":
            _store(m, begin, places, nearest_bf16(mean), left, EVEN)
        else:
            _store(m, begin, places, mean, left, EVEN)
        if V == "uint8":
            _write_eight_bits(v, v_scales, root, begin, left, 255.0, 1.0, TILE, WIDTH, EVEN, EXACT)
        elif V == "nvfp4":
            _write_nvfp4(v, v_scales, v_segments, root, begin, left, 1, TILE, SEGMENT, EVEN, EXACT)
        elif V == "bf16":
            _store(v, begin, places, nearest_bf16(root), left, EVEN)
        else:
            _store(v, begin, places, square, left, EVEN)
        elements += tl.minimum(left, TILE).to(tl.float32)
        change = kept - w
        realised += _lanes(change * update)
        intended += _lanes(update * update)
        moved += _lanes(change * change)
        amax = tl.maximum(amax, _most_of_lanes(kept))
    if CLIP:
        total = tl.where(norm < float("inf"), total, float("inf"))
    realised, intended, moved, largest, clamped, total, amax = tl.reduce(
        (realised, intended, moved, largest, clamped, total, amax), 0, _together
    )
    tl.store(sums + program, realised)
    tl.store(sums + stride + program, intended)
    tl.store(sums + 2 * stride + program, moved)
    tl.store(sums + 3 * stride + program, largest)
    tl.store(sums + 4 * stride + program, clamped)
    tl.store(sums + 5 * stride + program, total)
    tl.store(sums + 6 * stride + program, amax)
    tl.store(sums + 7 * stride + program, elements)


@dataclass(frozen=True)
class Tensors:
    """Of one trained tensor, all contiguous. `m` and `v` are `Moment.tensors`; `start` is what it is pulled to."""

    weight: Tensor
    m: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    start: Tensor | None


@dataclass(frozen=True)
class Modes:
    """Formats by their names in a recipe: master fp32 or bf16, m fp32, bf16, int8, nvfp4, v the same with uint8."""

    master: str
    m: str
    v: str
    width: int
    """Columns of an 8-bit block (`codecs.block_width`)."""
    segment: int
    """Columns of a segment of NVFP4 moments (`codecs.segment_width`)."""


@dataclass(frozen=True)
class Settings:
    """What is the same in every step: see `TrainRecipe`; `factor` is that on the learning rate."""

    beta1: float
    beta2: float
    eps: float
    decay: float
    l2_sp: float
    clip: float | None
    factor: float
    stream: tuple[int, int]
    element: int = 0
    """Index of the first element within its tensor."""


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def programs(count: int, tuning: Tuning = ADAMW) -> int:
    """Programs that step a tensor of so many elements: columns of its sums."""
    return min(tuning.programs, triton.cdiv(count, tuning.tile))


def numbers_of(lr: float, step: int, betas: tuple[float, float], update_clip: float | None) -> Tensor:
    """`NUMBERS` of a step (from 1), on the CPU."""
    correction = 1 - betas[0] ** step
    limit = math.inf if update_clip is None else update_clip * correction
    numbers = torch.tensor([-lr / correction, lr, 1 / math.sqrt(1 - betas[1] ** step), limit, 0.0])
    numbers[4:].view(torch.int32).fill_(step)
    return numbers


def totals(sums: Tensor) -> list[dict[str, float]]:
    """By tensor and slot: what the programs' sums [tensors, len(SLOTS), programs] come to. Waits for the GPU."""
    added = sums.sum(-1, dtype=torch.float64)
    for slot in ("largest", "amax"):
        added[:, SLOTS.index(slot)] = sums[:, SLOTS.index(slot)].amax(-1)
    return [dict(zip(SLOTS, row, strict=True)) for row in added.tolist()]


def sum_squares(grad: Tensor, squares: Tensor) -> Tensor:
    """Write partial sums of a contiguous gradient's g² into `squares` float32 [NORM_PROGRAMS]; return those."""
    programs = min(NORM_PROGRAMS, triton.cdiv(grad.numel(), NORM[0]))
    _squares_kernel[(programs,)](grad, squares, grad.numel(), programs, NORM[0], num_warps=NORM[1])
    return squares[:programs]


def step(
    tensors: Tensors,
    grad: Tensor,
    modes: Modes,
    settings: Settings,
    numbers: Tensor,
    squares: Tensor,
    sums: Tensor,
    tuning: Tuning = ADAMW,
) -> None:
    """Step one tensor in place by its contiguous gradient.

    Args:
        numbers: float32 [len(NUMBERS)].
        squares: float32 [at most NORM_PROGRAMS]: partial sums of the gradient's squares, by `sum_squares` or
            `product.gradient`; read where `settings.clip` is set.
        sums: float32 [len(SLOTS), programs], written; rows may lie apart.
    """
    count = tensors.weight.numel()
    first = tensors.weight
    m, v = ((*part, first, first)[:3] for part in (_bytes(tensors.m), _bytes(tensors.v)))
    even = count % tuning.tile == 0
    exact = tuning.exact or not first.is_cuda  # the interpreter knows no assembler
    _adamw_kernel[(sums.shape[1],)](
        tensors.weight, grad, *m, *v, first if tensors.start is None else tensors.start, squares, numbers, sums,
        count, sums.shape[1], sums.stride(0), *map(_signed, (*settings.stream, settings.element)), len(squares),
        settings.factor, 1 - settings.beta1, settings.beta2, 1 - settings.beta2, settings.eps, settings.decay,
        settings.l2_sp, settings.clip or 0.0,
        modes.master, modes.m, modes.v, settings.decay != 0, tensors.start is not None, settings.clip is not None,
        modes.width, modes.segment, tuning.tile, even, tuning.stages, exact, NORM_PROGRAMS,
        num_warps=tuning.warps, maxnreg=tuning.registers, enable_fp_fusion=not tuning.exact,
    )  # fmt: skip


def _bytes(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same memory, with E4M3 scales as bytes."""
    return tuple(part.view(torch.uint8) if part.dtype == torch.float8_e4m3fn else part for part in parts)
