"""Which device a recipe trains on, and how CUDA is set up so that runs repeat."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fgod.errors import UsageError
from fgod.train.recipe import TrainRecipe

Say = Callable[[str], None]


def choose_device(recipe: TrainRecipe, say: Say) -> torch.device:
    """The device of a recipe; what was chosen is said, and why.

    `auto` is CUDA where the recipe's memory row is that of a GPU and one is there; so the small default run has the
    same bits on machines with and without one.

    Raises:
        UsageError: the recipe wants CUDA and there is none, or debugs what only the CPU's path can.
    """
    there = torch.cuda.is_available()
    if recipe.device == "cuda" and not there:
        raise UsageError("train.device: found 'cuda', but torch sees no CUDA device; expected auto or cpu here")
    if recipe.device == "cpu" or (recipe.memory == "cpu" and recipe.device == "auto"):
        return torch.device("cpu")
    if not there:
        say(f"device: cpu (train.memory is {recipe.memory}, but torch sees no CUDA device: this will be slow)")
        return torch.device("cpu")
    debugging = [words for words in recipe.partial if not words.startswith("master_dtype")]
    if debugging:
        raise UsageError(
            f"train.{debugging[0]}: a debugging mode of the CPU's path; expected train.device: cpu with it"
        )
    name = torch.cuda.get_device_name()
    say(f"device: cuda, {name} (train.device {recipe.device}, train.memory {recipe.memory})")
    return torch.device("cuda", torch.cuda.current_device())


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
