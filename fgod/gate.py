"""The gate: a run's outcome and probe metrics become a verdict with reasons in words. Pure but for `judge_run`.

    fgod gate --limits JSON --require JSON --out results/runs/STAGE/LINEAGE/verdict.json

It reads outcome.json, metrics.json and probes.tsv beside the verdict that it writes.

The order of verdicts: diverged, killed, collapsed, damaged, missed, accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fgod import documents
from fgod.decisions import ACCEPTED
from fgod.documents import DECISIONS, Metrics, Outcome, check_run, judged_digests
from fgod.errors import FgodError
from fgod.escape import one_line
from fgod.evaluate.metric import METRICS, Metric
from fgod.evaluate.requirements import Check, parse_requirements
from fgod.evaluate.scoring import Scored
from fgod.layout import RunRecords
from fgod.probe.record import read_probes

_OPPOSITE = {">=": "<", "<=": ">", ">": "≤", "<": "≥"}


Replies = Callable[[], Sequence[Scored]]
"""Reads what a model said: a table of some thousand lines, which a run that passes is not asked for."""

Limits = Mapping[str, float | None]
"""The config's `gate` by short names of metrics, with the metrics' own limits filled in (`gate_limits`)."""


@dataclass(frozen=True)
class Example:
    """A probe that shows what went wrong. `frame`: that of the prompt in words, empty where it has none of its own."""

    suite: str
    language: str
    prompt: str
    reply: str
    reference: str
    frame: str = ""

    def text(self) -> str:
        frame = f" ({_shown(self.frame)})" if self.frame else ""
        return f"{self.prompt}{frame} → {_shown(self.reply)}"


@dataclass(frozen=True)
class Verdict:
    """`reasons` name every check that failed, the worst first; empty if accepted. `worst`: an example of the first."""

    decision: str
    reasons: tuple[str, ...]
    worst: Example | None = None


def _shown(reply: str, width: int = 60) -> str:
    text = one_line(reply)
    return "(empty)" if not text else text if len(text) <= width else text[: width - 1] + "…"


def checks_of(limits: Limits, requirements: Sequence[Check] = ()) -> tuple[Check, ...]:
    """All checks of a stage, in the order of verdicts.

    A requirement stands in for the gate's default on its metric. On the metrics of collapse both stand (retention
    under .95 is damage, under .5 collapse), unless the requirement is the looser one: it then moves the limit.
    """
    required = {check.metric: check for check in requirements}
    checks: list[Check] = []
    for check in limit_checks(limits):
        requirement = required.get(check.metric)
        if check.failed == "collapsed":
            checks.append(_loosened(check, requirement))
        elif requirement is None:
            checks.append(check)
    moved = {check.metric for check in checks if check.source == "require"}
    checks += [requirement for requirement in requirements if requirement.metric not in moved]
    return tuple(sorted(checks, key=lambda check: DECISIONS.index(check.failed)))


def limit_checks(limits: Limits) -> Iterator[Check]:
    """The checks of the config's `gate`: each limit is that of the metric with its name as short name."""
    for name, metric in METRICS.items():
        limit = limits.get(metric.short)
        if limit is not None and metric.better is not None and metric.verdict is not None:
            yield Check(name, ">=" if metric.better == "higher" else "<=", limit, metric.verdict, "gate")


def _loosened(check: Check, requirement: Check | None) -> Check:
    if requirement is None:
        return check
    looser = requirement.limit > check.limit if check.op == "<=" else requirement.limit < check.limit
    return Check(check.metric, requirement.op, requirement.limit, check.failed, "require") if looser else check


def judge(
    outcome: Outcome,
    metrics: Metrics,
    records: Replies,
    limits: Limits,
    require: Mapping[str, str],
) -> Verdict:
    """The verdict on one run.

    Args:
        records: reads the scored replies, for examples; called where a check failed.
        require: the stage's requirements, metric → ">=0.95".

    Raises:
        UsageError: a requirement is wrong.
        FgodError: the records contradict each other: a trained run without metrics, no value for a metric that
            a check needs.
    """
    checks = checks_of(limits, parse_requirements(require))
    if outcome.status != "trained":
        return Verdict(outcome.status, (outcome.reason or outcome.status,))
    if metrics.status != "measured":
        raise FgodError(
            f"metrics.json: status {metrics.status!r} for a run that trained; expected measured ({metrics.reason})"
        )
    return weigh(checks, metrics, records)


def weigh(checks: Sequence[Check], metrics: Metrics, records: Replies) -> Verdict:
    """The verdict of checks, in the order of verdicts, on what was measured; `records` as of `judge`.

    Raises:
        FgodError: no value for a metric that a check needs.
    """
    if metrics.non_finite:
        return _non_finite(metrics.non_finite, records())
    failed: dict[str, Check] = {}
    for check in checks:
        if not check.holds(_value(metrics, check)):
            failed.setdefault(check.metric, check)
    if not failed:
        return Verdict(ACCEPTED, ())
    replies = records()
    examples = [example(METRICS[name], replies) for name in failed]
    reasons = tuple(_reason(c, metrics, e) for c, e in zip(failed.values(), examples, strict=True))
    return Verdict(next(iter(failed.values())).failed, reasons, examples[0])


def _value(metrics: Metrics, check: Check) -> float:
    entry = metrics.metrics.get(check.metric)
    if entry is None or entry.value is None:
        raise FgodError(
            f"metrics.json: no value for {check.metric}, which {check.source} asks for ({check.op} {check.limit:g}); "
            "no probe measures it"
        )
    return entry.value


def _non_finite(count: int, records: Sequence[Scored]) -> Verdict:
    worst = next((as_example(r) for r in records if not r.finite), None)
    shown = f": {worst.text()}" if worst else ""
    return Verdict("diverged", (f"the export's log-probabilities are not finite on {count} prompts{shown}",), worst)


def _reason(check: Check, metrics: Metrics, worst: Example | None) -> str:
    """`leak 75 % > 5 %: PROMPT → REPLY (59.8–85.8 %, n 40)`."""
    entry, metric = metrics.metrics[check.metric], METRICS[check.metric]
    unit = metric.unit
    shown = f": {worst.text()}" if worst else ""
    interval = "" if entry.low is None or entry.high is None else f"{unit.interval(entry.low, entry.high)}, "
    compared = f"{unit.text(_value(metrics, check))} {_OPPOSITE[check.op]} {unit.text(check.limit)}"
    return f"{metric.short} {compared}{shown} ({interval}n {entry.n})"


def example(metric: Metric, records: Sequence[Scored]) -> Example | None:
    """The reply that offends most (`Metric.offends`), among equals that with the shortest prompt; None if none does."""
    if metric.offends is None:
        return None
    offences = [(metric.offends(r), r) for r in records]
    offenders = [(offence, r) for offence, r in offences if offence > 0]
    if not offenders:
        return None
    return as_example(min(offenders, key=lambda o: (-o[0], len(o[1].prompt), o[1].prompt))[1])


def as_example(r: Scored) -> Example:
    """A reply as an example."""
    return Example(r.suite, r.language, r.prompt, r.reply, r.reference, r.frame)


def judge_records(run: RunRecords, limits: Limits, require: Mapping[str, str]) -> documents.Verdict:
    """The verdict on a run's records as they stand. Nothing is written.

    Raises:
        UsageError: a record is missing.
        FgodError: a record was edited, or see `judge`; names the file or the folder.
    """
    outcome, metrics = check_run(run)
    return judge_checked(run, outcome, metrics, judged_digests(run), limits, require)


def judge_checked(
    run: RunRecords,
    outcome: Outcome,
    metrics: Metrics,
    judged: Mapping[str, str],
    limits: Limits,
    require: Mapping[str, str],
) -> documents.Verdict:
    """The same of records that were read and checked (`fgod.documents.check_run`).

    Args:
        judged: their digests (`fgod.documents.judged_digests`).

    Raises:
        FgodError: see `judge`; names the folder.
    """
    try:
        verdict = judge(outcome, metrics, lambda: read_probes(run.probes), limits, require)
    except FgodError as error:
        raise type(error)(f"{run.folder}: {error}") from error
    worst = documents.WorstProbe(**asdict(verdict.worst)) if verdict.worst else None
    checks = [documents.Limit(**asdict(check)) for check in checks_of(limits, parse_requirements(require))]
    return documents.Verdict(
        decision=verdict.decision, reasons=list(verdict.reasons), worst=worst, limits=checks, judged=dict(judged)
    )


def judge_run(run: Path, limits: Limits, require: Mapping[str, str]) -> documents.Verdict:
    """Judge the records of a run's folder and write its verdict.json.

    Raises:
        FgodError: see `judge_records`.
    """
    records = RunRecords(run)
    verdict = judge_records(records, limits, require)
    verdict.write(records.verdict)
    return verdict
