"""What kernels are made of: device functions with the arithmetic of `fgod.nvfp4.codec` and `fgod.nvfp4.rounding`.

Tiles are flat [T], row-major over a whole matrix: blocks of 16, 64 or 512 columns never cross a row, because their
width divides it. Rounding to E4M3 is integer arithmetic: Triton's own cast differs between its backends.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fgod.nvfp4 import codec, rounding

BLOCK = tl.constexpr(codec.BLOCK)
E2M1_MAX = tl.constexpr(codec.E2M1_MAX)
E4M3_MAX = tl.constexpr(codec.E4M3_MAX)
SCALE_MIN = tl.constexpr(codec.SCALE_MIN)

_MULTIPLIER_0 = tl.constexpr(rounding.MULTIPLIERS[0])
_MULTIPLIER_1 = tl.constexpr(rounding.MULTIPLIERS[1])
_SHIFT_0 = tl.constexpr(rounding.SHIFTS[0])
_SHIFT_1 = tl.constexpr(rounding.SHIFTS[1])
_SHIFT_2 = tl.constexpr(rounding.SHIFTS[2])
_STEP_MULTIPLIER = tl.constexpr(rounding.STEP_MULTIPLIER)

_E4M3_SHIFT = tl.constexpr(rounding.E4M3_DROPPED)
_E4M3_REBIAS = tl.constexpr((127 - 7) << 3)
_SIXTH = tl.constexpr(1 / codec.E2M1_MAX)
_GRID_MAGIC = tl.constexpr(1.5 * 2.0**22)
_INTEGER_MAGIC = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def as_words(x):
    """The bits of float32 as uint32."""
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def as_floats(words):
    """float32 of these bits."""
    return words.to(tl.float32, bitcast=True)


@triton.jit
def per_block(values, WIDTH: tl.constexpr):
    """[T] as [T/WIDTH, WIDTH]."""
    return tl.reshape(values, [values.shape[0] // WIDTH, WIDTH])


@triton.jit
def flat(values):
    """[B, WIDTH] as [T]."""
    return tl.reshape(values, [values.shape[0] * values.shape[1]])


@triton.jit
def reciprocal(x):
    """1 / x within an ulp for x from 2⁻¹²⁶ to 2¹²⁶, in one instruction of a GPU."""
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def divide(x, y, EXACT: tl.constexpr):
    """x / y: correctly rounded; or within 2 ulp for y from 2⁻¹²⁶ to 2¹²⁶, in two instructions."""
    if EXACT:
        return tl.div_rn(x, y)
    else:
        return x * reciprocal(y)


@triton.jit
def divide_by_constant(x, y: tl.constexpr, EXACT: tl.constexpr):
    """x / y: correctly rounded, or the product with the reciprocal."""
    if EXACT:
        return tl.div_rn(x, y)
    else:
        return x * (1.0 / y)


@triton.jit
def square_root(x, EXACT: tl.constexpr):
    """√x: correctly rounded; or within an ulp, and zero for x below 2⁻¹²⁶, in one instruction."""
    if EXACT:
        return tl.sqrt_rn(x)
    else:
        return tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


# ---------------------------------------------------------------------------------------------------------- random bits


@triton.jit
def mix(x):
    """`rounding.mix` of uint32."""
    x = x ^ (x >> _SHIFT_0)
    x = x * _MULTIPLIER_0
    x = x ^ (x >> _SHIFT_1)
    x = x * _MULTIPLIER_1
    return x ^ (x >> _SHIFT_2)


@triton.jit
def step_key(s0, s1, step):
    """`rounding.step_key` of uint32 words."""
    k0 = mix(s0 + step * _STEP_MULTIPLIER)
    return k0, mix(s1 ^ k0)


@triton.jit
def stochastic_bf16(wanted, index, k0, k1):
    """float32 that BF16 can hold, `rounding.stochastic_bf16` of elements `index` (uint32)."""
    bits = mix(mix(index + k0) ^ k1)
    words = as_words(wanted)
    rounded = (words + (bits & 0xFFFF)) & 0xFFFF0000
    rounded = tl.where((rounded & 0x7F800000) == 0x7F800000, words & 0xFFFF0000, rounded)
    return tl.where(wanted == wanted, as_floats(rounded), wanted)


@triton.jit
def nearest_bf16(x):
    """float32 that BF16 can hold, to nearest, ties to even (Triton's interpreter cuts instead)."""
    words = as_words(x)
    return tl.where(x == x, as_floats((words + 0x7FFF + ((words >> 16) & 1)) & 0xFFFF0000), x)


# ----------------------------------------------------------------------------------------------------------- E4M3, E2M1


@triton.jit
def to_e4m3(x):
    """float32 in [2⁻⁶, 448] to the nearest E4M3 number, ties to even, as float32."""
    words = as_words(x)
    return as_floats((words + 0x7FFFF + ((words >> _E4M3_SHIFT) & 1)) & 0xFFF00000)


@triton.jit
def e4m3_bytes(scales):
    """Bytes (uint8) of float32 that are E4M3 numbers from 2⁻⁶ on."""
    return ((as_words(scales) >> _E4M3_SHIFT) - _E4M3_REBIAS).to(tl.uint8)


@triton.jit
def from_e4m3_bytes(stored):
    """float32 of bytes of positive normal E4M3 numbers; the converse of `e4m3_bytes`."""
    return as_floats((stored.to(tl.uint32) + _E4M3_REBIAS) << _E4M3_SHIFT)


@triton.jit
def to_grid(values):
    """float32 to the nearest of E2M1's values, ties to the even code, -0 to +0: `codec._to_grid`."""
    values = tl.minimum(tl.maximum(values, -E2M1_MAX), E2M1_MAX)
    binades = as_floats(as_words(tl.maximum(tl.abs(values), 1.0)) & 0x7F800000) * _GRID_MAGIC
    return (values + binades) - binades


@triton.jit
def e2m1_codes(grid):
    """Codes (uint8) of E2M1 values."""
    size = tl.abs(grid)
    codes = tl.where(size < 2.0, size * 2.0, tl.where(size < 4.0, size + 2.0, size * 0.5 + 4.0))
    return (codes + tl.where(grid < 0.0, 8.0, 0.0)).to(tl.uint8)


@triton.jit
def e2m1_values(codes):
    """float32 of codes 0 to 15 (int32)."""
    size = (codes & 7).to(tl.float32)
    size = tl.where(size < 4.0, size * 0.5, tl.where(size < 6.0, size - 2.0, size * 2.0 - 8.0))
    return tl.where(codes > 7, -size, size)


@triton.jit
def pack_pairs(codes):
    """uint8 codes [T] to bytes [T/2]: the low nibble is the even element."""
    low, high = tl.split(tl.reshape(codes, [codes.shape[0] // 2, 2]))
    return low | (high << 4)


@triton.jit
def unpack_pairs(packed):
    """The converse: int32 codes [2T] of bytes [T]."""
    wide = packed.to(tl.int32)
    return tl.reshape(tl.join(wide & 15, wide >> 4), [2 * packed.shape[0]])


# ------------------------------------------------------------------------------------------------------------ quantiser


@triton.jit
def _block_errors(blocks, quotients, steps):
    """Σ(Q(w) - w)² of blocks [B, 16], summed as `codec.squared_errors` does."""
    errors = to_grid(quotients) * steps[:, None] - blocks
    errors = errors * errors
    errors = tl.sum(tl.reshape(errors, [errors.shape[0], 2, 8]), 1)
    errors = tl.sum(tl.reshape(errors, [errors.shape[0], 2, 4]), 1)
    errors = tl.sum(tl.reshape(errors, [errors.shape[0], 2, 2]), 1)
    return tl.sum(errors, 1)


@triton.jit
def _quotients(blocks, scales, divisor, inverse, NARROW: tl.constexpr):
    """w / (scale / divisor), rounded so that it lies on the side of each threshold that the true division has.

    A weight of 8 significant bits (NARROW: BF16) divided by a step of 4 is a threshold of 3, or at least 2⁻⁸ away from
    it. So a product with the reciprocal, 2⁻²³ off, serves once it is rounded to 16 bits, and saves the division.
    """
    if NARROW:
        product = (blocks * divisor) * tl.div_rn(1.0, scales)[:, None]
        return as_floats((as_words(product) + 0x80) & 0xFFFFFF00)
    else:
        return tl.div_rn(blocks, (scales * inverse)[:, None])


@triton.jit
def quantise_blocks(weights, divisor, NARROW: tl.constexpr, FOUR_OVER_SIX: tl.constexpr):
    """E2M1 values [B, 16], E4M3 scales [B] and steps [B], all float32, of weights [B, 16] float32.

    `divisor` is the tensor's power-of-two global scale.
    """
    inverse = tl.div_rn(1.0, divisor)
    amax = tl.max(tl.abs(weights), 1)
    scales = to_e4m3(tl.minimum(tl.maximum(tl.div_rn(amax, E2M1_MAX) * divisor, SCALE_MIN), E4M3_MAX))
    quotients = _quotients(weights, scales, divisor, inverse, NARROW)
    if FOUR_OVER_SIX:
        fours = to_e4m3(tl.minimum(tl.maximum(amax * 0.25 * divisor, SCALE_MIN), E4M3_MAX))
        by_fours = _quotients(weights, fours, divisor, inverse, NARROW)
        better = _block_errors(weights, by_fours, fours * inverse) < _block_errors(weights, quotients, scales * inverse)
        scales = tl.where(better, fours, scales)
        quotients = tl.where(better[:, None], by_fours, quotients)
    return to_grid(quotients), scales, scales * inverse


_PACKED_GRID = tl.constexpr("""
    {
    .reg .b32 value, size, magic, bound;
    cvt.rn.bf16x2.f32 value, $2, $1;
    mov.b32 bound, 0x40C040C0;
    min.bf16x2 value, value, bound;
    mov.b32 bound, 0xC0C0C0C0;
    max.bf16x2 value, value, bound;
    and.b32 size, value, 0x7FFF7FFF;
    mov.b32 bound, 0x3F803F80;
    max.bf16x2 size, size, bound;
    and.b32 size, size, 0x7F807F80;
    mov.b32 bound, 0x42C042C0;
    mul.rn.bf16x2 magic, size, bound;
    add.rn.bf16x2 value, value, magic;
    sub.rn.bf16x2 value, value, magic;
    mul.rn.bf16x2 $0, value, $3;
    }
""")


@triton.jit
def fake_quantise_packed(weights, divisor):
    """Q(W) in BF16 of blocks [B, 16] of BF16 weights, given as float32: `to_grid` on two numbers at once.

    Rounded to BF16 a quotient stays on its side of each threshold (`_quotients`: it is on it, or 2⁻⁸ away), the grid's
    arithmetic is exact there (1.5·2⁶ binades are what its 8 bits hold to a step), and so is grid · step. Six times a
    threshold between scales has 7 bits, so that a sixth of 8 bits is one, or at least 2⁻⁸ away, too. So no division has
    to be correctly rounded, which takes a branch.
    """
    inverse = tl.div_rn(1.0, divisor)
    sixth = as_floats((as_words(tl.max(tl.abs(weights), 1) * divisor * _SIXTH) + 0x80) & 0xFFFFFF00)
    scales = to_e4m3(tl.minimum(tl.maximum(sixth, SCALE_MIN), E4M3_MAX))
    quotients = weights * (divisor * reciprocal(scales))[:, None]
    steps = tl.broadcast_to((scales * inverse).to(tl.bfloat16)[:, None], weights.shape)
    return tl.inline_asm_elementwise(
        _PACKED_GRID, "=r,r,r,r", [quotients, steps], dtype=tl.bfloat16, is_pure=True, pack=2
    )


# -------------------------------------------------------------------------------------------------------------- moments


@triton.jit
def integer_byte(x):
    """The low byte (uint8) of float32 of at most 2²² rounded to the nearest integer, ties to even."""
    return as_words(x + _INTEGER_MAGIC).to(tl.uint8)


@triton.jit
def quotients_of_blocks(blocks, divisors, EXACT: tl.constexpr):
    """blocks [B, W] / divisors [B], which are 0 or at least 2⁻¹²⁰; 1 stands in for a divisor of zero."""
    divisors = tl.where(divisors > 0.0, divisors, 1.0)
    if EXACT:
        return tl.div_rn(blocks, divisors[:, None])
    else:
        return blocks * reciprocal(divisors)[:, None]


@triton.jit
def flushed(scales):
    """Scales below 2⁻¹²⁰ as zero: their reciprocals would leave float32."""
    return tl.where(scales < 7.52316384526264e-37, 0.0, scales)
