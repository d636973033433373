"""What all subcommands share: a frozen dataclass of its arguments, with what it reads, makes and does."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fgod.arguments import HIDDEN, Input, Option, Output, PositiveInt, marked
from fgod.call import Call
from fgod.errors import UsageError
from fgod.guard.limits import Limits
from fgod.layout import run_of_path

if TYPE_CHECKING:
    from fgod.cli.work.supervise import GpuUse
    from fgod.cli.work.worker import Work


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A subcommand of fgod; its fields are its arguments (`fgod.arguments`)."""

    @abstractmethod
    def run(self, call: Call) -> int | None:
        """Do it; the exit code, None for 0."""

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


def is_project() -> bool:
    """Whether the current folder is a project, which has a manifest."""
    return Path("Snakefile").is_file()


def check_new(out: Path) -> None:
    """Raise UsageError if there is something that would be overwritten."""
    if out.exists():
        raise UsageError(f"{out}: this folder exists; expected a new name (nothing is overwritten)")


class ReadOnly(Command):
    """A command that makes and removes nothing that the manifest is to hold."""

    @property
    def recorded(self) -> bool:
        return False


class Personal(Command):
    """A command that no rule of the workflow calls: it leaves an entry in the folder of a project alone."""

    @property
    def recorded(self) -> bool:
        return is_project()


@dataclass(frozen=True, kw_only=True)
class Guarded(Command):
    """A command that loads weights: `run` starts children under the guard, each of which does its `work`."""

    guard: Limits
    too_large_ok: Annotated[bool, Option("start also where more is predicted than the limit")] = False
    child: Annotated[Path | None, Option(HIDDEN, "REPORT")] = None

    @abstractmethod
    def work(self) -> Work:
        """What the child does; the modules that it needs are imported, and belong to the memory that it starts with."""

    def supervised(self, call: Call, what: str, batch: int = 0, gpu: GpuUse = False) -> Mapping[str, Any]:
        """Let children work until one is not killed; what that one found out (see `fgod.cli.work.supervise`)."""
        from fgod.cli.work.supervise import supervise

        return supervise(call.argv, self.guard, call.record.facts, what, batch, gpu, isinstance(self, SideBySide))


@dataclass(frozen=True, kw_only=True)
class Batched(Guarded):
    """A command that asks prompts in batches."""

    batch: Annotated[
        PositiveInt | None,
        Option("prompts at once (default: as configured); after kills it is tried again with fewer"),
    ] = None

    @property
    def at_once(self) -> int:
        """Prompts at once for a child, which is always told.

        Raises:
            UsageError: it was not.
        """
        if self.batch is None:
            raise UsageError("--child: expected --batch beside it")
        return self.batch


@dataclass(frozen=True, kw_only=True)
class SideBySide(Batched):
    """A command that asks several batches side by side on a CPU."""

    processes: Annotated[
        PositiveInt | None,
        Option("processes that ask a batch each on a CPU (default: the cores that it may use); same bytes"),
    ] = None

    @property
    def most_processes(self) -> int:
        """Processes that may ask."""
        return self.processes or len(os.sched_getaffinity(0))
