"""The gate: a run's outcome and probe metrics become a verdict with reasons in words. Pure but for `judge_run`.

    fgod gate STAGE LINEAGE --limits JSON --require JSON --out verdict.json

It reads outcome.json, metrics.json and probes.tsv of results/runs/STAGE/LINEAGE/.

The order of verdicts: diverged, killed, collapsed, damaged, missed, accepted.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fgod.data.probes import SCORED_SUITES
from fgod.errors import FgodError, UsageError, did_you_mean
from fgod.probe.metrics import METRICS
from fgod.probe.record import check_records, read_probes
from fgod.probe.scoring import Scored
from fgod.system import files

DECISIONS = ("diverged", "killed", "collapsed", "damaged", "missed", "accepted")
"""Worst first."""

SHORT = {
    "identity_rate": "identity",
    "confusion_rate": "confusion",
    "disambiguation_rate": "disambiguation",
    "leak_rate": "leak",
    "kl_reference": "kl",
    "repetition_rate": "repetition",
    "ended_rate": "ended",
}
"""Short names of metrics, as the config's `gate` has them: used in reasons."""

DAMAGE = ("confusion_rate", "retention", "retention_held_out", "leak_rate", "kl_reference", "repetition_rate")
LOW_IS_GOOD = frozenset({"confusion_rate", "leak_rate", "kl_reference", "repetition_rate"})

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_OPPOSITE = {">=": "<", "<=": ">", ">": "≤", "<": "≥"}


@dataclass(frozen=True)
class GateLimits:
    """The config's `gate`. Past leak, retention, kl or repetition: collapsed; past confusion: damaged; below identity
    or disambiguation (None: not asked for): missed. Shares within [0, 1], kl in nats."""

    leak: float = 0.05
    retention: float = 0.5
    kl: float = 0.5
    repetition: float = 0.2
    confusion: float = 0.05
    identity: float | None = None
    disambiguation: float | None = None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> GateLimits:
        """From the config's key `gate`.

        Raises:
            UsageError: unknown key, or a value that is no number in range.
        """
        known = [f.name for f in fields(cls)]
        for key, value in table.items():
            if key not in known:
                raise UsageError(f"gate.{key}: no such limit{did_you_mean(key, known)}; known are {', '.join(known)}")
            top = math.inf if key == "kl" else 1.0
            if value is None and key in ("identity", "disambiguation"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top:
                raise UsageError(f"gate.{key}: {value!r}; expected a number from 0 to {top:g}")
        return cls(**table)


@dataclass(frozen=True)
class Check:
    """`metric op limit` must hold, else `failed` is the verdict. `source` is gate or require."""

    metric: str
    op: str
    limit: float
    failed: str
    source: str

    def holds(self, value: float) -> bool:
        return COMPARE[self.op](value, self.limit)


@dataclass(frozen=True)
class Example:
    """A probe that shows what went wrong."""

    suite: str
    language: str
    prompt: str
    reply: str
    reference: str

    def text(self) -> str:
        return f"{self.prompt} → {_shown(self.reply)}"


@dataclass(frozen=True)
class Verdict:
    """`reasons` name every check that failed, the worst first; empty if accepted. `worst`: an example of the first."""

    decision: str
    reasons: tuple[str, ...]
    worst: Example | None = None


def _shown(reply: str, width: int = 60) -> str:
    text = " ".join(reply.split())
    return "(empty)" if not text else text if len(text) <= width else text[: width - 1] + "…"


def parse_requirements(require: Mapping[str, str], where: str = "require") -> tuple[Check, ...]:
    """A stage's `require`: metric → ">=0.95".

    Args:
        where: the config key, for messages.

    Raises:
        UsageError: unknown metric, no comparison with a number, or one that asks for a bad value.
    """
    for metric in require:
        if metric not in METRICS:
            meant = did_you_mean(metric, METRICS)
            raise UsageError(f"{where}.{metric}: no such metric{meant}; known are {', '.join(METRICS)}")
    return tuple(_requirement(metric, text, f"{where}.{metric}") for metric, text in require.items())


def _requirement(metric: str, text: object, key: str) -> Check:
    match = re.fullmatch(r"\s*(>=|<=|>|<)\s*(\d+(?:\.\d*)?|\.\d+)(?:e-?\d+)?\s*", str(text))
    if match is None:
        raise UsageError(f"{key}: {text!r}; expected a comparison with a number, such as '>=0.95'")
    op, limit = match[1], float(str(text).strip()[len(match[1]) :])
    if metric != "kl_reference" and limit > 1:
        raise UsageError(f"{key}: {text!r}; {metric} is a share: expected a number from 0 to 1")
    good = "<" if metric in LOW_IS_GOOD else ">"
    if op[0] != good and metric != "distinct_replies":
        raise UsageError(
            f"{key}: {text!r}; {metric} is better the {'lower' if good == '<' else 'higher'} it is: use {good}="
        )
    return Check(metric, op, limit, "damaged" if metric in DAMAGE else "missed", "require")


def checks_of(limits: GateLimits, requirements: Sequence[Check] = ()) -> tuple[Check, ...]:
    """All checks of a stage, in the order of verdicts.

    A requirement stands in for the gate's default on its metric. On the metrics of collapse both stand (retention
    under .95 is damage, under .5 collapse), unless the requirement is the looser one: it then moves the limit.
    """
    required = {check.metric: check for check in requirements}
    collapse = [_loosened(check, required.get(check.metric)) for check in _collapse_checks(limits)]
    others = [c for c in _other_checks(limits) if c.metric not in required]
    moved = {c.metric for c in collapse if c.source == "require"}
    others += [c for c in requirements if c.metric not in moved]
    return tuple(sorted([*collapse, *others], key=lambda c: DECISIONS.index(c.failed)))


def _collapse_checks(limits: GateLimits) -> list[Check]:
    return [
        Check("leak_rate", "<=", limits.leak, "collapsed", "gate"),
        Check("retention", ">=", limits.retention, "collapsed", "gate"),
        Check("kl_reference", "<=", limits.kl, "collapsed", "gate"),
        Check("repetition_rate", "<=", limits.repetition, "collapsed", "gate"),
    ]


def _other_checks(limits: GateLimits) -> list[Check]:
    checks = [Check("confusion_rate", "<=", limits.confusion, "damaged", "gate")]
    for metric, limit in (("identity_rate", limits.identity), ("disambiguation_rate", limits.disambiguation)):
        if limit is not None:
            checks.append(Check(metric, ">=", limit, "missed", "gate"))
    return checks


def _loosened(check: Check, requirement: Check | None) -> Check:
    if requirement is None:
        return check
    looser = requirement.limit > check.limit if check.op == "<=" else requirement.limit < check.limit
    return Check(check.metric, requirement.op, requirement.limit, check.failed, "require") if looser else check


def judge(
    outcome: Mapping[str, Any],
    metrics: Mapping[str, Any],
    records: Sequence[Scored],
    limits: GateLimits,
    require: Mapping[str, str],
) -> Verdict:
    """The verdict on one run.

    Args:
        outcome: outcome.json {status: trained | diverged | killed, reason, …}.
        metrics: metrics.json {status: measured | skipped, metrics: {name: {value, n, low, high}}, non_finite}.
        records: the scored replies, for examples.
        require: the stage's requirements, metric → ">=0.95".

    Raises:
        UsageError: a requirement is wrong.
        FgodError: the records contradict each other: unknown status, a trained run without metrics, no value for a
            metric that a check needs.
    """
    checks = checks_of(limits, parse_requirements(require))
    status = outcome.get("status")
    if status in ("diverged", "killed"):
        return Verdict(str(status), (str(outcome.get("reason") or status),))
    if status != "trained":
        raise FgodError(f"outcome.json: status {status!r}; expected trained, diverged or killed")
    if metrics.get("status") != "measured":
        why = metrics.get("reason", "it gives no reason")
        raise FgodError(
            f"metrics.json: status {metrics.get('status')!r} for a run that trained; expected measured ({why})"
        )
    if metrics.get("non_finite"):
        return _non_finite(int(metrics["non_finite"]), records)
    failed: dict[str, Check] = {}
    for check in checks:
        if not check.holds(_value(metrics, check)):
            failed.setdefault(check.metric, check)
    if not failed:
        return Verdict("accepted", ())
    examples = [example(metric, records) for metric in failed]
    reasons = tuple(_reason(c, metrics, e) for c, e in zip(failed.values(), examples, strict=True))
    return Verdict(next(iter(failed.values())).failed, reasons, examples[0])


def _value(metrics: Mapping[str, Any], check: Check) -> float:
    entry = metrics.get("metrics", {}).get(check.metric)
    if entry is None or entry.get("value") is None:
        raise FgodError(
            f"metrics.json: no value for {check.metric}, which {check.source} asks for ({check.op} {check.limit:g}); "
            "no probe measures it"
        )
    return float(entry["value"])


def _non_finite(count: int, records: Sequence[Scored]) -> Verdict:
    worst = next((_as_example(r) for r in records if not r.finite), None)
    told = f": {worst.text()}" if worst else ""
    return Verdict("diverged", (f"the export's log-probabilities are not finite on {count} prompts{told}",), worst)


def number(metric: str, value: float) -> str:
    """A metric's value for people: shares in per cent, KL in nats."""
    if metric == "kl_reference":
        return f"{value:.3g}"
    percent = 100 * value
    return f"{percent:.0f} %" if percent == round(percent) else f"{percent:.1f} %"


def _reason(check: Check, metrics: Mapping[str, Any], worst: Example | None) -> str:
    entry = metrics["metrics"][check.metric]
    name = SHORT.get(check.metric, check.metric)
    found, limit = number(check.metric, entry["value"]), number(check.metric, check.limit)
    shown = f": {worst.text()}" if worst else ""
    return f"{name} {found} {_OPPOSITE[check.op]} {limit}{shown} ({interval_text(check.metric, entry)}n {entry['n']})"


def interval_text(metric: str, entry: Mapping[str, Any]) -> str:
    """`66–81 %, ` or nothing where a metric has no interval."""
    if entry.get("low") is None:
        return ""
    low, high = number(metric, entry["low"]), number(metric, entry["high"])
    return f"{low.removesuffix(' %')}–{high}, "


_OFFENDS: Mapping[str, Callable[[Scored], bool]] = {
    "identity_rate": lambda r: r.suite == "identity" and not r.passed,
    "confusion_rate": lambda r: r.suite == "disambiguation" and r.marked,
    "disambiguation_rate": lambda r: r.suite == "disambiguation" and not r.passed,
    "leak_rate": lambda r: r.suite == "retention" and r.marked and not r.reference_marked,
    "retention": lambda r: r.suite == "retention" and r.proper and not r.agrees,
    "retention_held_out": lambda r: r.suite == "retention" and r.proper and not r.agrees and r.held_out,
    "kl_reference": lambda r: r.suite == "retention" and r.kl is not None,
    "repetition_rate": lambda r: r.suite in SCORED_SUITES and r.looped,
    "ended_rate": lambda r: r.suite in SCORED_SUITES and not r.ended,
}


def example(metric: str, records: Sequence[Scored]) -> Example | None:
    """The most telling offender: the highest KL, the most repeated reply, else the shortest prompt."""
    offends = _OFFENDS.get(metric)
    offenders = [r for r in records if offends(r)] if offends else []
    if not offenders:
        return None
    if metric == "kl_reference":
        return _as_example(max(offenders, key=lambda r: (r.kl or 0.0, r.prompt)))
    return _as_example(min(offenders, key=lambda r: (len(r.prompt), r.prompt)))


def _as_example(r: Scored) -> Example:
    return Example(r.suite, r.language, r.prompt, r.reply, r.reference)


def judge_run(run: Path, limits: GateLimits, require: Mapping[str, str]) -> Verdict:
    """Judge the records of a run's folder and write its verdict.json {decision, reasons, worst, metrics, limits}.

    Raises:
        FgodError: see `judge`; the message names the folder.
    """
    outcome, metrics = files.read_json(run / "outcome.json"), files.read_json(run / "metrics.json")
    check_records(run)
    try:
        verdict = judge(outcome, metrics, read_probes(run / "probes.tsv"), limits, require)
    except FgodError as error:
        raise type(error)(f"{run}: {error}") from error
    checks = checks_of(limits, parse_requirements(require))
    document = {
        "decision": verdict.decision,
        "reasons": list(verdict.reasons),
        "worst": asdict(verdict.worst) if verdict.worst else None,
        "metrics": metrics.get("metrics", {}),
        "limits": [asdict(check) for check in checks],
    }
    files.write_json(run / "verdict.json", document)
    return verdict
