"""Commands that load weights: the command itself starts a child under the guard, and the child does the work.

    fgod probe … --limit-gb 8        checks, starts the child, makes an error of whatever it does not come to
      └─ guard → keeper → fgod probe … --limit-gb 8 --batch 64 --child REPORT        (`fgod.cli.work.worker`)

A child that is killed for its memory while it asks is started again: with one process, if it asked by several, then
with half the batch, down to one prompt at a time. The manifest has every attempt. REPORT is what the child says besides
its outputs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgod.call import say
from fgod.errors import FgodError
from fgod.guard import KILLED_EXIT, PHASES, GuardResult, Limits, report, run
from fgod.system.files import read_json

GpuUse = bool | Literal["if_free"]
"""Whether work computes on a GPU; `if_free`: where one is."""


class KilledError(FgodError):
    """The guard killed the work, with one process and at every batch. Exit code 75."""

    exit_code = KILLED_EXIT


class ChildError(FgodError):
    """The child came to no result: its error, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Attempt:
    """One child. `batch`: prompts at once, 0 for work without one; `processes`: that asked so many each; `phase`: the
    last; `reason`: why it was killed."""

    batch: int
    processes: int
    killed: bool
    phase: str
    reason: str
    exit_code: int
    peak_mib: float | None
    predicted_mib: float | None
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the work found out."""

    @property
    def smaller(self) -> int:
        """The batch to try next, with one process: the same after several, as bits depend on it, else half of it. 0:
        none, as it was not killed, has nothing to halve, or had not asked anything yet."""
        if not self.killed or self.phase == PHASES[0]:
            return 0
        return self.batch if self.processes > 1 else self.batch // 2

    @property
    def at_once(self) -> str:
        """In words, what it asked at once."""
        return f"{self.batch} prompts at once{f' in each of {self.processes} processes' if self.processes > 1 else ''}"

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {key: value for key, value in asdict(self).items() if key != "facts"}


def attempt_all(start: Callable[[int, bool], Attempt], batch: int, say: Callable[[str], None]) -> list[Attempt]:
    """Start with a batch, and after each kill with what is smaller, until one is not killed.

    The last attempt is the one that counts.

    Args:
        start: takes the batch, and whether one process is to ask: else the child takes as many as fit.
    """
    attempts = [start(batch, False)]
    while smaller := attempts[-1].smaller:
        alone = " in one process" if attempts[-1].processes > 1 else ""
        say(f"killed with {attempts[-1].at_once}: it is tried again with {smaller}{alone}")
        attempts.append(start(smaller, True))
    return attempts


def supervise(
    argv: Sequence[str],
    limits: Limits,
    facts: dict[str, Any],
    what: str,
    batch: int = 0,
    gpu: GpuUse = False,
    several: bool = False,
) -> Mapping[str, Any]:
    """Let children do the work of a command line until one is not killed; returns what that one found out.

    Args:
        argv: the command line, without `fgod`.
        limits: of each child.
        facts: of the command's entry in the manifest; it gets the attempts, and what the guard saw of the last.
        what: is done, in words, for messages.
        batch: prompts at once; 0: the work has no batch, and a kill is final.
        gpu: whether it computes on a GPU: then it takes one, which no other such command uses.
            `if_free`: on one that is free now, else on none, and then it sees none.
        several: whether the command takes `--processes`.

    Raises:
        KilledError: it was killed, and neither one process nor a smaller batch helps; says what to change.
        ChildError: the child came to no result for another reason, of its own or not.
    """
    recorded = facts.setdefault("attempts", [])

    def start(size: int, alone: bool) -> Attempt:
        ended, child = _start(argv, limits, size, 1 if alone and several else 0, gpu)
        facts["guard"] = ended.facts()
        attempt = attempt_of(ended, child, size)
        recorded.append(attempt.record())
        return attempt

    attempts = attempt_all(start, batch, lambda text: say(f"fgod: {what}: {text}"))
    check_result(attempts, what)
    return attempts[-1].facts


def _start(
    argv: Sequence[str], limits: Limits, batch: int, processes: int, gpu: GpuUse
) -> tuple[GuardResult, dict[str, Any]]:
    """Let one child work; how it ended, and its report."""
    with tempfile.TemporaryDirectory(prefix="fgod-") as folder:
        found = Path(folder) / "report.json"
        command = child_command(argv, batch, processes, found)
        ended = run(command, limits, phase_file=Path(folder) / "phase", gpus=gpu if gpu == "if_free" else int(gpu))
        child: dict[str, Any] = read_json(found) if found.exists() else {}
    report(ended)
    return ended, child


def child_command(argv: Sequence[str], batch: int, processes: int, report_file: Path) -> list[str]:
    """The same command line, as a child. 0: no batch; as many processes as the command line says."""
    more = {"--batch": batch, "--processes": processes}
    sizes = [word for option, number in more.items() if number for word in (option, str(number))]
    return [sys.executable, "-m", "fgod", *argv, *sizes, "--child", str(report_file)]


def attempt_of(ended: GuardResult, child: Mapping[str, Any], batch: int) -> Attempt:
    """What became of a child, from its end and its report (see `fgod.cli.work.worker`)."""
    refused = child.get("refused", "")
    return Attempt(
        batch=child.get("batch", batch) if batch else 0,
        processes=child.get("processes", 1),
        killed=ended.killed or bool(refused),
        phase=ended.phase,
        reason=ended.reason or refused,
        exit_code=ended.exit_code,
        peak_mib=ended.peak_mib,
        predicted_mib=child.get("predicted_mib"),
        error=child.get("error", ""),
        facts=child.get("facts", {}),
    )


def check_result(attempts: Sequence[Attempt], what: str) -> None:
    """Raise what the last attempt calls for, if it did not succeed (see `supervise`)."""
    last = attempts[-1]
    if last.killed:
        tried = ", ".join(
            f"{attempt.batch} × {attempt.processes} processes" if attempt.processes > 1 else str(attempt.batch)
            for attempt in attempts
        )
        how = f", also with one prompt at a time (tried: {tried})" if last.batch == 1 else ""
        raise KilledError(
            f"{what}: it needs more memory than guard.limit_gb allows{how}. {last.reason} "
            "Raise guard.limit_gb, or use a machine with more memory"
        )
    if last.error:
        seen = f". {last.reason}" if last.reason else ""
        raise ChildError(f"{last.error}{seen}", last.exit_code)
    if last.exit_code:
        how = last.reason or f"It failed with exit code {last.exit_code}, see above."
        raise ChildError(f"{what} came to no result. {how}", last.exit_code)
