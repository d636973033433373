"""The guard's loop: look, start, read, judge, kill, record."""

from __future__ import annotations

import math
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fgod.guard import cap, cgroup, child, cuda, ends, others, phases, pools
from fgod.guard.child import Child
from fgod.guard.ends import Action, End, OomKills
from fgod.guard.limits import MIB_PER_GB, Limits, Stall
from fgod.guard.others import Taken
from fgod.guard.phases import PhaseReader
from fgod.guard.pools import Pool, Reading
from fgod.guard.samples import WRITE_SECS, Sample, Samples, TableWriter
from fgod.guard.sources import named_users
from fgod.system import lock, terminal
from fgod.system.files import write_json
from fgod.system.process import KILL_SECS, Member, ProcessTree, kill_all
from fgod.system.times import now_iso

LEFTOVER_SECS = 1.0
"""How long processes that the command leaves behind may take to end (multiprocessing's helpers clean up then)."""

RETURN_SECS = 2.0
"""How long a GPU may take to get the memory of killed processes back."""

GpuCount = int | Literal["all", "if_free"]
"""How many GPUs a command takes for itself."""

RETURN_SHARE = 0.5
"""Part of their memory that must be back then; others come and go meanwhile."""


@dataclass(frozen=True)
class GuardResult:
    """How the command ended."""

    exit_code: int
    """75 when it was killed for its memory, 1 when we ended it for another reason, 128 + n when a signal n ended it or
    us, else its own (which may be 75 too)."""

    end: End

    reason: str
    """One sentence; empty when the command ended by itself."""

    peak_mib: float | None
    """Largest reading of a pool; None if it ended before the first one."""

    others_mib: float | None
    """What everybody else used of the same pool at that time, if known."""

    phase: str
    """The last phase that was seen."""

    wall_s: float

    left_behind: tuple[str, ...] = ()
    """Processes that the command left running and that we ended, as `number (name)`."""

    survivors: tuple[str, ...] = ()
    """Processes that did not die of SIGKILL in time."""

    events: tuple[str, ...] = ()
    """What else is to be known: sight lost, memory that did not come back."""

    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that were its alone."""

    @property
    def killed(self) -> bool:
        """Whether it was ended for its memory: only then the end says something about the run."""
        return self.end is End.MEMORY

    def facts(self) -> dict[str, object]:
        """For the manifest."""
        return {
            "end": self.end,
            "reason": self.reason,
            "phase": self.phase,
            "peak_mib": _rounded(self.peak_mib),
            "others_mib": _rounded(self.others_mib),
            "left_behind": list(self.left_behind),
            "survivors": list(self.survivors),
            "events": list(self.events),
            "gpus": list(self.gpus),
        }


class Watch:
    """What is known of a running command: its tree, its readings, its phase and its peak."""

    def __init__(
        self,
        tree: ProcessTree,
        limits: Limits,
        watched: Sequence[Pool],
        phase_file: Path | None,
    ) -> None:
        self.tree = tree
        self.samples = Samples()
        self.peak_mib: float | None = None
        self.others_mib: float | None = None
        self.pools = watched
        self._blind_ok = limits.blind_ok
        self._phases = PhaseReader(phase_file)
        self._stall = Stall(limits.stall_secs)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def phase(self) -> str:
        return self._phases.phase

    def poll(self) -> Action | None:
        """Read all pools once; at a breach every known process is dead before anything is written or looked up."""
        t = self.seconds
        members = self.tree.watched()
        readings = [(pool, pool.read(t, members)) for pool in self.pools]
        action = self._judge(t, readings)
        if action:
            kill_all(members)
        self._phases.read()
        for pool, reading in readings:
            self.samples.add(Sample(t, self.phase, reading.source, reading.used_mib, pool.limit_mib))
        if action is None and self._stall.stalled(t, self._phases.beat):
            action = Action(End.STALLED, t, "")
        return action

    def _judge(self, t: float, readings: Sequence[tuple[Pool, Reading]]) -> Action | None:
        found = None
        for pool, reading in readings:
            used = reading.used_mib
            over = pool.over.breached(t, used)
            if used is not None and (over or self.peak_mib is None or used > self.peak_mib):
                self.peak_mib, self.others_mib = max(used, self.peak_mib or 0.0), pool.others_mib(used)
            if over and used is not None and found is None:
                total = pool.source.total_mib()
                found = Action(End.MEMORY, t, reading.source, used, pool.limit_mib, self.others_mib, total)
            if reading.blind and not self._blind_ok and found is None:
                found = Action(End.BLIND, t, pool.name)
        return found

    @property
    def events(self) -> tuple[str, ...]:
        return tuple(event for pool in self.pools for event in pool.events)


def run(
    command: Sequence[str],
    limits: Limits,
    table: Path | None = None,
    reason: Path | None = None,
    phase_file: Path | None = None,
    lock_file: Path | None = None,
    locks: Sequence[int] = (),
    watched: Sequence[Pool] | None = None,
    write_secs: float = WRITE_SECS,
    gpus: GpuCount = 0,
) -> GuardResult:
    """Run a command under the guard and wait for it, all its descendants, and the records.

    Args:
        command: program and arguments; it gets our environment, folder and standard streams, and a session of its own.
        table: guard.tsv; written every `write_secs` and at the end.
        reason: a JSON file that exists afterwards if, and only if, the command did not end by its own exit.
        phase_file: where the trainer says its phase (`write_phase`), which is its heartbeat too; an old one is removed.
        lock_file: held by us and by the command as long as one of them lives.
        locks: descriptors of more locks, held by the caller, which the command holds too while it lives.
        watched: the pools of memory; those of this machine by default.
        gpus: how many of the visible GPUs are the command's alone: no second one that asks for GPUs gets them. Where
            there are more, the command sees these alone, and the guard watches no other. `if_free`: one that is free
            now, else none, and then it sees none.

    A breach kills the whole tree. SIGHUP, SIGINT, SIGQUIT or SIGTERM to us go on to the command, which has
    `limits.grace_secs` to end by itself; then its tree is killed (exit code 128 + n). Any exception here kills the tree
    at once, and so does our own death by any signal. What the command leaves running is ended.

    Raises:
        LockHeldError: another process holds a lock; nothing was started or removed.
        BlindError: a pool cannot be read, and `blind_ok` is not set; nothing was started.
        OccupiedError: others use too much of a GPU; nothing was started.
        UsageError: the command cannot be started.
        KeeperLostError: our helper was killed, and the command with it.
        OSError: a record cannot be written; the command has ended all the same.
    """
    with ExitStack() as stack:
        inherit = [*locks, *([stack.enter_context(lock.held(lock_file))] if lock_file else [])]
        known = list(watched) if watched is not None else pools.of_this_machine(limits)
        known, taken = _allowed(known, limits, gpus, stack)
        inherit += taken.locks
        _clear(table, reason, phase_file)
        if phase_file is None and limits.stall_secs:
            phase_file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgod-guard-"))) / "phase"
        signals = stack.enter_context(child.StopSignals())
        stack.enter_context(child.subreaper())
        before = _oom_kills()
        process = child.start(command, _environment(known, phase_file, taken), inherit)
        stack.callback(process.close)
        signals.watch(process)
        watch = Watch(ProcessTree(process.keeper, keeper=True), limits, known, phase_file)
        with (
            _tree_killed_on_error(watch.tree),
            _recorded(table, watch.samples, write_secs),
            _tree_killed_on_error(watch.tree),
        ):
            # ended inside too: before the table's turn
            action = _follow(process, watch, limits, signals)
            left, survivors = _end_all(watch.tree, action is not None or signals.received is not None)
            code = process.wait(KILL_SECS)
        result = _result(watch, limits, action, code, signals.received, _oom_kills().since(before), left, survivors)
        result = replace(result, gpus=taken.uuids)
        if result.reason and reason:
            write_json(reason, _reason(command, result, action, limits))
        return result


def _allowed(known: Sequence[Pool], limits: Limits, gpus: GpuCount, stack: ExitStack) -> tuple[list[Pool], Taken]:
    """See that the pools can be read, take GPUs, and see that others leave room there: the pools to watch."""
    for line in pools.require_sight(known, limits.blind_ok):
        say(line)
    if gpus == "if_free":
        taken = stack.enter_context(others.gpu_if_free(known, limits.others_gb * MIB_PER_GB, say))
    else:
        taken = stack.enter_context(others.gpus_taken(known, gpus, limits.wait_secs, say))
    seen = [pool for pool in known if not (pool.uuids and taken.chosen) or {*taken.uuids} & {*pool.uuids}]
    others.wait_until_free(seen, limits, say)
    return [pool for pool in known if pool in seen or pool.whole], taken


def _result(
    watch: Watch,
    limits: Limits,
    action: Action | None,
    code: int | None,
    received: int | None,
    oom: OomKills,
    left: tuple[str, ...],
    survivors: tuple[str, ...],
) -> GuardResult:
    wall_s = watch.seconds
    end = ends.classify(action, code, received, oom)
    returned = _not_returned(watch.pools, action) if end is End.MEMORY and action else ()
    return GuardResult(
        exit_code=ends.exit_code(end, code, received),
        end=end,
        reason=ends.sentence(end, action, limits, watch.phase, code, received, oom),
        peak_mib=watch.peak_mib,
        others_mib=watch.others_mib,
        phase=watch.phase,
        wall_s=wall_s,
        left_behind=left,
        survivors=survivors,
        events=watch.events + returned,
    )


def _clear(*old: Path | None) -> None:
    for path in old:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)


def _environment(known: Sequence[Pool], phase_file: Path | None, taken: Taken) -> dict[str, str]:
    """Our environment with the variables of this guard; those of an outer guard are removed. GPUs that were not taken
    are hidden."""
    ours = {
        phases.VARIABLE: phase_file and str(phase_file.absolute()),
        cap.VARIABLE: _room(known),
    }
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    names = {uuid: pool.named(uuid) for pool in known for uuid in pool.uuids}
    seen = {cuda.VARIABLE: ",".join(names[uuid] for uuid in taken.uuids)} if taken.chosen else {}
    return kept | {name: value for name, value in ours.items() if value} | seen


def _room(known: Sequence[Pool]) -> str | None:
    """MiB that the command may take of the GPU that has least; None without a GPU."""
    rooms = [pool.room_mib() for pool in known if pool.uuids]
    return f"{max(min(rooms), 1.0):.0f}" if rooms else None


def _oom_kills() -> OomKills:
    return OomKills(cgroup.own().oom_kills(), cgroup.machine_oom_kills())


def _follow(process: Child, watch: Watch, limits: Limits, signals: child.StopSignals) -> Action | None:
    """Read at a steady pace until the command ends, must be ended, or its grace after a stop signal to us is over."""
    due = time.monotonic()
    stop = _Stop(process, limits.grace_secs, signals)
    while process.code is None and not stop.over():
        if signals.wait(min(due, stop.deadline) - time.monotonic()):
            process.listen()
        elif time.monotonic() >= due:
            if action := watch.poll():
                return action
            due = max(due + limits.poll_secs, time.monotonic())
    return None


class _Stop:
    """Passes the first stop signal on to the command; its grace ends after a time, or with a second signal to us."""

    def __init__(self, process: Child, grace_secs: float, signals: child.StopSignals) -> None:
        self._process, self._grace_secs, self._signals = process, grace_secs, signals
        self.deadline = math.inf

    def over(self) -> bool:
        received = self._signals.received
        if received is not None and self.deadline == math.inf:
            self.deadline = time.monotonic() + self._grace_secs
            self._process.forward(received)
        return self._signals.again or time.monotonic() >= self.deadline


def _end_all(tree: ProcessTree, now: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """End the whole tree, `now` or after a moment's grace: those left behind by the command, and survivors."""
    left = [] if now else tree.wait_gone(LEFTOVER_SECS)
    survivors = tree.kill() if now or left else []
    return _names(left), _names(survivors)


def _names(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(map(str, members))


def _not_returned(watched: Sequence[Pool], action: Action) -> tuple[str, ...]:
    """What is to be said of the GPU that was over its limit, if it does not get its memory back."""
    pool = next((p for p in watched if p.uuids and p.current == action.source), None)
    if pool is None or action.used_mib is None or action.others_mib is None:  # the kernel gives host memory back itself
        return ()
    ours = action.used_mib - (action.others_mib if pool.whole else 0.0)
    before = action.others_mib + (ours if pool.whole else action.used_mib)
    deadline = time.monotonic() + RETURN_SECS
    while (now := pool.source.machine_mib()) is not None and before - now < RETURN_SHARE * ours:
        if time.monotonic() >= deadline:
            users = named_users(pool.source)
            return (f"{pool.name}: " + ends.came_back_sentence(before - now, ours, RETURN_SECS, users),)
        time.sleep(0.02)
    return ()


@contextmanager
def _tree_killed_on_error(tree: ProcessTree) -> Iterator[None]:
    """Kills the process tree if the body raises."""
    try:
        yield
    except BaseException:
        tree.kill()
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


def _reason(command: Sequence[str], result: GuardResult, action: Action | None, limits: Limits) -> dict[str, object]:
    reading = (
        {}
        if action is None or action.end is not End.MEMORY
        else {
            "source": action.source,
            "used_mib": _rounded(action.used_mib),
            "limit_mib": _rounded(action.limit_mib),
            "over_secs": limits.over_secs,
            "others_mib": _rounded(action.others_mib),
            "total_mib": _rounded(action.total_mib),
        }
    )
    return {
        "reason": result.reason,
        "end": result.end,
        "time": now_iso(),
        "command": shlex.join(command),
        "phase": result.phase,
        "t": round(action.t if action else result.wall_s, 3),
        **reading,
        "peak_mib": _rounded(result.peak_mib),
        "survivors": list(result.survivors),
        "events": list(result.events),
    }


def _rounded(mib: float | None) -> float | None:
    return None if mib is None else round(mib, 1)


def say(text: str) -> None:
    """On standard error, where the guard says what it does."""
    terminal.line(f"fgod guard: {text}")


def report(result: GuardResult, to: Callable[[str], None] = say) -> None:
    """Print what the guard did, if it did anything."""
    for line in (result.reason, *result.events):
        if line:
            to(line)
    if result.left_behind:
        to(f"ended processes that the command left behind: {', '.join(result.left_behind)}")
    if result.survivors:
        to(f"still alive {KILL_SECS:g} s after SIGKILL: {', '.join(result.survivors)}")
