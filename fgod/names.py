"""Names as people write them: a run's, STAGE@LINEAGE, and a subcommand's. Imports nothing of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

AT = "@"

GROUPS: Mapping[str, str] = {
    "answers": "ask the base",
    "data": "mixes, audits, identity files",
    "manifest": "what commands did",
}
"""Help of the words that stand before those of several subcommands."""


def subcommand(arguments: Sequence[str]) -> str:
    """The words that name a subcommand at the beginning of its command line: `data mix`."""
    return " ".join(arguments[: 2 if arguments[:1] and arguments[0] in GROUPS else 1])


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
