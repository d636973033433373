"""What is on record about runs: verdicts, outcomes, pruned artifacts. Reads results/ and artifacts/ of the project."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgod import documents
from fgod.chain import Run, Walk
from fgod.confirm.folds import Reservations
from fgod.confirm.judge import confirmation_checks, judge_confirmation
from fgod.decisions import ACCEPTED
from fgod.documents import (
    Confirmation,
    Limit,
    Outcome,
    Stamp,
    Verdict,
    check_run,
    differing_files,
    judged_digests,
    verdict_of,
)
from fgod.errors import FgodError
from fgod.evaluate.requirements import Check, check_limits
from fgod.gate import judge_checked
from fgod.layout import (
    RESULTS,
    ConfirmationRecords,
    RunRecords,
    RunWeights,
    confirmation_records,
    run_records,
    run_weights,
    work,
)
from fgod.system.files import canonical_json, remove_folder

KILLED = "killed"


def records_of(run: Run) -> RunRecords:
    """The records of a run."""
    return run_records(run.stage, run.lineage)


def weights_of(run: Run) -> RunWeights:
    """The weights of a run."""
    return run_weights(run.stage, run.lineage)


def confirmation_of(run: Run) -> ConfirmationRecords:
    """The records of a run's confirmation."""
    return confirmation_records(run.stage, run.lineage)


def refused(run: Run) -> bool:
    """Whether held-back wordings do not confirm a candidate, by the record as it stands.

    Raises:
        FgodError: the confirmation was edited; names the file.
    """
    found = documents.confirmation_of(confirmation_of(run), records_of(run))
    return found is not None and not found.confirmed


def will_refuse(config: Mapping[str, Any], run: Run) -> bool:
    """The same as held-back wordings will say under the config's limits: where they are others than the record's, what
    was asked is judged again, and nothing is written. False where nothing was asked.

    Raises:
        FgodError: a record of the confirmation was edited, or is of no candidate; names the file.
    """
    found = documents.confirmation_of(confirmation_of(run), records_of(run))
    if found is None:
        return False
    checks = checks_now(config, run, found)
    if {(c.metric, c.op, c.limit) for c in checks} == {(c.metric, c.op, c.limit) for c in found.limits}:
        return not found.confirmed
    return not judge_confirmation(RESULTS, run.stage, run.lineage, found.fold, checks).confirmed


def checks_now(config: Mapping[str, Any], run: Run, found: Confirmation) -> list[Check]:
    """The checks that a confirmation would have now, of what its fold measures."""
    checks = confirmation_checks(config["gate"], run.requirements, config.get("confirm", {}))
    return [check for check in checks if check.metric not in found.unmeasured]


def is_control(run: Run) -> bool:
    """Whether a run is an experiment's control, which is never released."""
    return bool(json.loads(run.recipe)["train"].get("control"))


def decision(run: Run) -> str | None:
    """The verdict on a run; None while it is pending (see `fgod.documents.verdict_of`).

    Raises:
        FgodError: the verdict, or a record that it was made of, was edited; names the file.
    """
    verdict = verdict_of(records_of(run))
    return verdict.decision if verdict else None


@dataclass(frozen=True)
class Standing:
    """What the gate says of a run by the config and the records as they stand now.

    `decision`: None while it cannot be known. `recorded`: the verdict that counts, if there is one. `fresh`: the one
    that the records give now. `status`: how the training ended, None while it has not. `missing`: records that the
    gate reads and that are gone, or not made yet; `unknown`: why else there is no fresh verdict of a run that ended.
    `stale`: in words, what has changed since the verdict that stands there was made, so that it does not count.
    """

    decision: str | None
    recorded: Verdict | None = None
    fresh: Verdict | None = None
    status: str | None = None
    missing: tuple[str, ...] = ()
    unknown: str = ""
    stale: tuple[str, ...] = ()

    @property
    def on_record(self) -> bool:
        """Whether the recorded verdict is, by its decision and its checks, the one that the records give now."""
        old, new = self.recorded, self.fresh
        return old is not None and new is not None and (old.decision, old.limits) == (new.decision, new.limits)

    def changed_checks(self) -> Iterator[str]:
        """How the checks differ from those of the recorded verdict: `leak_rate <= 0.05 → <= 0.01`."""
        old, new = (_checks(verdict) for verdict in (self.recorded, self.fresh))
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key):
                metric, failed = key
                yield f"{metric} {old.get(key, 'no limit')} → {new.get(key, 'no limit')} (else {failed})"


def _checks(verdict: Verdict | None) -> dict[tuple[str, str], str]:
    limits: list[Limit] = verdict.limits if verdict else []
    return {(check.metric, check.failed): f"{check.op} {check.limit:g}" for check in limits}


def standing(config: Mapping[str, Any], run: Run) -> Standing:
    """Judge a run by its records, without writing anything. Limits or requirements that changed since its verdict, and
    a verdict that is missing, are answered as the gate will answer them.

    Raises:
        FgodError: the verdict, or a record that it was made of, was edited; names the file.
    """
    files = records_of(run)
    recorded = verdict_of(files)
    now = Standing(None, recorded, stale=_changed_since(files) if recorded is None else ())
    if not files.outcome.exists():
        return now
    missing = tuple(path.name for path in files.judged if not path.exists())
    if missing:
        status = Outcome.read(files.outcome).status
        return replace(now, decision=None if status == "trained" else status, status=status, missing=missing)
    outcome, metrics = check_run(files)
    try:
        limits = check_limits(config["gate"])
        fresh = judge_checked(files, outcome, metrics, _judged_digests(files, recorded), limits, run.requirements)
    except FgodError as error:  # no value for a metric that is asked for since: the gate will say so, or measure anew
        return replace(now, status=outcome.status, unknown=str(error))
    return replace(now, decision=fresh.decision, fresh=fresh, status=outcome.status)


def _judged_digests(files: RunRecords, recorded: Verdict | None) -> Mapping[str, str]:
    """Digests of the records that a verdict is made of, all of which are there: those of a verdict that counts are
    what stands there now."""
    if recorded is not None and recorded.judged.keys() == {path.name for path in files.judged}:
        return recorded.judged
    return judged_digests(files)


def _changed_since(files: RunRecords) -> tuple[str, ...]:
    if not files.verdict.exists():
        return ()
    return tuple(differing_files(files.folder, Verdict.read(files.verdict).judged))


def overlooked(run: Run, stale: Sequence[str]) -> str:
    """The message where a verdict does not count, and snakemake, which looks at times of files, did not notice."""
    verdict = records_of(run).verdict
    return (
        f"{verdict}: {', '.join(stale)} since this verdict was made, and snakemake, which looks at times of files, "
        f"sees no reason to judge again: delete {verdict} and run snakemake again"
    )


def outcome_status(run: Run) -> str | None:
    """How a run's training ended: trained, killed or diverged; None while it has not."""
    path = records_of(run).outcome
    return Outcome.read(path).status if path.exists() else None


def in_trash(run: Run) -> bool:
    """Whether the weights of a run, from which others start, lie in the trash."""
    weights = weights_of(run)
    return not weights.master.is_dir() and (weights.trash / weights.master.name).is_dir()


def thrown_away() -> Iterator[tuple[str, str]]:
    """Stage and lineage of each run whose weights were moved to the trash, and are not back."""
    for file in sorted((RESULTS / "runs").glob("*/*/trashed.json")):
        stage, lineage = file.parent.parent.name, file.parent.name
        weights = run_weights(stage, lineage)
        if not (weights.exported.is_dir() and weights.master.is_dir()):
            yield stage, lineage


def none_of(runs: Iterable[tuple[str, str]], outputs: Sequence[Path], each: Sequence[Mapping[str, str]] = ({},)) -> str:
    """What a regular expression has before the lineage in a path, so that it matches no output of these runs; but those
    of a job of which some output is missing.

    Args:
        runs: stage and lineage of each.
        outputs: all outputs of a rule, with the wildcards `stage`, `lineage` and those of `each`.
        each: the values of these further wildcards, job by job.
    """
    ends = []
    for stage, lineage in runs:
        for values in each:
            made = [str(path).format(stage=stage, lineage=lineage, **values) for path in outputs]
            if all(Path(path).exists() for path in made):
                ends += [re.escape(path[path.index(lineage) :]) for path in made]
    return f"(?!(?:{'|'.join(ends)})$)" if ends else ""


def pruned(run: Run) -> bool:
    """A failed run whose weights are gone: its verdict stays, and it is neither trained nor probed again."""
    if decision(run) in (None, ACCEPTED):
        return False
    weights = weights_of(run)
    if not weights.stamp.exists():
        return True
    return Stamp.read(weights.stamp).status == "exported" and not weights.exported.exists()


def compute_dtype(run: Run) -> str:
    """The number format in which a run's weights are used: its export has the same."""
    return str(json.loads(run.recipe)["train"]["compute_dtype"])


def device(run: Run) -> str:
    """The device on which a run trains: cpu or cuda."""
    return str(json.loads(run.recipe)["train"]["device"])


def threads(run: Run) -> int:
    """CPU threads of a run's training: part of its recipe, because other threads give other bits."""
    return int(json.loads(run.recipe)["train"]["threads"])


def seq_len(run: Run) -> int:
    """The most tokens that a row of a run's mix may have."""
    return int(json.loads(run.recipe)["train"]["seq_len"])


def candidates(walks: Iterable[Walk]) -> set[str]:
    """The lineages of the candidates of walks."""
    return {walk.candidate[-1].lineage for walk in walks if walk.candidate}


def fold_of(walk: Walk, folds: Reservations) -> int | None:
    """The fold of the held-back wordings that a walk's candidate is asked; None without either.

    Args:
        folds: of the process that decides.

    Raises:
        FgodError: see `fgod.confirm.folds.read_folds`.
    """
    if not walk.candidate or not folds.available:
        return None
    last = walk.candidate[-1]
    return folds.of(last.stage, last.lineage).fold


def walk_json(walk: Walk, fold: int | None = None) -> str:
    """A walk in JSON, for walk.json (see `fgod.promotion.WalkEntry`); `fold`: see `fold_of`."""
    last = walk.fits[-1] if walk.fits else None
    visits = [
        {
            "fit": visit.fit,
            "stage": visit.run.stage,
            "lineage": visit.run.lineage,
            "starts_from": json.loads(visit.run.recipe)["starts_from"],
            "state": visit.decision or "pending",
            "candidate": bool(walk.candidate) and last is not None and visit.fit == last.number,
            "alpha": visit.run.alpha,
            **({"control": True} if is_control(visit.run) else {}),
        }
        for visit in walk.visits
    ]
    changes = last.adjustments if last else ()
    adjustments = [[str(a) for a in changes if a.fit == fit.number] for fit in walk.fits]
    spent = walk.reason if walk.state == "spent" else ""
    return canonical_json({"visits": visits, "spent": spent, "adjustments": adjustments, "fold": fold})


def forget(run: Run) -> list[Path]:
    """Remove a run's records and artifacts, so that it trains again; returns what was removed."""
    everything = records_of(run).folder, weights_of(run).folder, work(run.lineage).folder
    folders = [folder for folder in everything if folder.exists()]
    for folder in folders:
        remove_folder(folder)
    return folders
