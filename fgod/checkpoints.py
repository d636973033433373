"""Where the checkpoints of a training under way lie, artifacts/work/{lineage}/checkpoint-00000120/.

`fgod.train.checkpoint` writes and reads them.
"""

from __future__ import annotations

from pathlib import Path

from fgod.system.files import remove_folder

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
