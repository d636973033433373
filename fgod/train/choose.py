"""Which `Stepper` serves: chosen here alone, by device and model family."""

from __future__ import annotations

from pathlib import Path

import torch

from fgod.train.autograd import autograd_stepper
from fgod.train.device.ops import Say
from fgod.train.device.trainer import device_stepper
from fgod.train.recipe import TrainRecipe
from fgod.train.stepper import Phase, Stepper


def choose_stepper(
    device: torch.device, start: Path, recipe: TrainRecipe, seed: int, pad: int, phase: Phase, say: Say
) -> Stepper:
    """A stepper of the masters in a folder of plain weights.

    Args:
        seed: of stochastic rounding.
        pad: token id that fills rows up.

    Raises:
        UsageError: the family is not registered, or the folder does not fit its config.
    """
    if device.type == "cpu":
        return autograd_stepper(start, recipe, seed, pad, phase)
    return device_stepper(device, start, recipe, seed, pad, phase, say)
