"""The records of all runs of a walk, gathered into results/tables: what the report and people's own analyses read.

    fgod tables        (results/runs/*/*/… → results/tables/*.tsv, context.json)

Every table is written atomically. A run that stands in several fits has its rows in `stages`, `probes` and `metrics`
once for each fit; the tables without a column `fit` have them once. For pandas:
`pandas.read_csv(path, sep="\\t", quoting=csv.QUOTE_NONE)`; tabs and line breaks in texts are escaped (see
`fgod.system.table`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fgod.abilities.figures import FIGURES, Figures
from fgod.comparison import COLUMNS as COMPARISON
from fgod.comparison import estimates, read_comparison
from fgod.documents import (
    DECISIONS,
    Audit,
    EngineVerdict,
    Metrics,
    Outcome,
    Recipe,
    Verdict,
    check_run,
    read_engine_verdict,
)
from fgod.errors import UsageError
from fgod.evaluate.metric import METRICS, Estimate
from fgod.evaluate.requirements import COMPARE
from fgod.layout import View, abilities, view
from fgod.probe.record import SCORED, fields_of, read_probes
from fgod.promotion import Promotion, WalkEntry, promotion
from fgod.system import files
from fgod.system.table import (
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    WHOLE,
    Column,
    one_of,
    or_nothing,
    read_table,
    read_texts,
    write_table,
)

KEY: Mapping[str, Column] = {"stage": TEXT, "lineage": TEXT}
IN_FIT = {"fit": COUNT, **KEY}
SIGN = or_nothing(one_of(COMPARE))

STAGES = {**IN_FIT, "alpha": NUMBER, "starts_from": TEXT, "decision": one_of(DECISIONS), "reasons": TEXT}
STAGES_AFTER_METRICS = {
    "steps": WHOLE,
    **dict.fromkeys(("lr", "wall_s", "peak_memory_mib"), NUMBER),
    **dict.fromkeys(("weights_sha256", "status", "worst_prompt", "worst_reply"), TEXT),
    **dict.fromkeys(("parity_max_abs", "parity_mean_abs"), NUMBER),
    "parity_first_differing_token": WHOLE,
}
METRIC = {
    **IN_FIT,
    **{"metric": TEXT, "language": TEXT, "value": NUMBER, "n": COUNT, "low": NUMBER, "high": NUMBER},
    **{"op": SIGN, "limit": NUMBER, "verdict": TEXT},
}
TRAINING = {
    **KEY,
    "step": WHOLE,
    **dict.fromkeys(("loss", "lr", "grad_norm", "update_efficiency", "tokens", "seconds", "memory_mib"), NUMBER),
}
PARTICIPATION = {
    **KEY,
    **{"tensor": TEXT, "alias_of": TEXT, "trainable": FLAG, "got_gradient": FLAG, "changed_share": NUMBER},
    "exported_as": TEXT,
}
GUARD = {**KEY, "t": NUMBER, "phase": TEXT, "source": TEXT, "used_mib": NUMBER, "limit_mib": NUMBER}
AUDITS = {**KEY, "severity": TEXT, "code": TEXT, "line": WHOLE, "message": TEXT, "examples": TEXT}
ARTIFACTS = {"path": TEXT, **KEY, "kind": TEXT, "bytes": WHOLE, "sha256": TEXT, "status": TEXT}
CONFIRMATION = {
    **KEY,
    **{"fold": COUNT, "metric": TEXT},
    **estimates("development", "confirmation"),
    **dict.fromkeys(("difference", "low", "high"), NUMBER),
    **{"contains_zero": FLAG, "op": SIGN, "limit": NUMBER},
}
AGREEMENT = ("engine_agreement", "first_token", "first_kl", "same_prompts")
"""What says how far an engine says what was probed (`fgod.documents.EngineVerdict`)."""
ABILITIES = {
    **KEY,
    **dict.fromkeys(FIGURES, NUMBER),
    **{"suite": TEXT, "group": TEXT, "n": COUNT, "lost": COUNT, "gained": COUNT, "limit": NUMBER},
}
ENGINES = {
    **KEY,
    **{"engine": TEXT, "version": TEXT, "format": TEXT, "decision": one_of(DECISIONS), "reasons": TEXT},
    **{"probes": COUNT, "unjudged": TEXT},
    **{name: column for share in AGREEMENT for name, column in estimates(share).items()},
    **{"threads": COUNT, "cpu": TEXT, "tokens_a_second": NUMBER, "tokens_a_second_transformers": NUMBER},
}
TABLES: Mapping[str, Mapping[str, Column]] = {
    "stages": {**STAGES, **STAGES_AFTER_METRICS},
    "probes": {**IN_FIT, **{name: replace(column, optional=False) for name, column in SCORED.items()}},
    "metrics": METRIC,
    "training": TRAINING,
    "participation": PARTICIPATION,
    "guard": GUARD,
    "audits": AUDITS,
    "artifacts": ARTIFACTS,
    "confirmation": CONFIRMATION,
    "abilities": ABILITIES,
    "comparison": COMPARISON,
    "engines": ENGINES,
}
"""Columns by table; in `stages` those of the metrics come between (`stage_columns`)."""

REASON_BREAK = " | "
"""Between the reasons of a verdict in stages.tsv."""


@dataclass(frozen=True)
class Context:
    """What the report says besides the runs' own records.

    `stages` are the configured ones in order; `suites` the scored ones of the probes; `gate` the config's limits;
    `base` the base in words; `spent` says why the walk gave up, empty if it did not; `adjustments` what the refit rules
    changed, in words, fit by fit; `fold` the fold of the held-back wordings that the candidate is confirmed on, None
    where the probes have none; `engines` each engine with each format of the release that it is asked of; `experiment`
    whose chain it is, empty of the config's own; `reference` the base that its runs are compared with, in words, where
    they come from other weights; `language` the one that the report opens in.
    """

    persona: str
    stages: tuple[str, ...]
    suites: tuple[str, ...]
    gate: Mapping[str, Any]
    base_id: str
    base: str
    config: str
    config_digest: str
    spent: str = ""
    adjustments: tuple[tuple[str, ...], ...] = ()
    fold: int | None = None
    engines: tuple[tuple[str, str], ...] = ()
    experiment: str = ""
    reference: str = ""
    language: str = "en"

    def told(self, results: Path) -> View:
        """Where the tables and the report of the chain lie."""
        return view(self.experiment, results)


def stage_columns(metrics: Iterable[str], suites: Iterable[str]) -> tuple[str, ...]:
    """The columns of stages.tsv: a value for each metric, and the number of probes of each scored suite.

    Raises:
        UsageError: a metric has the name of another column.
    """
    columns = (*STAGES, *metrics, *(f"n_{suite}" for suite in suites), *STAGES_AFTER_METRICS)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UsageError(f"metrics: {', '.join(twice)} is a column of stages.tsv; choose another name for the metric")
    return columns


def gather(entries: Sequence[WalkEntry], results: Path, artifacts: Path, context: Context) -> None:
    """Write results/tables/*.tsv and context.json from the records of all runs of the walk that are judged.

    Raises:
        FgodError: a record is missing, broken, or lacks a column; names the file.
    """
    judged = [e for e in entries if e.state != "pending"]
    distinct = list({e.key: e for e in judged}.values())
    for entry in distinct:
        check_run(entry.records(results))
    found, told = promotion(entries, context.fold, results), context.told(results)
    released = [e.key for e in found.promoted]
    rows: dict[str, Iterable[Mapping[str, object]]] = {
        "stages": [stage_row(e, results, context.suites) for e in judged],
        "probes": _chain(probe_rows(e, results) for e in judged),
        "metrics": _chain(metric_rows(e, results) for e in judged),
        "training": _chain(copied_rows(e, e.records(results).training, TRAINING) for e in distinct),
        "participation": _chain(copied_rows(e, e.records(results).participation, PARTICIPATION) for e in distinct),
        "guard": _chain(copied_rows(e, e.records(results).guard, GUARD) for e in distinct),
        "audits": _chain(audit_rows(e, results) for e in distinct),
        "artifacts": _chain(artifact_rows(e, results, artifacts, e.key in released) for e in distinct),
        "confirmation": confirmation_rows(found),
        "abilities": _chain(ability_rows(e, results) for e in distinct),
        "comparison": _chain(read_comparison(told.comparison, e.lineage) for e in distinct),
        "engines": engine_rows(found, results, context.engines),
    }
    all_columns = {**TABLES, "stages": stage_columns(METRICS, context.suites)}
    for name, columns in all_columns.items():
        write_table(told.tables / f"{name}.tsv", columns, rows[name])
    last_fit = max((e.fit for e in entries), default=0)
    written = files.file_digests(told.tables, (told.tables / f"{name}.tsv" for name in TABLES))
    document = {
        **asdict(context),
        "fits": last_fit + 1,
        "promoted": released,
        "confirmation": confirmation_facts(found),
        "metrics": [metric.legend.to_dict() for _, metric in METRICS.items()],
        "tables_sha256": written,
    }
    files.write_json(told.context, document)


def made_by_another(results: Path, config: str) -> str:
    """A warning where the tables were made by another config than this one; empty where they were not.

    Args:
        config: the names of its files, as in `Context`.
    """
    file = view(results=results).context
    if not file.exists():
        return ""
    made = files.read_json(file)
    if same_files(made["config"], config):
        return ""
    return (
        f"{results} holds the tables, the report and the release of {made['config']} (digest {made['config_digest']}): "
        f"{config} writes its own in their place. Runs and weights of both stay. A clone of this folder keeps both."
    )


def same_files(one: str, other: str) -> bool:
    """Whether two configs' names (as in `Context`) are of the same files."""
    return [Path(name).resolve() for name in one.split(", ")] == [Path(name).resolve() for name in other.split(", ")]


def _chain(groups: Iterable[Iterable[Mapping[str, object]]]) -> Iterator[Mapping[str, object]]:
    for group in groups:
        yield from group


def stage_row(entry: WalkEntry, results: Path, suites: Sequence[str]) -> dict[str, object]:
    """The row of stages.tsv of one run in one fit."""
    run = entry.records(results)
    outcome, metrics, verdict = Outcome.read(run.outcome), Metrics.read(run.metrics), Verdict.read(run.verdict)
    train, worst, parity = Recipe.read(run.recipe).train, verdict.worst, metrics.parity
    values = metrics.metrics
    return {
        **{name: getattr(entry, name) for name in ("fit", "stage", "lineage", "alpha", "starts_from")},
        "decision": verdict.decision,
        "reasons": REASON_BREAK.join(verdict.reasons),
        **{name: values[name].value if name in values else None for name in METRICS},
        **{f"n_{suite}": metrics.probes.get(suite) for suite in suites},
        "steps": train.get("steps"),
        "lr": train.get("lr"),
        "wall_s": outcome.wall_s,
        "peak_memory_mib": peak_memory(run.guard),
        "weights_sha256": outcome.weights_sha256 or None,
        "status": outcome.status,
        "worst_prompt": worst.prompt if worst else None,
        "worst_reply": worst.reply if worst else None,
        "parity_max_abs": parity.max_abs if parity else None,
        "parity_mean_abs": parity.mean_abs if parity else None,
        "parity_first_differing_token": parity.first_differing_token if parity else None,
    }


def peak_memory(path: Path) -> float | None:
    """The most memory in MiB that the guard saw the run use, from its guard.tsv; None if it took no sample."""
    used = (row["used_mib"] for row in read_table(path, {"used_mib": NUMBER}))
    return max((mib for mib in used if mib is not None), default=None)


def probe_rows(entry: WalkEntry, results: Path) -> Iterator[dict[str, object]]:
    """The rows of probes.tsv of one run in one fit."""
    for record in read_probes(entry.records(results).probes):
        yield {"fit": entry.fit, "stage": entry.stage, "lineage": entry.lineage, **fields_of(record)}


def metric_rows(entry: WalkEntry, results: Path) -> Iterator[dict[str, object]]:
    """Every metric of one run, overall and by language, with the check that decided on it (the hardest to pass)."""
    run = entry.records(results)
    metrics, verdict = Metrics.read(run.metrics), Verdict.read(run.verdict)
    key = {"fit": entry.fit, "stage": entry.stage, "lineage": entry.lineage}
    checks = {check.metric: check for check in verdict.limits}
    none = {"op": None, "limit": None, "verdict": None}
    for name, value in metrics.metrics.items():
        check = checks.get(name)
        limit = {"op": check.op, "limit": check.limit, "verdict": check.failed} if check else none
        yield {**key, "metric": name, "language": None, **value.to_dict(), **limit}
    for name, cells in metrics.by_language.items():
        for language, value in cells.items():
            yield {**key, "metric": name, "language": language, **value.to_dict(), **none}


def ability_rows(entry: WalkEntry, results: Path) -> Iterator[dict[str, object]]:
    """What a run can do beside the base, where it was evaluated; the limit stands at the row that it is for."""
    path = abilities(entry.stage, entry.lineage, results)
    if path.exists():
        found = Figures.read(path)
        for place, row in enumerate(found.results):
            yield {"stage": entry.stage, "lineage": entry.lineage, "limit": None if place else found.limit, **row}


def copied_rows(entry: WalkEntry, path: Path, columns: Iterable[str]) -> Iterator[dict[str, object]]:
    """The rows of a run's own table, led by its stage and lineage. A run that was stopped may have a header only."""
    own = [c for c in columns if c not in KEY]
    for row in read_texts(path, own):
        yield {"stage": entry.stage, "lineage": entry.lineage, **{c: row[c] for c in own}}


def audit_rows(entry: WalkEntry, results: Path) -> Iterator[dict[str, object]]:
    """The facts (severity `fact`; a list's items each have a row) and findings of the audit of a run's mix."""
    audit = Audit.read(entry.records(results).mix_audit)
    key = {"stage": entry.stage, "lineage": entry.lineage}
    for name, value in audit.facts.items():
        for item in value if isinstance(value, list) else [value]:
            yield {**key, "severity": "fact", "code": name, "line": None, "message": _in_words(item), "examples": None}
    for finding in audit.findings:
        fields = {c: getattr(finding, c) for c in ("severity", "code", "line", "message")}
        yield {**key, **fields, "examples": json.dumps(finding.examples, ensure_ascii=False)}


def _in_words(value: object) -> str:
    """`rows 60, share 0.1` for a mapping, brackets around those inside it."""
    if isinstance(value, Mapping):
        parts = ((k, f"({_in_words(v)})" if isinstance(v, Mapping) else _in_words(v)) for k, v in value.items())
        return ", ".join(f"{k} {v}" for k, v in parts)
    return str(value)


def confirmation_rows(found: Promotion) -> Iterator[dict[str, object]]:
    """The candidate metric by metric: on the wordings that the gate knew, on those that were held back, and apart."""
    if found.confirmation is None:
        return
    stage, lineage = found.candidate[-1].key
    limits = {check.metric: check for check in found.confirmation.limits}
    for row in found.confirmation.compared:
        check = limits.get(row.metric)
        yield {
            **{"stage": stage, "lineage": lineage, "fold": found.confirmation.fold, "metric": row.metric},
            **_prefixed("development", row.development),
            **_prefixed("confirmation", row.confirmation),
            **{name: getattr(row, name) for name in ("difference", "low", "high", "contains_zero")},
            **{"op": check.op if check else None, "limit": check.limit if check else None},
        }


def _prefixed(side: str, estimate: Estimate) -> dict[str, object]:
    return {side if name == "value" else f"{side}_{name}": value for name, value in estimate.to_dict().items()}


def confirmation_facts(found: Promotion) -> dict[str, Any] | None:
    """What context.json says of a confirmation besides confirmation.tsv; None where nothing was held back."""
    if found.confirmation is None:
        return None
    last = found.candidate[-1]
    facts = found.confirmation.model_dump(mode="json", exclude={"compared", "limits", "judged", "worst"})
    of = {"stage": last.stage, "lineage": last.lineage, "alpha": last.alpha}
    return {**facts, **of, "words": found.confirmation.words}


def engine_rows(found: Promotion, results: Path, engines: Iterable[tuple[str, str]]) -> Iterator[dict[str, object]]:
    """What engines say with formats of the weights that are released.

    Raises:
        FgodError: an engine was not asked, or its replies were edited; names the file.
    """
    for last in found.promoted[-1:]:
        for engine, format in engines:
            verdict = read_engine_verdict(last.records(results), engine, format)
            yield {
                **{"stage": last.stage, "lineage": last.lineage},
                **{name: getattr(verdict, name) for name in ENGINES if name in EngineVerdict.model_fields},
                **{"reasons": REASON_BREAK.join(verdict.reasons), "unjudged": ", ".join(verdict.unjudged)},
                **{key: value for name in AGREEMENT for key, value in _prefixed(name, getattr(verdict, name)).items()},
            }


def artifact_rows(entry: WalkEntry, results: Path, artifacts: Path, is_promoted: bool) -> Iterator[dict[str, object]]:
    """The weight folders of a run. Digests come from the records; bytes are unknown once a folder is gone."""
    run, weights = entry.records(results), entry.weights(artifacts)
    outcome, metrics = Outcome.read(run.outcome), Metrics.read(run.metrics)
    status = "promoted" if is_promoted else "accepted" if entry.state == "accepted" else "failed"
    digests = {
        weights.master: outcome.weights_sha256,
        weights.exported: metrics.export.sha256 if metrics.export else "",
    }
    for path, sha256 in digests.items():
        if not sha256:
            continue
        trashed = weights.trash / path.name
        there = path if path.is_dir() else trashed if trashed.is_dir() else None
        yield {
            "path": path.as_posix(),
            "stage": entry.stage,
            "lineage": entry.lineage,
            "kind": path.name,
            "bytes": sum(p.stat().st_size for p in files.folder_files(there)) if there else None,
            "sha256": sha256,
            "status": "pruned" if there is None else "trashed" if there == trashed else status,
        }
