"""The records of all runs of a walk, gathered into results/tables (`fgod.tables`).

    fgod tables        (results/runs/*/*/… → results/tables/*.tsv, context.json)

Every table is written atomically.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from fgod import dataframes
from fgod.abilities.figures import Figures
from fgod.comparison import read_comparison
from fgod.data.rows import history_json
from fgod.documents import Audit, EngineVerdict, Metrics, Outcome, Recipe, Verdict, check_run, read_engine_verdict
from fgod.evaluate.metric import METRICS, Estimate
from fgod.layout import abilities
from fgod.probe.record import SCORED
from fgod.promotion import Promotion, WalkEntry, promotion
from fgod.system import files
from fgod.system.table import NUMBER, TEXT
from fgod.tables import (
    AGREEMENT,
    ENGINES,
    GUARD,
    KEY,
    PARTICIPATION,
    REASON_BREAK,
    TABLES,
    TRAINING,
    Context,
    stage_columns,
)


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
    columns = {**TABLES, "stages": stage_columns(METRICS, context.suites)}
    rows = {
        "stages": [stage_row(e, results, context.suites) for e in judged],
        "metrics": chain.from_iterable(metric_rows(e, results) for e in judged),
        "audits": chain.from_iterable(audit_rows(e, results) for e in distinct),
        "artifacts": chain.from_iterable(artifact_rows(e, results, artifacts, e.key in released) for e in distinct),
        "confirmation": confirmation_rows(found),
        "abilities": chain.from_iterable(ability_rows(e, results) for e in distinct),
        "engines": engine_rows(found, results, context.engines),
    }
    copies = {
        "probes": [probes(e, results) for e in judged],
        "training": [copied(e, e.records(results).training, TRAINING) for e in distinct],
        "participation": [copied(e, e.records(results).participation, PARTICIPATION) for e in distinct],
        "guard": [copied(e, e.records(results).guard, GUARD) for e in distinct],
        "comparison": [read_comparison(told.comparison, (e.lineage for e in distinct))],
    }
    for name in TABLES:
        made = dataframes.made(rows.get(name, ()), columns[name])
        table = pd.concat([made, *copies.get(name, ())])
        dataframes.write(told.tables / f"{name}.tsv", table[made.columns])
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
    used = dataframes.read(path, {"used_mib": NUMBER})["used_mib"].dropna()
    return None if used.empty else used.max()


def probes(entry: WalkEntry, results: Path) -> DataFrame:
    """The rows of probes.tsv of one run in one fit."""
    found = dataframes.read(entry.records(results).probes, SCORED)
    return found.assign(fit=entry.fit, **_key(entry), history=found["history"].map(history_json))


def copied(entry: WalkEntry, path: Path, columns: Iterable[str]) -> DataFrame:
    """A run's own table as it stands, and its stage and lineage. A run that was stopped may have a header only."""
    own = {name: TEXT for name in columns if name not in KEY}
    return dataframes.read(path, own).assign(**_key(entry))


def _key(entry: WalkEntry) -> dict[str, str]:
    return {"stage": entry.stage, "lineage": entry.lineage}


def metric_rows(entry: WalkEntry, results: Path) -> Iterator[dict[str, object]]:
    """Every metric of one run, overall and by language, with the check that decided on it (the hardest to pass)."""
    run = entry.records(results)
    metrics, verdict = Metrics.read(run.metrics), Verdict.read(run.verdict)
    key = {"fit": entry.fit, **_key(entry)}
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
            yield {**_key(entry), "limit": None if place else found.limit, **row}


def audit_rows(entry: WalkEntry, results: Path) -> Iterator[dict[str, object]]:
    """The facts (severity `fact`; a list's items each have a row) and findings of the audit of a run's mix."""
    audit = Audit.read(entry.records(results).mix_audit)
    key = _key(entry)
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
    last = found.candidate[-1]
    limits = {check.metric: check for check in found.confirmation.limits}
    for row in found.confirmation.compared:
        check = limits.get(row.metric)
        yield {
            **{**_key(last), "fold": found.confirmation.fold, "metric": row.metric},
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
    return {**facts, **_key(last), "alpha": last.alpha, "words": found.confirmation.words}


def engine_rows(found: Promotion, results: Path, engines: Iterable[tuple[str, str]]) -> Iterator[dict[str, object]]:
    """What engines say with formats of the weights that are released.

    Raises:
        FgodError: an engine was not asked, or its replies were edited; names the file.
    """
    for last in found.promoted[-1:]:
        for engine, format in engines:
            verdict = read_engine_verdict(last.records(results), engine, format)
            yield {
                **_key(last),
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
            **_key(entry),
            "path": path.as_posix(),
            "kind": path.name,
            "bytes": sum(p.stat().st_size for p in files.folder_files(there)) if there else None,
            "sha256": sha256,
            "status": "pruned" if there is None else "trashed" if there == trashed else status,
        }
