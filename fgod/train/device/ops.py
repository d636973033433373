"""How each part of a step is computed: plain torch anywhere, compiled on a GPU, Triton where there is a kernel.

Whatever fails to compile is computed by plain torch instead, and that is said once, by name and reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from fgod.nvfp4 import kernels
from fgod.nvfp4.codec import fake_quantise
from fgod.train import distil
from fgod.train.device import elementwise
from fgod.train.update import advance, advance_in_chunks

Say = Callable[[str], None]

QUANTISE_ROWS = 2048
"""Rows that plain torch quantises at once: its float32 temporaries are five times as large as what it reads."""


def quantise_rows(weight: Tensor, global_scale: Tensor, dtype: torch.dtype, block_scales: str) -> Tensor:
    """Q(W) of a master [N, K] in the compute dtype, under a global scale on the device: float32, no dimension.

    The definition is `fgod.nvfp4.codec.fake_quantise`; the same bits.
    """
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for first in range(0, len(weight), QUANTISE_ROWS):
        rows = slice(first, first + QUANTISE_ROWS)
        out[rows] = fake_quantise(weight[rows].float(), global_scale, block_scales=block_scales)
    return out


class Products(Protocol):
    """Products with weights that are quantised on the way: `fgod.nvfp4.kernels.product`."""

    MOST_TOKENS: int
    forward: Callable[..., Tensor]
    backward: Callable[..., Tensor]


@dataclass(frozen=True)
class Ops:
    """The parts of a step: see the functions of these names in `elementwise`, `distil` and `fgod.train.update`."""

    quantise: Callable[..., Tensor] = quantise_rows
    products: Products | None = None
    advance: Callable[..., Tensor] = advance_in_chunks
    norm: Callable[..., Tensor] = elementwise.norm
    joined_norm_backward: Callable[..., tuple[Tensor, Tensor]] = elementwise.joined_norm_backward
    heads: Callable[..., tuple[Tensor, Tensor]] = elementwise.heads
    heads_backward: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] = elementwise.heads_backward
    swiglu: Callable[..., Tensor] = elementwise.swiglu
    swiglu_backward: Callable[..., tuple[Tensor, Tensor]] = elementwise.swiglu_backward
    fold_logits: Callable[..., tuple[Tensor, Tensor, Tensor]] = elementwise.fold_logits
    logit_slopes: Callable[..., Tensor] = elementwise.logit_slopes
    take: Callable[..., None] = distil.take
    put: Callable[..., None] = distil.put
    fold_rest: Callable[..., tuple[Tensor, Tensor]] = distil.fold_rest
    rest_slopes: Callable[..., Tensor] = distil.rest_slopes


PLAIN = Ops()


def compiled(
    function: Callable[..., Any], say: Say, backend: str = "inductor", otherwise: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """A function as torch compiles it; if that fails `otherwise`, or the function as it is, in words."""
    plain = otherwise or function
    chosen: list[Callable[..., Any]] = [torch.compile(function, backend=backend)]

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if chosen[0] is plain:
            return plain(*args)
        try:
            return chosen[0](*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, inductor and Triton share no narrower kind
            first = (str(error).strip().splitlines() or [""])[0]
            say(f"{function.__name__}: torch does not compile it ({type(error).__name__}: {first}): plain torch runs")
            chosen[0] = plain
            return plain(*args)

    return call


def _triton(device: torch.device) -> dict[str, Any]:
    """Kernels of `quantise_rows` (the same bits), of products and of what torch compiles to several kernels, where
    kernels are there and run."""
    if not kernels.run_on(device):
        return {"quantise": quantise_rows, "take": distil.take, "put": distil.put}
    from fgod.nvfp4.kernels import codec, product, top
    from fgod.nvfp4.kernels import elementwise as fast

    return {
        "quantise": codec.fake_quantise, "products": product, "take": top.take, "put": top.put,
        "joined_norm_backward": fast.joined_norm_backward, "heads": fast.heads,
        "heads_backward": fast.heads_backward, "swiglu_backward": fast.swiglu_backward,
        "logit_slopes": fast.logit_slopes,
    }  # fmt: skip


def choose_ops(device: torch.device, say: Say, backend: str = "inductor") -> Ops:
    """Plain on a CPU; on a GPU compiled where torch can, the quantiser as it is (its bits are those of the export)."""
    if device.type != "cuda":
        return PLAIN
    made = _triton(device)
    if made["quantise"] is quantise_rows:
        say("the quantiser runs in plain torch on the GPU, several times slower than its Triton kernel")
    made["advance"] = compiled(advance, say, backend, advance_in_chunks)
    for name in {f.name for f in fields(Ops)} - {"products"} - made.keys():
        made[name] = compiled(getattr(PLAIN, name), say, backend)
    return Ops(**made)
