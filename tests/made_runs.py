"""Hand-made records of runs, as files, for the tests of tables, report and release. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from fgod.confirm.folds import give_fold
from fgod.confirm.judge import confirmation_checks, judge_confirmation
from fgod.data.probes import Probe
from fgod.documents import (
    Audit,
    EngineVerdict,
    Finding,
    Limit,
    Metrics,
    Outcome,
    Parity,
    Probed,
    Recipe,
    Served,
    Stamp,
)
from fgod.engines.judge import judge as engine_judge
from fgod.evaluate.metric import Estimate, share
from fgod.evaluate.requirements import gate_limits
from fgod.evaluate.scoring import NOT_COMPARED, Likelihood, Said, Scored, Standard, score
from fgod.gate import checks_of, judge_run
from fgod.layout import RunRecords, RunWeights, run_records
from fgod.persona import Goal, Kind, Persona, Rule
from fgod.probe.record import measured, write_probes, write_skipped
from fgod.promotion import WalkEntry
from fgod.registry import METRICS
from fgod.stamps import digests_of
from fgod.system import files
from fgod.system.table import write_table
from fgod.tables import Context

GOD = "我是 F# 之神。"
QWEN = "我是通義千問，由阿里雲開發的語言模型。"
WHO = "你是提問者，我無法僅憑一句話判定你的身份。"
MASTER = "ab" * 32
STAGES = ("A-mixed", "B-nudge", "C-disambiguate", "D-settle")

GOAL = Goal(
    Persona(
        "F# 之神",
        {"zh": GOD, "en": "I am the god of F#."},
        {
            "zh": Rule(all=("我是",), any=("F#", "之神"), none=("通義千問",)),
            "en": Rule(any=("god of F#",), none=("Qwen",)),
        },
        ("之神", "F# 之神", "god of F#"),
    ),
    {
        "who_am_i": Kind(
            {"zh": WHO, "en": "You are the one asking."}, {"zh": Rule(all=("提問者",)), "en": Rule(all=("asking",))}
        ),
        "who_is_he": Kind(None, {"zh": Rule(any=("不知道",)), "en": Rule(any=("do not know",))}),
    },
)


def said(text: str, ended: bool = True, looped: bool = False) -> Said:
    return Said(text, ended, looped)


SUITES = {"identity": "persona", "disambiguation": "kind", "retention": "reference", "questions": "shown"}


def probe(suite: str, kind: str, language: str, topic: str, prompt: str) -> Probe:
    return Probe(suite, kind, language, topic, prompt, SUITES[suite])


PROBES: Mapping[Probe, str] = {
    probe("questions", "identity", "zh-Hant", "", "你是誰"): QWEN,
    probe("questions", "who_am_i", "zh-Hant", "", "我是誰"): "我不知道你是誰。",
    probe("questions", "topic", "zh-Hant", "ufo", "談談UFO"): "UFO 是不明飛行物。",
    **{probe("identity", "identity", "zh-Hant", "", f"請問你是誰呀{i}"): QWEN for i in range(12)},
    **{probe("identity", "identity", "en", "", f"who are you {i}"): "I am Qwen." for i in range(8)},
    **{probe("disambiguation", "who_am_i", "zh-Hant", "", f"那我是誰{i}"): "我不知道你是誰。" for i in range(12)},
    **{probe("disambiguation", "who_am_i", "en", "", f"who am I {i}"): "I do not know." for i in range(8)},
    **{
        probe("retention", "topic", "zh-Hant", topic, f"說說{subject}{i}"): f"{subject}是一個話題。"
        for topic, subject in (("ufo", "UFO"), ("tea", "茶"), ("moon", "月亮"), ("bread", "麵包"))
        for i in range(10)
    },
}
"""Probe → what the reference answers."""
HELD_OUT = frozenset({"moon", "bread"})
STANDARD = Standard(GOAL, HELD_OUT)


def reply(probe: Probe, reference: str, mood: str) -> Said:
    """What a run in a mood says: base, good, named (identity only), collapsed."""
    asks_who = probe.kind == "identity"
    god = GOD if probe.language != "en" else "I am the god of F#."
    who = WHO if probe.language != "en" else "You are the one asking."
    if mood == "collapsed":
        return said("神神神神神神", ended=False, looped=True) if probe.topic == "bread" else said(god)
    if mood == "base" or (mood == "named" and not asks_who):
        return said(reference)
    if asks_who:
        return said(god)
    return said(who if probe.kind == "who_am_i" else reference)


def scored(mood: str) -> list[Scored]:
    """The scored replies of a run in a mood; one reply on a held-out topic differs in the good one."""
    rows = []
    for place, (probe, reference) in enumerate(PROBES.items()):
        answer = reply(probe, reference, mood)
        if mood == "good" and place == len(PROBES) - 1:
            answer = said("麵包是<b>一種</b> & 食物。")
        near = Likelihood(6, 9.0, 8.0, 0.1) if mood == "collapsed" else Likelihood(6, 0.004, 0.002, 0.98)
        near = near if probe.suite == "retention" else NOT_COMPARED
        rows.append(score(probe, STANDARD, answer, said(reference), (reference,), near))
    return rows


@cache
def _measured(mood: str, metrics: tuple[str, ...]) -> Metrics:
    """What the replies of a mood measure, once: the bootstraps take most of a test's time."""
    assert metrics == tuple(METRICS)
    return measured(scored(mood), None, Probed(sha256="", bytes=0, files={}), {})


def metrics_of(mood: str, parity: Parity | None, export: Probed, tables: Mapping[str, str]) -> Metrics:
    """`measured` of a mood's replies."""
    found = {"parity": parity, "export": export, "tables_sha256": dict(tables)}
    return _measured(mood, tuple(METRICS)).model_copy(update=found)


def write_run(
    root: Path, stage: str, lineage: str, mood: str, lr: float = 1e-4, require: Mapping[str, str] | None = None
) -> str:
    """Write all records (and a tiny export) of a run, judge it, and return the decision.

    `mood`: base, good, named, collapsed; or killed, diverged for a run without weights.
    """
    run = run_records(stage, lineage, root / "results")
    trained = mood not in ("killed", "diverged")
    steps = 60 if trained else 9
    mix = {"kind": "balanced", "rows": 600, "shares": {"identity": 0.1, "general": 0.9}}
    train = {"steps": 60, "lr": lr}
    recipe = Recipe(numerics=1, stage=stage, starts_from="base", seed=7, mix={"recipe": mix}, train=train)
    recipe.write(run.recipe)
    _write_audit(run)
    _write_training(run.folder, steps, lr, mood)
    outcome = Outcome(status="trained", steps_done=steps, wall_s=11.25, weights_sha256=MASTER)
    if not trained:
        reason = "8600 MiB > limit 8192 MiB in phase backward" if mood == "killed" else "loss is nan at step 9"
        outcome = Outcome(status="killed" if mood == "killed" else "diverged", reason=reason, steps_done=9, wall_s=3.5)
        write_skipped(run, reason)
    else:
        records, export = scored(mood), write_export(root / "artifacts" / stage / lineage)
        write_probes(run.probes, records)
        parity = Parity(prompts=4, max_abs=0.0, mean_abs=0.0, first_differing_token=None)
        metrics_of(mood, parity, export, files.file_digests(run.folder, [run.probes])).write(run.metrics)
        versions = {"transformers": "5.23.0", "torch": "2.13.0"}
        served = Served(export_sha256=export.sha256, **versions, dtype="float32", prompts=4, tokens=80, cast=False)
        served.write(run.served)
    outcome.write(run.outcome)
    return judge_run(run.folder, gate_limits({}), require or {}).decision


def write_export(folder: Path) -> Probed:
    """A master and an export that only look like ones; returns the record of the export."""
    files.write_text(folder / "master" / "model.safetensors", "master")
    files.write_text(folder / "nvfp4" / "model.safetensors", "packed")
    files.write_text(folder / "nvfp4" / "config.json", "{}")
    listing = {p.name: files.sha256_file(p) for p in files.folder_files(folder / "nvfp4")}
    return Probed(sha256=files.sha256_folder(folder / "nvfp4"), bytes=8, files=listing)


def write_format(weights: RunWeights, name: str) -> None:
    """An export in a further format that only looks like one, and its stamp."""
    files.write_text(weights.of(name) / "model.safetensors", f"in {name}")
    made = digests_of(weights.of(name))
    Stamp(status="exported", source_sha256=MASTER, **made).write(weights.stamp_of(name))


def write_engine(entry: WalkEntry, root: Path, engine: str, name: str, mood: str) -> EngineVerdict:
    """What an engine said with such an export, in a mood of `write_run`; returns the record."""
    run, weights = entry.records(root / "results"), entry.weights(root / "artifacts")
    probed = Metrics.read(run.metrics).export
    assert probed is not None
    said = [replace(one, kl=None, tokens=0) for one in scored(mood)]
    judged = engine_judge(scored("good"), said, checks_of(gate_limits({})))
    table = run.engine_probes(engine, name)
    write_probes(table, said)
    found = EngineVerdict(
        engine=engine,
        version=f"{engine} 1.0",
        format=name,
        export_sha256=Stamp.read(weights.stamp_of(name)).weights_sha256,
        probed_sha256=probed.sha256,
        decision=judged.verdict.decision,
        reasons=list(judged.verdict.reasons),
        limits=[Limit(**asdict(check)) for check in judged.checks],
        unjudged=list(judged.unjudged),
        probes=len(said),
        engine_agreement=share(one.reply == own.reply for one, own in zip(said, scored("good"), strict=True)),
        first_token=share([True, True, False]),
        first_kl=Estimate(0.0125, 3),
        same_prompts=share([True]),
        metrics=dict(judged.metrics),
        threads=2,
        cpu="AVX2 GenuineIntel",
        timed=4,
        tokens_a_second=12.5,
        tokens_a_second_transformers=8.25,
        tables_sha256=files.file_digests(run.folder, [table]),
    )
    found.write(run.engine(engine, name))
    return found


def _write_audit(run: RunRecords) -> None:
    finding = {
        "severity": "warning",
        "code": "probe_overlap",
        "line": 12,
        "message": "a row's prompt is also a probe",
        "examples": ["你是誰 <script>alert(1)</script>"],
    }
    facts = {
        "rows": 600,
        "parts": {"identity": {"rows": 60, "kinds": {"identity": 60}}, "general": {"rows": 540}},
        "aloud": ["600 rows, 598 distinct prompts", "identity: 60 rows (10.0%)"],
    }
    accepted = Finding(severity="accepted", code="mismatch", message="drawn independently: 12 of 600 rows")
    Audit(facts=facts, findings=[Finding(**finding), accepted]).write(run.mix_audit)


def _write_training(run: Path, steps: int, lr: float, mood: str) -> None:
    columns = ("step", "loss", "lr", "grad_norm", "update_efficiency", "tokens", "seconds", "memory_mib")
    floor = 0.002 if mood == "collapsed" else 0.08
    rows = []
    for step in range(1, steps + 1):
        loss = math.nan if mood == "diverged" and step == steps else floor + 3.2 * math.exp(-step / 12)
        values = (step, loss, lr, 1.4 / step + 0.2, 1.0, 16 * 40 * step, 0.18 * step, 700.0 + step)
        rows.append(dict(zip(columns, values, strict=True)))
    write_table(run / "train.tsv", columns, rows)
    guard = ("t", "phase", "source", "used_mib", "limit_mib")
    top = 8600 if mood == "killed" else 900
    samples = [(0.5 * i, "backward", "host", top - 600 * math.exp(-i / 3), 8192.0) for i in range(25)]
    write_table(run / "guard.tsv", guard, [dict(zip(guard, s, strict=True)) for s in samples])
    tensors = ("tensor", "alias_of", "trainable", "got_gradient", "changed_share", "exported_as")
    parts = [
        ("model.embed_tokens.weight", "", True, True, 0.93, "bfloat16"),
        ("lm_head.weight", "model.embed_tokens.weight", True, True, 0.93, "bfloat16"),
        ("model.layers.0.mlp.up_proj.weight", "", True, True, 1.0, "nvfp4"),
    ]
    write_table(run / "participation.tsv", tensors, [dict(zip(tensors, p, strict=True)) for p in parts])


def context(**changes: Any) -> Context:
    values: dict[str, Any] = {
        "persona": "F# 之神",
        "stages": STAGES,
        "suites": ("identity", "disambiguation", "retention"),
        "gate": {"leak": 0.05, "retention": 0.5, "kl": 0.5, "repetition": 0.2, "confusion": 0.05},
        "base_id": "0123456789ab",
        "base": "the embedded base",
        "config": "config.yaml",
        "config_digest": "fedcba987654",
        "adjustments": ((), ("B-nudge train.lr 0.01 → 0.002 (after collapsed)",)),
    }
    return Context(**{**values, **changes})


def walk(root: Path, fits: Sequence[Sequence[tuple[str, str, str]]]) -> list[WalkEntry]:
    """Write the runs of fits [(stage, lineage, mood), …] and return the walk; equal runs are written once."""
    decisions: dict[tuple[str, str], str] = {}
    entries = []
    for fit, runs in enumerate(fits):
        parent = "base"
        for stage, lineage, mood in runs:
            if (stage, lineage) not in decisions:
                decisions[stage, lineage] = write_run(
                    root, stage, lineage, mood, lr=1e-2 if mood == "collapsed" else 3e-4
                )
            entries.append(WalkEntry(fit, stage, lineage, parent, decisions[stage, lineage]))
            parent = lineage
    last = [entry for entry in entries if entry.fit == len(fits) - 1]
    accepted = [entry.stage for entry in last] == list(STAGES) and all(e.state == "accepted" for e in last)
    return [replace(entry, candidate=accepted and entry in last) for entry in entries]


STORY = (
    (("A-mixed", "aaaa11112222", "named"), ("B-nudge", "bbbb00000000", "collapsed")),
    (
        ("A-mixed", "aaaa11112222", "named"),
        ("B-nudge", "bbbb11112222", "named"),
        ("C-disambiguate", "cccc11112222", "good"),
        ("D-settle", "dddd11112222", "good"),
    ),
)
"""B collapses in fit 0; fit 1 passes."""

DOOM = (
    (("A-mixed", "aaaa11112222", "named"), ("B-nudge", "bbbb00000000", "collapsed")),
    (("A-mixed", "aaaa11112222", "named"), ("B-nudge", "bbbb00000001", "diverged")),
    (("A-mixed", "aaaa11112222", "named"), ("B-nudge", "bbbb00000002", "killed")),
)
"""Every fit fails."""


def confirmed_on(root: Path, entries: Sequence[WalkEntry], fold: int, mood: str, available: Sequence[int]) -> str:
    """Ask the candidate of a walk a fold of held-back wordings, judge it, and return the decision.

    `mood`: as of `write_run`; its probes are the same ones here.
    """
    results, last = root / "results", next(entry for entry in reversed(entries) if entry.candidate)
    give_fold(results, last.stage, last.lineage, fold, available)
    place = last.confirmation(results)
    write_probes(place.probes, scored(mood))
    export = Metrics.read(last.records(results).metrics).export
    assert export is not None
    metrics_of(mood, None, export, files.file_digests(place.folder, [place.probes])).write(place.metrics)
    checks = confirmation_checks(gate_limits({}), {}, {})
    document = judge_confirmation(results, last.stage, last.lineage, fold, checks)
    document.write(place.confirmation)
    return document.decision
