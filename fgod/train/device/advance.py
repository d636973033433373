"""AdamW's step of one tensor by numbers that lie on the device: nothing is read back, so that a CUDA graph can hold it.

The arithmetic is that of `fgod.train.optimizer` (there as a loop with numbers of the host). A tensor is seen as
[R, W], W columns that no block of a packed moment reaches beyond; its elements keep their order, hence random words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgod.nvfp4.codec import fake_quantise
from fgod.nvfp4.rounding import random_words, stochastic_bf16, stochastic_nvfp4
from fgod.train.storage import M_KINDS, V_KINDS

RATE, DECAY, L2_SP, M_SHARE, V_SHARE, SCALE = range(6)
"""Columns of a tensor's numbers: -lr/(1 - β₁ᵗ); lr·decay; lr·l2_sp; 1 - β₁ᵗ; 1 - β₂ᵗ; factor of the gradient."""

NUMBERS = 6

REALISED, INTENDED, MOVED, LARGEST, CLAMPED, AMAX = range(6)
"""Columns of what `advance` tells of a tensor: see `Projection`; and the largest magnitude of its new weights."""

TOLD = 6

CHUNK = 2**22
"""Numbers that plain torch steps at once: its float32 temporaries are ten times as large."""


@dataclass(frozen=True)
class Modes:
    """What a step of a tensor depends on besides numbers: names of a recipe's modes, for this tensor."""

    master: str
    m: str
    v: str
    betas: tuple[float, float]
    eps: float
    update_clip: float | None
    row_is_tensor: bool = False
    """Each row is a tensor of its own, with its own numbers."""


def _landed(weight: Tensor, wanted: Tensor, key: Tensor, first: int, scale: Tensor, kind: str) -> None:
    """Write the wanted float32 weights as masters of this kind keep them; `scale`: of NVFP4 masters."""
    match kind:
        case "bf16":
            weight.copy_(stochastic_bf16(wanted, random_words(key, first, wanted.shape)))
        case "nvfp4":
            weight.copy_(stochastic_nvfp4(wanted, scale, random_words(key, first, wanted.shape)))
        case "nvfp4-rtn":
            weight.copy_(fake_quantise(wanted, scale))
        case _:
            weight.copy_(wanted)


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
    """Step weights [R, W] and their packed moments in place.

    Args:
        numbers: float32 [NUMBERS], or [R, NUMBERS] where each row is a tensor.
        key: int32 [2], the tensor's key in this step.
        first: index of the first element within its tensor.

    Returns:
        float32 [TOLD], or [R, TOLD].
    """
    beta1, beta2 = modes.betas
    rate, decay, l2_sp, m_share, v_share, clip = (numbers[..., i : i + 1] for i in range(NUMBERS))
    m_kind, v_kind = M_KINDS[modes.m], V_KINDS[modes.v]
    old = weight.to(torch.float32, copy=True)
    wide = grad.float() * clip
    m, v = m_kind.decode(m_parts), v_kind.decode(v_parts)
    m = m.lerp(wide, 1 - beta1)
    v = v * beta2 + wide * wide * (1 - beta2)
    ratio = m / ((v / v_share).sqrt() + modes.eps)
    sizes = ratio.abs()
    limit = m_share * (modes.update_clip if modes.update_clip is not None else torch.inf)
    update = torch.minimum(torch.maximum(ratio, -limit), limit) * rate - old * decay
    if start is not None:
        update = update + (start.float() - old) * l2_sp
    for stored, part in zip((*m_parts, *v_parts), (*m_kind.encode(m), *v_kind.encode(v)), strict=True):
        stored.copy_(part)
    _landed(weight, old + update, key, first, scale, modes.master)
    new = weight.float()
    change = new - old
    over = (-1,) if modes.row_is_tensor else (-2, -1)
    told = (
        (change * update).sum(over),
        (update * update).sum(over),
        (change * change).sum(over),
        (sizes / m_share).amax(over),
        (sizes > limit).float().sum(over),
        new.abs().amax(over),
    )
    return torch.stack(told, -1)


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
    """The same, `CHUNK` numbers at a time: temporaries never exceed those of a chunk."""
    rows = max(1, CHUNK // weight.shape[1])
    if modes.row_is_tensor or len(weight) <= rows:
        return advance(weight, grad, m_parts, v_parts, start, numbers, key, scale, first, modes)
    told = None
    for at in range(0, len(weight), rows):
        part = slice(at, at + rows)
        cut = advance(
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
        told = cut if told is None else merged(told, cut)
    assert told is not None
    return told


def merged(a: Tensor, b: Tensor) -> Tensor:
    """What is told of two parts of a tensor, together: sums, and largest values."""
    parts = [torch.maximum(x, y) if i in (LARGEST, AMAX) else x + y for i, (x, y) in enumerate(zip(a, b, strict=True))]
    return torch.stack(parts)
