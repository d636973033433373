"""The trainer, alone: `fgod train` starts this module under the guard and makes a result of however it ends.

--work is the run's folder of scratch, named by its lineage; --run is where its tables go. Without --master no weights
are written.

python -m fgod.train --recipe F --weights DIR --rows F --work DIR --run DIR --master DIR --phase-file F --result F
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgod.imports import lasting_imports

with lasting_imports():
    import torch

    from fgod.chat import ChatSettings
    from fgod.data.probes import load_probes
    from fgod.data.rows import read_rows
    from fgod.documents import Outcome
    from fgod.errors import UsageError
    from fgod.evaluate.checked import CheckProbes, check_probes
    from fgod.evaluate.words import load_reply_words
    from fgod.guard import read_phase, write_phase
    from fgod.guard.cap import refusal, room_mib
    from fgod.persona import goal_from_config
    from fgod.plugins import load_plugins
    from fgod.progress.followed import listeners, reporting
    from fgod.system.files import read_json
    from fgod.system.stop import exit_on_fgod_error
    from fgod.train.checkpoint import Schedule
    from fgod.train.memory_report import MemoryReport
    from fgod.train.ranks.group import Ranks
    from fgod.train.recipe import TrainRecipe
    from fgod.train.stage import Job, run
    from fgod.train.trainer import Trainer


def main() -> None:
    """Train one stage; the outcome goes to --result."""
    args = arguments(main.__doc__)
    recipe = read_json(args.recipe)
    try:
        outcome = trained(args, recipe)
    except torch.OutOfMemoryError:
        refused = refusal(room_mib())
        if not refused:
            raise
        reason = f"The trainer stopped in phase {read_phase(args.phase_file)}: {refused}."
        outcome = Outcome(status="killed", reason=reason)
    outcome.write(args.result)


def arguments(description: str | None) -> Trainer:
    """The options of this process; plugins are loaded."""
    args = Trainer.parse("fgod.train", description)
    load_plugins(args.plugins)
    return args


def _checked(args: Trainer, recipe: Mapping[str, Any]) -> CheckProbes | None:
    """The probes of train.check; None without it, or without --probes.

    Raises:
        UsageError: they, or the rules that judge them, are not those that the recipe was made with.
    """
    check, recorded = recipe["train"].get("check"), recipe.get("check_probes")
    if check is None or not args.probes:
        return None
    if args.sources is None or args.goal is None:
        raise UsageError("--probes: expected --sources and --goal with it")
    probes = load_probes(args.probes, args.sources, args.languages)
    words = load_reply_words(args.sources, probes)
    found = check_probes(probes, goal_from_config(args.goal), words).of(check["until"])
    if recorded is not None and found.digests != recorded:
        changed = ", ".join(suite for suite in found.digests if found.digests[suite] != recorded.get(suite))
        raise UsageError(
            f"train.check: the probes of {changed}, or the rules that judge them, have changed since the recipe was "
            "made; run snakemake again"
        )
    return found


def trained(
    args: Trainer,
    recipe: Mapping[str, Any],
    ranks: Ranks | None = None,
    checkpoints: Path | None = None,
    told: Callable[[str], None] | None = None,
) -> Outcome:
    """Train as the options say.

    Args:
        ranks: this process among several; `args` has its own folders then.
        checkpoints: where they lie; None: in the work folder.
        told: each phase; None: the phase file is written.
    """
    first = ranks is None or ranks.first
    train = recipe["train"] if args.steps is None else {**recipe["train"], "steps": args.steps}
    report = MemoryReport(args.memory_report) if args.memory_report else None

    def tell(phase: str) -> None:
        if told is None:
            write_phase(args.phase_file, phase)
        else:
            told(phase)
        if report:
            report(phase)

    job = Job(
        start=args.weights,
        rows=read_rows(args.rows),
        recipe=TrainRecipe.from_dict(train),
        seed=recipe["seed"],
        work=args.work,
        run_dir=args.run,
        master_out=args.master,
        stage=recipe["stage"],
        lineage=(checkpoints or args.work).name,
        phase=tell,
        schedule=Schedule(args.checkpoint_secs, args.checkpoint_steps),
        limit_gb=args.limit_gb,
        too_large_ok=args.too_large_ok,
        chat=ChatSettings.from_dict(recipe.get("chat", {})),
        teacher=args.teacher,
        checked=_checked(args, recipe),
        ranks=ranks,
        checkpoints=checkpoints,
    )
    if not first:
        return run(replace(job, say=lambda _: None))
    with reporting(listeners(args.phase_file), f"fit {args.fit} · {recipe['stage']}"):
        outcome = run(job)
    if report:
        report("end")
    return outcome


if __name__ == "__main__":
    with exit_on_fgod_error():
        main()
