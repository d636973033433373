"""What the report shows, in which order: typed tables become plain views for the template. Pure but for the ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from pandas import DataFrame

from fgod import dataframes
from fgod.comparison import in_words as in_columns
from fgod.confirm.words import Words, in_words
from fgod.data.rows import frame_words
from fgod.data.suites import COMPARED, NAMING, SHOWN
from fgod.documents import Compared
from fgod.errors import FgodError
from fgod.evaluate.metric import SHARE, Estimate, Legend, Unit
from fgod.evaluate.requirements import COMPARE
from fgod.evaluate.words import simplified
from fgod.layout import at_alpha
from fgod.report.differences import Marked, marked
from fgod.report.frontier import frontier_of
from fgod.report.phrases import Phrase, say
from fgod.report.reading import Key, Row, Tables, check_unchanged, examples, read_tables
from fgod.report.svg import Line, line_chart, strip, thinned
from fgod.report.templating import environment
from fgod.report.tree import branches
from fgod.system import files
from fgod.tables import AGREEMENT, IN_FIT, KEY, REASON_BREAK

SIGNED_NATS = Unit("nats", low=-math.inf)
Fact = tuple[Phrase, Phrase | str]
SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}


@dataclass(frozen=True)
class MetricView:
    """One metric of one run, in words and as a drawing. `holds` is None where no limit applies."""

    legend: Legend
    value: str
    interval: str
    n: int
    limit: str
    holds: bool | None
    strip: Markup


@dataclass(frozen=True)
class ReplyView:
    """The reply to a scored probe beside the reference's. `faults`: keys of `fgod.report.words.Words`."""

    probe: Row
    marked: Marked
    faults: Sequence[str]

    @property
    def changed(self) -> bool:
        return bool(self.probe["reply"] != self.probe["reference"])


@dataclass(frozen=True)
class RunView:
    """One run of one fit. `first_fit` differs from `fit` where the run is shared with an earlier fit."""

    anchor: str
    row: Row
    reasons: Sequence[str]
    first_fit: int
    promoted: bool
    metrics: Sequence[MetricView]
    languages: Sequence[str]
    by_language: Sequence[tuple[Legend, Sequence[str]]]
    replies: Sequence[ReplyView]

    @property
    def failed(self) -> Sequence[ReplyView]:
        return [reply for reply in self.replies if reply.faults]

    @property
    def changed(self) -> int:
        return sum(reply.changed for reply in self.replies)

    @property
    def asked(self) -> int:
        return len(self.replies)

    @property
    def shared(self) -> bool:
        return bool(self.first_fit != self.row["fit"])


@dataclass(frozen=True)
class ComparedView:
    """One metric of the candidate on both sides. `holds` is None where no limit applies on held-back wordings."""

    legend: Legend
    words: Words
    agrees: bool | None
    limit: str
    holds: bool | None


class Estimated(NamedTuple):
    """A value and its interval, in words."""

    value: str
    interval: str


@dataclass(frozen=True)
class EngineView:
    """What an engine said with a format of what is released. `figures`: by column of engines.tsv."""

    row: Row
    reasons: Sequence[str]
    figures: Mapping[str, Estimated]


@dataclass(frozen=True)
class TrainingView:
    """A run's curves and what became of its tensors."""

    row: Row
    loss: Markup | None
    memory: Markup | None
    facts: Sequence[Fact]
    tensors: Sequence[Fact]


@dataclass(frozen=True)
class QuestionView:
    """The answers to one of the shown questions: the base's, then each run's in order."""

    prompt: str
    language: str
    before: str
    after: Mapping[Key, str]


def write_report(tables: Path, out: Path) -> None:
    """Make report.html of results/tables.

    Raises:
        FgodError: a table is broken; names file and line.
    """
    read = read_tables(tables)
    page = render(read, tables)  # a value that cannot be is reported with its line, any other change with its file
    check_unchanged(tables, read.context["tables_sha256"])
    files.write_text(out, page)


def render(tables: Tables, folder: Path) -> str:
    """The report as HTML. `folder` is only named in messages about broken values."""
    templates = environment()
    filters = (title, quantity, seconds, mebibytes, size, frame_of)
    templates.filters.update({function.__name__: function for function in filters})
    return templates.get_template("report.html.j2").render(**view(tables, folder))


def view(tables: Tables, folder: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    runs, scored = run_views(tables), tables.probes[tables.probes["scored_by"] != SHOWN]
    first = [run for run in runs if not run.shared]
    compared = [(row, legend_of(row["metric"], tables)) for row in dataframes.rows(tables.comparison)]
    best = next((run for run in reversed(runs) if run.promoted), None)
    fits: dict[int, list[RunView]] = {}
    for run in runs:
        fits.setdefault(run.row["fit"], []).append(run)
    return {
        "context": tables.context,
        "language": tables.context["language"],
        "tree": branches(tables.stages, [tuple(key) for key in tables.context["promoted"][-1:]]),
        "frontier": frontier_of(tables.stages.assign(experiment=""), tables.metrics, tables.legends),
        "fits": fits,
        "runs": first,
        "released": best,
        "headline": [m for m in (best.metrics if best else ()) if m.legend.headline],
        "questions": question_views(tables),
        "suites": sorted(scored["suite"].unique()),
        "languages": sorted(scored["language"].unique()),
        "training": [training_view(run.row, tables) for run in first],
        "audits": [(run.row, *audit_view(run.row, tables, folder)) for run in first],
        "artifacts": dataframes.rows(tables.artifacts),
        "compared": [compared_view(row, tables) for row in dataframes.rows(tables.confirmation)],
        "columns": [(legend, in_columns(row, legend.unit)) for row, legend in compared],
        "compared_run": compared[0][0] if compared else None,
        "engines": [engine_view(row) for row in dataframes.rows(tables.engines)],
        "abilities": [(run.row, found) for run in first if (found := dataframes.rows(_of(run.row, tables.abilities)))],
    }


def _key(row: Row) -> Key:
    return row["stage"], row["lineage"]


def _of(run: Row, table: DataFrame, key: Sequence[str] = tuple(KEY)) -> DataFrame:
    """The rows of a table about a run."""
    return table[(table[list(key)] == [run[name] for name in key]).all(axis=1)]


def run_views(tables: Tables) -> list[RunView]:
    """Every run of every fit, in the order of stages.tsv."""
    released = {tuple(key) for key in tables.context["promoted"]}
    last_fit, first_fits = tables.stages["fit"].max(), tables.stages.groupby(list(KEY))["fit"].transform("first")
    return [
        _run_view(row, tables, first_fit, _key(row) in released and row["fit"] == last_fit)
        for row, first_fit in zip(dataframes.rows(tables.stages), first_fits, strict=True)
    ]


def _run_view(row: Row, tables: Tables, first_fit: int, is_promoted: bool) -> RunView:
    metrics, probes = (_of(row, table, tuple(IN_FIT)) for table in (tables.metrics, tables.probes))
    overall, spoken = metrics[metrics["language"] == ""], metrics[metrics["language"] != ""]
    said = overall[(overall["n"] > 0) | overall["limit"].notna()]  # some probe measures it, or it has a limit
    languages = sorted(spoken["language"].unique())
    replies = dataframes.rows(probes[probes["scored_by"] != SHOWN])
    return RunView(
        anchor=f"run-{row['fit']}-{row['stage']}-{row['lineage']}",
        row=row,
        reasons=[reason for reason in row["reasons"].split(REASON_BREAK) if reason],
        first_fit=first_fit,
        promoted=is_promoted,
        metrics=[metric_view(m, legend_of(m["metric"], tables)) for m in dataframes.rows(said)],
        languages=languages,
        by_language=[
            (legend := legend_of(str(name), tables), _language_cells(legend.unit, found, languages))
            for name, found in spoken.groupby("metric", sort=False)
        ],
        replies=[ReplyView(p, marked(p["reference"], p["reply"]), faults(p)) for p in replies],
    )


def frame_of(probe: Row) -> str:
    """The frame of a probe's prompt for people; empty where it has none of its own."""
    return frame_words(probe["system"], probe["history"])


def legend_of(metric: str, tables: Tables) -> Legend:
    """How a metric is shown.

    Raises:
        FgodError: context.json does not list it.
    """
    legend = tables.legends.get(metric)
    if legend is None:
        known = ", ".join(tables.legends)
        raise FgodError(f"metrics.tsv: metric {metric!r} is not in context.json (metrics: {known})")
    return legend


def _language_cells(unit: Unit, found: DataFrame, languages: Sequence[str]) -> list[str]:
    cells = {m["language"]: m for m in dataframes.rows(found.dropna(subset="value"))}
    return [f"{unit.text(cells[x]['value'])} ({cells[x]['n']})" if x in cells else "–" for x in languages]


def metric_view(m: Row, legend: Legend) -> MetricView:
    """One overall metric against its limit."""
    unit, value, limit = legend.unit, m["value"], m["limit"]
    holds = None if None in (limit, value, m["op"]) else COMPARE[m["op"]](value, limit)
    return MetricView(
        legend=legend,
        value="–" if value is None else unit.text(value),
        interval="" if m["low"] is None else unit.interval(m["low"], m["high"], " – "),
        n=m["n"],
        limit="" if limit is None else f"{SIGNS.get(m['op'], m['op'])} {unit.text(limit)}",
        holds=holds,
        strip=Markup("") if value is None else strip(value, m["low"], m["high"], limit, scale_of(m, unit), holds),
    )


def compared_view(row: Row, tables: Tables) -> ComparedView:
    """One metric on the wordings that the gate knew, and on those that were held back."""
    legend = legend_of(row["metric"], tables)
    development, confirmation = (
        Estimate(row[side], row[f"{side}_n"], row[f"{side}_low"], row[f"{side}_high"])
        for side in ("development", "confirmation")
    )
    apart = {name: row[name] for name in ("metric", "difference", "low", "high", "contains_zero")}
    value, limit, op = row["confirmation"], row["limit"], row["op"]
    return ComparedView(
        legend=legend,
        words=in_words(Compared(development=development, confirmation=confirmation, **apart), legend.unit),
        agrees=row["contains_zero"],
        limit="" if limit is None else f"{SIGNS.get(op, op)} {legend.unit.text(limit)}",
        holds=None if None in (limit, value, op) else COMPARE[op](value, limit),
    )


def engine_view(row: Row) -> EngineView:
    """What an engine said with a format."""

    def words(name: str, unit: Unit) -> Estimated:
        value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
        interval = "" if low is None or high is None else unit.interval(low, high, " – ")
        return Estimated("–" if value is None else unit.text(value), interval)

    units = {name: SIGNED_NATS if name == "first_kl" else SHARE for name in AGREEMENT}
    reasons = [reason for reason in row["reasons"].split(REASON_BREAK) if reason]
    return EngineView(row, reasons, {name: words(name, unit) for name, unit in units.items()})


def scale_of(m: Row, unit: Unit) -> tuple[float, float]:
    """The ends of a metric's drawing: the unit's range; where that is open, room for all that is drawn."""
    drawn = [m[key] for key in ("value", "low", "high", "limit") if m[key] is not None]
    low = unit.low if math.isfinite(unit.low) else min(0.0, *drawn)
    if math.isfinite(unit.high):
        return low, unit.high
    most = max(low, *drawn)
    return low, most + 0.1 * (most - low or 1.0)


def faults(probe: Row) -> list[str]:
    """What is wrong with a scored reply, as keys of `fgod.report.words.Words`; empty if nothing is."""
    leaks = probe["marked"] and not probe["reference_marked"] and probe["scored_by"] not in NAMING
    compared, is_closed = probe["scored_by"] in COMPARED, probe["agrees"] is not None
    failed = probe["passed"] is False
    script = simplified(probe["reply"]) and not simplified(probe["reference"])
    checks = [
        (compared and is_closed and failed, "differs"),
        (not compared and failed, "breaks_rule"),
        (probe["scored_by"] == "refusal" and failed and not is_closed, "answers_refused"),
        (probe["scored_by"] == "script" and script, "simplified"),
        (leaks, "mentions"),
        (probe["looped"], "loops"),
        (is_closed and not probe["ended"], "does_not_end"),
    ]
    wrong = [words for applies, words in checks if applies]
    return [*wrong, "improper"] if wrong and not probe["proper"] else wrong


def question_views(tables: Tables) -> list[QuestionView]:
    """The shown questions, in the order of the probes."""
    shown = tables.probes[tables.probes["scored_by"] == SHOWN]
    asked = [dataframes.rows(found) for _, found in shown.groupby("prompt", sort=False)]
    return [
        QuestionView(a[0]["prompt"], a[0]["language"], a[0]["reference"], {_key(p): p["reply"] for p in a})
        for a in asked
    ]


def training_view(row: Row, tables: Tables) -> TrainingView:
    """Loss and memory over time, and the figures beside them."""
    steps = _of(row, tables.training)
    return TrainingView(
        row=row,
        loss=loss_chart(steps),
        memory=memory_chart(_of(row, tables.guard)),
        facts=_training_facts(row, steps),
        tensors=_tensor_facts(_of(row, tables.participation)),
    )


def _points(table: DataFrame, x: str, y: str) -> list[tuple[float, float]]:
    return list(zip(table[x].astype(float), table[y].astype(float), strict=True))


def loss_chart(steps: DataFrame) -> Markup | None:
    """The loss by step, or None if no step was taken."""
    known = steps.dropna(subset=["step", "loss"])
    losses = known["loss"].astype(float)
    finite = losses[np.isfinite(losses)]
    if finite.empty:
        return None
    first, last, lowest = (f"{y:.3g}" for y in (finite.iloc[0], finite.iloc[-1], finite.min()))
    title = say("loss_title", n=len(known), first=first, last=last, lowest=lowest)
    return line_chart([Line("loss", thinned(_points(known, "step", "loss"), fmean))], title.plain, say("step").svg)


def memory_chart(samples: DataFrame) -> Markup | None:
    """Memory by second, a line for each source; the limit is drawn if the peak comes near it (half of it)."""
    known = samples.dropna(subset=["used_mib", "t"])
    if known.empty:
        return None
    lines = [
        Line(str(source), thinned(_points(found, "t", "used_mib"), max))
        for source, found in known.groupby("source", sort=False)
    ]
    peak, limit = known["used_mib"].max(), dataframes.rows(known)[-1]["limit_mib"]
    drawn = limit if limit is not None and math.isfinite(limit) and peak >= limit / 2 else None
    title = say("memory_title", peak=mebibytes(peak))
    return line_chart(lines, title.plain, say("seconds").svg, drawn, say("limit").svg)


def _training_facts(row: Row, steps: DataFrame) -> list[Fact]:
    facts: list[Fact] = [(say("status"), row["status"])]
    losses, efficiency, norms = (steps[c].dropna().astype(float) for c in ("loss", "update_efficiency", "grad_norm"))
    if len(losses):
        facts.append((say("loss"), f"{losses.iloc[0]:.3g} → {losses.iloc[-1]:.3g}"))
    if len(norms):
        facts.append((say("largest_norm"), f"{norms.max():.3g}"))
    if len(efficiency):
        facts.append((say("efficiency"), f"{fmean(efficiency):.3f}"))
    if row["parity_max_abs"] is not None:
        token, gap = row["parity_first_differing_token"], row["parity_max_abs"]
        where = say("no_token") if token is None else say("token_first", token=token)
        logits = say("other_logits", gap=f"{gap:.3g}", where=where) if gap else say("same_logits")
        facts.append((say("parity"), logits))
    return facts


def _tensor_facts(tensors: DataFrame) -> list[Fact]:
    """The participation audit in few words."""
    if tensors.empty:
        return []
    own = tensors[tensors["alias_of"] == ""]
    kinds = own["exported_as"].value_counts().sort_index()
    kept = [f"{kind} {count}" for kind, count in kinds.items() if kind]
    facts: list[Fact] = [
        (say("tensors_count"), say("tensors_alias", own=len(own), alias=len(tensors) - len(own))),
        (say("trainable"), say("n_of", n=own["trainable"].sum(), of=len(own))),
        (say("got_gradient"), say("n_of", n=own["got_gradient"].sum(), of=len(own))),
    ]
    if kept:
        facts.append((say("exported_as"), ", ".join(kept)))
    if lost := kinds.get("", 0):
        facts.append((say("not_exported"), str(lost)))
    for least in dataframes.rows(own.dropna(subset="changed_share").sort_values("changed_share", kind="stable")[:1]):
        share = say("changed_share", tensor=least["tensor"], share=f"{least['changed_share']:.1%}")
        facts.append((say("changed_least"), share))
    return facts


def audit_view(row: Row, tables: Tables, folder: Path) -> tuple[list[str], list[Row], list[tuple[Row, list[str]]]]:
    """(sentences, further facts, findings with their examples) of the audit of a run's mix; errors first,
    then what was accepted."""
    audit, order = _of(row, tables.audits), {"error": 0, "accepted": 1}
    facts, findings = audit[audit["severity"] == "fact"], audit[audit["severity"] != "fact"]
    aloud, others = facts[facts["code"] == "aloud"], facts[facts["code"] != "aloud"]
    findings = findings.sort_values("severity", key=lambda found: found.map(order).fillna(len(order)), kind="stable")
    shown: list[tuple[Row, list[str]]] = [
        (found, examples(found["examples"], str(folder / "audits.tsv"), place + 2))
        for place, found in zip(findings.index, dataframes.rows(findings), strict=True)
    ]
    return list(aloud["message"]), [*dataframes.rows(others)], shown


def title(row: Mapping[str, Any]) -> str:
    """The name of a run of stages.tsv."""
    return at_alpha(row["stage"], row["alpha"])


def quantity(value: float | None) -> str:
    """A number for people, or a dash."""
    return "–" if value is None else f"{value:.4g}"


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def mebibytes(value: float | None) -> str:
    """An amount of memory."""
    return "–" if value is None else f"{value:,.0f} MiB" if value < 10240 else f"{value / 1024:,.1f} GiB"


def size(value: int | None) -> str:
    """A size on disk."""
    return "–" if value is None else mebibytes(value / 2**20) if value >= 2**20 else f"{value / 1024:,.0f} KiB"
