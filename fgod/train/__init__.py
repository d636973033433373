"""Full-parameter training of one stage on NVFP4 weights with float32 masters."""

from fgod.train.loop import DIVERGED, TRAINED, Outcome, run
from fgod.train.participation import HoleError
from fgod.train.recipe import TrainRecipe
from fgod.train.record import publish

__all__ = ["DIVERGED", "TRAINED", "HoleError", "Outcome", "TrainRecipe", "publish", "run"]
