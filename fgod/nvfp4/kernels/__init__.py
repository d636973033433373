"""Triton kernels of what `fgod.nvfp4` and `fgod.train` define in plain torch. Optional: without CUDA or Triton the
plain torch runs, and nothing here imports Triton before a kernel is called.

`device` holds what runs inside kernels, `codec` the quantiser, `adamw` the optimizer's pass, `product` products,
`elementwise` what stands between them, `top` the places of top tokens in logits.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from fgod.system import terminal

__all__ = ["run_on", "say_once"]


@cache
def say_once(text: str) -> None:
    """Say on stderr, once in a process, why plain torch runs where a kernel could."""
    terminal.line(f"fgod: {text}")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def run_on(device: torch.device) -> bool:
    """Whether kernels run on this device: a CUDA one with Triton installed. On one without it that is said once."""
    if device.type != "cuda":
        return False
    if not _has_triton():
        say_once(
            "triton is not installed: plain torch runs on the GPU, several times slower; expected: pip install triton"
        )
    return _has_triton()
