"""What a job asks of a cluster: memory of the host, and minutes. The rules hand it to Snakemake as mem_mb and runtime.

The guard of a job sees the limit of its allocation, and ends what would pass it before the kernel does. So too little
memory makes a run `killed` that would have fitted: what is asked for is what is predicted and a reserve. GPU memory
cannot be asked for; a partition or a constraint says which kind of GPU it is to be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from fgod import outlook
from fgod.errors import UsageError
from fgod.guard.limits import MIB_PER_GB
from fgod.sizes import BaseSizes, base_sizes
from fgod.system.files import canonical_json
from fgod.system.procfs import MIB
from fgod.train.recipe import TrainRecipe

AROUND_MB = 1024
"""What runs beside a command and its child: two snakemake, guard and keeper."""

PROCESS_MB = {"cpu": 1024, "cuda": 4096}
"""Python, torch and its libraries in a process, by the device that it computes on: CUDA's take more."""

COPIES = {"cpu": 3, "cuda": 2}
"""Times that a command which asks or exports has the weights in the memory of the host at once, by the device: itself,
the base and what answers take on a CPU; what is read and pinned before it goes to a GPU."""

RESERVE = 1.25
"""Times the predicted memory of a training."""

UNKNOWN_MINUTES = 240
"""Of a training, where the record has none like it."""

LATE, START_MINUTES = 1.5, 10
"""Times what a training like it took, and as long besides, for loading, another node, checkpoints."""


class Needs:
    """What the jobs of a checked config need."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.most_mb: int = math.ceil(config["guard"]["limit_gb"] * MIB_PER_GB) + AROUND_MB
        """What the guard allows, so that more would be of no use."""
        self._base = config["base"]
        self._known_mb: dict[str, int] = {}

    def asking_mb(self, device: str) -> int:
        """Of a command on a device that asks or exports a model, or makes the base."""
        if device not in self._known_mb:
            self._known_mb[device] = self._asking_mb(device)
        return self._known_mb[device]

    def _asking_mb(self, device: str) -> int:
        base = self._sizes()
        if base is None:
            return self.most_mb
        weights = base.parameters * 4 / MIB  # float32, whatever is stored
        return min(math.ceil(PROCESS_MB[device] + COPIES[device] * weights) + AROUND_MB, self.most_mb)

    def training_mb(self, train: Mapping[str, Any], attempt: int) -> int:
        """Of a training by a recipe's `train`; half as much again with each attempt. Imports torch."""
        text = canonical_json(train)
        if text not in self._known_mb:
            self._known_mb[text] = self._training_mb(TrainRecipe.from_dict(train))
        return math.ceil(self._known_mb[text] * (1 + attempt) / 2)

    def _training_mb(self, recipe: TrainRecipe) -> int:
        base = self._sizes()
        if base is None:
            return self.most_mb
        if recipe.device == "cuda":
            return self.asking_mb("cuda")
        return min(math.ceil(RESERVE * predicted_mib(base, recipe)) + AROUND_MB, self.most_mb)

    def _sizes(self) -> BaseSizes | None:
        try:
            return base_sizes(self._base)
        except UsageError:  # its weights are elsewhere: the command says so
            return None

    def training_minutes(self, stage: str, train: Mapping[str, Any], attempt: int) -> int:
        """Of a training: what the newest one like it took, and a reserve; as long again with each attempt."""
        pace = _seconds_a_step(stage, canonical_json({**train, "lr": 1.0}))  # trainings at any rate are like it
        known = None if pace is None else LATE * pace * train["steps"] / 60 + START_MINUTES
        return math.ceil(known or UNKNOWN_MINUTES) * attempt


@cache
def _seconds_a_step(stage: str, text: str) -> float | None:
    recipe = TrainRecipe.from_dict(json.loads(text))
    known = outlook.recorded(stage, recipe)
    return None if known is None else known.seconds / recipe.steps


def predicted_mib(base: BaseSizes, recipe: TrainRecipe) -> float:
    """What a training on a CPU is predicted to take."""
    import torch

    from fgod.train.stage import prediction

    rows, width = recipe.micro_batch or recipe.batch, recipe.seq_len
    device, process = torch.device("cpu"), PROCESS_MB["cpu"] * MIB
    return prediction(base.config, recipe, device, rows, width, rows * width // 2, process).total / MIB
