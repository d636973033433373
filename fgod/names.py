"""The name of a run as people write it: STAGE@LINEAGE. Imports nothing of this package."""

from __future__ import annotations

from pathlib import Path

AT = "@"


def run_name(stage: str, lineage: str) -> str:
    """`STAGE@LINEAGE`."""
    return f"{stage}{AT}{lineage}"


def name_of_folder(folder: Path) -> str:
    """The name of the run whose records or weights lie in a folder STAGE/LINEAGE."""
    return run_name(folder.parent.name, folder.name)


def parts_of(name: str) -> tuple[str, str]:
    """Stage and lineage of a name; the lineage is empty where it has none."""
    stage, _, lineage = name.partition(AT)
    return stage, lineage
