"""The cases of this project's Triton kernels: each against the plain torch that it stands for. Imports Triton.

On a CPU they run in Triton's interpreter, which is slow, has no products in BF16 and cuts off what GPUs round to it: so
a GPU has larger cases, and more of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fgod.nvfp4 import codec
from fgod.nvfp4.kernels import adamw, product, sums, top
from fgod.nvfp4.kernels import codec as on_gpu
from fgod.nvfp4.kernels import elementwise as fast
from fgod.selftest import adamw as twins
from fgod.selftest.case import Case, Difference, near, noise, same_bits
from fgod.train import distil
from fgod.train.device import elementwise

Found = Iterator[Difference]


def kernel_cases(gpu: bool) -> list[Case]:
    """All of them.

    Args:
        gpu: for a CUDA device; else for Triton's interpreter.
    """
    return [
        *_top_cases(), *_quantiser_cases(), *_product_cases(gpu), *_sum_cases(gpu),
        *_elementwise_cases(gpu), *_adamw_cases(gpu),
    ]  # fmt: skip


def _dtypes(gpu: bool) -> list[torch.dtype]:
    return [torch.float32, *([torch.bfloat16] if gpu else [])]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------------- top tokens


def _top_cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        yield Case("top tokens of logits", _short(dtype), partial(_top, dtype))


def _top(dtype: torch.dtype, device: torch.device) -> Found:
    """Chunks that hold all, some and none of them; labels with fewer than k; a chunk that is part of a wider matrix."""
    ids = torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(row))[:5] for row in range(7)]).int()
    ids[2, 1:], ids[4, 3:] = distil.FILL, distil.FILL
    for first, width in ((0, 200), (40, 60), (180, 20), (64, 1)):
        logits, values = noise((7, 256), first).to(dtype), noise((7, 5), 1)
        picked = torch.full((7, 5), -torch.inf)
        mine = [x.to(device, copy=True) for x in (logits, picked, ids, values)]
        distil.take(logits[:, :width], ids, first, picked)
        top.take(mine[0][:, :width], mine[2], first, mine[1])
        yield same_bits("what is left", mine[0], logits)
        yield same_bits("what is taken", mine[1], picked)
        distil.put(logits[:, :width], ids, first, values)
        top.put(mine[0][:, :width], mine[2], first, mine[3])
        yield same_bits("what is put", mine[0], logits)


# ----------------------------------------------------------------------------------------------------------- quantiser


def matrices() -> dict[str, Tensor]:
    """float32 and BF16 of many sizes, all ties, next to nothing, and a shape that fills no tile."""
    rows = torch.exp2(torch.arange(32) % 13 - 8.0).unsqueeze(1)
    wide = noise((32, 256), 3) ** 3 * rows
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    every = torch.where(every.float().abs() <= 2.0**100, every, 0).view(-1, 64)
    return {
        "float32": wide,
        "bf16": wide.bfloat16(),
        "odd": noise((5, 48), 1),
        "ties": (noise((32, 64), 2) * 25).round().mul(0.25).bfloat16(),
        "neighbours of ties": torch.nextafter((noise((32, 64), 2) * 25).round().mul(0.25), torch.ones(())),
        "tiny": noise((3, 16), 2) * 1e-37,
        "every bf16": every,
    }


def _quantiser_cases() -> Iterator[Case]:
    for name in matrices():
        for rule in codec.BLOCK_SCALES:
            yield Case("quantiser", f"{name}, {rule}", partial(_quantiser, name, rule))
    yield Case("global scale of the quantiser", "powers of two", _scales)
    yield Case("global scale of the quantiser", "weights that are not finite", _poisoned)


def _quantiser(name: str, rule: str, device: torch.device) -> Found:
    weight = matrices()[name]
    on_device, wide = weight.to(device), weight.float()
    own = codec.shared_global_scale([wide], name)
    for scale in (own,) if name == "every bf16" else (own, own * 2.0**5, own * 2.0**-14):
        told = torch.tensor([scale], device=device)
        expected = codec.fake_quantise(wide, scale, block_scales=rule)
        for dtype in (torch.float32, torch.bfloat16):
            made = on_gpu.fake_quantise(on_device, told, dtype, rule)
            yield same_bits(f"Q(W) in {_short(dtype)}", made, expected.to(dtype))
        quantised = codec.quantise(wide, scale, block_scales=rule)
        packed, scales = on_gpu.quantise(on_device, told, rule)
        yield same_bits("packed codes", packed, codec.pack(quantised.codes))
        yield same_bits("block scales", scales, quantised.scales)
        back = on_gpu.dequantise(packed, scales, told, torch.float32)
        yield same_bits("what is unpacked", back, codec.dequantise(quantised))


def _scales(device: torch.device) -> Found:
    for amax in (0.0, 9.9e-36, 1.0000001e-35, 1.3e-35, 1.3125, 1.3125001, 1343.9999, 1344.0, 1344.0001, 3e38):
        weights = [torch.full((1, 16), amax), torch.full((3, 32), amax / 2)]
        scale = on_gpu.global_scale([w.to(device) for w in weights])
        yield same_bits(f"the scale of {amax:g}", scale, torch.tensor([codec.shared_global_scale(weights, "w")]))


def _poisoned(device: torch.device) -> Found:
    for amax in (math.nan, math.inf, -math.inf):
        bad = torch.ones(4, 64)
        bad[2, 3] = amax
        scale = on_gpu.global_scale([torch.ones(4, 64, device=device), bad.to(device)])
        made = [on_gpu.fake_quantise(torch.ones(4, 64, device=device).to(dtype), scale) for dtype in _dtypes(True)]
        for what, result in (("the scale", scale), ("Q(W)", torch.stack(made))):
            share = (~result.isnan()).double().mean().item()
            yield Difference(f"{what} where a weight is {amax}, and NaN is expected,", share, 0.0)


# ------------------------------------------------------------------------------------------------------------ products


def _product_cases(gpu: bool) -> Iterator[Case]:
    shapes = [(5, 48, 80), (33, 64, 96), *([(128, 192, 64), (1, 64, 256), (96, 2560, 4096)] if gpu else [])]
    for tokens, height, width in shapes:
        for rule in codec.BLOCK_SCALES:
            run = partial(_products, gpu, (tokens, height, width), rule)
            yield Case("products that quantise their weights", f"{tokens} x {height} x {width}, {rule}", run)
    more = [(128, 192, 256), (96, 2560, 4096), (1, 1024, 2560)] if gpu else []
    for tokens, height, width in [(5, 64, 192), *more]:
        run = partial(_gradient, gpu, (tokens, height, width))
        yield Case("gradient of a weight", f"{tokens} x {height} x {width}", run)


def _products(gpu: bool, shape: tuple[int, int, int], rule: str, device: torch.device) -> Found:
    tokens, height, width = shape
    # the tunings of training, and smaller ones in which edges are met
    tunings = [product.Tuning(32, 64), *([product.Tuning(64, 32, 8), None] if gpu else [])]
    for dtype, most in zip(_dtypes(gpu), (1e-6, 3e-3), strict=False):
        for weight in (noise((height, width), 1).to(dtype), noise((height, width), 2)):
            x, grad, residual = (noise(s, 3).to(dtype) for s in ((tokens, width), *[(tokens, height)] * 2))
            scale = codec.shared_global_scale([weight.float()], "w")
            quantised = codec.fake_quantise(weight.float(), scale, block_scales=rule).to(dtype).double()
            told = torch.tensor([scale], device=device)
            on_device = [tensor.to(device) for tensor in (x, grad, residual, weight)]
            forward, backward = x.double() @ quantised.t(), grad.double() @ quantised
            kind = f"{_short(dtype)} with a weight in {_short(weight.dtype)}"
            for tuning in tunings:
                ahead = tuning or product.FORWARD
                made = product.forward(on_device[0], on_device[3], told, None, rule, ahead)
                added = product.forward(on_device[0], on_device[3], told, on_device[2], rule, ahead)
                back = product.backward(on_device[1], on_device[3], told, rule, tuning)
                yield near(f"x·Q(W)ᵀ in {kind}", _of(made, dtype), forward, most)
                yield near(f"x·Q(W)ᵀ + r in {kind}", _of(added, dtype), forward + residual.double(), most)
                yield near(f"g·Q(W) in {kind}", _of(back, dtype), backward, most)


def _of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A result that is to have this dtype; nothing where it has another."""
    return tensor if tensor.dtype == dtype else tensor[:0]


def factors(gpu: bool, tokens: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Small whole numbers, whose product is exact in BF16 in any order; outputs are columns of a wider matrix."""
    generator = torch.Generator().manual_seed(tokens)
    outputs = torch.randint(-1, 2, (tokens, height + 32), generator=generator)[:, 16:-16]
    dtype = _dtypes(gpu)[-1]
    inputs = torch.randint(-1, 2, (tokens, width), generator=generator)
    return (outputs.to(dtype) / 64).to(device), (inputs.to(dtype) / 8).to(device)


def _gradient(gpu: bool, shape: tuple[int, int, int], device: torch.device) -> Found:
    outputs, inputs = factors(gpu, *shape, device)
    squares = torch.full((product.GRADIENT.programs,), math.nan, device=device)
    expected = outputs.cpu().double().t() @ inputs.cpu().double()
    few = shape[2] // 64 + 2  # programs: a strip of columns each, and no second round for all
    for tuning in (product.Tuning(32, 64, 4, programs=few), product.Tuning(64, 64, 4, programs=512)):
        made, partials = product.gradient(outputs, inputs, squares, tuning)
        yield same_bits("gᵀ·x", made + 0.0, expected.to(inputs.dtype) + 0.0)  # of one term −0 and 0 are alike
        yield near("the sum of its squares", partials.sum(), expected.square().sum(), 1e-6)


# ------------------------------------------------------------------------------------------------- gradients of ranks


def _sum_cases(gpu: bool) -> Iterator[Case]:
    for dtype in _dtypes(gpu):
        for ranks, heights, width in ((2, (150, 3), 48), (3, (1,), 16), *([(4, (300, 70, 70), 2560)] if gpu else [])):
            run = partial(_summed, dtype, ranks, heights, width)
            yield Case("sum of a gradient's parts", f"{ranks} x {heights} x {width}, {_short(dtype)}", run)


def _summed(dtype: torch.dtype, ranks: int, heights: tuple[int, ...], width: int, device: torch.device) -> Found:
    """As in training, and by so few programs that each has several tiles where there are so many."""
    parts = noise((ranks, sum(heights), width), 5).to(dtype)
    wide = parts.double()
    expected = torch.stack([one.square().sum() for one in wide.sum(0).split(heights)])
    for most in (sums.PROGRAMS, 3):
        made, squares = sums.sum_parts(parts.to(device), heights, most)
        yield near(f"the sum by {most} programs", made, wide.sum(0), 1e-6)
        yield near(f"its squares by {most} programs", squares, expected, 1e-5)


# --------------------------------------------------------------------------------------------------- elementwise parts


def _elementwise_cases(gpu: bool) -> Iterator[Case]:
    for dtype, most in zip(_dtypes(gpu), (1e-6, 4e-3), strict=False):
        for tokens in (2, 7, *([2000] if gpu else [])):  # the last: more rows than programs
            for name in ("joined_norm_backward", "swiglu_backward", "logit_slopes"):
                run = partial(_of_tokens, name, dtype, most, tokens)
                yield Case(name, f"{tokens} tokens, {_short(dtype)}", run)
        for normed in (True, False):
            for name in ("heads", "heads_backward"):
                words = "with norms" if normed else "without norms"
                yield Case(name, f"{words}, {_short(dtype)}", partial(_heads, name, dtype, most, normed))


def _both(name: str, arguments: Sequence[Any], most: float, device: torch.device) -> Found:
    on_device = [one.to(device) if isinstance(one, Tensor) else one for one in arguments]
    ours, theirs = getattr(fast, name)(*on_device), getattr(elementwise, name)(*arguments)
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for number, (mine, plain) in enumerate(pairs, start=1):
        right = mine is None or plain is None or mine.dtype == plain.dtype
        yield near(f"result {number}", mine if right else mine[:0], plain, most)


def _of_tokens(name: str, dtype: torch.dtype, most: float, tokens: int, device: torch.device) -> Found:
    """Widths that fill no tile; logits that are columns of a wider matrix."""
    x, grad, residual = (noise((tokens, 48), seed).to(dtype) for seed in range(3))
    logits = noise((tokens, 2100), 7).to(dtype)[:, 20:]
    arguments: dict[str, tuple[Any, ...]] = {
        "joined_norm_backward": (x, noise((48,), 4), 1e-6, grad, residual),
        "swiglu_backward": (noise((tokens, 2 * 1040), 5).to(dtype), noise((tokens, 1040), 6).to(dtype)),
        "logit_slopes": (logits, torch.arange(tokens) * 70, 64, noise((tokens,), 8) + 9, noise((tokens,), 9)),
    }
    return _both(name, arguments[name], most, device)


def _heads(name: str, dtype: torch.dtype, most: float, normed: bool, device: torch.device) -> Found:
    """Heads that are no power of two."""
    qkv, cos, sin = noise((2, 5, 10, 12), 1).to(dtype), noise((5, 12), 2), noise((5, 12), 3)
    weights = (noise((12,), 10), noise((12,), 11)) if normed else (None, None)
    to = [noise((2, 5, heads, 12), 4 + heads).to(dtype) for heads in (6, 2, 2)]
    more = (6, 2, 1e-6) if name == "heads" else (1e-6, *to)
    return _both(name, (qkv, *weights, cos, sin, *more), most, device)


# --------------------------------------------------------------------------------------------------------------- AdamW

MODES: list[dict[str, Any]] = [
    {},
    {"m": "nvfp4"},
    {"master": "fp32", "m": "fp32", "v": "fp32"},
    {"m": "bf16", "v": "bf16"},
    {"master": "fp32", "m": "nvfp4", "v": "nvfp4"},
    {"clip": 0.5, "decay": 0.1, "l2_sp": 2.0, "factor": 0.3},
    {"clip": 1e6},
]
"""Arguments of `adamw.make_case`."""


def gradient(size: float = 1e-3, shape: tuple[int, int] = (6, 576)) -> Tensor:
    """BF16; a row of zeros in it."""
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * size
    grad[1] = 0
    return grad.bfloat16()


def _adamw_cases(gpu: bool) -> Iterator[Case]:
    for modes in MODES:
        for exact in (True, False) if gpu else (False,):  # the interpreter rounds alike in both
            words = ", ".join(f"{key} {value}" for key, value in modes.items()) or "as by default"
            run = partial(_adamw, modes, exact, not gpu)
            yield Case("step of AdamW", f"{words}{', exact' if exact else ''}", run)


def _adamw(modes: dict[str, Any], exact: bool, interpreted: bool, device: torch.device) -> Found:
    case = twins.make_case((6, 576), **modes)
    tuning = adamw.Tuning(tile=512, warps=4, programs=3, exact=exact)
    found = twins.compare(case, gradient(0.2 if "clip" in modes else 1e-3), device.type, tuning)
    same = exact or interpreted
    for part, off in found.items():
        if part.endswith("apart"):
            yield Difference(f"{part}, in codes,", off, 1)
        elif part in adamw.SLOTS:
            yield Difference(f"the sum {part}", off, 1e-5 if same else 1e-2)
        elif same:
            yield Difference(f"the share of {part}ent numbers", off, 0.0)
        elif part == "weight differ":
            yield Difference(f"the share of {part}ent numbers", off, 0.5 if modes.get("master") == "fp32" else 1e-2)
