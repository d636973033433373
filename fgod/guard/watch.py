"""The guard's loop: start, read, judge, kill, record."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fgod.files import write_json
from fgod.guard import child, lock
from fgod.guard.limits import KILLED_EXIT, Limits, OverTime
from fgod.guard.phases import PHASES, read_phase
from fgod.guard.samples import WRITE_SECS, Sample, Samples, TableWriter
from fgod.guard.sources import HostMemory, MemorySource
from fgod.guard.tree import KILL_SECS, Member, ProcessTree

LEFTOVER_SECS = 1.0
"""How long processes that the command leaves behind may take to end (multiprocessing's helpers clean up then)."""


@dataclass(frozen=True)
class GuardResult:
    """How the command ended."""

    exit_code: int
    """75 when we killed it, 128 + n when a signal n ended it or us, else its own (which may be 75 too)."""

    killed: bool
    """Whether we killed it for its memory. Only this says so, not the exit code."""

    reason: str
    """One sentence on the kill; empty when we did not kill."""

    peak_mib: float | None
    """Largest reading of the tree; None if it ended before the first one."""

    others_mib: float | None
    """What everybody else on the machine used at that time, if known."""

    phase: str
    """The last phase that was seen."""

    wall_s: float

    left_behind: tuple[str, ...] = ()
    """Processes that the command left running and that we ended, as `number (name)`."""

    survivors: tuple[str, ...] = ()
    """Processes that did not die of SIGKILL in time."""


@dataclass(frozen=True)
class Breach:
    """The reading for which the command is killed."""

    t: float
    source: str
    used_mib: float
    others_mib: float | None
    total_mib: float | None


class Watch:
    """What is known of a running command: its tree, its readings, its phase and its peak."""

    def __init__(self, root: int, limits: Limits, phase_file: Path | None, sources: Sequence[MemorySource]) -> None:
        self.tree = ProcessTree(root)
        self.samples = Samples()
        self.phase = PHASES[0]
        self.peak_mib: float | None = None
        self.others_mib: float | None = None
        self._limits = limits
        self._phase_file = phase_file
        self._timed = [(source, OverTime(limits.limit_mib, limits.over_secs)) for source in sources]
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def poll(self) -> Breach | None:
        """Read all sources once; at a breach the group is dead before anything is written or looked up."""
        t = self.seconds
        members = self.tree.members()
        readings = [(source, source.used_mib(members)) for source, _ in self._timed]
        breach = self._judge(t, readings)
        if breach:
            self.tree.kill_group()
        self.phase = read_phase(self._phase_file)
        for source, used in readings:
            self.samples.add(Sample(t, self.phase, source.name, used, self._limits.limit_mib))
        return breach

    def _judge(self, t: float, readings: Sequence[tuple[MemorySource, float | None]]) -> Breach | None:
        found = None
        for (source, over_time), (_, used) in zip(self._timed, readings, strict=True):
            over = over_time.breached(t, used)
            if used is not None and (over or self.peak_mib is None or used > self.peak_mib):
                self.peak_mib, self.others_mib = max(used, self.peak_mib or 0.0), _others(source, used)
            if over and used is not None and found is None:
                found = Breach(t, source.name, used, self.others_mib, source.total_mib())
        return found


def _others(source: MemorySource, used_mib: float) -> float | None:
    machine = source.machine_mib()
    return None if machine is None else max(machine - used_mib, 0.0)


def run(
    command: Sequence[str],
    limits: Limits,
    table: Path | None = None,
    reason: Path | None = None,
    phase_file: Path | None = None,
    lock_file: Path | None = None,
    sources: Sequence[MemorySource] | None = None,
    write_secs: float = WRITE_SECS,
) -> GuardResult:
    """Run a command under the guard and wait for it, its whole group, and the records.

    Args:
        command: program and arguments; it gets our environment, folder and standard streams, and a session of its own.
        table: guard.tsv; written every `write_secs` and at the end.
        reason: a JSON file that exists afterwards if, and only if, we killed the command for its memory.
        phase_file: where the trainer says its phase (`write_phase`); an old one is removed.
        lock_file: held by us and by the command as long as one of them lives.
        sources: where memory readings come from; host memory of the process tree by default.

    A breach kills the whole tree. SIGHUP, SIGINT, SIGQUIT or SIGTERM to us end it too (exit code 128 + n), and so does
    any exception here. What the command leaves running in its session is ended.

    Raises:
        LockHeldError: another process holds the lock; nothing was started or removed.
        UsageError: the command cannot be started.
        OSError: a record cannot be written; the command has ended all the same.
    """
    used_sources = list(sources) if sources is not None else [HostMemory(limits.limit_mib)]
    with ExitStack() as stack:
        inherit = [stack.enter_context(lock.held(lock_file))] if lock_file else []
        for old in (table, reason, phase_file):
            if old:
                old.parent.mkdir(parents=True, exist_ok=True)
                old.unlink(missing_ok=True)
        signals = stack.enter_context(child.StopSignals())
        process = child.start(command, inherit)
        watch = Watch(process.pid, limits, phase_file, used_sources)
        ended = partial(_ended_after, process, watch.tree)
        with (
            ended(),
            _recorded(table, watch.samples, write_secs),
            ended(),
        ):  # inside too: end it before the table's turn
            breach = _follow(process, watch, limits.poll_secs, signals)
            left, survivors = _end_all(watch.tree, breach is not None or signals.received is not None)
            code = _reap(process)
        # A command that ended by itself just before our signal reached it was not killed by us.
        killed = breach if code in (None, -signal.SIGKILL) else None
        sentence = _sentence(killed, limits, watch.phase) if killed else ""
        if killed and reason:
            write_json(reason, _reason(command, killed, limits, watch.phase, sentence, survivors))
        exit_code = KILLED_EXIT if killed else _exit_code(code, signals.received)
        peak, others = watch.peak_mib, watch.others_mib
        return GuardResult(
            exit_code, killed is not None, sentence, peak, others, watch.phase, watch.seconds, left, survivors
        )


def _follow(
    process: subprocess.Popen[bytes], watch: Watch, poll_secs: float, signals: child.StopSignals
) -> Breach | None:
    """Read at a steady pace until the command ends, breaks its limit, or we are told to stop."""
    handle = os.pidfd_open(process.pid)
    try:
        due = time.monotonic()
        while not signals.wait(handle, due - time.monotonic()) and signals.received is None:
            if breach := watch.poll():
                return breach
            due = max(due + poll_secs, time.monotonic())
        return None
    finally:
        os.close(handle)


def _end_all(tree: ProcessTree, now: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """End the whole tree, `now` or after a moment's grace: those left behind by the command, and survivors."""
    left = [] if now else tree.wait_gone(LEFTOVER_SECS)
    survivors = tree.kill() if now or left else []
    return _names(left), _names(survivors)


def _names(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(map(str, members))


def _reap(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code, negative for a signal; None when the process is stuck in the kernel."""
    try:
        return process.wait(timeout=KILL_SECS)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _ended_after(process: subprocess.Popen[bytes], tree: ProcessTree) -> Iterator[None]:
    """Whatever goes wrong inside, the command does not live on without a guard."""
    try:
        yield
    except BaseException:
        tree.kill()
        _reap(process)
        raise


@contextmanager
def _recorded(table: Path | None, samples: Samples, every_secs: float) -> Iterator[None]:
    if table is None:
        yield
        return
    writer = TableWriter(table, samples, every_secs)
    writer.start()
    try:
        yield
    finally:
        writer.finish()


def _exit_code(code: int | None, received: int | None) -> int:
    if received is not None:
        return 128 + received
    if code is None:
        return 128 + signal.SIGKILL
    return 128 - code if code < 0 else code


def _sentence(breach: Breach, limits: Limits, phase: str) -> str:
    held = f" for {limits.over_secs:g} s" if limits.over_secs else ""
    others = "an unknown amount" if breach.others_mib is None else f"{breach.others_mib:.0f} MiB"
    total = "" if breach.total_mib is None else f" of {breach.total_mib:.0f} MiB"
    return (
        f"The guard killed the command after {breach.t:.1f} s in phase {phase}: {breach.source} was "
        f"{breach.used_mib:.0f} MiB, above the limit of {limits.limit_mib:.0f} MiB ({limits.limit_gb:g} GiB){held}; "
        f"others on the machine used {others}{total}."
    )


def _reason(
    command: Sequence[str], breach: Breach, limits: Limits, phase: str, sentence: str, survivors: Sequence[str]
) -> dict[str, object]:
    return {
        "reason": sentence,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "command": shlex.join(command),
        "phase": phase,
        "t": round(breach.t, 3),
        "source": breach.source,
        "used_mib": round(breach.used_mib, 1),
        "limit_mib": round(limits.limit_mib, 1),
        "over_secs": limits.over_secs,
        "others_mib": None if breach.others_mib is None else round(breach.others_mib, 1),
        "total_mib": None if breach.total_mib is None else round(breach.total_mib, 1),
        "survivors": list(survivors),
    }


def report(result: GuardResult) -> None:
    """Say on standard error what the guard did, if it did anything."""
    lines = [result.reason] if result.killed else []
    if result.left_behind:
        lines.append(f"ended processes that the command left behind: {', '.join(result.left_behind)}")
    if result.survivors:
        lines.append(f"still alive {KILL_SECS:g} s after SIGKILL: {', '.join(result.survivors)}")
    for line in lines:
        print(f"fgod guard: {line}", file=sys.stderr)
