"""What follows from the facts: whether something runs, why it stopped, what comes next. Pure."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fgod.decisions import ACCEPTED
from fgod.layout import CAMPAIGN
from fgod.status.commands import WORKFLOW, Command
from fgod.status.facts import End, Facts, Running, Snakemake, Visited
from fgod.status.records import Training
from fgod.system.times import iso_of, seconds_of

VERSION = 1
"""Of the shape of `as_json`. It is raised where a key goes or changes its meaning; keys may be added."""

State = Literal["running", "between", "stopped", "elsewhere"]
"""running: a command lives; between: none does, but the snakemake that starts them; stopped: neither; elsewhere:
the last one was started on another machine, whose processes cannot be seen from here."""

Kind = Literal[
    "never_ran", "released", "not_accepted", "not_confirmed", "finished", "failed", "stopped", "killed",
    "snakemake_killed", "interrupted",
]  # fmt: skip

QUIET_SECS = 60.0
"""Without a heartbeat for this long, and for `QUIET_STEPS` steps, it is said that a training may hang."""

QUIET_STEPS = 5


@dataclass(frozen=True)
class Why:
    """Why nothing runs: a word for programs, and a sentence."""

    kind: Kind
    words: str


@dataclass(frozen=True)
class Next:
    """What is to follow: `step` is a command of a run, of this fit, stage and lineage; or one after the last gate, of
    no run. `experiment`: for whose walk, empty for the config's own chain."""

    step: str
    fit: int | None = None
    stage: str = ""
    lineage: str = ""
    experiment: str = ""


@dataclass(frozen=True)
class Status:
    """What a person asks for. `left_s`: until the training's last step, None where that cannot be told."""

    facts: Facts
    state: State
    why: Why | None
    next: tuple[Next, ...]
    left_s: float | None

    @property
    def trains(self) -> bool:
        """Whether the training of the facts is the one that runs."""
        training = self.facts.training
        return training is not None and any(
            one.command.name == "train" and one.command.lineage == training.lineage for one in self.facts.running
        )


def judge(facts: Facts) -> Status:
    """The status that follows from the facts."""
    state = state_of(facts)
    why = why_stopped(facts) if state == "stopped" else None
    return Status(facts, state, why, tuple(to_follow(facts)), seconds_left(facts.training))


def state_of(facts: Facts) -> State:
    """See `State`."""
    if facts.running:
        return "running"
    if facts.snakemake and facts.snakemake.state == "running":
        return "between"
    return "elsewhere" if unseen(facts) else "stopped"


def unseen(facts: Facts) -> Snakemake | Command | None:
    """The snakemake, or the last command of the workflow, that may live on another machine: it has no end on record,
    and what began last began there too."""
    both: tuple[Snakemake | Command | None, ...] = (facts.snakemake, last_command(facts.commands))
    begun = [one for one in both if one is not None]
    host = max(begun, key=lambda one: seconds_of(one.start)).host if begun else ""
    return next((one for one in begun if one.state == "unknown" and one.host == host), None)


def last_command(commands: Sequence[Command]) -> Command | None:
    """The command of the workflow that began last."""
    return next((command for command in reversed(commands) if command.of_workflow), None)


def why_stopped(facts: Facts) -> Why:
    """Why nothing runs."""
    snakemake = facts.snakemake
    last = last_command(facts.commands)
    if snakemake and last and _over(snakemake, last):
        snakemake = None  # a person began it by hand, afterwards
    own = of_session(facts.commands, snakemake)
    broken = next((command for command in reversed(own) if command.state in ("failed", "killed")), None)
    refused = broken is not None and broken.name == "promote" and (facts.end.spent or facts.end.unconfirmed)
    if refused or (snakemake and snakemake.state == "done"):
        return _finished(facts)
    if broken:
        return _broken(broken, snakemake)
    if snakemake and snakemake.state == "killed":
        return Why(
            "snakemake_killed",
            f"snakemake (process {snakemake.pid}, begun {snakemake.start}) is gone without an end: it was killed",
        )
    if not own and not snakemake:
        return Why("never_ran", "nothing ran in this folder yet")
    if facts.end.released or facts.end.spent or facts.end.unconfirmed:
        return _finished(facts)
    ended = f"; the last command, {told(own[-1])}, ended well" if own else ""
    return Why("interrupted", f"it was ended between two commands{ended}")


def _over(snakemake: Snakemake, last: Command) -> bool:
    """Whether a command began after a snakemake, and not by it."""
    if snakemake.end:
        return seconds_of(last.start) > seconds_of(snakemake.end)
    return snakemake.state == "unknown" and last.host != snakemake.host


def of_session(commands: Sequence[Command], snakemake: Snakemake | None) -> list[Command]:
    """The commands of the workflow that began since the last snakemake did; without one, those that began last."""
    ours = [command for command in commands if command.of_workflow]
    if snakemake is None:
        return ours[-1:]
    return [one for one in ours if one.start and seconds_of(one.start) >= seconds_of(snakemake.start)]


def _finished(facts: Facts) -> Why:
    """Why nothing runs after a snakemake that came to its end."""
    end = facts.end
    if end.released:
        return Why("released", f"all is done: {end.released} holds {end.lineage}")
    if end.unconfirmed:
        return Why(
            "not_confirmed", f"the candidate is not confirmed on held-back wordings: {'; '.join(end.unconfirmed)}"
        )
    if end.spent:
        return Why("not_accepted", f"no fit was accepted: {end.spent}")
    if facts.walk and all(visit.experiment for visit in facts.walk):
        return Why("finished", f"all experiments are decided; {CAMPAIGN} has them side by side")
    return Why("finished", "what snakemake was asked for is made")


def _broken(command: Command, snakemake: Snakemake | None) -> Why:
    """Why a command that has no good end has none."""
    if command.state == "killed":
        more = " and so was snakemake" if snakemake and snakemake.state == "killed" else ""
        return Why(
            "killed",
            f"{told(command)} was killed{more}: it began {command.start}, has no end on record, and its process "
            f"{command.pid} is gone",
        )
    code = command.exit_code or 0
    if command.error.startswith(("KeyboardInterrupt", "ended by SIG")) or code == 128 + signal.SIGINT:
        by = "Ctrl-C" if code == 128 + signal.SIGINT else _signal(code)
        return Why("stopped", f"{told(command)} was stopped by {by}")
    if command.signalled:
        return Why("stopped", f"{told(command)} was stopped by a signal: {command.error}")
    return Why("failed", f"{told(command)} ended with exit code {code}: {command.error}")


def _signal(code: int) -> str:
    known = {128 + int(one): one.name for one in signal.Signals}
    return known.get(code, "a signal")


def told(command: Command) -> str:
    """A command in words: `train of B-nudge 4e4af4b93364`."""
    return f"{command.name} of {command.run}" if command.run else command.name


# ------------------------------------------------------------------------------------------------- what comes next

OF_RUN = ("train", "export", "probe", "gate")
"""Commands of a run, in order; an interpolated one has no training."""

OF_CANDIDATE = ("confirm", "export", "served", "engine")
"""Commands after the last gate that only an accepted fit has."""

PROMOTE = "promote"
"""The last command of the config's own chain, whose message says why nothing is released; of an experiment only where
something is."""


def to_follow(facts: Facts) -> list[Next]:
    """The commands that are to follow those that run, to the end of each walk: where every gate accepts. What several
    walks have in common is named with the first."""
    if facts.snakemake is not None and facts.snakemake.state == "done" and not facts.running:
        return []
    names = dict.fromkeys(visit.experiment for visit in facts.walk)
    walks = {name: [visit for visit in facts.walk if visit.experiment == name] for name in names}
    known: set[str] = set()
    found: list[Next] = []
    for name, walk in walks.items():
        found += _of_walk(facts, name, walk, known)
        known |= {visit.lineage for visit in walk}
    return found


def _of_walk(facts: Facts, experiment: str, walk: Sequence[Visited], known: set[str]) -> list[Next]:
    """Those of one walk, without the runs that are `known` of another. Its end is only known of the own chain's."""
    end = End() if experiment else facts.end
    if (end.spent or end.unconfirmed) and not facts.running:
        return []
    pending = [visit for visit in walk if not visit.decision]
    runs = [step for visit in pending if visit.lineage not in known for step in _of_run(visit, facts.running)]
    if end.released and not pending:
        return []
    after = _after(facts, walk, pending=bool(pending))
    return [*(replace(step, experiment=experiment) for step in runs), *(Next(x, experiment=experiment) for x in after)]


def _after(facts: Facts, walk: Sequence[Visited], pending: bool) -> Sequence[str]:
    """The commands after a walk's last gate that have not begun; where no gate is pending, those behind the last one
    that has."""
    last = walk[-1]
    releases = last.decision in ("", ACCEPTED) and not last.control
    of_release = (*OF_CANDIDATE, *([PROMOTE] if last.experiment else []))
    steps = [name for name in facts.after if releases or name not in of_release]
    if pending:
        return steps
    names = [command.name for command in of_session(facts.commands, facts.snakemake)]
    gates = [place for place, name in enumerate(names) if name == "gate"]
    since = names[gates[-1] + 1 :] if gates else names
    begun = [place for place, name in enumerate(steps) if name in since]
    return steps[begun[-1] + 1 :] if begun else steps


def _of_run(visit: Visited, running: Sequence[Running]) -> list[Next]:
    """What is to follow of a run without a verdict."""
    made = sum((bool(visit.status), visit.exported, visit.probed))
    at_work = [one.command.name for one in running if one.command.lineage == visit.lineage]
    steps = ("interpolate", *OF_RUN[1:]) if visit.alpha is not None else OF_RUN
    made = max([made, *(steps.index(name) + 1 for name in at_work if name in steps)])
    return [Next(step, visit.fit, visit.stage, visit.lineage) for step in steps[made:]]


def seconds_left(training: Training | None) -> float | None:
    """Until a training's last step, at the speed of its last ones."""
    if training is None or training.status or not training.begun:
        return None
    pace = training.made.seconds_per_step
    return None if pace is None else max(training.steps - training.made.step, 0) * pace


def hangs(facts: Facts, running: Running) -> float | None:
    """For how many seconds a command has given no heartbeat, where that is suspiciously long; else None."""
    if running.heartbeat_at is None:
        return None
    pace = facts.training.made.seconds_per_step if facts.training else None
    quiet = facts.now - running.heartbeat_at
    return quiet if quiet > max(QUIET_SECS, QUIET_STEPS * (pace or 0.0)) else None


# ------------------------------------------------------------------------------------------------- for programs


def as_json(status: Status) -> dict[str, Any]:
    """A status for programs; docs/status.md explains each key. Numbers that are not finite are null."""
    facts = status.facts
    found = {
        "version": VERSION,
        "time": iso_of(facts.now),
        "state": status.state,
        "why": asdict(status.why) if status.why else None,
        "snakemake": asdict(facts.snakemake) if facts.snakemake else None,
        "running": [_running(facts, one) for one in facts.running],
        "training": _training(status),
        "verdict": None if facts.verdict is None else {**asdict(facts.verdict), "at": round(facts.verdict.at, 3)},
        "next": [asdict(step) for step in status.next],
        "gpus": [asdict(gpu) for gpu in facts.gpus.found],
        "gpus_unknown": facts.gpus.unknown,
        "problems": list(facts.problems),
    }
    shaped: dict[str, Any] = _finite(found)
    return shaped


def _running(facts: Facts, one: Running) -> dict[str, Any]:
    command = one.command
    beat = None if one.heartbeat_at is None else round(max(facts.now - one.heartbeat_at, 0.0), 1)
    return {
        "command": command.name,
        "what": WORKFLOW.get(command.name, ""),
        **{key: getattr(command, key) for key in ("fit", "stage", "lineage", "pid", "start", "limit_mib")},
        "seconds": round(max(facts.now - seconds_of(command.start), 0.0), 1),
        "phase": one.phase,
        "heartbeat_s": beat,
        "progress": None if one.reached is None else one.reached.to_dict(facts.now),
        "may_hang": hangs(facts, one) is not None,
        "processes": [asdict(process) for process in one.processes],
    }


def _training(status: Status) -> dict[str, Any] | None:
    training = status.facts.training
    if training is None:
        return None
    made, last = training.made, training.made.recent[-1] if training.made.recent else None
    return {
        **{"stage": training.stage, "lineage": training.lineage, "runs": status.trains, "status": training.status},
        **{"step": made.step, "steps": training.steps, "saved_step": training.saved},
        "loss": last.loss if last else None,
        "mean_loss": made.mean_loss,
        "lr": last.lr if last else None,
        "seconds_per_step": made.seconds_per_step,
        "tokens_per_second": made.tokens_per_second,
        "left_s": status.left_s,
        "memory": [asdict(pool) for pool in training.pools],
        "losses": [list(point) for point in made.losses],
    }


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
