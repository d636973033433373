"""The gradient of a rank's rows, from what all ranks computed of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fgod.nvfp4 import kernels


def summed(parts: Tensor, heights: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As `fgod.nvfp4.kernels.sums.sum_parts`, of which this is the definition; by its kernel where that runs."""
    if kernels.run_on(parts.device):
        from fgod.nvfp4.kernels import sums

        return sums.sum_parts(parts, heights)
    total = parts.sum(0, dtype=torch.float32)
    return total, torch.stack([squares_of(one) for one in total.split(list(heights))])


def squares_of(grad: Tensor) -> Tensor:
    """Σ g², float32 without dimensions."""
    return torch.linalg.vector_norm(grad, dtype=torch.float32).square()
