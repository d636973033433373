"""Which device a recipe trains on, and how CUDA is set up so that runs repeat."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fgod.errors import UsageError
from fgod.system.procfs import cpu_info
from fgod.train.recipe import TrainRecipe

Say = Callable[[str], None]


def choose_device(recipe: TrainRecipe, say: Say) -> torch.device:
    """The device that a recipe names.

    Raises:
        UsageError: the recipe wants CUDA and there is none, or debugs what only the CPU's path can.
    """
    if recipe.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(
            "train.device: found 'cuda', but torch sees no CUDA device; expected a machine that has one, or "
            "train.device: cpu, which is another recipe with other bits"
        )
    if recipe.debugging:
        raise UsageError(
            f"train.{recipe.debugging[0]}: a debugging mode of the CPU's path; expected train.device: cpu with it"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    say(f"device: {torch.cuda.get_device_name(device)}")
    return device


def processor(device: torch.device) -> str:
    """What computes on a device, as far as bits depend on it: the name of the GPU; or the level of instructions by
    which torch chooses its CPU kernels, and the maker of the CPU, by whom MKL chooses its own: AVX512 AuthenticAMD."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} {cpu_info('vendor_id')}".strip()


@contextmanager
def repeatable_cuda(device: torch.device) -> Iterator[None]:
    """Kernels that give the same bits every time, and float32 products in float32. cuBLAS reads its variable once, when
    a process first multiplies."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = kept
