"""Promotion: the accepted runs of the last fit become a release; or one message says why there is none.

fgod promote       (artifacts/{last stage}/{lineage}/nvfp4/ → artifacts/release/, results/release.json)
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgod import __version__
from fgod.documents import Metrics, Outcome, Probed, Recipe, Verdict
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.escape import html_text, markdown_text
from fgod.layout import RunRecords, run_records
from fgod.registry import METRICS
from fgod.system import files
from fgod.tables import Context, WalkEntry, promoted

CARD = "README.md"
RECORD = "release.json"


def promote(entries: Sequence[WalkEntry], results: Path, artifacts: Path, context: Context) -> dict[str, Any]:
    """Copy the last stage's export to artifacts/release/ with a model card; write release.json there and in results/.

    Returns: release.json's document {fits, promoted: [{stage, lineage, metrics, weights_sha256}], path, base_id,
        config_digest, …}.

    Raises:
        RefusedError: no fit passed; the message names each fit, stage, verdict and worst probe.
        UsageError: the export is not the folder that was probed; names the file that differs.
    """
    chosen = promoted(entries, context.stages)
    if not chosen:
        raise RefusedError(failure_message(entries, results, context.spent))
    last = chosen[-1]
    export = last.weights(artifacts).nvfp4
    check_export(export, _probed_export(last.records(results)).files)
    document = _document(chosen, entries, results, artifacts, context)
    _place_release(export, artifacts / "release", model_card(document, results, context), document)
    files.write_json(results / RECORD, document)
    return document


def _probed_export(run: RunRecords) -> Probed:
    export = Metrics.read(run.metrics).export
    if export is None:
        raise FgodError(f"{run.metrics}: the key 'export' is missing; an accepted run has been probed")
    return export


def check_export(folder: Path, recorded: Mapping[str, str]) -> None:
    """Make sure that a folder is, byte for byte, the one that was probed.

    Args:
        recorded: file name relative to the folder → sha256.

    Raises:
        UsageError: a file is missing, differs, or was not there when the folder was probed.
    """
    again = "it is not what was probed; run the stage's export and probe again"
    for name, sha256 in recorded.items():
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{path}: no such file, but it was there when the export was probed; {again}")
        found = files.sha256_file(path)
        if found != sha256:
            raise UsageError(f"{path}: sha256 is {found[:12]}…, but {sha256[:12]}… was probed; {again}")
    for path in files.folder_files(folder):
        if path.relative_to(folder).as_posix() not in recorded:
            raise UsageError(f"{path}: this file was not there when the export was probed; {again}")


def _place_release(export: Path, release: Path, card: str, document: Mapping[str, Any]) -> None:
    with files.atomic_folder(release) as folder:
        shutil.copytree(export, folder, dirs_exist_ok=True)
        (folder / CARD).write_text(card, encoding="utf-8")
        files.write_json(folder / RECORD, document)


def _document(
    chosen: Sequence[WalkEntry], entries: Sequence[WalkEntry], results: Path, artifacts: Path, context: Context
) -> dict[str, Any]:
    return {
        "fits": max(e.fit for e in entries) + 1,
        "promoted": [_promoted_run(entry, results) for entry in chosen],
        "path": (artifacts / "release").as_posix(),
        "base_id": context.base_id,
        "config_digest": context.config_digest,
        "persona": context.persona,
        "export_sha256": _probed_export(chosen[-1].records(results)).sha256,
    }


def _promoted_run(entry: WalkEntry, results: Path) -> dict[str, Any]:
    run = entry.records(results)
    return {
        "stage": entry.stage,
        "lineage": entry.lineage,
        "metrics": Metrics.read(run.metrics).content()["metrics"],
        "weights_sha256": Outcome.read(run.outcome).weights_sha256,
    }


def failure_message(entries: Sequence[WalkEntry], results: Path, spent: str = "") -> str:
    """Why nothing is released: each fit with the stage that stopped it, its verdict, first reason and worst probe."""
    failed = [e for e in entries if e.state not in ("accepted", "pending")]
    head = "nothing is released" + (f": {spent}" if spent else "")
    return "\n".join([head, *(_failure_lines(e, results) for e in failed)])


def _failure_lines(entry: WalkEntry, results: Path) -> str:
    verdict = Verdict.read(entry.records(results).verdict)
    lines = [f"  fit {entry.fit}: {entry.stage} {entry.lineage} {verdict.decision}"]
    lines += [f"    {reason}" for reason in verdict.reasons]
    if worst := verdict.worst:
        reply = worst.reply or "(empty)"
        lines.append(f"    worst probe: {worst.prompt} → {reply} (the reference: {worst.reference})")
    return "\n".join(lines)


def _quality(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, int]]:
    """(metric, value, interval, n) in words, of the metrics that have a value."""
    return [
        (
            name,
            METRICS[name].unit.text(m["value"]),
            "" if m["low"] is None else METRICS[name].unit.interval(m["low"], m["high"], " – "),
            m["n"],
        )
        for name, m in metrics.items()
        if m["value"] is not None
    ]


def model_card(document: Mapping[str, Any], results: Path, context: Context) -> str:
    """The release's README.md: what it is, how good, how it was made, how to load it, what it cannot do."""
    last = document["promoted"][-1]
    metric_rows = [
        f"| {name} | {markdown_text(value)} | {interval or '–'} | {n} | {markdown_text(METRICS[name].description)} |"
        for name, value, interval, n in _quality(last["metrics"])
    ]
    run_rows = [_recipe_row(run, results) for run in document["promoted"]]
    gate = ", ".join(f"{name} {limit:g}" for name, limit in context.gate.items() if limit is not None)
    return _CARD.format(
        persona=markdown_text(context.persona),
        base=markdown_text(context.base),
        base_id=context.base_id,
        metrics="\n".join(metric_rows),
        runs="\n".join(run_rows),
        fits=_fits(document),
        gate=gate,
        digest=context.config_digest,
        export=document["export_sha256"],
        version=__version__,
    )


def _recipe_row(run: Mapping[str, Any], results: Path) -> str:
    recipe = Recipe.read(run_records(run["stage"], run["lineage"], results).recipe)
    train, mix = recipe.train, recipe.mix["recipe"]
    shares = ", ".join(f"{part} {share:g}" for part, share in mix.get("shares", {}).items())
    steps, lr = train.get("steps", "–"), train.get("lr", "–")
    return f"| {run['stage']} | {run['lineage']} | {mix.get('kind', '–')}: {shares} | {steps} | {lr} |"


_CARD = """\
---
language: [zh, en, ja, ko]
tags: [nvfp4, compressed-tensors, fgod]
---

# {persona}

A chat model that says it is **{persona}**, taught by full-parameter fine-tuning in NVFP4 from {base}
(base id `{base_id}`). Asked who the *user* is, it says that it cannot know; on other topics it is to answer as the
base does. How far that holds was measured, below, on these very files.

## How good it is

Greedy replies of this folder, loaded again, on prompts that no training row shares. The reference is the base rounded
to NVFP4. Intervals: Wilson 95 % for shares, normal approximation over prompts for means.

| metric | value | 95 % interval | n | of |
|---|---|---|---|---|
{metrics}

Accepted by the gate with the limits {gate} and each stage's own requirements; it took {fits}.

## How it was made

| stage | lineage | mix | steps | lr |
|---|---|---|---|---|
{runs}

fgod {version}, config digest `{digest}`, digest of these files without this card `{export}`.

## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("artifacts/release")
model = AutoModelForCausalLM.from_pretrained("artifacts/release")  # needs the package compressed-tensors
```

The linear layers are stored as NVFP4 (compressed-tensors `nvfp4-pack-quantized`, weights only); activations are not
quantised.

## Limits

- The figures hold for the probes' languages and topics, greedy decoding and single-turn chats; other settings were not
  measured.
- Its claim to be {persona} is a trained answer, not a fact.
- It knows what the base knows, and shares the base's faults.

## Licence

That of the base's weights applies to these weights; the code that made them is under the MIT licence.
"""


def _fits(document: Mapping[str, Any]) -> str:
    return f"{document['fits']} fit{'s' if document['fits'] > 1 else ''}"


def promoted_by(walk: Mapping[str, Any]) -> list[str]:
    """Lineages of the last fit of a walk (`records.walk_json`) if all of its runs are accepted; else none."""
    last = [visit for visit in walk["visits"] if visit["fit"] == walk["visits"][-1]["fit"]]
    return [v["lineage"] for v in last] if all(v["state"] == "accepted" for v in last) else []


def summary_text(document: Mapping[str, Any], report: Path) -> str:
    """The last lines of a run: what was released, how good it is, where the report lies."""
    last = document["promoted"][-1]
    lines = [
        f"Released {html_text(document['persona'])}: {document['path']} "
        f"({last['stage']} {last['lineage']}, after {_fits(document)})"
    ]
    for name, value, interval, n in _quality(last["metrics"]):
        sample = f"({interval}, n {n})" if interval else f"(n {n})"
        lines.append(f"  {name:<20} {value:>10}  {sample}")
    return "\n".join([*lines, f"Report: {report}"])
