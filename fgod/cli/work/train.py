"""Training as `fgod train` leads it: start the trainer under the guard, make an outcome of its end, leave the records.

    fgod train …                     checks, holds the run's lock
      └─ guard → keeper → python -m fgod.train …        (`fgod.train.__main__`)

What was trained to the end stands in the work folder before it is noted, and is not trained again if this command or
the snakemake around it is killed in between. One process at a time works on a run.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fgod import checkpoints, guard, layout, records
from fgod.call import Call, say
from fgod.documents import Outcome, Stamp
from fgod.errors import FgodError
from fgod.guard.limits import MIB_PER_GB, lowered
from fgod.layout import RunRecords, Work
from fgod.system.files import copy_file, file_digests, read_json, remove_folder
from fgod.system.lock import held
from fgod.train.trainer import Trainer

if TYPE_CHECKING:
    from fgod.cli.training import Train


ENDING_SECS = 120.0
"""On a cluster the job that was cancelled or preempted may still be ending while the next one begins."""


def trainer_of(args: Train, call: Call, work: Work, tables: Path) -> Trainer:
    """The trainer that `fgod train` starts, without weights to write."""
    total = guard.HostMemory(math.inf).total_mib()
    return Trainer(
        recipe=args.recipe,
        weights=args.weights,
        rows=args.rows,
        work=work.folder,
        run=tables,
        phase_file=work.phase,
        result=work.result,
        teacher=args.teacher.parent if args.teacher else None,
        probes=args.probes,
        sources=args.sources,
        languages=args.languages,
        goal=args.goal,
        plugins=tuple(call.plugins),
        fit=args.fit,
        limit_gb=lowered(args.guard.limit_gb * MIB_PER_GB, total) / MIB_PER_GB,
        too_large_ok=args.too_large_ok,
        gpus=checkpoints.gpus(work, read_json(args.recipe)),
        rank_secs=args.rank_secs,
    )


def gpus_of(args: Train, work: Work) -> int:
    """How many GPUs a training takes."""
    recipe = read_json(args.recipe)
    return checkpoints.gpus(work, recipe) if recipe["train"]["device"] == "cuda" else 0


def train(args: Train, call: Call) -> None:
    """Train one stage; leaves its records, its stamp and, if it trained, its weights.

    Raises:
        FgodError: the trainer came to no result.
        LockHeldError: another process trains this run.
    """
    run, work = RunRecords(args.outcome.parent), layout.work(args.outcome.parent.name)
    with held(work.lock, "this training", ENDING_SECS if "SLURM_JOB_ID" in os.environ else 0.0) as lock:
        outcome = finished(work.records, args.master)
        if outcome is None:
            outcome = _trained(args, call, work, lock)
            outcome.write(work.records.outcome)
        if outcome.status != "trained":  # weights of an earlier training must not stand beside another outcome
            remove_folder(args.master)
        _publish(args, outcome, work.records, run)
        checkpoints.forget(work.folder)
        work.gpus.unlink(missing_ok=True)
    if outcome.status != "trained":
        say(f"{run.folder.parent.name} · {outcome.status} · {outcome.reason}")


def finished(made: RunRecords, master: Path) -> Outcome | None:
    """The outcome of a training that came to its end, though that was not noted any more; None where there is none."""
    if not made.outcome.exists():
        return None
    outcome = Outcome.read(made.outcome)
    whole = master.is_dir() and file_digests(master) == outcome.weights_files
    if outcome.status != "trained" or not whole:
        return None
    say(f"{master}: trained already, before a run was stopped: nothing is trained again")
    return outcome


def _publish(args: Train, outcome: Outcome, made: RunRecords, run: RunRecords) -> None:
    """Leave the records of the work folder among the run's, the outcome last."""
    for table, published in zip(made.training_tables, run.training_tables, strict=True):
        copy_file(table, published)
    copy_file(args.audit, run.mix_audit)
    run.trashed.unlink(missing_ok=True)  # of weights that were thrown away before: these are new
    Stamp(
        status=outcome.status,
        reason=outcome.reason,
        weights_sha256=outcome.weights_sha256,
        weights_files=outcome.weights_files,
        cpu=outcome.cpu,
        device=outcome.device,
    ).write(args.stamp)
    outcome.write(args.outcome)


def _trained(args: Train, call: Call, work: Work, lock: int) -> Outcome:
    """Train, with the tables in the work folder; returns the outcome."""
    made, limits = work.records, args.guard
    remove_folder(made.folder)
    work.result.unlink(missing_ok=True)
    trainer = replace(
        trainer_of(args, call, work, made.folder),
        master=args.master,
        checkpoint_secs=args.checkpoint_secs,
        checkpoint_steps=args.checkpoint_steps,
    )
    command, gpus = trainer.command(), gpus_of(args, work)
    ended = guard.run(command, limits, made.guard, work.guard_reason, work.phase, locks=[lock], gpus=gpus)
    guard.report(ended)
    call.note(guard=ended.facts())
    if not ended.killed and ended.exit_code != 0:
        raise _no_result(args, ended, work)
    own = Outcome(status="killed", reason=ended.reason) if ended.killed else Outcome.read(work.result)
    if own.status == records.KILLED:
        _leave_tables(work.folder, made)
    memory = {"peak_memory_mib": ended.peak_mib, "limit_mib": limits.limit_mib, "others_mib": ended.others_mib}
    written = file_digests(made.folder, made.training_tables)
    return own.model_copy(update={**memory, "wall_s": round(ended.wall_s, 3), "tables_sha256": written})


def _no_result(args: Train, ended: guard.GuardResult, work: Work) -> FgodError:
    """The error of a trainer that neither trained, diverged nor was killed."""
    how = ended.reason or f"It failed with exit code {ended.exit_code}, see above."
    step = checkpoints.saved_step(work.folder)
    saved = f" What it had learned after step {step} is saved: run it again to go on from there." if step else ""
    return FgodError(f"the training of {args.outcome.parent.parent.name} came to no result. {how}{saved}")


def _leave_tables(work: Path, made: RunRecords) -> None:
    """The tables of a run that was killed: the steps that it made, and no participation."""
    from fgod.train.participation import write_participation
    from fgod.train.record import publish

    publish(work, made.folder)
    write_participation(made.participation, [], "", "")


def report_memory(args: Train, call: Call) -> int:
    """Train a few steps for the memory of each phase alone; returns the exit code.

    A guard that kills leaves the phases before it.
    """
    assert args.memory_report is not None
    args.memory_report.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="fgod-") as folder:
        work = Work(Path(folder))
        trainer = trainer_of(args, call, work, work.records.folder)
        steps = 1 if args.steps is None else args.steps
        command = replace(trainer, memory_report=args.memory_report, steps=steps).command()
        ended = guard.run(command, args.guard, phase_file=work.phase, gpus=gpus_of(args, work))
        outcome = Outcome.read(work.result) if ended.exit_code == 0 else None
    guard.report(ended)
    call.note(guard=ended.facts())
    if args.memory_report.exists():
        print(args.memory_report.read_text(), end="")
    if outcome and outcome.status == records.KILLED:
        say(outcome.reason)
        return guard.KILLED_EXIT
    return ended.exit_code
