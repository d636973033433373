"""The cases of what torch computes on a GPU: its products, its attention, and the parts of a step that it compiles.

The references are the same formulas on the CPU, in float64 where torch has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fgod.selftest.case import Case, Difference, near, noise
from fgod.train import distil
from fgod.train.device.ops import PLAIN, Ops, Say, choose_ops

Found = Iterator[Difference]

MOST = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative difference of a result that is computed in this format."""

COMPILED = ("norm", "swiglu", "fold_logits", "fold_rest", "rest_slopes")
"""Parts of a step that torch compiles, and no kernel of this project computes."""


def torch_cases(device: torch.device, compiled: bool, say: Say) -> list[Case]:
    """All of them.

    Args:
        compiled: also what torch compiles, which takes tens of seconds.
        say: told what torch cannot compile.
    """
    cases = [
        Case(f"torch's {what}", _short(dtype), partial(run, dtype))
        for what, run in (("products", _product), ("attention", _attention))
        for dtype in MOST
    ]
    if compiled:
        ops = choose_ops(device, say)
        cases += [
            Case(f"{name}, as torch compiles it", _short(dtype), partial(_part, ops, name, dtype))
            for name in COMPILED
            for dtype in MOST
        ]
    return cases


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _product(dtype: torch.dtype, device: torch.device) -> Found:
    for tokens, height, width in ((96, 256, 512), (1, 512, 256), (1000, 1024, 768)):
        x, weight = noise((tokens, width), 1).to(dtype), noise((height, width), 2).to(dtype)
        made = x.to(device) @ weight.to(device).t()
        yield near(f"{tokens} x {height} x {width}", made, x.double() @ weight.double().t(), MOST[dtype])


def _attention(dtype: torch.dtype, device: torch.device) -> Found:
    """Causal, forwards and backwards: 8 heads of 64, of 100 tokens."""
    q, k, v, grad = (noise((1, 8, 100, 64), seed) for seed in range(4))
    results = []
    for kind, place in ((dtype, device), (torch.float64, torch.device("cpu"))):
        # both begin with the numbers that the narrower format has
        own_q, own_k, own_v = (part.to(dtype).to(place, kind, copy=True).requires_grad_() for part in (q, k, v))
        out = F.scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True)
        out.backward(grad.to(dtype).to(place, kind))
        results.append([out.detach(), own_q.grad, own_k.grad, own_v.grad])
    for what, made, expected in zip(("out", "to q", "to k", "to v"), *results, strict=True):
        yield near(what, made, expected, 3 * MOST[dtype])


def _arguments(name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    logits = noise((7, 300), 1).to(dtype)
    made: dict[str, Callable[[], tuple[Any, ...]]] = {
        "norm": lambda: (noise((7, 96), 1).to(dtype), noise((96,), 2), 1e-6),
        "swiglu": lambda: (noise((7, 2 * 160), 1).to(dtype),),
        "fold_logits": lambda: (
            logits, torch.arange(7) * 40, 64, torch.full((7,), -1e30), torch.zeros(7), torch.zeros(7)
        ),
        "fold_rest": lambda: (logits, torch.ones(7), torch.full((7,), distil.LOWEST), torch.zeros(7)),
        "rest_slopes": lambda: (
            logits, torch.ones(7), torch.full((7,), 6.0), torch.full((7,), 6.5), torch.full((7,), 0.3), torch.ones(7)
        ),
    }  # fmt: skip
    return made[name]()


def _part(ops: Ops, name: str, dtype: torch.dtype, device: torch.device) -> Found:
    arguments = _arguments(name, dtype)
    on_device = [one.to(device, copy=True) if isinstance(one, Tensor) else one for one in arguments]
    ours, theirs = getattr(ops, name)(*on_device), getattr(PLAIN, name)(*arguments)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for number, (mine, plain) in enumerate(pairs, start=1):
        yield near(f"result {number}", mine, plain, MOST[dtype])
