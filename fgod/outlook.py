"""What a run will cost: the disk that its artifacts take, and how long its trainings are. Imports no torch.

Disk follows from the shapes of the base and the number formats of the stages. Time follows from trainings on record, or
from a measured speed (`fgod doctor`). All sizes are bytes, all times seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgod import layout
from fgod.documents import Outcome
from fgod.errors import FgodError, UsageError
from fgod.exporters.names import NVFP4
from fgod.models.names import BLOCK
from fgod.sizes import BF16, FLOAT32, BaseSizes, base_sizes
from fgod.system.files import read_json
from fgod.train.recipe import TrainRecipe

GIB = 2**30

STATE_BYTES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "int8": 1 + 4 / 64,
    "uint8": 1 + 4 / 64,
    "nvfp4": 1 / 2 + 1 / 16 + 4 / 512,
}
"""A parameter's state on disk, by its format, as of a wide matrix (`fgod.train.storage`, which imports torch)."""

NVFP4_BYTES = 1 / 2 + 1 / BLOCK
"""A quantised weight of an export: its code and its part of a block scale."""

CHECKPOINTS = 3
"""Of a training: two are kept, while a third is written (`fgod.train.checkpoint.KEPT`)."""

LIKE_NVFP4 = ("nvfp4", "nvfp4-head", "modelopt", "gguf", "dat")
"""Formats of a release that are as large as an NVFP4 export, or smaller. A weight of any other has 2 bytes at most."""

TOKEN_BYTES, LABEL_BYTES = 8, 4
"""Of the base's distribution at a label, and of one of its tokens there (`fgod.train.teacher`, which imports torch)."""


@dataclass(frozen=True)
class Disk:
    """Bytes that are put on the disk.

    Args:
        base: the base's own folder and its export.
        stages: masters and exports of the stages.
        work: checkpoints of the one training of a chain that is under way; they are removed when it ends.
        teacher: distributions of the base at most.
        release: what is released.
    """

    base: int
    stages: int
    work: int
    teacher: int
    release: int

    @property
    def total(self) -> int:
        return self.base + self.stages + self.work + self.teacher + self.release


def disk_of(
    config: Mapping[str, Any], base: BaseSizes, stages: Collection[str] | None = None, with_base: bool = True
) -> Disk:
    """What a checked config's first fit needs. A refit adds the stages that it trains again.

    Args:
        stages: those that are still to be trained; None: all.
        with_base: the base is still to be made.
    """
    made = [one for one in config["stages"] if stages is None or one["name"] in stages]
    recipes = [TrainRecipe.from_dict(stage["train"]) for stage in made]
    dtypes = [stage["train"]["compute_dtype"] for stage in config["stages"]]
    saved = config["checkpoint"]["secs"] > 0 or config["checkpoint"]["steps"] > 0
    formats = {NVFP4, *config.get("release", {}).get("formats", ())} if made else set()
    return Disk(
        base=base.stored * base.parameters + export_bytes(base, dtypes[0]) if with_base else 0,
        stages=sum(master_bytes(base, one) + export_bytes(base, one.compute_dtype) for one in recipes),
        work=max((CHECKPOINTS * checkpoint_bytes(base, one) for one in recipes), default=0) if saved else 0,
        teacher=sum(_teacher(config, stage) for stage in made),
        release=sum(
            export_bytes(base, dtypes[-1]) if name in LIKE_NVFP4 else BF16 * base.parameters for name in formats
        ),
    )


def master_bytes(base: BaseSizes, recipe: TrainRecipe) -> int:
    """Of a stage's master folder."""
    return base.parameters * (FLOAT32 if recipe.master_dtype == "fp32" else BF16)


def export_bytes(base: BaseSizes, dtype: str) -> int:
    """Of an NVFP4 export that computes in this dtype."""
    plain = FLOAT32 if dtype == "float32" else BF16
    return int(base.quantised * NVFP4_BYTES) + (base.parameters - base.quantised) * plain


def checkpoint_bytes(base: BaseSizes, recipe: TrainRecipe) -> int:
    """Of one checkpoint. A plugin's format counts as float32."""
    states = sum(STATE_BYTES.get(name, 4.0) for name in (recipe.m_dtype, recipe.v_dtype))
    return master_bytes(base, recipe) + int(base.parameters * states)


def _teacher(config: Mapping[str, Any], stage: Mapping[str, Any]) -> int:
    """At most, of a stage that rehearses by the base's distributions."""
    if not stage["train"].get("kl"):
        return 0
    recipe = TrainRecipe.from_dict(stage["train"])
    assert recipe.kl is not None
    labels = stage["mix"].get("rows", 0) * recipe.seq_len  # of all rows, as if all were answer
    most = int(config["data"]["teacher_gb"] * GIB)
    return min(labels * (recipe.kl.top_k * TOKEN_BYTES + LABEL_BYTES), most) if labels else most


# ---------------------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Time:
    """Seconds of a training, and how they are known, in words."""

    seconds: float
    source: str


def recorded(stage: str, recipe: TrainRecipe, results: Path = layout.RESULTS) -> Time | None:
    """How long a stage will train by the record: as its newest run with a batch of this kind, in proportion to steps.

    None where there is no such run.

    Raises:
        FgodError: a record was edited; names the file.
    """
    newest = sorted(layout.recipes(stage, results), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest:
        outcome = layout.RunRecords(path.parent).outcome
        if outcome.exists() and _alike(read_json(path), recipe):
            ended = Outcome.read(outcome)
            if ended.status == "trained" and ended.wall_s and ended.steps_done and not ended.resumed_at:
                return Time(ended.wall_s / ended.steps_done * recipe.steps, f"as {stage} {path.parent.name} took")
    return None


TIMED = ("batch", "batching", "seq_len", "micro_batch", "compute_dtype", "threads", "device", "memory", "optimizer")
"""Keys of a recipe that a step's time hangs on."""


def _alike(found: Mapping[str, Any], recipe: TrainRecipe) -> bool:
    """Whether a recorded run's steps take as long; no interpolated run has any."""
    ours = recipe.to_dict()
    return "interpolate" not in found and all(found["train"].get(key) == ours.get(key) for key in TIMED)


def hours(seconds: float) -> str:
    """`2.5 h`, `12 min`, `under a minute`."""
    if seconds < 60:
        return "under a minute"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """`1.2 GiB`, `35 MiB`."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{max(count / 2**20, 0.1):.1f} MiB"


@dataclass
class Counted:
    """Disk that a plan of several chains has counted. They share bases alone: as they train side by side, each has
    checkpoints of its own."""

    bases: set[str] = field(default_factory=set)

    def rest(self, base_id: str, needed: Disk) -> int:
        """What a further chain puts there beside that, which is counted from then on."""
        shared = needed.base if base_id in self.bases else 0
        self.bases.add(base_id)
        return needed.total - shared


def said(
    config: Mapping[str, Any], base_id: str, trains: Sequence[tuple[str, TrainRecipe]], counted: Counted | None = None
) -> Iterator[str]:
    """What `fgod plan` adds: the time of the trainings that are to come, and what they put on the disk.

    Args:
        trains: stage and recipe of each run that is to be trained.
        counted: by the chains that were said before.
    """
    if not trains:
        return
    try:
        yield _training_time(trains)
    except FgodError as error:
        yield f"How long training takes is not known: {error}"
    try:
        base = base_sizes(config["base"])
    except UsageError as error:
        yield f"How much disk it takes is not known: {error}"
        return
    needed = disk_of(config, base, {stage for stage, _ in trains}, not layout.base(base_id).stamp.exists())
    counted = Counted() if counted is None else counted
    beside = " beside what is counted above" if counted.bases else ""
    rest = counted.rest(base_id, needed)
    free = shutil.disk_usage(".").free
    yield f"That takes about {size(rest)} of disk{beside}; {size(free)} are free."


def _training_time(trains: Sequence[tuple[str, TrainRecipe]]) -> str:
    times = {stage: recorded(stage, recipe) for stage, recipe in trains}
    known = [time.seconds for time in times.values() if time is not None]
    missing = ", ".join(stage for stage, time in times.items() if time is None)
    if not known:
        return f"No speed is on record of {missing}: `fgod doctor` measures it."
    rest = f", without {missing}, of which nothing is on record (`fgod doctor` measures it)" if missing else ""
    return f"Training takes about {hours(sum(known))} by the record{rest}; answers, exports and probes come on top."
