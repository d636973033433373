"""What the fused AdamW kernel computes, in a few lines of plain torch: with `exact` arithmetic the same bits.

Runs on the CPU, where a division by a number is one. Slow. Imports Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fgod.nvfp4.kernels import adamw
from fgod.nvfp4.rounding import Key, random_bits, step_key, stochastic_bf16
from fgod.train import codecs
from fgod.train.codecs import block_width, segment_width
from fgod.train.recipe import MEAN_FORMATS, SQUARE_FORMATS
from fgod.train.storage import Bf16, Bf16Root, Int8, Nvfp4, Nvfp4Root, State, StateFormat, Uint8Root, new_state

ENCODE: dict[type[StateFormat], Callable[[Tensor], tuple[Tensor, ...]]] = {
    StateFormat: lambda values: (values,),
    Bf16: lambda values: (values,),
    Int8: codecs.encode_int8,
    Nvfp4: codecs.encode_nvfp4,
    Bf16Root: lambda roots: (roots,),
    Uint8Root: codecs.encode_root_uint8,
    Nvfp4Root: codecs.encode_root_nvfp4,
}


def store(state: State, parts: tuple[Tensor, ...]) -> None:
    for tensor, part in zip(state.tensors, parts, strict=True):
        tensor.copy_(part)


@dataclass
class Case:
    """A matrix with everything that a step needs, on the CPU."""

    weight: Tensor
    m: State
    v: State
    start: Tensor | None
    modes: adamw.Modes
    settings: adamw.Settings

    def tensors(self, device: str) -> adamw.Tensors:
        """Copies on a device."""
        return adamw.Tensors(
            self.weight.to(device, copy=True),
            tuple(t.to(device, copy=True) for t in self.m.tensors),
            tuple(t.to(device, copy=True) for t in self.v.tensors),
            None if self.start is None else self.start.to(device, copy=True),
        )


def make_case(
    shape: tuple[int, int], master: str = "bf16", m: str = "int8", v: str = "uint8", clip: float | None = None,
    decay: float = 0.0, l2_sp: float = 0.0, seed: int = 0, factor: float = 1.0,
) -> Case:  # fmt: skip
    """Weights of about .02, moments that some steps have left."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * 0.02
    states = []
    for format in (MEAN_FORMATS[m], SQUARE_FORMATS[v]):
        values = torch.randn(shape, generator=generator) * 1e-3
        states.append(new_state(format, shape, torch.device("cpu")))
        store(states[-1], format.encode(values.square() if len(states) == 2 else values))
    weight = weight.bfloat16() if master == "bf16" else weight
    return Case(
        weight,
        states[0],
        states[1],
        weight + torch.randn(shape, generator=generator).to(weight.dtype) * 0.01 if l2_sp else None,
        adamw.Modes(master, m, v, block_width(shape[1]), segment_width(shape[1])),
        adamw.Settings(0.9, 0.95, 1e-8, decay, l2_sp, clip, factor, (0xDEADBEEF, 0x12345678)),
    )


def numbers(lr: float, step: int, update_clip: float | None, settings: adamw.Settings) -> Tensor:
    """See `adamw.NUMBERS`."""
    return adamw.numbers_of(lr, step, (settings.beta1, settings.beta2), update_clip)


def step(case: Case, grad: Tensor, numbers: Tensor, norm: float = 0.0) -> dict[str, float]:
    """Step a case in place; `norm` is that of the gradient. Returns the slots' totals."""
    s, (minus_lr, lr, root_factor, limit) = case.settings, numbers[:4]
    minus_lr, lr, f32 = minus_lr * s.factor, lr * s.factor, torch.float32
    g, w = grad.float(), case.weight.to(f32, copy=True)
    squares = g.double().square().sum().item()
    if s.clip is not None:
        if not math.isfinite(norm):
            return {"squares": math.inf, "elements": 0.0}
        if norm > s.clip:
            g = g * (torch.tensor(s.clip) / torch.tensor(norm))
    mean, square = (state.values.clone() for state in (case.m, case.v))
    mean = mean + torch.tensor(1 - s.beta1, dtype=f32) * (g - mean)
    square = square * torch.tensor(s.beta2, dtype=f32) + torch.tensor(1 - s.beta2, dtype=f32) * (g * g)
    root = square.double().sqrt().float()  # torch's own float32 root is an ulp off on some CPUs
    ratio = mean / (root * root_factor + torch.tensor(s.eps, dtype=f32))
    update = ratio.clamp(-limit, limit) * minus_lr
    if s.decay:
        update = update - w * (lr * torch.tensor(s.decay, dtype=f32))
    if case.start is not None:
        update = update + (case.start.float() - w) * (lr * torch.tensor(s.l2_sp, dtype=f32))
    kept = w + update
    if case.modes.master == "bf16":
        key = step_key(Key(*s.stream), int(numbers[4:].view(torch.int32).item()))
        kept = stochastic_bf16(kept, random_bits(key, 0, kept.shape)).float()
    case.weight.copy_(kept)
    store(case.m, ENCODE[type(case.m.format)](mean))
    store(case.v, (square,) if case.v.format.in_place else ENCODE[type(case.v.format)](root))
    change = (kept - w).double()
    return {
        "realised": (change * update).sum().item(),
        "intended": update.double().square().sum().item(),
        "moved": change.square().sum().item(),
        "largest": ratio.abs().max().item(),
        "clamped": (ratio.abs() > limit).double().sum().item(),
        "squares": squares,
        "amax": kept.abs().max().item(),
        "elements": float(w.numel()),
    }


def compare(case: Case, grad: Tensor, device: str, tuning: adamw.Tuning, steps: int = 2) -> dict[str, float]:
    """Step a case by the kernel and by the twin; returns the share of stored numbers whose bytes differ, by part, the
    furthest that codes of 8 bits lie apart, and the largest relative difference of the slots. Changes the case."""
    tensors = case.tensors(device)
    squares = torch.zeros(adamw.NORM_PROGRAMS, device=device)
    sums = torch.zeros(len(adamw.SLOTS), adamw.programs(grad.numel(), tuning), device=device)
    found: dict[str, float] = {}
    for step_number in range(3, 3 + steps):
        told = numbers(1e-3, step_number, 0.8, case.settings)
        on_device = grad.to(device)
        partials = adamw.sum_squares(on_device, squares)
        norm = partials.cpu().sum().sqrt().item()
        adamw.step(tensors, on_device, case.modes, case.settings, told.to(device), partials, sums, tuning)
        expected = step(case, grad, told, norm)
        totals = adamw.totals(sums.cpu()[None])[0]
        for name, value in expected.items():
            off = 0.0 if totals[name] == value else abs(totals[name] - value) / max(abs(value), 1e-30)
            found[name] = max(found.get(name, 0.0), off)
    pairs = {"weight": (case.weight, tensors.weight)}
    pairs |= {f"m{i}": pair for i, pair in enumerate(zip(case.m.tensors, tensors.m, strict=True))}
    pairs |= {f"v{i}": pair for i, pair in enumerate(zip(case.v.tensors, tensors.v, strict=True))}
    for part, (ours, theirs) in pairs.items():
        theirs = theirs.cpu()
        if (part, case.modes.m) == ("m0", "int8") or (part, case.modes.v) == ("v0", "uint8"):
            found[f"{part} apart"] = (ours.int() - theirs.int()).abs().max().item()
        found[f"{part} differ"] = (
            (ours.view(torch.uint8) != theirs.view(torch.uint8)).view(*ours.shape, -1).any(-1).float().mean().item()
        )
    return found
