"""Where the checkpoints of a training under way lie, artifacts/work/{lineage}/checkpoint-00000120/.

`fgod.train.checkpoint` writes and reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgod.layout import Work
from fgod.system.files import read_json, remove_folder

PREFIX = "checkpoint-"


def folders(work: Path) -> list[Path]:
    """Checkpoints in the work folder of a run, oldest first."""
    return sorted(path for path in work.glob(f"{PREFIX}*") if path.is_dir())


def saved_step(work: Path) -> int:
    """After how many steps the newest checkpoint was written; 0 without one."""
    found = folders(work)
    return int(found[-1].name.removeprefix(PREFIX)) if found else 0


def forget(work: Path) -> None:
    """Remove all checkpoints: the run has ended, and its outcome is on record."""
    for folder in folders(work):
        remove_folder(folder)


def gpus(work: Work, recipe: Mapping[str, Any]) -> int:
    """How many GPUs share a run from here on: as `fgod resume` said, else as its recipe (recipe.json) says."""
    if work.gpus.exists():
        return int(read_json(work.gpus)["gpus"])
    return int(recipe["train"].get("gpus", 1))
