"""Whether a candidate is confirmed: the gate's checks on its figures from one fold of the held-back wordings.

    fgod confirm judge --fold N --limits JSON --require JSON --own JSON --out …/confirmation.json

It reads metrics.json and probes.tsv beside what it writes, the record of folds, and what the gate judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fgod.confirm.compare import compare
from fgod.confirm.folds import Assignment, assign, read_folds
from fgod.documents import (
    Confirmation,
    Limit,
    Metrics,
    WorstProbe,
    check_confirmation_records,
    confirmation_digests,
)
from fgod.errors import FgodError
from fgod.evaluate.metric import METRICS
from fgod.evaluate.requirements import Check, parse_requirements
from fgod.evaluate.scoring import Scored
from fgod.gate import Limits, as_example, checks_of, weigh
from fgod.layout import confirmation_records, folds, run_records
from fgod.probe.record import read_probes


def confirmation_checks(gate: Limits, require: Mapping[str, str], own: Limits) -> tuple[Check, ...]:
    """The checks of a confirmation: those of the gate on the last stage.

    Args:
        gate: the config's `gate`.
        require: what the last stage requires.
        own: the config's `confirm`, which replaces both for the metrics that it names.
    """
    named = {name for name, metric in METRICS.items() if metric.short in own}
    requirements = {name: text for name, text in require.items() if name not in named}
    return checks_of({**gate, **own}, parse_requirements(requirements))


def decide(
    checks: Sequence[Check],
    development: Metrics,
    metrics: Metrics,
    records: Sequence[Scored],
    assignment: Assignment,
    judged: Mapping[str, str],
) -> Confirmation:
    """Confirmed where each check holds that the fold measures; else the reasons name each one that does not. Pure.

    Args:
        development: what the gate let through.
        metrics, records: from the fold.
        judged: digests of the records that this is made of.

    Raises:
        FgodError: the fold measures no metric that has a limit, or other weights were asked than those that the gate
            let through.
    """
    if development.export is None or metrics.export is None or metrics.export.sha256 != development.export.sha256:
        raise FgodError("the weights that were asked are not those that the gate let through; delete this folder")
    known = [check for check in checks if _measured(metrics, check.metric)]
    if not known:
        raise FgodError(
            f"fold {assignment.fold} measures nothing that has a limit; expected probes of split confirmation that "
            f"measure some of {', '.join(dict.fromkeys(check.metric for check in checks))}"
        )
    verdict = weigh(known, metrics, lambda: records)
    return Confirmation(
        decision="unconfirmed" if verdict.reasons else "confirmed",
        fold=assignment.fold,
        n=sum(metrics.probes.values()),
        reasons=list(verdict.reasons),
        worst=WorstProbe(**asdict(verdict.worst)) if verdict.worst else None,
        limits=[Limit(**asdict(check)) for check in known],
        unmeasured=list(dict.fromkeys(check.metric for check in checks if check not in known)),
        compared=compare(development.metrics, metrics.metrics),
        leaks=leaks(records),
        asked_before=list(assignment.asked_before),
        judged=dict(judged),
    )


def leaks(records: Sequence[Scored]) -> list[WorstProbe]:
    """Replies that name the persona where the reference's do not, and where naming it is not what was asked for."""
    return [WorstProbe(**asdict(as_example(r))) for r in records if r.leaks]


def _measured(metrics: Metrics, name: str) -> bool:
    entry = metrics.metrics.get(name)
    return entry is not None and entry.value is not None


def judge_confirmation(results: Path, stage: str, lineage: str, fold: int, checks: Sequence[Check]) -> Confirmation:
    """Judge the records of a candidate's confirmation as they stand. Nothing is written.

    Raises:
        UsageError: a record is missing.
        FgodError: a record was edited, the candidate was not given this fold, or see `decide`; names file or folder.
    """
    place, run = confirmation_records(stage, lineage, results), run_records(stage, lineage, results)
    given = read_folds(results)
    if not any((entry.lineage, entry.fold) == (lineage, fold) for entry in given):
        raise FgodError(f"{folds(results)}: {stage} {lineage} was not given fold {fold}; run snakemake again")
    check_confirmation_records(place)
    try:
        return decide(
            checks,
            Metrics.read(run.metrics),
            Metrics.read(place.metrics),
            read_probes(place.probes),
            assign(given, lineage, [fold]),
            confirmation_digests(place, run),
        )
    except FgodError as error:
        raise type(error)(f"{place.folder}: {error}") from error
