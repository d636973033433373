"""What stands in results/tables, which the report and people's own analyses read. `fgod.gather` makes them.

A run that stands in several fits has its rows in `stages`, `probes` and `metrics` once for each fit; the tables without
a column `fit` have them once. For pandas: `fgod.dataframes.read(path, TABLES[name])`; or, with the escapes of
`fgod.system.table` in texts, `pandas.read_csv(path, sep="\\t", quoting=csv.QUOTE_NONE)`.

Imports nothing slow: the workflow takes the names of the tables from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgod.abilities.figures import FIGURES
from fgod.comparison import COLUMNS as COMPARISON
from fgod.comparison import estimates
from fgod.documents import DECISIONS
from fgod.errors import UsageError
from fgod.evaluate.requirements import COMPARE
from fgod.layout import View, view
from fgod.probe.record import SCORED
from fgod.system import files
from fgod.system.table import COUNT, FLAG, NUMBER, TEXT, WHOLE, Column, one_of, or_nothing

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
