"""Which `Stepper` serves: chosen here alone, by device and model family."""

from __future__ import annotations

from pathlib import Path

import torch

from fgod.errors import UsageError
from fgod.models.architecture import architecture_of
from fgod.nvfp4.folders import read_plain_config
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
        UsageError: no stepper computes this family on this device, or the folder does not fit its config.
    """
    if device.type == "cpu":
        return autograd_stepper(start, recipe, seed, pad, phase)
    config, where = read_plain_config(start), start / "config.json"
    family = architecture_of(config, where)
    if not family.hand_written(config):
        raise UsageError(f"{where}: architectures: found {family.name}, which trains on the CPU alone; expected "
                         "train.device: cpu")  # fmt: skip
    return device_stepper(device, start, recipe, seed, pad, phase, say)
