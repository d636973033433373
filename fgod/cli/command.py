"""What all subcommands share: a frozen dataclass of its arguments, with what it reads, makes and does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgod.arguments import Input, Output, marked
from fgod.layout import run_of_path
from fgod.manifest import Record


def say(text: str) -> None:
    """For people, on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Call:
    """How a command was called.

    Args:
        argv: the whole command line, without `fgod`.
        plugins: the files that it loaded.
        record: its entry in the manifest; one that is written nowhere for a command that leaves none.
    """

    argv: Sequence[str] = ()
    plugins: Sequence[Path] = ()
    record: Record = field(default_factory=lambda: Record(""))

    def note(self, inputs: Sequence[Path] = (), outputs: Sequence[Path] = (), **facts: Any) -> None:
        """Add to the entry what the command found out on its way."""
        self.record.inputs += inputs
        self.record.outputs += outputs
        self.record.facts |= facts


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand of fgod; its fields are its arguments (`fgod.arguments`)."""

    def run(self, call: Call) -> int | None:
        """Do it; the exit code, None for 0."""
        raise NotImplementedError

    @property
    def recorded(self) -> bool:
        """Whether it leaves an entry in the manifest."""
        return True

    def inputs(self) -> list[Path]:
        """What it reads, as far as its arguments say: those that are an `Input`, and what lies beside them."""
        return _paths(self, Input)

    def outputs(self) -> list[Path]:
        """What it makes or removes: the arguments that are an `Output`, and what lies beside them."""
        return _paths(self, Output)

    def run_of(self) -> tuple[str, str]:
        """Stage and lineage of the run that it is about, both empty where there is none."""
        return run_of_path(next(iter(self.outputs()), Path()))


def _paths(command: Command, mark: type[Input] | type[Output]) -> list[Path]:
    found: list[Path] = []
    for value in marked(command, mark):
        found += [value] if isinstance(value, Path) else value
    return found


class ReadOnly(Command):
    """A command that makes and removes nothing that the manifest is to hold."""

    @property
    def recorded(self) -> bool:
        return False


class Personal(Command):
    """A command that no rule of the workflow calls: it leaves an entry in the folder of a project alone."""

    @property
    def recorded(self) -> bool:
        return Path("Snakefile").is_file()
