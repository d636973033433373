"""One entry of the DevLog, made of the records of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgod import manifest
from fgod.data.suites import SHOWN
from fgod.devlog.next_step import LogSettings, next_step
from fgod.devlog.words import Words
from fgod.documents import Audit, Limit, Metrics, Outcome, Recipe, Verdict, check_run, verdict_of
from fgod.errors import UsageError
from fgod.escape import markdown_text, one_line
from fgod.evaluate.metric import METRICS
from fgod.layout import RunRecords, at_alpha, run_weights
from fgod.probe.record import read_probes
from fgod.recipes import changes
from fgod.runs import of_lineage
from fgod.system.files import digest

SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}
REMARKS, END = "<!-- remarks -->", "<!-- end -->"
"""Between them is the place of whoever reads the log."""


@dataclass(frozen=True)
class Judged:
    """A run with a verdict. `command` made its weights, empty where the manifest does not have it; `made` is when that
    began, `time` when the run was judged."""

    run: RunRecords
    verdict: Verdict
    recipe: Recipe
    command: tuple[str, ...]
    made: datetime
    time: datetime

    @property
    def stage(self) -> str:
        return self.run.folder.parent.name

    @property
    def lineage(self) -> str:
        return self.run.folder.name

    @property
    def name(self) -> str:
        return f"{at_alpha(self.stage, self.recipe.alpha)} {self.lineage}"

    @property
    def mark(self) -> str:
        return mark(self.run, self.verdict)

    @property
    def stale(self) -> bool:
        """Whether the verdict is of other records than those that stand now: its gate is pending."""
        return verdict_of(self.run) is None


def mark(run: RunRecords, verdict: Verdict) -> str:
    """What tells a verdict on a run from all others; it stands in the log, unseen."""
    said = verdict.model_dump(mode="json", include={"decision", "reasons", "limits"})
    return f"<!-- entry {run.folder.parent.name}/{run.folder.name} {digest(said)} -->"


def entry(number: int, judged: Judged, earlier: Judged | None, results: Path, settings: LogSettings) -> str:
    """The text of an entry.

    Args:
        earlier: the run of the same stage that was made before it.

    Raises:
        UsageError: a record is missing.
        FgodError: a record was edited; names the file.
    """
    check_run(judged.run)
    words, outcome, metrics = settings.words, Outcome.read(judged.run.outcome), Metrics.read(judged.run.metrics)
    decision = judged.verdict.decision
    head = f"## {number} · {judged.name} · {words.decisions[decision]} · {judged.time:%Y-%m-%d %H:%M} UTC"
    then = next_step(settings, judged.stage, decision, judged.recipe.alpha)
    parts = [
        f"{head}\n{judged.mark}",
        _part(words, words.hypothesis, _hypothesis(judged, settings)),
        _part(words, words.command, *_command(judged.command, words)),
        _part(words, words.data, _data(judged, words)),
        _part(words, words.settings, *_settings(judged, earlier, words)),
        _part(words, words.weights, _weights(judged, outcome, metrics, results, words)),
        _part(words, words.memory, _memory(outcome, words)),
        _part(words, words.questions, *_questions(judged.run, words)),
        _part(words, words.verdict, *_verdict(judged.verdict, metrics, words)),
        _part(words, words.next_step, markdown_text(then)),
        f"**{words.remarks}**\n\n{REMARKS}\n\n{END}",
    ]
    return "\n\n".join(parts) + "\n"


def _part(words: Words, label: str, text: str, *below: str) -> str:
    """`**Label**: text`, and what stands below it."""
    return "\n".join([words.part.format(label=label, text=text).rstrip(), *below])


def _list(items: Sequence[str]) -> list[str]:
    """Items as a list of Markdown below a line."""
    return ["", *(f"- {item}" for item in items)] if items else []


def _hypothesis(judged: Judged, settings: LogSettings) -> str:
    words, limits = settings.words, judged.verdict.limits
    held = words.holds.format(limits=words.comma.join(map(_limit, limits))) if limits else words.no_limits
    if not settings.experiment or settings.run != judged.lineage:
        return held
    named = words.experiment.format(name=markdown_text(settings.experiment))
    note = words.noted.format(note=markdown_text(one_line(settings.note))) if settings.note else ""
    return words.gap.join(filter(None, [named, note, held]))


def _limit(check: Limit) -> str:
    """`leak ≤ 5 %`; of a metric of a plugin that is not loaded, its name and the bare number."""
    if check.metric not in METRICS:
        return markdown_text(f"{check.metric} {SIGNS[check.op]} {check.limit:g}")
    metric = METRICS[check.metric]
    return markdown_text(f"{metric.short} {SIGNS[check.op]} {metric.unit.text(check.limit)}")


def _command(command: Sequence[str], words: Words) -> list[str]:
    if not command:
        return [words.no_command]
    text = one_line(shlex.join(command))
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return ["", "", f"{fence}sh", text, fence]


def _data(judged: Judged, words: Words) -> str:
    spec = judged.recipe.mix
    mix: Mapping[str, Any] = spec["recipe"]
    if "source" in mix:
        made = words.from_source.format(kind=mix["kind"], source=markdown_text(mix["source"]), mix=digest(spec))
    else:
        shares = words.comma.join(f"{markdown_text(part)} {share:g}" for part, share in mix["shares"].items())
        made = words.rows.format(kind=mix["kind"], rows=mix["rows"], shares=shares, mix=digest(spec))
    files = words.comma.join(f"{markdown_text(name)} {sha256}" for name, sha256 in spec.get("user_files", {}).items())
    found = [finding.severity for finding in Audit.read(judged.run.mix_audit).findings]
    counts = {key: found.count(severity) for key, severity in _SEVERITIES.items()}
    sentences = [made, *([words.user_files.format(files=files)] if files else []), words.audit.format(**counts)]
    return words.gap.join(sentences)


_SEVERITIES = {"errors": "error", "accepted": "accepted", "warnings": "warning"}
_MAIN = ("lr", "steps", "batch")


def _settings(judged: Judged, earlier: Judged | None, words: Words) -> list[str]:
    if earlier is None:
        train = judged.recipe.train
        return [
            words.first.format(settings=words.comma.join(f"train.{key} {train[key]}" for key in _MAIN if key in train))
        ]
    found = changes(earlier.recipe.content(), judged.recipe.content())
    if not found:
        return [words.same.format(run=earlier.name)]
    return [words.against.format(run=earlier.name), *_list([markdown_text(line) for line in found])]


def _weights(judged: Judged, outcome: Outcome, metrics: Metrics, results: Path, words: Words) -> str:
    parts = [words.start.format(start=_start(judged.recipe.starts_from, results, words))]
    if judged.recipe.alpha is not None:
        parts.append(words.between.format(alpha=f"{judged.recipe.alpha:g}", of=judged.recipe.of))
    if not outcome.weights_sha256:
        parts.append(words.no_weights.format(reason=markdown_text(outcome.reason or outcome.status)))
        return words.semicolon.join(parts)
    path = run_weights(judged.stage, judged.lineage).master.as_posix()
    parts.append(words.end.format(path=path, sha256=outcome.weights_sha256))
    if metrics.export:
        parts.append(words.export.format(sha256=metrics.export.sha256))
    return words.semicolon.join(parts)


def _start(lineage: str, results: Path, words: Words) -> str:
    """The run that another starts from, with the digest of its weights; or the base."""
    before = of_lineage(lineage, results)
    if before is None:
        return words.base.format(base=lineage)
    return f"{before.folder.parent.name} {lineage} ({Outcome.read(before.outcome).weights_sha256})"


def _memory(outcome: Outcome, words: Words) -> str:
    def shown(value: float | None, form: str) -> str:
        return words.unknown if value is None else form.format(value)

    return words.peak.format(
        peak=shown(outcome.peak_memory_mib, "{:,.0f} MiB"),
        limit=shown(outcome.limit_mib, "{:,.0f} MiB"),
        seconds=shown(outcome.wall_s, "{:,.1f} s"),
    )


def _questions(run: RunRecords, words: Words) -> list[str]:
    def said(reply: str) -> str:
        return markdown_text(reply) or words.empty

    shown = [record for record in read_probes(run.probes) if record.scored_by == SHOWN]
    lines = [
        f"{markdown_text(r.prompt)} → {said(r.reply)} {words.before.format(reply=said(r.reference))}" for r in shown
    ]
    return ["", *_list(lines)] if lines else [words.not_asked]


def _verdict(verdict: Verdict, metrics: Metrics, words: Words) -> Iterator[str]:
    yield words.decisions[verdict.decision]
    details = [markdown_text(reason) for reason in verdict.reasons]
    if verdict.worst:
        texts = {key: markdown_text(getattr(verdict.worst, key)) or words.empty for key in _WORST}
        details.append(words.worst.format(**texts))
    if measured := list(_headline(metrics)):
        details.append(words.measured.format(metrics=words.comma.join(measured)))
    yield from _list(details)


_WORST = ("prompt", "reply", "reference")


def _headline(metrics: Metrics) -> Iterator[str]:
    """The figures at the top of the report."""
    for name, metric in METRICS.items():
        found = metrics.metrics.get(name)
        if metric.headline and found and found.value is not None:
            yield markdown_text(f"{metric.short} {metric.unit.text(found.value)} (n {found.n})")


def read_judged(run: RunRecords, verdict: Verdict, starts: Sequence[Mapping[str, Any]]) -> Judged:
    """A run with a verdict.

    Args:
        starts: of the commands about it, by time (`fgod.manifest.starts`). Where they do not say when the run was made
            and judged, the times of its files do.

    Raises:
        UsageError: its recipe or its outcome is missing.
        FgodError: its recipe is none; names the file.
    """
    if not run.outcome.is_file():
        raise UsageError(f"{run.outcome}: no such file; expected one beside {run.verdict.name}")
    making = [start for start in starts if _command_word(start["argv"]) in ("train", "interpolate")]
    judging = [start for start in starts if _command_word(start["argv"]) == "gate"]
    command = tuple(making[-1]["argv"]) if making else ()
    made, time = _time(making, run.outcome), _time(judging, run.verdict)
    return Judged(run, verdict, Recipe.read(run.recipe), command, made, time)


def _time(starts: Sequence[Mapping[str, Any]], file: Path) -> datetime:
    """When the last of some commands started, else that of a file."""
    if starts:
        return datetime.fromisoformat(starts[-1]["start"]).astimezone(UTC)
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _command_word(argv: Sequence[str]) -> str:
    """`train` of `fgod --plugin FILE.py train …`."""
    return next(iter(manifest.arguments(argv)), "")
