"""fgod guard --limit-gb 108 --over-secs 0 --poll-secs 0.05 [--table F --reason F …] -- python train.py"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fgod.arguments import Option, Output, words_of
from fgod.guard.limits import Limits

if TYPE_CHECKING:
    from fgod.guard.watch import GuardResult

TOO_LARGE_OK, RANK_SECS = "too_large_ok", "rank_secs"
"""The config's keys that are no limits. The first is for all that predict their memory; the second for the trainer
alone, to which its rule gives it."""


def options(guard: Mapping[str, Any]) -> str:
    """The config's key `guard` as options of the command line; what has its default, or is null, is left out.

    Raises:
        UsageError: a value is out of its range, or they do not go together.
    """
    others = (TOO_LARGE_OK, RANK_SECS)
    limits = Limits(**{key: value for key, value in guard.items() if value is not None and key not in others})
    return shlex.join([*words_of(limits), *(["--too-large-ok"] if guard.get(TOO_LARGE_OK) else [])])


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Arguments of `fgod guard`."""

    limits: Limits
    table: Annotated[Path | None, Output("write the readings here (guard.tsv)")] = None
    reason: Annotated[Path | None, Output("write here why the command ended, if not by itself (JSON)")] = None
    phase_file: Annotated[Path | None, Option("where the command says what it is doing: its heartbeat")] = None
    lock: Annotated[Path | None, Option("lock file: no second command runs while this one lives")] = None
    lock_gpu: Annotated[bool, Option("no second such command on the same GPUs")] = False
    record: Annotated[bool, Option("leave an entry in results/manifest.d, also where this folder is no project")] = (
        False
    )
    command: Annotated[tuple[str, ...], Option("the command to run", "-- CMD …", positional=True, rest=True)]

    def ended(self) -> GuardResult:
        """Run the command and say on standard error what the guard did.

        Raises:
            UsageError: a command that cannot be started.
            LockHeldError: a lock is held.
            BlindError: memory cannot be read.
            OccupiedError: others use too much of the GPU.
        """
        from fgod.guard.watch import report, run  # options alone need none of it

        command = self.command[1:] if self.command[:1] == ("--",) else self.command
        gpus: int | Literal["all"] = "all" if self.lock_gpu else 0
        result = run(command, self.limits, self.table, self.reason, self.phase_file, self.lock, gpus=gpus)
        report(result)
        return result
