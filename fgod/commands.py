"""What the subcommands do: thin shells around the package's functions. Each takes the parsed arguments and returns the
exit code. torch and transformers are imported only where weights are touched.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod import checkpoints, layout, records
from fgod.answers import BATCH
from fgod.arguments import options_of
from fgod.chat import ChatSettings
from fgod.documents import (
    Audit,
    BaseStamp,
    Finding,
    MixStamp,
    Outcome,
    Stamp,
    check_answers,
    check_interpolation,
    check_rows,
    check_self_asked,
    check_teacher,
    check_training_data,
)
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.guard.limits import Limits
from fgod.imports import lasting_imports
from fgod.layout import (
    Answers,
    Base,
    Export,
    Mix,
    RunRecords,
    RunWeights,
    SelfAsked,
    Teacher,
    Work,
    remade_by_deleting,
)
from fgod.persona import Goal, goal_from_config
from fgod.registry import plugin_options
from fgod.supervise import supervise
from fgod.system.files import (
    copy_file,
    differing,
    file_digests,
    read_json,
    remove_folder,
    sha256_file,
    sha256_listing,
    write_json,
)

if TYPE_CHECKING:
    from fgod.data.audit import TokenLimit
    from fgod.data.formats import UserSource
    from fgod.data.mix import OldIdentity
    from fgod.data.probes import Probe
    from fgod.data.rows import Prompt, Row
    from fgod.data.sources import Sources


TEACHER_BATCH = 64
"""Rows that the base is asked about at once."""

EVALUATION_BATCH = 32
"""Items that a model is asked at once."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _note(args: Namespace, inputs: Sequence[Path] = (), outputs: Sequence[Path] = (), **facts: Any) -> None:
    """Add to the manifest's entry of this command what it found out on its way, if it has one."""
    if entry := getattr(args, "entry", None):
        entry.inputs += inputs
        entry.outputs += outputs
        entry.facts |= facts


# ------------------------------------------------------------------------------------------------------------- base


def base(args: Namespace) -> int:
    """Make the embedded base or a random one, import a file, or check a folder; base.json says what it is."""
    from fgod.inputs import own_weights

    facts = supervise(args, "the base")
    folder = own_weights(args.base) or Base(args.out.parent).master
    BaseStamp(status="trained", base=args.base, **_digests(folder), facts=dict(facts)).write(args.out)
    return 0


def self_asked(args: Namespace) -> int:
    """Let the base ask of its own accord."""
    _check_export(args.export)
    supervise(args, "what the base asks itself", args.batch or BATCH, args.settings["device"] == "cuda")
    return 0


def rehearsal(args: Namespace) -> int:
    """Ask the base the prompts whose answers are rehearsed."""
    _check_export(args.export)
    if args.asked:
        check_self_asked(SelfAsked(args.asked.parent))
    supervise(args, "the rehearsal answers of the base", args.batch or BATCH, args.settings["device"] == "cuda")
    return 0


def reference(args: Namespace) -> int:
    """Ask the base the probes."""
    _check_export(args.export)
    batch = args.batch or args.settings["batch"]
    supervise(args, "the reference answers of the base", batch, args.settings["device"] == "cuda")
    return 0


def teacher(args: Namespace) -> int:
    """Ask the base for its distributions at the labels of a mix's rehearsed rows."""
    _check_digest(args.weights, args.stamp)
    check_rows(Mix(args.rows.parent))
    supervise(args, "the base as teacher", args.batch or TEACHER_BATCH, args.settings["device"] == "cuda")
    return 0


def check(args: Namespace) -> int:
    """Refuse probes that the base itself does not answer (exit 100), and warn of limits that a coin decides."""
    from fgod.answers import read_answers
    from fgod.data.marks import accepted_of
    from fgod.data.probes import asked_in, expected, load_probes
    from fgod.data.sources import load_sources
    from fgod.evaluate.measure import measure_all
    from fgod.evaluate.power import weak_limits
    from fgod.evaluate.requirements import parse_requirements
    from fgod.evaluate.scoring import Standard
    from fgod.evaluate.words import load_reply_words
    from fgod.gate import checks_of
    from fgod.probe.harness import NEEDED, check_reference, reference_records

    check_answers(Answers(args.answers.parent))
    probes = asked_in(load_probes(args.probes, args.sources, args.languages), args.fold)
    sources = load_sources(args.sources, args.languages)
    embedded = args.base["kind"] == "embedded"
    known = {p.key: expected(sources, p) if embedded else () for p in probes}
    least = args.base.get("require", 0.9)
    answers = read_answers(args.answers.parent)
    words = load_reply_words(args.sources, probes)
    standard = Standard(goal_from_config(args.goal), closed=args.base["closed_answers"], words=words)
    needed, accepted = () if args.fold else NEEDED, accepted_of(args.goal["persona"])
    table = check_reference(probes, answers, known, standard, least, embedded, needed, accepted)
    _say(table)
    measured = measure_all(reference_records(probes, answers, known, standard))
    stages = [checks_of(args.limits["gate"], parse_requirements(require)) for require in args.limits["require"]]
    weak = list(weak_limits([check for checks in stages for check in checks], measured))
    for warning in weak:
        _say(f"warning: {warning}")
    write_json(args.out, {"require": least, "table": table.splitlines(), "weak_limits": weak})
    return 0


def export(args: Namespace) -> int:
    """Export trained weights; a run without weights leaves a stamp that says so."""
    stamp = Stamp.read(args.stamp)
    if stamp.status != "trained":
        Stamp(status="skipped", reason=f"{stamp.status}: {stamp.reason}").write(args.out)
        return 0
    _check_digest(args.weights, args.stamp)
    supervise(args, f"the export of {args.weights}", gpu=args.gpus > 0)
    Stamp(status="exported", **_digests(Export(args.out.parent).of(args.format))).write(args.out)
    return 0


def _digests(folder: Path) -> dict[str, Any]:
    """What a stamp says of a folder of weights: its sha256, and that of each file."""
    listing = file_digests(folder)
    return {"weights_sha256": sha256_listing(listing), "weights_files": listing}


def _check_digest(folder: Path, stamp_file: Path) -> None:
    """Weights must be, byte for byte, those that their stamp speaks of."""
    stamp = Stamp.read(stamp_file)
    if not folder.is_dir():
        raise FgodError(f"{folder}: these weights are gone, though {stamp_file} stands; {_anew(folder, stamp_file)}")
    if changed := differing(stamp.weights_files, file_digests(folder)):
        raise FgodError(f"{folder}: {', '.join(changed)} since these weights were written (sha256 differs from "
                        f"{stamp_file}); {_anew(folder, stamp_file)}")  # fmt: skip


def _anew(folder: Path, stamp_file: Path) -> str:
    """What is to be done about weights that are not what they were."""
    if folder.parent != stamp_file.parent:  # the user's own base
        return "bring back the files that it had, or name another folder in base.path"
    return remade_by_deleting(folder)


def _check_export(stamp_file: Path) -> None:
    """Check the digest of an export."""
    _check_digest(Export(stamp_file.parent).exported, stamp_file)


# ------------------------------------------------------------------------------------------------------------- data


def mix(args: Namespace) -> int:
    """Plan and write the rows of a mix."""
    from fgod.answers import read_answers
    from fgod.data.asking import asked_prompts, read_asked
    from fgod.data.formats import user_rows, user_sources
    from fgod.data.mix import build_pools, changes_of, framed, plan_mix
    from fgod.data.optional import DENIALS_FILE, SYSTEMS_FILE, files_used, load_denials, load_systems
    from fgod.data.recipe import SELF_ASKED, VARIED, VERBATIM, MixRecipe
    from fgod.data.sources import load_sources
    from fgod.data.wordings import optional_prompts

    spec, files = args.spec, user_sources(args.files)
    user = {name: user_rows(files[name], name) for name in spec["user_files"]}
    recipe = MixRecipe.from_dict({key: value for key, value in spec["recipe"].items() if value is not None})
    if recipe.kind == VERBATIM:
        _write_mix(args.out, spec, user[recipe.source])
        return 0
    check_answers(Answers(args.answers.parent))
    if args.asked:
        check_self_asked(SelfAsked(args.asked.parent))
    sources, used = load_sources(args.sources, args.languages), files_used(recipe)
    rehearsed = optional_prompts(sources, args.sources, recipe.parts(), spec.get("neighbours"))
    if args.asked:
        rehearsed[SELF_ASKED] = asked_prompts(read_asked(args.asked))
    pools = build_pools(
        sources,
        _mix_goal(spec),
        read_answers(args.answers.parent),
        frozenset(spec["held_out_topics"]),
        user,
        spec["rehearse"]["replay_rows"],
        spec["seed"],
        spec.get("closed_answers", True),
        load_denials(args.sources) if DENIALS_FILE in used else None,
        rehearsed,
        _varied(args.sources, sources, spec) if VARIED in recipe.parts() else (),
        spec.get("replaces", ()),
    )
    rows = plan_mix(recipe, pools, spec["seed"])
    changes = changes_of(pools, user, rows)
    systems = load_systems(args.sources) if SYSTEMS_FILE in used else {}
    _write_mix(args.out, spec, framed(rows, recipe, systems, spec["seed"]), changes, pools.old_identity)
    return 0


def _varied(folder: Path, sources: Sources, spec: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of the part varied: those whose answers the config has."""
    from fgod.data.optional import load_denials, load_varied
    from fgod.data.recipe import DENIAL
    from fgod.data.wordings import varied_prompts

    sections = load_varied(folder)
    if not spec.get("denials"):
        sections.pop(DENIAL, None)
    kinds = [name for name, replies in spec["disambiguation"].items() if replies != "base"]
    return varied_prompts(sources, sections, load_denials(folder), kinds)


def _write_mix(
    out: Path,
    spec: dict[str, Any],
    rows: Sequence[Row],
    changes: dict[str, dict[str, int]] | None = None,
    old_identity: Sequence[OldIdentity] = (),
) -> None:
    from fgod.data.rows import write_rows

    write_rows(out, rows)
    named = [asdict(one) for one in old_identity]
    stamp = MixStamp(spec=spec, rows_sha256=sha256_file(out), changes=changes or {}, old_identity=named)
    stamp.write(Mix(out.parent).stamp)


def placebo(args: Namespace) -> int:
    """Write a mix anew with the base's own answers as targets of all that is taught."""
    from fgod.placebo import KEY

    settings = args.spec[KEY]
    made = check_rows(Mix(args.rows.parent))
    if args.spec != {**made.spec, KEY: settings}:
        raise FgodError(f"{args.rows}: these rows are of another mix than the placebo is to be made of")
    _check_export(args.export)
    found = supervise(args, "the placebo's answers of the base", args.batch or BATCH, settings["device"] == "cuda")
    MixStamp(spec=args.spec, rows_sha256=sha256_file(args.out), changes=found["changes"]).write(
        Mix(args.out.parent).stamp
    )
    return 0


def _mix_goal(spec: Mapping[str, Any]) -> Goal:
    """The goal as far as rows depend on it: replies, without the rules that judge them."""
    persona = {"name": "", "replies": spec["replies"], "denials": spec.get("denials"), "rule": {}, "marks": []}
    kinds = {name: {"replies": replies, "rule": {}} for name, replies in spec["disambiguation"].items()}
    return goal_from_config({"persona": persona, "disambiguation": kinds})


def _probes_of(files: Sequence[Path], folder: Path | None, languages: Sequence[str]) -> list[Probe]:
    from fgod.data.probes import load_probes

    if folder is None:
        raise UsageError("--probes: needs --sources where there is no config.yaml: its suites.yaml says what is scored")
    return load_probes(files, folder, languages)


def audit(args: Namespace) -> int:
    """Audit a mix or a user's file; errors give exit code 100 (RefusedError)."""
    from fgod.config import load
    from fgod.data.audit import audit_file, audit_rows
    from fgod.data.formats import user_sources
    from fgod.data.marks import accepted_of
    from fgod.data.mix import OldIdentity
    from fgod.data.recipe import PARTS, MixRecipe
    from fgod.data.rows import read_rows
    from fgod.data.sources import load_sources
    from fgod.data.wordings import asked_otherwise
    from fgod.inputs import languages_of
    from fgod.placebo import KEY as PLACEBO

    config = load(Path("config.yaml")) if args.goal is None and Path("config.yaml").exists() else None
    goal = args.goal or config
    persona = goal_from_config(goal).persona if goal else None
    accepted = accepted_of(goal["persona"]) if goal else ()
    folder = args.sources or (Path(goal["data"]["folder"]) if goal and "data" in goal else None)

    languages = args.languages or (languages_of(config) if config else ())
    probes = _probes_of(args.probes, folder, languages) if args.probes else []

    def others() -> dict[str, str]:
        return asked_otherwise(load_sources(folder, languages)) if folder else {}

    tokens = _token_limit(args, config)
    made, audited, refused = Mix(args.file.parent), "", True
    if args.file == made.rows and made.stamp.exists():
        stamp = check_rows(made)
        audited = stamp.rows_sha256
        refused = PLACEBO not in stamp.spec  # its faults are the base's, and wanted
        recipe = MixRecipe.from_dict(stamp.spec["recipe"])
        files = {name: source for name, source in user_sources(args.files).items() if name in recipe.parts()}
        result = audit_rows(
            read_rows(args.file), probes, persona, recipe, name=str(args.file), others=others, tokens=tokens,
            origins=_origins(files),
            accept={**dict.fromkeys(PARTS, accepted), **{name: source.accept for name, source in files.items()}},
            changes=stamp.changes,
            old_identity=[OldIdentity(**{**one, "examples": tuple(one["examples"])}) for one in stamp.old_identity],
        )  # fmt: skip
    else:
        source = _source(args, config)
        result = audit_file(args.file, probes, persona, others=others, tokens=tokens, source=source)
    print(result.text())
    if args.out:
        findings = [Finding(**finding.to_dict()) for finding in result.findings]
        Audit(facts=dict(result.facts), findings=findings, rows_sha256=audited).write(args.out)
    if result.errors and refused:
        raise RefusedError(f"{args.file}: the audit found {len(result.errors)} error(s); mend the data, see above")
    return 0


def _token_limit(args: Namespace, config: Mapping[str, Any] | None) -> TokenLimit | None:
    """How long rows may be: by --weights and --seq-len, else by the config's base, if it was made, and its stages."""
    from fgod.data.audit import TokenLimit

    weights, seq_len = args.weights, args.seq_len
    if config is not None:
        seq_len = seq_len or min(stage["train"]["seq_len"] for stage in config["stages"])
        weights = weights or _made_base(config)
    if weights is None or seq_len is None:
        _say("Lengths in tokens are not checked: there is no base yet whose tokenizer could count them "
             "(--weights and --seq-len name another).")  # fmt: skip
        return None
    with lasting_imports():
        from fgod.model.chats import ChatFormat
        from fgod.model.template import control_tokens
    chat = ChatFormat.of_folder(weights, _chat_settings(args, config))
    return TokenLimit(chat.row_lengths, seq_len, control_tokens(chat.tokenizer))


def _chat_settings(args: Namespace, config: Mapping[str, Any] | None) -> ChatSettings:
    """By --chat, else the config's."""
    given: ChatSettings | None = args.chat
    return given or ChatSettings.from_dict(config["chat"] if config else {})


def _made_base(config: Mapping[str, Any]) -> Path | None:
    """The folder of the config's base; None while it has not been made."""
    from fgod.inputs import base_id, languages_of, own_weights, readers_of, sources_digest

    if own := own_weights(config["base"]):
        return own
    sources = sources_digest(Path(config["data"]["folder"]), languages_of(config))
    named = base_id(config["base"], sources, readers_of(config))
    folder = layout.base(named).master
    return folder if folder.is_dir() else None


def _source(args: Namespace, config: Mapping[str, Any] | None) -> UserSource:
    """How a user's file is read and what of it is let through: as the config's `data.sources` says, if it names the
    file, and as the options do."""
    from fgod.data.audit import check_accepted
    from fgod.data.formats import UserSource, user_sources

    check_accepted(args.accept, "--accept")
    named = user_sources(config["data"]["sources"]).values() if config else ()
    source = next((s for s in named if s.path.resolve() == args.file.resolve()), UserSource(args.file))
    return replace(source, format=args.format or source.format, accept=(*source.accept, *args.accept))


def _origins(files: Mapping[str, UserSource]) -> dict[tuple[object, ...], list[str]]:
    """Where the rows of the user's files stand in them."""
    from fgod.data.audit.case import origin_key
    from fgod.data.formats import read_user_file

    found: dict[tuple[object, ...], list[str]] = {}
    for part, source in files.items():
        for row in read_user_file(source.path, source.format).accepting(source.accept).rows:
            found.setdefault(origin_key(row.row(part)), []).append(f"{source.path}:{row.line}")
    return found


def identity(args: Namespace) -> int:
    """Write an identity file of one's own."""
    from fgod.config import load
    from fgod.data.identity import identity_file
    from fgod.data.sources import load_sources
    from fgod.data.tsv import write_user_tsv
    from fgod.inputs import languages_of

    if args.out.exists():
        raise UsageError(f"{args.out}: this file exists; expected a new name (nothing is overwritten)")
    config = load(args.config)
    _note(args, inputs=[Path(file) for file in (config["data"]["folder"], *config["plugins"])])
    target = args.target if args.target is not None else goal_from_config(config).persona
    sources = load_sources(Path(config["data"]["folder"]), languages_of(config))
    rows = identity_file(sources, args.count, args.seed, target)
    write_user_tsv(args.out, ((row.prompt, row.target) for row in rows))
    _say(f"{args.out}: {len(rows)} rows")
    return 0


# --------------------------------------------------------------------------------------------------------- training


def recipe(args: Namespace) -> int:
    """Write a run's recipe."""
    write_json(args.out, args.json)
    return 0


def train(args: Namespace) -> int:
    """Train one stage under the guard. Trained, killed by the guard and diverged are outcomes; all else is an error.

    What was trained to the end stands in the work folder before it is noted, and is not trained again if this command
    or the snakemake around it is killed in between. One process at a time works on a run.
    """
    from fgod.system.lock import held

    if args.memory_report:
        return _memory_report(args)
    if args.steps is not None:
        raise UsageError("--steps: only with --memory-report; a stage trains as long as its recipe says (train.steps)")
    run, work = RunRecords(args.outcome.parent), layout.work(args.outcome.parent.name)
    _check_start(args.weights, args.start)
    check_training_data(args.recipe, run.folder.name, Mix(args.rows.parent), args.audit)
    if args.teacher is not None:
        check_teacher(Teacher(args.teacher.parent), sha256_file(args.rows))
    with held(work.lock) as lock:
        master = RunWeights(args.stamp.parent).master
        outcome = _finished(work.records, master)
        if outcome is None:
            outcome = _trained(args, work, lock)
            outcome.write(work.records.outcome)
        if outcome.status != "trained":  # weights of an earlier training must not stand beside another outcome
            remove_folder(master)
        for made, published in zip(work.records.training_tables, run.training_tables, strict=True):
            copy_file(made, published)
        copy_file(args.audit, run.mix_audit)
        Stamp(
            status=outcome.status,
            reason=outcome.reason,
            weights_sha256=outcome.weights_sha256,
            weights_files=outcome.weights_files,
            cpu=outcome.cpu,
            device=outcome.device,
        ).write(args.stamp)
        outcome.write(args.outcome)
        checkpoints.forget(work.folder)
    if outcome.status != "trained":
        _say(f"{run.folder.parent.name} · {outcome.status} · {outcome.reason}")
    return 0


def interpolate(args: Namespace) -> int:
    """Write the weights between the start and the end of a trained run; its records are those of a run."""
    from fgod.train.record import write_interpolated

    run, weights = RunRecords(args.outcome.parent), RunWeights(args.stamp.parent)
    check_interpolation(args.recipe, run.folder.name, args.end.parent.name)
    _check_start(args.weights, args.start)
    _check_start(RunWeights(args.end.parent).master, args.end)
    begin = time.perf_counter()
    facts = supervise(args, f"the interpolation of {run.folder}", gpu=args.gpus > 0)
    written = file_digests(weights.master)
    trained = RunRecords(args.trained.parent)
    write_interpolated(run, trained, facts["changed"])
    copy_file(args.audit, run.mix_audit)
    before = Outcome.read(trained.outcome)
    found: dict[str, Any] = {"weights_sha256": sha256_listing(written), "weights_files": written}
    found |= {"cpu": before.cpu, "device": before.device}
    Stamp(status="trained", **found).write(args.stamp)
    Outcome(
        status="trained",
        steps_done=0,
        wall_s=round(time.perf_counter() - begin, 3),
        full_parameter=before.full_parameter,
        partial=before.partial,
        tables_sha256=file_digests(run.folder, run.training_tables),
        **found,
    ).write(args.outcome)
    return 0


def _finished(made: RunRecords, master: Path) -> Outcome | None:
    """The outcome of a training that came to its end, though that was not noted any more; None where there is none."""
    if not made.outcome.exists():
        return None
    outcome = Outcome.read(made.outcome)
    whole = master.is_dir() and file_digests(master) == outcome.weights_files
    if outcome.status != "trained" or not whole:
        return None
    _say(f"{master}: trained already, before a run was stopped: nothing is trained again")
    return outcome


def _trained(args: Namespace, work: Work, lock: int) -> Outcome:
    """Train, with the tables in the work folder; returns the outcome."""
    from fgod.guard import report
    from fgod.guard import run as guarded

    name, made = args.outcome.parent.parent.name, work.records
    remove_folder(made.folder)
    work.result.unlink(missing_ok=True)
    limits = options_of(Limits, args)
    command = _trainer(args, work, made.folder, master=RunWeights(args.stamp.parent).master)
    command += ["--checkpoint-secs", str(args.checkpoint_secs), "--checkpoint-steps", str(args.checkpoint_steps)]
    ended = guarded(command, limits, made.guard, work.guard_reason, work.phase, locks=[lock], lock_gpus=True)
    report(ended)
    _note(args, guard=ended.facts())
    if not ended.killed and ended.exit_code != 0:
        how = ended.reason or f"It failed with exit code {ended.exit_code}, see above."
        step = checkpoints.saved_step(work.folder)
        saved = f" What it had learned after step {step} is saved: run it again to go on from there." if step else ""
        raise FgodError(f"the training of {name} came to no result. {how}{saved}")
    own = Outcome(status="killed", reason=ended.reason) if ended.killed else Outcome.read(work.result)
    if own.status == records.KILLED:
        _leave_tables(work.folder, made)
    memory = {"peak_memory_mib": ended.peak_mib, "limit_mib": limits.limit_mib, "others_mib": ended.others_mib}
    written = file_digests(made.folder, made.training_tables)
    return own.model_copy(update={**memory, "wall_s": round(ended.wall_s, 3), "tables_sha256": written})


def _trainer(args: Namespace, work: Work, tables: Path, **more: Path | int) -> list[str]:
    """The command line of the trainer; `more` are options of its own."""
    from fgod.guard.limits import MIB_PER_GB, lowered
    from fgod.guard.sources import HostMemory

    limit_gb = lowered(args.limit_gb * MIB_PER_GB, HostMemory(math.inf).total_mib()) / MIB_PER_GB
    command = [sys.executable, "-m", "fgod.train", "--fit", str(args.fit), "--limit-gb", str(limit_gb)]
    command += ["--too-large-ok"] if args.too_large_ok else []
    command += plugin_options(args.plugin)
    paths = {"recipe": args.recipe, "weights": args.weights, "rows": args.rows, "work": work.folder, "run": tables}
    paths |= {"phase-file": work.phase, "result": work.result}
    if args.teacher is not None:
        paths["teacher"] = args.teacher.parent
    if args.probes:
        command += ["--probes", *map(str, args.probes), "--sources", str(args.sources), "--goal", json.dumps(args.goal)]
        command += ["--languages", *args.languages] if args.languages else []
    for option, value in {**paths, **more}.items():
        command += [f"--{option.replace('_', '-')}", str(value)]
    return command


def _memory_report(args: Namespace) -> int:
    """Train a few steps for the memory of each phase alone. A guard that kills leaves the phases before it."""
    from fgod.guard import KILLED_EXIT, report
    from fgod.guard import run as guarded

    _check_start(args.weights, args.start)
    steps = 1 if args.steps is None else args.steps
    args.memory_report.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="fgod-") as folder:
        work = Work(Path(folder))
        command = _trainer(args, work, work.records.folder, memory_report=args.memory_report, steps=steps)
        ended = guarded(command, options_of(Limits, args), phase_file=work.phase, lock_gpus=True)
        outcome = Outcome.read(work.result) if ended.exit_code == 0 else None
    report(ended)
    _note(args, guard=ended.facts())
    if args.memory_report.exists():
        print(args.memory_report.read_text(), end="")
    if outcome and outcome.status == records.KILLED:
        _say(outcome.reason)
        return KILLED_EXIT
    return ended.exit_code


def explain_memory(args: Namespace) -> int:
    """Print what training by a recipe will need in memory, part by part, without loading anything.

    On the device that would train here; every row as long as `seq_len`, half of it answer.
    """
    from fgod.model.load import read_config
    from fgod.system.procfs import resident_mib
    from fgod.train.device.settings import choose_device
    from fgod.train.loop import prediction  # which makes this process as large as one that trains
    from fgod.train.memory import MIB, explain
    from fgod.train.recipe import TrainRecipe

    found = read_json(args.recipe)
    recipe = TrainRecipe.from_dict(found.get("train", found))
    config, device = read_config(args.weights), choose_device(recipe, _say)
    rows, width = recipe.micro_batch or recipe.batch, recipe.seq_len
    predicted = prediction(config, recipe, device, rows, width, rows * width // 2, int(resident_mib() * MIB))
    print(explain(args.weights, config, recipe, predicted))
    return 0


def _check_start(weights: Path, stamp_file: Path) -> None:
    status = Stamp.read(stamp_file).status
    if status != "trained":
        raise FgodError(f"{stamp_file}: found status {status!r}, expected weights to start from")
    _check_digest(weights, stamp_file)


def _leave_tables(work: Path, made: RunRecords) -> None:
    """The tables of a run that was killed: the steps that it made, and no participation."""
    from fgod.train.participation import write_participation
    from fgod.train.record import publish

    publish(work, made.folder)
    write_participation(made.participation, [], "", "")


# ---------------------------------------------------------------------------------------------------------- judging


def probe(args: Namespace) -> int:
    """Ask a run's export the probes of the gate, or a candidate's those of a confirmation, or the base; and measure."""
    stamp = Stamp.read(args.export)
    if stamp.status != "exported" and not args.model:
        from fgod.probe.record import write_skipped

        write_skipped(RunRecords(args.out.parent), stamp.reason)
        return 0
    if args.model:
        _check_digest(args.model, args.export)
    else:
        weights = RunWeights(args.export.parent)
        _check_digest(weights.of(args.format), args.export)
        _check_digest(weights.master, weights.trained)
    check_answers(Answers(args.reference.parent))
    _check_export(args.reference_weights)
    if args.fold:
        _give_fold(args)
    batch = args.batch or args.settings["batch"]
    supervise(args, f"the probe of {args.model or args.export.parent}", batch, args.settings["device"] == "cuda")
    return 0


def _give_fold(args: Namespace) -> None:
    """Record that a candidate is asked a fold, before it is."""
    from fgod.confirm.folds import give_fold
    from fgod.data.probes import folds_of, load_probes

    stage, lineage = _candidate(args.out)
    available = folds_of(load_probes(args.probes, args.sources, args.languages))
    if args.fold not in available:
        names = ", ".join(map(str, args.probes))
        raise UsageError(f"--fold: found {args.fold}, expected one of {list(available)}, which {names} hold back")
    _note(args, outputs=[layout.folds()])
    given = give_fold(layout.RESULTS, stage, lineage, args.fold, available)
    before = f", which was asked before of {', '.join(given.asked_before)}" if given.asked_before else ""
    _say(f"confirm · {stage} {lineage} is asked fold {args.fold} of the held-back wordings{before}")


def _candidate(out: Path) -> tuple[str, str]:
    """Stage and lineage of a candidate, by the path of a record of its confirmation."""
    stage, lineage = layout.run_of_path(out)
    if out.parent != layout.confirmation_records(stage, lineage).folder:
        raise UsageError(f"--out: found {out}, expected {layout.CONFIRMATIONS}/STAGE/LINEAGE/{out.name} with --fold")
    return stage, lineage


def confirm(args: Namespace) -> int:
    """Say whether a candidate is confirmed by its replies to held-back wordings."""
    from fgod.confirm.judge import confirmation_checks, judge_confirmation
    from fgod.evaluate.requirements import check_limits

    stage, lineage = _candidate(args.out)
    checks = confirmation_checks(check_limits(args.limits), args.require, check_limits(args.own, where="confirm"))
    found = judge_confirmation(layout.RESULTS, stage, lineage, args.fold, checks)
    found.write(args.out)
    _say(f"confirm · {stage} {lineage} · {found.decision} ({found.words})")
    for reason in found.reasons:
        _say(f"       {reason}")
    return 0


def gate(args: Namespace) -> int:
    """Judge a run by its records."""
    from fgod.evaluate.requirements import check_limits
    from fgod.gate import judge_run

    folder = args.out.parent
    verdict = judge_run(folder, check_limits(args.limits), args.require)
    _say(f"gate · {folder.parent.name} {folder.name} · {verdict.decision}")
    for reason in verdict.reasons:
        _say(f"       {reason}")
    return 0


def evaluate(args: Namespace) -> int:
    """Test what a model can do beside what the base can: what was lost is a figure, and no failure of the command."""
    from fgod.abilities.items import check_allowed, read_suites

    check_allowed(read_suites(args.items), args.code)
    supervise(args, f"the evaluation of {args.tuned}", args.batch or EVALUATION_BATCH, args.device == "cuda")
    return 0


# talk


def ask(args: Namespace) -> int:
    """Ask weights questions."""
    return _talk(args, f"asking {args.folder}")


def chat(args: Namespace) -> int:
    """Talk with weights."""
    return _talk(args, f"the chat with {args.folder}")


def parity(args: Namespace) -> int:
    """How far the logits of two models are apart."""
    return _talk(args, f"the comparison of {args.a} and {args.b}")


def _talk(args: Namespace, what: str) -> int:
    """Let a child do it that shares our standard streams; nothing is recorded, as nothing is made."""
    args.entry = Namespace(facts={})
    supervise(args, what, gpu=args.device == "cuda")
    return 0
