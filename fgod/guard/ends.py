"""How a command ended, and the one sentence that says so. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum

from fgod.guard.limits import KILLED_EXIT, MIB_PER_GB, Limits


class End(StrEnum):
    """How a command ended."""

    OWN = "own"
    """By itself, with its own exit code."""

    MEMORY = "memory"
    """Killed by the guard above the limit: the one end that says something about the run, and so becomes a verdict."""

    STALLED = "stalled"
    """Ended by the guard for want of a heartbeat."""

    BLIND = "blind"
    """Ended by the guard because memory could not be read any more."""

    SIGNALLED = "signalled"
    """Ended because the guard itself received a stop signal."""

    OOM = "oom"
    """Killed by the kernel for want of memory."""

    EXTERNAL = "external"
    """Ended by a signal that was not the guard's."""

    CRASHED = "crashed"
    """Ended by a signal that a program gets for its own fault."""


ENDED_BY_US = frozenset({End.STALLED, End.BLIND})
"""Errors that have no exit code of their own: 1."""

CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
)


@dataclass(frozen=True)
class Action:
    """Why the guard ends a command: MEMORY, STALLED or BLIND, and the reading at the time (MiB, seconds)."""

    end: End
    t: float
    source: str
    used_mib: float | None = None
    limit_mib: float = 0.0
    others_mib: float | None = None
    total_mib: float | None = None


@dataclass(frozen=True)
class OomKills:
    """How many processes the kernel has killed for want of memory; None: it does not say."""

    group: int | None
    machine: int | None

    def since(self, before: OomKills) -> OomKills:
        return OomKills(_risen(before.group, self.group), _risen(before.machine, self.machine))


def _risen(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def signal_of(code: int | None) -> int | None:
    """The signal that ended a command (exit code below 0) or, as its shell says (128 + n), a process that it ran."""
    if code is None:
        return None
    if code < 0:
        return -code
    return next((int(s) for s in (signal.SIGKILL, signal.SIGTERM) if code == 128 + s), None)


def classify(action: Action | None, code: int | None, received: int | None, oom: OomKills) -> End:
    """How the command ended.

    Args:
        action: why the guard killed it, if it did; one that had ended just before was not killed by us.
        code: exit code, negative for a signal; None when it is stuck in the kernel.
        received: the signal that the guard was sent.
        oom: kills by the kernel while it ran.
    """
    if action and code in (None, -signal.SIGKILL):
        return action.end
    if received is not None:
        return End.SIGNALLED
    if code == 0:
        return End.OWN
    number = signal_of(code)
    if oom.group or (number == signal.SIGKILL and oom.machine):
        return End.OOM
    if number in CRASHES:
        return End.CRASHED
    return End.OWN if number is None else End.EXTERNAL


def exit_code(end: End, code: int | None, received: int | None) -> int:
    """The guard's own: 75, 1, 128 + a signal's number, or the command's."""
    if end is End.MEMORY:
        return KILLED_EXIT
    if end in ENDED_BY_US:
        return 1
    if end is End.SIGNALLED and received is not None:
        return 128 + received
    if code is None:
        return 128 + signal.SIGKILL
    return 128 - code if code < 0 else code


def sentence(
    end: End, action: Action | None, limits: Limits, phase: str, code: int | None, received: int | None, oom: OomKills
) -> str:
    """Why it ended, in one sentence; empty where it ended by itself."""
    seconds = f" after {action.t:.1f} s in phase {phase}" if action else f" in phase {phase}"
    match end:
        case End.MEMORY if action:
            return f"The guard killed the command{seconds}: {_reading(action, limits)}."
        case End.STALLED:
            return f"The guard ended the command{seconds}: it gave no heartbeat for {limits.stall_secs:g} s."
        case End.BLIND if action:
            return f"The guard ended the command{seconds}: the memory of {action.source} could not be read any more."
        case End.SIGNALLED:
            killed = code in (None, -signal.SIGKILL)
            then = f"which it killed after {limits.grace_secs:g} s at most" if killed else "which ended by itself"
            return f"The guard received {_name(received)}{seconds} and passed it on to the command, {then}."
        case End.OOM:
            return f"The kernel's out-of-memory killer ended the command{seconds} ({_oom(oom)})."
        case End.EXTERNAL | End.CRASHED:
            number = signal_of(code)
            return f"The command was ended{seconds} by {_name(number)}, which the guard did not send."
    return ""


def _reading(action: Action, limits: Limits) -> str:
    held = f" for {limits.over_secs:g} s" if limits.over_secs else ""
    others = "an unknown amount" if action.others_mib is None else f"{action.others_mib:.0f} MiB"
    total = "" if action.total_mib is None else f" of {action.total_mib:.0f} MiB"
    return (
        f"{action.source} was {action.used_mib:.0f} MiB, above the limit of {action.limit_mib:.0f} MiB "
        f"({action.limit_mib / MIB_PER_GB:.4g} GiB){held}; others on the machine used {others}{total}"
    )


def _name(number: int | None) -> str:
    known = {int(s): s.name for s in signal.Signals}
    return "a signal" if number is None else known.get(number, f"signal {number}")


def _oom(oom: OomKills) -> str:
    known = [(oom.group, "in its control group"), (oom.machine, "on this machine")]
    return ", ".join(f"{count} killed {where} meanwhile" for count, where in known if count)


def came_back_sentence(freed_mib: float, expected_mib: float, secs: float, users: str) -> str:
    """What is said when memory did not come back after a kill."""
    named = f"; it is still used by {users}" if users else ""
    return f"only {max(freed_mib, 0):.0f} of {expected_mib:.0f} MiB came back within {secs:g} s{named}"
