"""One AdamW step of a tensor in plain torch, on any device (Loshchilov & Hutter 2019, with L2-SP, Li et al. 2018).

    u = -lr · (m̂ / (√v̂ + ε) + decay·w - l2_sp·(w₀ - w)),   w ← w + u

Everything that changes from step to step lies in small tensors on the device, and nothing is read back: a CUDA graph
can hold a step. Arithmetic is float32. A tensor is seen as [R, W], W columns that no block of a packed moment reaches
beyond; its elements keep their order, and so their random words. `fgod.nvfp4.kernels.adamw` is the same as one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgod.train.storage import MASTERS, StateFormat

RATE, DECAY, L2_SP, M_SHARE, V_SHARE, CLIP = range(6)
"""Columns of a tensor's step numbers: -lr/(1 - β₁ᵗ); lr·decay; lr·l2_sp; 1 - β₁ᵗ; 1 - β₂ᵗ; factor of the gradient."""

STEP_NUMBERS = 6

REALISED, INTENDED, MOVED, LARGEST, CLAMPED, AMAX, SQUARES = range(7)
"""Columns of a tensor's statistics of a step: see `fgod.train.efficiency.Projection`; the largest magnitude of its new
weights, 0 if it was not stepped; the gradient's squared norm before clipping, which `advance` does not compute."""

NUM_STATS = 7

CHUNK = {"cpu": 2**17, "cuda": 2**22}
"""Elements stepped at once by device type. Float32 temporaries are up to ten times as large: on a CPU they stay in its
caches; on a GPU launches are few."""


@dataclass(frozen=True)
class Modes:
    """What a tensor's step depends on besides step numbers: the recipe's formats, for this tensor."""

    master: str
    m: StateFormat
    v: StateFormat
    betas: tuple[float, float]
    eps: float
    update_clip: float | None
    decays: bool
    """Whether it has weight decay."""
    chunk: int
    """Elements stepped at once."""
    row_is_tensor: bool = False
    """Each row is a tensor of its own, with its own step numbers."""


def advance(
    weight: Tensor,
    grad: Tensor,
    m_parts: tuple[Tensor, ...],
    v_parts: tuple[Tensor, ...],
    start: Tensor | None,
    numbers: Tensor,
    key: Tensor,
    scale: Tensor,
    first: int,
    modes: Modes,
) -> Tensor:
    """Step weights [R, W] and their stored moments in place.

    Args:
        grad: [R, W], any float dtype.
        start: [R, W], what L2-SP pulls to.
        numbers: float32 [STEP_NUMBERS], or [R, STEP_NUMBERS] where each row is a tensor.
        key: int32 [2], the tensor's key in this step (`fgod.nvfp4.rounding`).
        scale: float32, no dimension; the global scale of NVFP4 masters.
        first: index of the first element within its tensor.

    Returns:
        float32 [NUM_STATS - 1], or [R, NUM_STATS - 1]: all but `SQUARES`.
    """
    rows = modes.row_is_tensor
    over = -1 if rows else None
    rate, decay, l2_sp, m_share, _, _ = (column.unsqueeze(-1) if rows else column for column in numbers.unbind(-1))
    old = weight.float()
    ratio = _advance_moments(grad, m_parts, v_parts, numbers, modes)
    low, high = torch.aminmax(ratio, dim=over)
    largest = torch.maximum(-low, high) / m_share.view(low.shape)
    clamped = torch.zeros_like(largest)
    if modes.update_clip is not None:
        limit = m_share * modes.update_clip
        within = torch.clamp(ratio, -limit, limit)
        clamped = (within != ratio).count_nonzero(over).float()
        ratio = within
    update = ratio.mul_(rate)
    if modes.decays:
        update.sub_(old * decay)
    if start is not None:
        update.add_((start.float() - old).mul_(l2_sp))
    new = MASTERS[modes.master].rounded(old + update, key, first, scale).to(weight.dtype)
    low, high = torch.aminmax(new, dim=over)
    change = new.float() - old
    weight.copy_(new)  # `old` may be this memory
    sums = [(change * update).sum(over), update.square_().sum(over), change.square_().sum(over)]
    return torch.stack([*sums, largest, clamped, torch.maximum(-low, high).float()], -1)


def _advance_moments(
    grad: Tensor, m_parts: tuple[Tensor, ...], v_parts: tuple[Tensor, ...], numbers: Tensor, modes: Modes
) -> Tensor:
    """Advance stored moments by a gradient; returns m / (√v̂ + ε), float32 [R, W]."""
    beta1, beta2 = modes.betas
    v_share, clip = numbers[..., V_SHARE], numbers[..., CLIP]
    if modes.row_is_tensor:
        v_share, clip = v_share.unsqueeze(-1), clip.unsqueeze(-1)
    wide = grad.float() * clip
    m = modes.m.decode(m_parts).lerp_(wide, 1 - beta1)
    v = modes.v.decode(v_parts).mul_(beta2).addcmul_(wide, wide, value=1 - beta2)
    del wide
    ratio = m / (v / v_share).sqrt_().add_(modes.eps)
    for format, parts, values in ((modes.m, m_parts, m), (modes.v, v_parts, v)):
        if not format.in_place:
            for stored, part in zip(parts, format.encode(values), strict=True):
                stored.copy_(part)
    return ratio


def advance_in_chunks(
    weight: Tensor,
    grad: Tensor,
    m_parts: tuple[Tensor, ...],
    v_parts: tuple[Tensor, ...],
    start: Tensor | None,
    numbers: Tensor,
    key: Tensor,
    scale: Tensor,
    first: int,
    modes: Modes,
) -> Tensor:
    """The same, `modes.chunk` elements at a time: the same weights, with the temporaries of one chunk."""
    rows = max(1, modes.chunk // weight.shape[1])
    if modes.row_is_tensor or len(weight) <= rows:
        return advance(weight, grad, m_parts, v_parts, start, numbers, key, scale, first, modes)
    stats = []
    for at in range(0, len(weight), rows):
        part = slice(at, at + rows)
        stats.append(
            advance(
                weight[part],
                grad[part],
                tuple(t[part] for t in m_parts),
                tuple(t[part] for t in v_parts),
                None if start is None else start[part],
                numbers,
                key,
                scale,
                first + at * weight.shape[1],
                modes,
            )
        )
    return merged(torch.stack(stats))


def merged(stats: Tensor) -> Tensor:
    """Statistics [parts, columns] of the parts of a tensor, together: sums, and largest values."""
    out = stats.sum(0)
    for column in (LARGEST, AMAX):
        out[column] = stats[:, column].amax()
    return out
