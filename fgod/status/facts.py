"""All that a status is made of, looked at once: the manifest, the session, the walk, tables, processes, GPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgod import layout, manifest
from fgod.decisions import ACCEPTED
from fgod.errors import FgodError
from fgod.guard.phases import read_phase
from fgod.progress.reached import Reached, file_beside
from fgod.progress.reached import read as read_reached
from fgod.session import AFTER_GATES, read_session
from fgod.status.commands import Command, command_of
from fgod.status.gpus import Gpus, look
from fgod.status.processes import Process, phase_file, processes_of
from fgod.status.records import Reader, Training, Verdict, newest_verdict
from fgod.system.times import seconds_of

RECENT = 24
"""Commands that are looked at, of those that began last: a session's last ones, jobs side by side among them."""


@dataclass(frozen=True)
class Snakemake:
    """The snakemake that is or was last at work here, from `start` to `end` (ISO 8601).

    `state`: running, killed (its process is gone without an end on record), unknown (it is another machine's), done or
    failed.
    """

    pid: int
    host: str
    state: str
    start: str
    end: str = ""
    config: str = ""


@dataclass(frozen=True)
class Visited:
    """A run of the walk. `status`: how its training ended, empty while it has not; `decision`: its verdict on record,
    empty without one; `exported`, `probed`: whether that is on record; `experiment`: whose walk it is of, empty of the
    config's own chain; `control`: it is that experiment's control, which is never released."""

    fit: int
    stage: str
    lineage: str
    alpha: float | None = None
    status: str = ""
    exported: bool = False
    probed: bool = False
    decision: str = ""
    experiment: str = ""
    control: bool = False

    @property
    def name(self) -> str:
        """`B-nudge 4e4af4b93364`."""
        return f"{layout.at_alpha(self.stage, self.alpha)} {self.lineage}"


@dataclass(frozen=True)
class Running:
    """A command that lives: its processes, and what it said last. `heartbeat_at`: seconds since 1970; None: unknown.
    `reached`: how far it is; None where it does not say."""

    command: Command
    processes: tuple[Process, ...] = ()
    phase: str = ""
    heartbeat_at: float | None = None
    reached: Reached | None = None


@dataclass(frozen=True)
class End:
    """What the records of the config's own walk say of its end. `released`: the folder, empty where nothing is;
    `lineage`: of its last run; `spent`: why no fit was accepted; `unconfirmed`: why the candidate is not confirmed."""

    released: str = ""
    lineage: str = ""
    spent: str = ""
    unconfirmed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """`now`: seconds since 1970. `commands`: those that began last, by their start. `after`: the commands that follow
    the last gate of the walk. `training`: of the command that trains, or that trained last. `locked`: whether
    snakemake's own lock is there."""

    now: float
    commands: tuple[Command, ...] = ()
    running: tuple[Running, ...] = ()
    snakemake: Snakemake | None = None
    walk: tuple[Visited, ...] = ()
    after: tuple[str, ...] = ()
    training: Training | None = None
    verdict: Verdict | None = None
    end: End = End()
    locked: bool = False
    gpus: Gpus = field(default_factory=Gpus)
    problems: tuple[str, ...] = ()


def gather() -> Facts:
    """Look at everything, in the folder of a project. Nothing is written, and nothing is waited for."""
    reader = Reader()
    commands = tuple(_commands(reader))
    snakemake, walk, after = _session(reader)
    running = tuple(_running(command) for command in commands if command.state == "running")
    return Facts(
        now=time.time(),
        commands=commands,
        running=running,
        snakemake=snakemake,
        walk=walk,
        after=after,
        training=_training(reader, commands),
        verdict=newest_verdict(reader),
        end=_end(reader, [visit for visit in walk if not visit.experiment]),
        locked=any(layout.LOCKS.glob("*")),
        gpus=look(),
        problems=tuple(dict.fromkeys(reader.problems)),
    )


def _commands(reader: Reader) -> Iterator[Command]:
    """The commands that began last; entries of the manifest that are broken are named."""
    for entry in manifest.recent(Path("."), RECENT):
        if entry["state"] == "unreadable":
            reader.problems.append(f"{entry['file']}: {entry['error']}")
            continue
        try:
            yield command_of(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reader.problems.append(f"{manifest.FOLDER / entry['name']}: it is no entry of the manifest ({error})")


def _session(reader: Reader) -> tuple[Snakemake | None, tuple[Visited, ...], tuple[str, ...]]:
    told: tuple[Snakemake | None, tuple[Visited, ...], tuple[str, ...]] = (None, (), ())
    try:
        found = read_session()
    except FgodError as error:
        reader.problems.append(str(error))
        return told
    if found is not None:
        with reader.shape_of(layout.SESSION):
            walk = tuple(visited(reader, visit) for visit in found["walk"])
            told = _snakemake(found), walk, tuple(map(str, found.get("after", AFTER_GATES)))
    return told


def _snakemake(session: Mapping[str, Any]) -> Snakemake:
    process: Mapping[str, Any] = session["process"]
    start, end = str(session["start"]), str(session["end"] or "")
    seconds_of(start)
    seconds_of(end or start)
    return Snakemake(
        pid=int(process["pid"]),
        host=str(process["host"]),
        state=session["ended"] or manifest.state_of(process),
        start=start,
        end=end,
        config=str(session["config"]),
    )


def visited(reader: Reader, visit: Mapping[str, Any]) -> Visited:
    """A visit of the session with what is on record of its run."""
    stage, lineage = str(visit["stage"]), str(visit["lineage"])
    run = layout.run_records(stage, lineage)
    outcome, verdict = reader.sealed(run.outcome), reader.sealed(run.verdict)
    return Visited(
        fit=int(visit["fit"]),
        stage=stage,
        lineage=lineage,
        alpha=None if visit["alpha"] is None else float(visit["alpha"]),
        status=str((outcome or {}).get("status", "")),
        exported=layout.run_weights(stage, lineage).stamp.exists(),
        probed=run.metrics.exists(),
        decision=str((verdict or {}).get("decision", "")),
        experiment=str(visit.get("experiment", "")),
        control=bool(visit.get("control", False)),
    )


def _running(command: Command) -> Running:
    processes = tuple(processes_of(command.pid, command.name == "train"))
    file = phase_file(processes)
    beat = None
    try:
        beat = file.stat().st_mtime if file else None
    except (FileNotFoundError, PermissionError):  # it said nothing yet, or ends just now
        file = None
    if file is None:
        return Running(command, processes)
    return Running(command, processes, read_phase(file), beat, read_reached(file_beside(file)))


def _training(reader: Reader, commands: Sequence[Command]) -> Training | None:
    """Of the command that trains now, else of the one that did last."""
    trained = [command for command in commands if command.name == "train" and command.lineage]
    if not trained:
        return None
    last = next((command for command in reversed(trained) if command.state == "running"), trained[-1])
    since = seconds_of(last.start) if last.state == "running" else None
    return reader.training(last.stage, last.lineage, since)


def _end(reader: Reader, walk: Sequence[Visited]) -> End:
    """What walk.json, the confirmation and the release say, as far as they are of the walk that is expected now."""
    spent = _spent(reader, [(visit.fit, visit.lineage) for visit in walk])
    last = walk[-1] if walk else None
    if last is None or last.decision != ACCEPTED:
        return End(spent=spent)
    released = _released(reader, last.lineage)
    return End(
        released=released,
        lineage=last.lineage if released else "",
        spent=spent,
        unconfirmed=_unconfirmed(reader, last),
    )


def _spent(reader: Reader, ours: Sequence[tuple[int, str]]) -> str:
    """Why no fit was accepted, by a walk of our runs, each with its fit."""
    decided = reader.object(layout.view().walk)
    with reader.shape_of(layout.view().walk):
        if decided is not None:
            spent = str(decided["walk"]["spent"])
            visits = [(visit["fit"], visit["lineage"]) for visit in decided["walk"]["visits"]]
            return spent if visits == ours else ""
    return ""


def _released(reader: Reader, lineage: str) -> str:
    """The folder of the release of a run; empty where there is none."""
    record = layout.Releases().record
    released = reader.sealed(record)
    with reader.shape_of(record):
        if released is not None and released["promoted"] and released["promoted"][-1]["lineage"] == lineage:
            return str(released["path"])
    return ""


def _unconfirmed(reader: Reader, candidate: Visited) -> tuple[str, ...]:
    """Why a candidate is not confirmed; empty where that is not on record."""
    path = layout.confirmation_records(candidate.stage, candidate.lineage).confirmation
    found = reader.sealed(path)
    with reader.shape_of(path):
        if found is not None and found["decision"] == "unconfirmed":
            return tuple(map(str, found["reasons"]))
    return ()
