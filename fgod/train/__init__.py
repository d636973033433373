"""Full-parameter training of one stage on NVFP4 weights: masters that accumulate, packed moments, and proofs."""

from fgod.train.checkpoint import Schedule
from fgod.train.efficiency import LostUpdatesError
from fgod.train.loop import DIVERGED, TRAINED, Outcome, run
from fgod.train.participation import HoleError
from fgod.train.preflight import PreflightError
from fgod.train.recipe import TrainRecipe
from fgod.train.record import publish

__all__ = [
    "DIVERGED",
    "TRAINED",
    "HoleError",
    "LostUpdatesError",
    "Outcome",
    "PreflightError",
    "Schedule",
    "TrainRecipe",
    "publish",
    "run",
]
