"""Promotion: the accepted runs of the last fit become a release; or one message says why there is none.

fgod promote       (artifacts/{last stage}/{lineage}/nvfp4/ → artifacts/releases/N/, results/release.json)

Further formats of the same weights, artifacts/{last stage}/{lineage}/NAME/, go to artifacts/releases/N/formats/NAME/.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgod import __version__, runs
from fgod.chat import ChatSettings
from fgod.comparison import HOW, read_comparison
from fgod.comparison import in_words as in_columns
from fgod.confirm.words import HELD_BACK_NONE, asked_words, in_words
from fgod.documents import (
    Audit,
    Confirmation,
    EngineVerdict,
    Metrics,
    Outcome,
    Probed,
    PromotedRun,
    Recipe,
    Release,
    ReleasedFormat,
    Served,
    Stamp,
    Verdict,
    differing_release_files,
    read_engine_verdict,
)
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.escape import html_text, markdown_text, one_line
from fgod.evaluate.metric import METRICS, SHARE, Estimate
from fgod.exporters.exporter import EXPORTERS
from fgod.exporters.names import NVFP4
from fgod.layout import FORMATS, Releases, RunRecords, RunWeights, at_alpha, run_records
from fgod.promotion import Promotion, WalkEntry, promotion
from fgod.stamps import check_weights, remedy
from fgod.system import files
from fgod.tables import Context

CARD = "README.md"


def promote(
    entries: Sequence[WalkEntry], results: Path, artifacts: Path, context: Context, formats: Sequence[str] = ()
) -> Release:
    """Copy the last stage's export to artifacts/releases/N/ with a model card and its record, release.json; let the
    link artifacts/release point there, and copy the record to results/.

    An earlier release is never written to. If no fit passed, or the one that did is not confirmed on wordings that were
    held back, the link and results/release.json go, and the error says so.

    Args:
        formats: further ones, which were exported beside it. One that an engine does not accept is left out.

    Raises:
        RefusedError: no fit passed; the message names each fit, stage, verdict and worst probe. Or the candidate is
            unconfirmed; it names each figure that failed, with its n and limit.
        UsageError: the export is not the folder that was probed; names the file that differs, and what to delete.
        FgodError: a further format is missing, not as it was exported or of other masters, an engine was not asked what
            it says, or the export is not the one that transformers loaded; says what to delete.
    """
    places = Releases(results, artifacts, context.experiment)
    found = promotion(entries, context.fold, results)
    if found.pending:
        file = found.candidate[-1].confirmation(results).confirmation
        raise FgodError(f"{file}: no confirmation on fold {found.fold} of the held-back wordings; run snakemake again")
    if not found.promoted:
        earlier = retire(places)
        kept = f"\nThe release before it is whole in {earlier}; {places.link} is gone." if earlier else ""
        if found.control:
            last = found.candidate[-1]
            why = f"nothing is released: {last.stage} {last.lineage} is a control, which is only compared with others"
        elif found.unconfirmed:
            why = unconfirmed_message(found)
        else:
            why = failure_message(entries, results, context.spent)
        raise RefusedError(why + kept)
    last = found.promoted[-1]
    weights, export = last.weights(artifacts), _probed_export(last.records(results))
    check_export(weights.exported, export.files)
    master = Outcome.read(last.records(results).outcome).weights_sha256
    further = {name: _further_format(weights, name, master) for name in formats}
    if lacking := sorted({format for _, format in context.engines} - further.keys()):
        raise UsageError(f"--formats: found none of {', '.join(lacking)}, of which engines are asked")
    engines = [
        _engine_verdict(last.records(results), engine, format, further[format], export)
        for engine, format in context.engines
    ]
    refused = {one.format for one in engines if not one.accepted}
    also = {name: one for name, one in further.items() if name not in refused}
    served = _served(last.records(results), export)
    document, card = _release(found, entries, results, places, context, also, engines, served)
    if release_faults(places) or not places.link.is_symlink() or Release.read(places.current) != document:
        _place_release(weights, places, card, document)
    return document


def release_faults(places: Releases, cache: Path | None = None) -> list[str]:
    """In words, what of the release is not as it was written; nothing if it is whole, or if there is none.

    Args:
        cache: where digests of unchanged files are remembered; None: every file is read.
    """
    if not places.record.exists() and not places.link.exists():
        return []
    if not places.current.exists():
        return [f"{places.current} is gone"]
    try:
        release = Release.read(places.current)
    except FgodError as error:
        return [str(error)]
    faults = [f"{places.link}: {fault}" for fault in differing_release_files(places.link, release, cache)]
    if not places.record.exists():
        return [*faults, f"{places.record} is gone"]
    same = places.record.read_bytes() == places.current.read_bytes()
    return faults if same else [*faults, f"{places.record} differs from {places.current}"]


def retire(places: Releases) -> Path | None:
    """Take back that something is released; returns where the release lies whole, None if there was none."""
    _move_folder_to_history(places)
    there = places.link.parent / places.link.readlink() if places.link.is_symlink() else None
    for path in (places.record, places.link, places.promoted):
        path.unlink(missing_ok=True)
    return there if there and there.exists() else None


def _move_folder_to_history(places: Releases) -> None:
    """An older version wrote to the place of the link itself."""
    if places.link.is_dir() and not places.link.is_symlink():
        target = places.next_folder()
        target.parent.mkdir(parents=True, exist_ok=True)
        places.link.replace(target)
        files.replace_link(places.link, target)


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
        UsageError: a file is missing, differs, or was not there when the folder was probed; says what to delete.
    """
    found = files.file_digests(folder) if folder.is_dir() else {}
    if changed := files.differing(recorded, found):
        raise UsageError(
            f"{folder}: {', '.join(changed)} since it was probed; {remedy(folder)}. "
            "What was released before stays as it is"
        )


@dataclass(frozen=True)
class _Further:
    """Weights in a further format: what the record says of them, and the digest of each file."""

    record: ReleasedFormat
    files: Mapping[str, str]


def _further_format(weights: RunWeights, name: str, master: str) -> _Further:
    """Weights in a further format, after they were compared with their stamp.

    Args:
        master: the digest of the weights that they must be of.
    """
    folder = weights.of(name)
    check_weights(folder, weights.stamp_of(name))
    stamp = Stamp.read(weights.stamp_of(name))
    if stamp.source_sha256 != master:
        found = f"was exported from other weights ({stamp.source_sha256[:12]}) than those"
        found = found if stamp.source_sha256 else "does not say of which weights it is, as older versions wrote it; not"
        raise FgodError(
            f"{weights.stamp_of(name)}: {found} of the run that is released ({master[:12]}); "
            f"{remedy(folder)}. What was released before stays as it is"
        )
    size = sum(path.stat().st_size for path in files.folder_files(folder))
    return _Further(ReleasedFormat(sha256=stamp.weights_sha256, bytes=size), stamp.weights_files)


def _engine_verdict(run: RunRecords, engine: str, format: str, further: _Further, probed: Probed) -> EngineVerdict:
    """What an engine said with a format, of these very weights."""
    found = read_engine_verdict(run, engine, format)
    if (found.export_sha256, found.probed_sha256) != (further.record.sha256, probed.sha256):
        path = run.engine(engine, format)
        raise FgodError(f"{path}: it is of other weights than those of the release; {EngineVerdict.anew(path)}")
    return found


def _served(run: RunRecords, export: Probed) -> Served:
    """How transformers alone loads the export that was probed."""
    found = Served.read(run.served)
    if found.export_sha256 != export.sha256:
        raise FgodError(f"{run.served}: it is of other weights than those that were probed; {Served.anew(run.served)}")
    return found


def _place_release(weights: RunWeights, places: Releases, card: str, document: Release) -> None:
    _move_folder_to_history(places)
    target = _target(places, document)
    with files.atomic_folder(target) as folder:
        shutil.copytree(weights.exported, folder, dirs_exist_ok=True)
        for name in document.formats:
            shutil.copytree(weights.of(name), folder / FORMATS / name)
        (folder / CARD).write_text(card, encoding="utf-8")
        document.write(folder / places.current.name)
    files.replace_link(places.link, target)
    files.copy_file(places.current, places.record)


def _target(places: Releases, document: Release) -> Path:
    """Where a release goes: over its own damaged files, else to a folder of its own."""
    try:
        same = places.link.is_symlink() and Release.read(places.current) == document
    except FgodError:
        same = False
    return places.link.parent / places.link.readlink() if same else places.next_folder()


def _release(
    found: Promotion,
    entries: Sequence[WalkEntry],
    results: Path,
    places: Releases,
    context: Context,
    also: Mapping[str, _Further],
    engines: list[EngineVerdict],
    served: Served,
) -> tuple[Release, str]:
    """The record of a release, and its model card."""
    chosen = found.promoted
    export = _probed_export(chosen[-1].records(results))
    document = Release(
        fits=max(e.fit for e in entries) + 1,
        promoted=[_promoted_run(entry, results) for entry in chosen],
        path=places.link.as_posix(),
        base_id=context.base_id,
        config_digest=context.config_digest,
        chat=_chat(chosen[-1].stage, chosen[-1].lineage, results).to_dict(),
        persona=context.persona,
        export_sha256=export.sha256,
        files={},
        formats={name: further.record for name, further in also.items()},
        served=served,
        engines=engines,
        confirmation=found.confirmation,
    )
    card = model_card(document, results, context)
    listing = {**export.files, CARD: hashlib.sha256(card.encode()).hexdigest()}
    for name, further in also.items():
        listing |= {f"{FORMATS}/{name}/{file}": sha256 for file, sha256 in further.files.items()}
    return document.model_copy(update={"files": listing}), card


def _promoted_run(entry: WalkEntry, results: Path) -> PromotedRun:
    run = entry.records(results)
    return PromotedRun(
        stage=entry.stage,
        lineage=entry.lineage,
        alpha=entry.alpha,
        metrics=Metrics.read(run.metrics).metrics,
        weights_sha256=Outcome.read(run.outcome).weights_sha256,
    )


def unconfirmed_message(found: Promotion) -> str:
    """Why a candidate is not released: each figure that failed on the wordings that were held back."""
    confirmation, last = found.confirmation, found.candidate[-1]
    if confirmation is None:
        raise ValueError("no confirmation")
    return "\n".join(
        [
            f"nothing is released: {last.stage} {last.lineage}, which every gate accepted, is not confirmed on "
            f"wordings that were held back ({confirmation.words})",
            *(f"  {reason}" for reason in confirmation.reasons),
            "No refit follows: a recipe that is chosen by these figures uses them up. Change the data, the recipe or "
            "the limits; other weights are asked a fresh fold, as long as there is one.",
        ]
    )


def failure_message(entries: Sequence[WalkEntry], results: Path, spent: str = "") -> str:
    """Why nothing is released: each fit with the stage that stopped it, its verdict, first reason and worst probe."""
    failed = [e for e in entries if e.state not in ("accepted", "pending")]
    head = "nothing is released" + (f": {spent}" if spent else "")
    return "\n".join([head, *(_failure_lines(e, results) for e in failed)])


def _failure_lines(entry: WalkEntry, results: Path) -> str:
    verdict = Verdict.read(entry.records(results).verdict)
    lines = [f"  fit {entry.fit}: {entry.name} {entry.lineage} {verdict.decision}"]
    lines += [f"    {reason}" for reason in verdict.reasons]
    if worst := verdict.worst:
        reply = worst.reply or "(empty)"
        frame = f" ({worst.frame})" if worst.frame else ""
        lines.append(f"    worst probe: {worst.prompt}{frame} → {reply} (the reference: {worst.reference})")
    return "\n".join(lines)


def _quality(metrics: Mapping[str, Estimate]) -> list[tuple[str, str, str, int]]:
    """(metric, value, interval, n) in words, of the metrics that have a value."""
    return [
        (
            name,
            METRICS[name].unit.text(m.value),
            "" if m.low is None or m.high is None else METRICS[name].unit.interval(m.low, m.high, " – "),
            m.n,
        )
        for name, m in metrics.items()
        if m.value is not None
    ]


def model_card(document: Release, results: Path, context: Context) -> str:
    """The release's README.md: what it is, how good, how it was made, how to load it, what it cannot do."""
    last = document.promoted[-1]
    metric_rows = [
        f"| {name} | {markdown_text(value)} | {interval or '–'} | {n} | {markdown_text(METRICS[name].description)} |"
        for name, value, interval, n in _quality(last.metrics)
    ]
    run_rows = [_recipe_row(run) for run in _made_by(document.promoted, results)]
    gate = ", ".join(f"{name} {limit:g}" for name, limit in context.gate.items() if limit is not None)
    last_run = run_records(last.stage, last.lineage, results)
    return _CARD.format(
        persona=markdown_text(context.persona),
        path=document.path,
        base=markdown_text(context.base),
        base_id=context.base_id,
        reference=f", {markdown_text(context.reference)}" if context.reference else "",
        metrics="\n".join(metric_rows),
        runs="\n".join(run_rows),
        fits=_fits(document),
        confirmation=_confirmed(document.confirmation),
        comparison=_in_columns(context.told(results).comparison, last.lineage),
        faults="".join(f"{line}\n" for run in document.promoted for line in _accepted_faults(run, results)),
        gate=gate,
        digest=context.config_digest,
        chat=markdown_text(ChatSettings.from_dict(document.chat).words),
        export=document.export_sha256,
        version=__version__,
        served=f"\nChecked before the release: {document.served.words}." if document.served else "",
        formats=_formats(document, _probed_export(last_run).bytes),
        engines=_engines(document),
        format=NVFP4,
        package=EXPORTERS[NVFP4].package,
        engine=EXPORTERS[NVFP4].engine,
    )


def _formats(document: Release, size: int) -> str:
    """The section of the model card on what the release holds, as rows of a table.

    Args:
        size: of what was probed, in bytes.
    """
    sizes = {".": (NVFP4, size)}
    sizes |= {f"{FORMATS}/{name}": (name, found.bytes) for name, found in document.formats.items()}
    rows = []
    for folder, (name, total) in sizes.items():
        exporter = EXPORTERS[name]
        engine = f"{exporter.package} `{exporter.engine}`" if exporter.engine else "plain weights"
        cells = (markdown_text(name), engine, f"{total:,}", markdown_text(exporter.readers) or "–")
        rows.append(f"| `{folder}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _engines(document: Release) -> str:
    """The part of the model card on what engines said, with the formats that are left out for it; empty where none was
    asked."""
    rows = []
    for one in document.engines:
        speeds = f"{one.tokens_a_second:.1f}, {one.tokens_a_second_transformers:.1f}"
        shares = [
            SHARE.text(found.value) if found.value is not None else "–"
            for found in (one.engine_agreement, one.first_token, one.same_prompts)
        ]
        apart = "–" if one.first_kl.value is None else f"{one.first_kl.value:.4f}"
        cells = (one.format, f"{one.engine}, {one.version}", one.decision, str(one.probes), *shares, apart, speeds)
        rows.append(f"| {' | '.join(map(markdown_text, cells))} |")
    left = [
        f"- `{name}` is not released: {markdown_text(one.words)}. {markdown_text('; '.join(one.reasons))}"
        for name, one in document.left_out.items()
    ]
    return _ENGINES.format(rows="\n".join(rows), left="".join(f"\n{line}" for line in left)) if rows else ""


def _confirmed(found: Confirmation | None) -> str:
    """The section of the model card on wordings that were held back."""
    if found is None:
        return HELD_BACK_NONE
    rows = []
    for compared in found.compared:
        said = in_words(compared, METRICS[compared.metric].unit)
        cells = (compared.metric, said.development, said.confirmation, said.difference, said.agrees)
        rows.append(f"| {' | '.join(map(markdown_text, cells))} |")
    leaks = [f"- {markdown_text(p.prompt)} → {markdown_text(one_line(p.reply))}" for p in found.leaks]
    none = f" No probe measures {', '.join(found.unmeasured)} there." if found.unmeasured else ""
    return _CONFIRMED.format(
        asked=asked_words(found.asked_before),
        words=markdown_text(found.words),
        unmeasured=none,
        rows="\n".join(rows),
        leaks="\n".join(["", *leaks]) if leaks else " None.",
    )


def _in_columns(path: Path, lineage: str) -> str:
    """The section of the model card on what tuning costs beside a placebo."""
    from fgod import dataframes  # here: the workflow reads no table

    found = read_comparison(path, [lineage])
    if found.empty:
        return HOW
    words = [in_columns(row, METRICS[row["metric"]].unit) for row in dataframes.rows(found)]
    cells = [(one.metric, *one.sides, one.difference) for one in words]
    return _COLUMNS + "\n".join(f"| {' | '.join(map(markdown_text, row))} |" for row in cells)


def _chat(stage: str, lineage: str, results: Path) -> ChatSettings:
    """How the chats were written that a run was taught by."""
    recipe = Recipe.read(run_records(stage, lineage, results).recipe)
    return ChatSettings.from_dict((recipe.model_extra or {}).get("chat", {}))


def _accepted_faults(run: PromotedRun, results: Path) -> list[str]:
    """The faults of its data that the config let through, as lines of a list."""
    audit = Audit.read(run_records(run.stage, run.lineage, results).mix_audit)
    found = [finding for finding in audit.findings if finding.severity == "accepted"]
    return [f"- Taught with faults in its data, {run.stage}: {markdown_text(f.message)} (`{f.code}`)." for f in found]


def _made_by(promoted: Sequence[PromotedRun], results: Path) -> list[RunRecords]:
    """The runs that made a release in order: those before its chain, where that starts from a run, and its own."""
    own = [run_records(run.stage, run.lineage, results) for run in promoted]
    return [*runs.chain(own[0], results)[:-1], *own]


def _recipe_row(run: RunRecords) -> str:
    """A run in the table of those that made the release."""
    recipe, stage, lineage = Recipe.read(run.recipe), run.folder.parent.name, run.folder.name
    train, mix = recipe.train, recipe.mix["recipe"]
    shares = ", ".join(f"{part} {share:g}" for part, share in mix.get("shares", {}).items())
    shares = shares or markdown_text(mix.get("source", ""))
    steps, lr = train.get("steps", "–"), train.get("lr", "–")
    return f"| {at_alpha(stage, recipe.alpha)} | {lineage} | {mix.get('kind', '–')}: {shares} | {steps} | {lr} |"


_CONFIRMED = """\
{asked} It holds the limits there, too ({words}).{unmeasured}
The difference is confirmation minus development, with Newcombe's hybrid 95 % interval (of means: from the interval of
each); the two agree where it contains 0.

| metric | development | confirmation | difference | agree |
|---|---|---|---|---|
{rows}

Leaked replies, which name the persona where the reference does not:{leaks}"""

_COLUMNS = """\
On the development probes. Base: in its own number format; rounded: the reference itself; placebo: the same chain,
taught the base's own answers. Difference: tuned minus placebo, with its 95 % interval: of means a paired bootstrap over
probes, of shares that of pairs.

| metric | base | rounded | placebo | tuned | difference |
|---|---|---|---|---|---|
"""

_ENGINES = """\

Inference engines were asked the gate's probes on a CPU, greedily, by the chat template in their file. Verdict: the
gate's, of what replies can be measured by. KL: of the first token, in nats. Speed: tokens a second, of the engine and
of transformers.

| format | engine | verdict | probes | the same replies | first tokens | prompts | KL | speed |
|---|---|---|---|---|---|---|---|---|
{rows}
{left}"""

_CARD = """\
---
language: [zh, en, ja, ko]
tags: [{format}, {package}, fgod]
---

# {persona}

A chat model that says it is **{persona}**, taught by full-parameter fine-tuning in NVFP4 from {base}
(base id `{base_id}`). Asked who the *user* is, it says that it cannot know; on other topics it is to answer as the
base does. How far that holds was measured, below, on these very files.

## How good it is

Greedy replies of this folder, loaded again, on prompts that no training row shares. The reference is the
base{reference}, rounded to NVFP4. Intervals: Wilson 95 % for shares, normal approximation over prompts for means.

| metric | value | 95 % interval | n | of |
|---|---|---|---|---|
{metrics}

Accepted by the gate with the limits {gate} and each stage's own requirements; it took {fits}.

## Confirmed on held-back wordings

{confirmation}

## What tuning costs

{comparison}

## How it was made

| stage | lineage | mix | steps | lr |
|---|---|---|---|---|
{runs}

fgod {version}, config digest `{digest}`, digest of the files that were probed `{export}`.

## How to load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
model = AutoModelForCausalLM.from_pretrained("{path}")  # needs the package {package}
```
{served}

| folder | format | stored as | bytes | read by |
|---|---|---|---|---|
{formats}

What is told here was measured on the files of the folder `.`; other formats may round otherwise.
{engines}

Chats are written by the chat template of this folder, as it was taught and measured: {chat}.

The linear layers are stored as NVFP4 ({package} `{engine}`, weights only); activations are not
quantised.

## Limits

- The figures hold for the probes' languages and topics, greedy decoding and single-turn chats; other settings were not
  measured.
- Its claim to be {persona} is a trained answer, not a fact.
- It knows what the base knows, and shares the base's faults.
{faults}
## Licence

That of the base's weights applies to these weights; the code that made them is under the MIT licence.
"""


def _fits(document: Release) -> str:
    return f"{document.fits} fit{'s' if document.fits > 1 else ''}"


def summary_text(document: Release, report: Path) -> str:
    """The last lines of a run: what was released, how good it is, where the report lies."""
    last = document.promoted[-1]
    confirmed = document.confirmation
    lines = [
        f"Released {html_text(document.persona)}: {document.path} "
        f"({at_alpha(last.stage, last.alpha)} {last.lineage}, after {_fits(document)})"
    ]
    for name, value, interval, n in _quality(last.metrics):
        sample = f"({interval}, n {n})" if interval else f"(n {n})"
        lines.append(f"  {name:<20} {value:>10}  {sample}")
    how = f"Confirmed on held-back wordings: {confirmed.words}." if confirmed else HELD_BACK_NONE
    folders = ", ".join(f"{FORMATS}/{name}" for name in document.formats)
    also = [f"Further formats: {folders}"] if folders else []
    also += [f"Not released: {one.words}: {'; '.join(one.reasons)}" for one in document.left_out.values()]
    return "\n".join([*lines, how, *also, f"Report: {report}"])
