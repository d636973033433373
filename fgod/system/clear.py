"""Clearing up after kills, only where no command of the project lives, on this machine or another node."""

from __future__ import annotations

from pathlib import Path

from fgod.system import lock
from fgod.system.files import sweep

ENDING_SECS = 5.0
"""Commands of a snakemake that was killed end within this."""


def cleared(at_work: Path, *roots: Path) -> list[str]:
    """`sweep`, unless a command is at work: what it did or why it did nothing, in words.

    Args:
        at_work: the lock that each command shares.
    """
    try:
        with lock.held(at_work, "this folder", ENDING_SECS):
            return sweep(*roots)
    except lock.LockHeldError:
        left = "what killed processes left behind is cleared up by the next snakemake that begins without them"
        return [f"commands of this project are at work, begun by another snakemake (on a cluster?): {left}"]
