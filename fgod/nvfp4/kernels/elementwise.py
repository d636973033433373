"""Parts of `fgod.train.device.elementwise` that torch compiles to several kernels, each in one pass over what it reads.

A norm's weight gets a sum over all tokens. Each program adds up those of its own rows while it computes their
gradients; the programs' sums are added in one order. Sums apart, the arithmetic is that of the functions of the same
names.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 132 * 4
"""Most programs of a pass that sums over tokens; each writes a row of partial sums, and twice as many the short rows of
heads. This and warps were the fastest, or as fast as others, for 8 rows of 512 tokens of Qwen3-4B on an H100."""


TILE, WARPS = 1024, 4
"""Of passes that sum nothing."""


def _warps(elements: int) -> int:
    """Warps that share a row of so many elements: up to 64 for a thread."""
    return min(16, max(2, elements // 2048))


@triton.jit
def _both(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


# --------------------------------------------------------------------------------------------------------------- norms


@triton.jit
def _joined_norm_kernel(
    x, weight, grad, residual, to_x, partials, tokens, programs, eps, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    """Rows p, p + programs, … of program p. partials: float32 [programs, WIDTH]."""
    program, columns = tl.program_id(0), tl.arange(0, PADDED)
    inside = columns < WIDTH
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(x.dtype.element_ty).to(tl.float32)
    to_weight = tl.zeros([PADDED], tl.float32)
    for turn in range(0, tl.cdiv(tokens - program, programs)):
        places = (program + turn * programs).to(tl.int64) * WIDTH + columns
        wide = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
        added = tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
        through = g * gain
        squares, along = tl.reduce((wide * wide, through * wide), 0, _both)
        root = tl.rsqrt(squares / WIDTH + eps)
        scaled = wide * root
        made = root * (through - scaled * (along * root / WIDTH)) + added
        tl.store(to_x + places, made.to(to_x.dtype.element_ty), mask=inside)
        to_weight += g * scaled
    tl.store(partials + program * WIDTH + columns, to_weight, mask=inside)


def joined_norm_backward(
    x: Tensor, weight: Tensor, eps: float, grad: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """As `elementwise.joined_norm_backward`: x, grad and residual [T, K]; weight float32 [K]."""
    x, grad, residual = x.contiguous(), grad.contiguous(), residual.contiguous()
    tokens, width = x.shape
    programs = min(tokens, PROGRAMS)
    to_x, partials = torch.empty_like(x), torch.empty(programs, width, device=x.device)
    _joined_norm_kernel[(programs,)](
        x, weight, grad, residual, to_x, partials, tokens, programs, eps, width, triton.next_power_of_2(width),
        num_warps=_warps(triton.next_power_of_2(width)),
    )  # fmt: skip
    return to_x, partials.sum(0)


# --------------------------------------------------------------------------------------------------------------- heads
#
# A head is two halves, which rotation mixes. SOME_… is a number filled up to a power of two.


@triton.jit
def _places(heads, first, HALF: tl.constexpr, SOME_HEADS: tl.constexpr, SOME_HALF: tl.constexpr):
    """Where elements [SOME_HEADS, SOME_HALF] of heads side by side lie, from each one's `first` on, and which exist."""
    head, column = tl.arange(0, SOME_HEADS)[:, None], tl.arange(0, SOME_HALF)[None, :]
    return head * (2 * HALF) + first + column, (head < heads) & (column < HALF)


@triton.jit
def _halves(pointer, heads, HALF: tl.constexpr, SOME_HEADS: tl.constexpr, SOME_HALF: tl.constexpr):
    """Both halves of heads, float32 [SOME_HEADS, SOME_HALF]."""
    places, real = _places(heads, 0, HALF, SOME_HEADS, SOME_HALF)
    first = tl.load(pointer + places, mask=real, other=0.0).to(tl.float32)
    return first, tl.load(pointer + places + HALF, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _store_halves(pointer, first, second, heads, HALF: tl.constexpr, SOME_HEADS: tl.constexpr, SOME_HALF: tl.constexpr):
    places, real = _places(heads, 0, HALF, SOME_HEADS, SOME_HALF)
    tl.store(pointer + places, first.to(pointer.dtype.element_ty), mask=real)
    tl.store(pointer + places + HALF, second.to(pointer.dtype.element_ty), mask=real)


@triton.jit
def _gains(weight, kind: tl.constexpr, HALF: tl.constexpr, SOME_HALF: tl.constexpr):
    """Both halves of a norm's weight as it is in the compute dtype, float32 [1, SOME_HALF]."""
    first, second = _halves(weight, 1, HALF, 1, SOME_HALF)
    return first.to(kind).to(tl.float32), second.to(kind).to(tl.float32)


@triton.jit
def _heads_part(
    x, out, weight, cos1, cos2, sin1, sin2, heads, eps,
    HALF: tl.constexpr, SOME_HEADS: tl.constexpr, SOME_HALF: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """A token's queries or keys, normed and rotated."""
    kind: tl.constexpr = out.dtype.element_ty
    x1, x2 = _halves(x, heads, HALF, SOME_HEADS, SOME_HALF)
    if NORMED:
        root = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / (2 * HALF) + eps)[:, None]
        gain1, gain2 = _gains(weight, kind, HALF, SOME_HALF)
        x1 = (gain1 * (x1 * root).to(kind).to(tl.float32)).to(kind).to(tl.float32)
        x2 = (gain2 * (x2 * root).to(kind).to(tl.float32)).to(kind).to(tl.float32)
    _store_halves(out, x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2, heads, HALF, SOME_HEADS, SOME_HALF)


@triton.jit
def _heads_kernel(
    qkv, q_weight, k_weight, cos, sin, q, k, length, eps,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HALF: tl.constexpr, SOME_QUERIES: tl.constexpr, SOME_KEYS: tl.constexpr,
    SOME_HALF: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """One token."""
    token, size = tl.program_id(0).to(tl.int64), 2 * HALF
    cos1, cos2 = _halves(cos + token % length * size, 1, HALF, 1, SOME_HALF)
    sin1, sin2 = _halves(sin + token % length * size, 1, HALF, 1, SOME_HALF)
    x = qkv + token * (QUERIES + 2 * KEYS) * size
    _heads_part(
        x, q + token * QUERIES * size, q_weight, cos1, cos2, sin1, sin2, QUERIES, eps, HALF, SOME_QUERIES, SOME_HALF,
        NORMED,
    )  # fmt: skip
    _heads_part(
        x + QUERIES * size, k + token * KEYS * size, k_weight, cos1, cos2, sin1, sin2, KEYS, eps, HALF, SOME_KEYS,
        SOME_HALF, NORMED,
    )  # fmt: skip


def _normed(q_weight: Tensor | None, k_weight: Tensor | None) -> bool:
    """Whether queries and keys are normed. Raises ValueError where only one of them is."""
    if (q_weight is None) != (k_weight is None):
        raise ValueError("found a norm of queries or of keys alone; expected both or none")
    return q_weight is not None


def _sizes(queries: int, keys: int, size: int) -> tuple[int, ...]:
    """QUERIES, KEYS, HALF, and each filled up to a power of two."""
    return queries, keys, size // 2, *map(triton.next_power_of_2, (queries, keys, size // 2))


def heads(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, queries: int, keys: int,
    eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `elementwise.heads`: qkv [B, S, queries + 2·keys, D]; both norms or none."""
    qkv = qkv.contiguous()
    rows, length, _, size = qkv.shape
    q, k = (torch.empty(rows, length, count, size, dtype=qkv.dtype, device=qkv.device) for count in (queries, keys))
    _heads_kernel[(rows * length,)](
        qkv, cos if q_weight is None else q_weight, cos if k_weight is None else k_weight, cos, sin, q, k, length, eps,
        *_sizes(queries, keys, size), _normed(q_weight, k_weight),
    )  # fmt: skip
    return q, k


@triton.jit
def _heads_backward_part(
    x, grad, out, gain1, gain2, cos1, cos2, sin1, sin2, heads, eps,
    HALF: tl.constexpr, SOME_HEADS: tl.constexpr, SOME_HALF: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Gradients of a token's queries or keys before rotation and norm. Returns those of both halves of the gain,
    [SOME_HALF]."""
    g1, g2 = _halves(grad, heads, HALF, SOME_HEADS, SOME_HALF)
    turned1, turned2 = g1 * cos1 + g2 * sin2, g2 * cos2 - g1 * sin1
    if NORMED:
        x1, x2 = _halves(x, heads, HALF, SOME_HEADS, SOME_HALF)
        through1, through2 = turned1 * gain1, turned2 * gain2
        root = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / (2 * HALF) + eps)
        mean = (tl.sum(through1 * x1 + through2 * x2, 1) * root / (2 * HALF))[:, None]
        root = root[:, None]
        scaled1, scaled2 = x1 * root, x2 * root
        made1, made2 = root * (through1 - scaled1 * mean), root * (through2 - scaled2 * mean)
        _store_halves(out, made1, made2, heads, HALF, SOME_HEADS, SOME_HALF)
        return tl.sum(turned1 * scaled1, 0), tl.sum(turned2 * scaled2, 0)
    else:
        _store_halves(out, turned1, turned2, heads, HALF, SOME_HEADS, SOME_HALF)
        return tl.zeros([SOME_HALF], tl.float32), tl.zeros([SOME_HALF], tl.float32)


@triton.jit
def _heads_backward_kernel(
    qkv, q_weight, k_weight, cos, sin, to_q, to_k, to_v, out, partials, tokens, length, programs, eps,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HALF: tl.constexpr, SOME_QUERIES: tl.constexpr, SOME_KEYS: tl.constexpr,
    SOME_HALF: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """Tokens p, p + programs, … of program p. partials: float32 [programs, 2, D], of the gains of queries and keys."""
    program, column, size = tl.program_id(0), tl.arange(0, SOME_HALF), 2 * HALF
    q1, q2 = tl.zeros([SOME_HALF], tl.float32), tl.zeros([SOME_HALF], tl.float32)
    k1, k2 = tl.zeros([SOME_HALF], tl.float32), tl.zeros([SOME_HALF], tl.float32)
    gain1, gain2, key_gain1, key_gain2 = 1.0, 1.0, 1.0, 1.0
    if NORMED:
        gain1, gain2 = _gains(q_weight, qkv.dtype.element_ty, HALF, SOME_HALF)
        key_gain1, key_gain2 = _gains(k_weight, qkv.dtype.element_ty, HALF, SOME_HALF)
    for turn in range(0, tl.cdiv(tokens - program, programs)):
        token = (program + turn * programs).to(tl.int64)
        cos1, cos2 = _halves(cos + token % length * size, 1, HALF, 1, SOME_HALF)
        sin1, sin2 = _halves(sin + token % length * size, 1, HALF, 1, SOME_HALF)
        at = token * (QUERIES + 2 * KEYS) * size
        of_q1, of_q2 = _heads_backward_part(
            qkv + at, to_q + token * QUERIES * size, out + at, gain1, gain2, cos1, cos2, sin1, sin2, QUERIES, eps,
            HALF, SOME_QUERIES, SOME_HALF, NORMED,
        )  # fmt: skip
        at += QUERIES * size
        of_k1, of_k2 = _heads_backward_part(
            qkv + at, to_k + token * KEYS * size, out + at, key_gain1, key_gain2, cos1, cos2, sin1, sin2, KEYS, eps,
            HALF, SOME_KEYS, SOME_HALF, NORMED,
        )  # fmt: skip
        v1, v2 = _halves(to_v + token * KEYS * size, KEYS, HALF, SOME_KEYS, SOME_HALF)
        _store_halves(out + at + KEYS * size, v1, v2, KEYS, HALF, SOME_KEYS, SOME_HALF)
        q1 += of_q1
        q2 += of_q2
        k1 += of_k1
        k2 += of_k2
    if NORMED:
        row, real = partials + program * 2 * size + column, column < HALF
        tl.store(row, q1, mask=real)
        tl.store(row + HALF, q2, mask=real)
        tl.store(row + size, k1, mask=real)
        tl.store(row + size + HALF, k2, mask=real)


def heads_backward(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float,
    to_q: Tensor, to_k: Tensor, to_v: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """As `elementwise.heads_backward`: qkv [B, S, heads, D], gradients [B, S, their heads, D]; both norms or none."""
    qkv, to_q, to_k, to_v = (part.contiguous() for part in (qkv, to_q, to_k, to_v))
    rows, length, _, size = qkv.shape
    out, programs = torch.empty_like(qkv), min(rows * length, PROGRAMS * 2)
    partials, sizes = torch.empty(programs, 2, size, device=qkv.device), _sizes(to_q.shape[2], to_k.shape[2], size)
    _heads_backward_kernel[(programs,)](
        qkv, partials if q_weight is None else q_weight, partials if k_weight is None else k_weight, cos, sin,
        to_q, to_k, to_v, out, partials, rows * length, length, programs, eps, *sizes, _normed(q_weight, k_weight),
        num_warps=_warps(2 * sizes[3] * sizes[5]),
    )  # fmt: skip
    if q_weight is None:
        return out, None, None
    to_q_weight, to_k_weight = partials.sum(0)
    return out, to_q_weight, to_k_weight


# ------------------------------------------------------------------------------------------------------ SwiGLU, logits


@triton.jit
def _swiglu_backward_kernel(gate_up, grad, to_both, active, MLP: tl.constexpr, TILE: tl.constexpr):
    tiles: tl.constexpr = (MLP + TILE - 1) // TILE
    row, columns = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    inside = columns < MLP
    places = row * 2 * MLP + columns
    gate = tl.load(gate_up + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + places + MLP, mask=inside, other=0.0)
    wide = tl.load(grad + row * MLP + columns, mask=inside, other=0.0).to(tl.float32)
    inner = tl.sigmoid(gate)
    made = gate * inner
    slope = inner * (1 + gate * (1 - inner))
    kind = to_both.dtype.element_ty
    tl.store(to_both + places, (wide * up.to(tl.float32) * slope).to(kind), mask=inside)
    tl.store(to_both + places + MLP, (wide * made).to(kind), mask=inside)
    product = made.to(kind).to(tl.float32) * up.to(tl.float32)
    tl.store(active + row * MLP + columns, product.to(kind), mask=inside)


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """As `elementwise.swiglu_backward`: gate_up [T, 2·M], grad [T, M]."""
    gate_up, grad = gate_up.contiguous(), grad.contiguous()
    tokens, mlp = grad.shape
    to_both, active = torch.empty_like(gate_up), torch.empty_like(grad)
    _swiglu_backward_kernel[(triton.cdiv(mlp, TILE) * tokens,)](
        gate_up, grad, to_both, active, mlp, TILE, num_warps=WARPS
    )
    return to_both, active


@triton.jit
def _logit_slopes_kernel(logits, labels, log_sum, weights, out, first, width, stride, TILE: tl.constexpr):
    tiles = tl.cdiv(width, TILE)
    row, columns = tl.program_id(0) // tiles, tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    inside = columns < width
    wide = tl.load(logits + row.to(tl.int64) * stride + columns, mask=inside, other=0.0).to(tl.float32)
    hit = tl.where(columns + first == tl.load(labels + row), 1.0, 0.0)
    slopes = (tl.exp(wide - tl.load(log_sum + row)) - hit) * tl.load(weights + row)
    tl.store(out + row.to(tl.int64) * width + columns, slopes.to(out.dtype.element_ty), mask=inside)


def logit_slopes(logits: Tensor, labels: Tensor, first: int, log_sum: Tensor, weights: Tensor) -> Tensor:
    """As `elementwise.logit_slopes`: logits [L, C] with columns side by side."""
    count, width = logits.shape
    out = torch.empty(count, width, dtype=logits.dtype, device=logits.device)
    _logit_slopes_kernel[(triton.cdiv(width, TILE) * count,)](
        logits, labels, log_sum, weights, out, first, width, logits.stride(0), TILE, num_warps=WARPS
    )
    return out
