"""A case of a self-test: one computation, and how far it may be from its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How far one result is from its reference.

    Args:
        what: the result, in words.
        found: the share of numbers whose bits differ, or the relative difference; NaN where a result is not finite.
        most: what is allowed; 0 means the same bits.
    """

    what: str
    found: float
    most: float

    @property
    def ok(self) -> bool:
        return self.found <= self.most  # never true of NaN

    def __str__(self) -> str:
        return f"{self.what} is off by {self.found:.2g}, expected at most {self.most:g}"


@dataclass(frozen=True)
class Case:
    """`run` computes on a device and compares there with the reference.

    Args:
        kernel: what is tested, as people see it: several cases may be of one.
        name: tells the cases of a kernel apart.
    """

    kernel: str
    name: str
    run: Callable[[torch.device], Iterable[Difference]]

    def __str__(self) -> str:
        return f"{self.kernel}, {self.name}"


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """float32 numbers in [-½, ½) by Knuth's multiplicative hash: the same in every version of torch."""
    count = torch.Size(shape).numel()
    hashed = (torch.arange(1, count + 1) * 2654435761 + seed * 40503) % 2**32 * 2246822519 % 2**32
    return (hashed.double() / 2**32 - 0.5).float().reshape(shape)


def bits(tensor: Tensor) -> Tensor:
    """Bytes, on the CPU."""
    return tensor.cpu().contiguous().view(torch.uint8)


def same_bits(what: str, ours: Tensor, theirs: Tensor) -> Difference:
    """The share of numbers whose bytes differ, of which none may; all, where shape or dtype differ."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return Difference(f"{what} ({_kind(ours)} for {_kind(theirs)})", 1.0, 0.0)
    item = theirs.element_size()
    apart = (bits(ours).view(-1, item) != bits(theirs).view(-1, item)).any(-1)
    return Difference(what, apart.double().mean().item(), 0.0)


def near(what: str, ours: Tensor | None, theirs: Tensor | None, most: float) -> Difference:
    """The norm of the difference, relative to that of the reference. None is near to None alone."""
    if ours is None or theirs is None:
        return Difference(what, 0.0 if ours is theirs else 1.0, most)
    if ours.shape != theirs.shape:
        return Difference(f"{what} ({_kind(ours)} for {_kind(theirs)})", math.inf, most)
    reference = theirs.cpu().double()
    return Difference(what, ((ours.cpu().double() - reference).norm() / reference.norm()).item(), most)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
