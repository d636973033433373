"""What stands between the matrix products of a dense decoder, with gradients written out. Pure functions of tensors.

They compute in float32 and round where transformers' models do, once more or less; compiled, each is a few kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: x [..., K] in the compute dtype, weight float32 [K]."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * scaled.to(x.dtype)


def norm_backward(x: Tensor, weight: Tensor, eps: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (float32, for whatever is added to it) and of the weight (float32 [K])."""
    wide = x.float()
    root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    scaled = wide * root
    through = grad.float() * weight.to(x.dtype).float()
    to_x = root * (through - scaled * (through * scaled).mean(-1, keepdim=True))
    to_weight = (grad.float() * scaled).flatten(0, -2).sum(0)
    return to_x, to_weight


def joined_norm_backward(
    x: Tensor, weight: Tensor, eps: float, grad: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with the residual stream's gradient added to that of x, in the compute dtype."""
    to_x, to_weight = norm_backward(x, weight, eps, grad)
    return (to_x + residual.float()).to(x.dtype), to_weight


def _halves_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, S, heads, D] in float32; cos and sin [S, D]."""
    return x * cos[:, None] + _halves_turned(x) * sin[:, None]


def rotate_backward(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of `rotate`'s x: the rotation the other way."""
    return grad * cos[:, None] - _halves_turned(grad * sin[:, None])


def heads(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    queries: int,
    keys: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Queries [B, S, queries, D] and keys [B, S, keys, D], normed and rotated, of qkv [B, S, queries + 2·keys, D].

    Without a weight they are not normed.
    """
    parts = qkv[:, :, :queries], qkv[:, :, queries : queries + keys]
    q, k = (
        rotate((part if weight is None else norm(part, weight, eps)).float(), cos, sin).to(qkv.dtype)
        for part, weight in zip(parts, (q_weight, k_weight), strict=True)
    )
    return q, k


def _head_backward(
    part: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of queries or keys before their norm and rotation, and of the norm's weight."""
    turned = rotate_backward(grad.float(), cos, sin)
    return (turned, None) if weight is None else norm_backward(part, weight, eps, turned)


def heads_backward(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    to_q: Tensor,
    to_k: Tensor,
    to_v: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of qkv and of both norms' weights, from those of queries, keys and values [B, S, heads, D]."""
    queries, keys = to_q.shape[2], to_k.shape[2]
    q, to_q_weight = _head_backward(qkv[:, :, :queries], q_weight, cos, sin, eps, to_q)
    k, to_k_weight = _head_backward(qkv[:, :, queries : queries + keys], k_weight, cos, sin, eps, to_k)
    return torch.cat((q.to(qkv.dtype), k.to(qkv.dtype), to_v), 2), to_q_weight, to_k_weight


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate)·up of [T, 2·M]: [T, M]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate.float()).to(gate.dtype) * up


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient [T, 2·M] of gate and up, and what the forward pass gave [T, M]."""
    gate, up = gate_up.float().chunk(2, -1)
    inner = torch.sigmoid(gate)
    active, slope = gate * inner, inner * (1 + gate * (1 - inner))
    wide = grad.float()
    to_both = torch.cat((wide * up * slope, wide * active), -1).to(gate_up.dtype)
    return to_both, active.to(gate_up.dtype) * up.to(gate_up.dtype)


def fold_logits(
    logits: Tensor, labels: Tensor, first: int, top: Tensor, total: Tensor, picked: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take a chunk of logits [L, C], those of the tokens from `first` on, into a running log-sum-exp.

    `top`: largest logit so far; `total`: Σ exp(logit - top); `picked`: the label's logit, once it was met. float32 [L].
    """
    wide = logits.float()
    new_top = torch.maximum(top, wide.amax(-1))
    total = total * torch.exp(top - new_top) + torch.exp(wide - new_top[:, None]).sum(-1)
    tokens = torch.arange(first, first + logits.shape[1], device=logits.device)
    return new_top, total, picked + torch.where(tokens == labels[:, None], wide, 0.0).sum(-1)


def logit_slopes(logits: Tensor, labels: Tensor, first: int, log_sum: Tensor, weights: Tensor) -> Tensor:
    """The loss's gradient of a chunk of logits: (softmax - one-hot) · weight, in the logits' dtype."""
    tokens = torch.arange(first, first + logits.shape[1], device=logits.device)
    shares = torch.exp(logits.float() - log_sum[:, None]) - (tokens == labels[:, None]).float()
    return (shares * weights[:, None]).to(logits.dtype)
