"""Subcommands that are not typed yet.

Every recorded command can be run again by hand. People use plan, retry, recover, guard, data audit, data identity,
inspect, ask, chat, parity and summary.

Exit codes: 0 done; 1 error; 2 bad usage or config; 75 stopped by the guard; 100 an audit or gate says no.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.arguments import add_options
from fgod.data.formats import user_sources
from fgod.errors import UsageError, exit_on_fgod_error
from fgod.exporters.nvfp4 import NVFP4
from fgod.layout import (
    Answers,
    Base,
    ConfirmationRecords,
    Export,
    Mix,
    RunRecords,
    RunWeights,
    SelfAsked,
    Teacher,
    folds,
    run_of_path,
    run_records,
)
from fgod.registry import load_plugins
from fgod.system.stop import stop_signals_as_exceptions

if TYPE_CHECKING:
    from fgod.chat import ChatSettings


def main(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run one subcommand; returns or exits with its code."""
    args.argv = arguments
    if getattr(args, "child", None):
        return _work(args)
    with exit_on_fgod_error(), stop_signals_as_exceptions():
        load_plugins(args.plugin)
        if not _is_recorded(args):
            return int(args.handler(args))
        from fgod import manifest

        stage, lineage = run_of_path(args.outcome if "outcome" in args else args.out if "out" in args else Path())
        inputs, outputs = recorded_inputs(args), args.outputs(args)
        with manifest.recorded(Path("."), ["fgod", *arguments], stage, lineage, inputs, outputs) as record:
            args.entry = record
            record.exit_code = int(args.handler(args))
            return record.exit_code


READ_ONLY = ("ask", "chat", "parity")
"""Commands that make and delete nothing that the manifest is to hold; `summary` writes the manifest itself."""


def _is_recorded(args: argparse.Namespace) -> bool:
    """Whether a command leaves an entry in the manifest. Those that are no rule of the workflow do so in the folder of
    a project alone."""
    if args.recorded is None or ("out" in args and args.out is None):
        return False
    return not args.people or args.record or Path("Snakefile").is_file()


def recorded_inputs(args: argparse.Namespace) -> list[Path]:
    """The files and folders that a command reads, as far as its arguments say."""
    found: list[Path] = []
    for value in (getattr(args, name) for name in args.recorded):
        match value:
            case Path():
                found.append(value)
            case list():
                found += value
            case dict():
                found += [source.path for source in user_sources(value).values()]
    return [*dict.fromkeys([*found, *args.also(args), *args.plugin])]


def _work(args: argparse.Namespace) -> int:
    """Be the child of a guarded command, which records it and watches the snakemake around it."""
    with exit_on_fgod_error(), stop_signals_as_exceptions(follow_snakemake=False):
        load_plugins(args.plugin)
        from fgod import workers

        return workers.run(getattr(workers, args.worker), args)


def add(commands: Any) -> None:
    """Add these commands to the command line."""
    for each in (_add_base, _add_data, _add_training, _add_interpolation, _add_judging, _add_talk):
        each(commands)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error.msg} at character {error.pos}") from None


Paths = Callable[[argparse.Namespace], list[Path]]


def _command(
    commands: Any,
    name: str,
    handler: str,
    help: str,
    recorded: Sequence[str] | None = None,
    outputs: Paths = lambda args: [args.out],
    also: Paths = lambda args: [],
    people: bool = False,
) -> argparse.ArgumentParser:
    """Add a subcommand.

    Args:
        recorded: the arguments that are its inputs in the manifest: paths, lists of them, or tables of them by name;
            None: not recorded (`READ_ONLY`).
        outputs: what it makes or deletes.
        also: inputs that lie beside those.
        people: no rule of the workflow calls it.
    """

    def run(args: argparse.Namespace) -> int:
        from fgod import commands as implementation

        return int(getattr(implementation, handler)(args))

    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(handler=run, recorded=recorded, outputs=outputs, also=also, people=people, record=False)
    return parser


def _chat(parser: argparse.ArgumentParser) -> None:
    """Give a command that writes chats the option --chat."""
    help = "the config's key chat (default: the chat template alone)"
    parser.add_argument("--chat", type=_chat_settings, default="{}", metavar="JSON", help=help)


def _chat_settings(text: str) -> ChatSettings:
    from fgod.chat import ChatSettings  # pydantic takes a quarter of a second, which most commands do not need

    try:
        return ChatSettings.from_dict(_json(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _guarded(parser: argparse.ArgumentParser, worker: str, batch: bool = False, limit: bool = True) -> None:
    """Give a command that loads weights the options of the guard; a function of `fgod.workers` does its work.

    Args:
        batch: whether it asks prompts in batches.
        limit: whether --limit-gb has to be given.
    """
    from fgod.guard import Limits, WholeMachine

    add_options(parser, Limits if limit else WholeMachine)
    parser.add_argument("--too-large-ok", action="store_true", help="start also where more is predicted than the limit")
    if batch:
        help = "prompts at once (default: as configured); after a kill it is tried again with half of them"
        parser.add_argument("--batch", type=_batch, metavar="N", help=help)
    parser.add_argument("--child", type=Path, metavar="REPORT", help=argparse.SUPPRESS)
    parser.set_defaults(worker=worker)


def _batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def _paths(parser: argparse.ArgumentParser, **helps: str) -> None:
    for name, help in helps.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, metavar="PATH", help=help)


def _sources(parser: argparse.ArgumentParser) -> None:
    _paths(parser, sources="folder of the written sources")
    _languages(parser)


def _probes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--probes", type=Path, nargs="+", required=True, metavar="PATH", help="the files of probes")


def _fold(parser: argparse.ArgumentParser) -> None:
    help = "a fold of the wordings that are held back, from 1 (default: what the gate asks)"
    parser.add_argument("--fold", type=_batch, default=0, metavar="N", help=help)


def _gpus(parser: argparse.ArgumentParser) -> None:
    help = "1: compute on the GPU (default 0: the CPU); same bytes"
    parser.add_argument("--gpus", type=int, choices=[0, 1], default=0, help=help)


def _languages(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--languages", nargs="+", default=[], metavar="TAG", help="only these (default: all there are)")


def _values(parser: argparse.ArgumentParser, **helps: str) -> None:
    for name, help in helps.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=_json, required=True, metavar="JSON", help=help)


def _asking(kinds: Any, name: str, help: str, recorded: Sequence[str]) -> argparse.ArgumentParser:
    """Add a command that asks the base's export prompts and writes its answers."""
    asking = _command(
        kinds,
        name,
        name,
        help,
        recorded,
        outputs=lambda args: [args.out, Answers(args.out.parent).stamp],
        also=lambda args: [Export(args.export.parent).exported],
    )
    _sources(asking)
    _chat(asking)
    _guarded(asking, name, batch=True)
    return asking


def _format(parser: argparse.ArgumentParser) -> None:
    help = f"of the export, whose folder has its name (default: {NVFP4.name}; a plugin may add others)"
    parser.add_argument("--format", default=NVFP4.name, metavar="NAME", help=help)


def _asked(parser: argparse.ArgumentParser) -> None:
    """Give a command the prompts that the base asked itself, where it did."""
    parser.add_argument("--asked", type=Path, metavar="PATH", help="prompts.tsv of what the base asked itself")


def _add_base(commands: Any) -> None:
    base = _command(
        commands,
        "base",
        "base",
        "make the embedded base or a random one, or check a folder",
        ["sources"],
        outputs=lambda args: [args.out] if "path" in args.base else [args.out, Base(args.out.parent).master],
        also=lambda args: [Path(args.base["path"])] if "path" in args.base else [],
    )
    _values(base, base="the config's key base")
    _paths(base, out="base.json to write, beside master/")
    _sources(base)
    _chat(base)
    _guarded(base, "base")

    export = _command(
        commands,
        "export",
        "export",
        "export a run's weights",
        ["weights", "stamp"],
        outputs=lambda args: [args.out, Export(args.out.parent).of(args.format)],
    )
    _paths(
        export,
        weights="folder of the weights",
        stamp="stamp of their training",
        out="stamp to write, beside the export",
    )
    _format(export)
    export.add_argument(
        "--dtype", choices=["float32", "bfloat16"], required=True, help="format of what stays unquantised"
    )
    _gpus(export)
    _guarded(export, "export")

    answers = commands.add_parser("answers", help="ask the base")
    kinds = answers.add_subparsers(required=True, metavar="WHAT")
    self_asked = _command(
        kinds,
        "self-asked",
        "self_asked",
        "prompts that it asks of its own accord",
        ["export"],
        outputs=lambda args: [args.out, SelfAsked(args.out.parent).stamp],
        also=lambda args: [Export(args.export.parent).exported],
    )
    _paths(self_asked, export="stamp of the base's export", out="prompts.tsv to write")
    _values(self_asked, settings="how it asks")
    _chat(self_asked)
    _guarded(self_asked, "self_asked", batch=True)
    rehearsal = _asking(kinds, "rehearsal", "its answers to the rehearsal prompts", ["export", "sources", "asked"])
    _paths(rehearsal, export="stamp of the base's export", out="answers.tsv to write")
    _values(rehearsal, settings="what is asked")
    _asked(rehearsal)
    reference = _asking(kinds, "reference", "its answers to the probes", ["export", "probes", "sources"])
    _paths(reference, export="stamp of the base's export", out="answers.tsv to write")
    _probes(reference)
    _fold(reference)
    _values(reference, settings="the key probe")
    teacher = _command(
        kinds,
        "teacher",
        "teacher",
        "its distributions at the labels of a mix's rehearsed rows",
        ["weights", "stamp", "rows"],
        outputs=lambda args: [args.out, Teacher(args.out.parent).soft_labels],
    )
    _paths(
        teacher,
        weights="folder of the base, or of its export",
        stamp="the stamp that holds its digest",
        rows="rows.tsv of the mix",
        out="teacher.json to write",
    )
    _values(teacher, settings="how it is asked")
    teacher.add_argument("--disk-gb", type=float, required=True, metavar="GIB", help="the most that it may write")
    _guarded(teacher, "teacher", batch=True)
    check = _command(
        kinds,
        "check",
        "check",
        "refuse probes that it does not answer (exit 100)",
        ["answers", "probes", "sources"],
        also=lambda args: [Answers(args.answers.parent).stamp],
    )
    _paths(check, answers="answers.tsv of the base", out="harness.json to write")
    _probes(check)
    _fold(check)
    _sources(check)
    _values(
        check,
        base="the config's key base",
        goal="persona and disambiguation",
    )
    check.add_argument(
        "--limits",
        type=_json,
        default={"gate": {}, "require": []},
        metavar="JSON",
        help="gate and require of each stage: warn of those that a coin decides",
    )


AUDITED = ("file", "probes", "sources", "files", "weights")


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="mixes, audits, identity files").add_subparsers(
        required=True, metavar="WHAT"
    )
    mix = _command(
        data,
        "mix",
        "mix",
        "plan and write the rows of a mix",
        ["answers", "sources", "files", "asked"],
        outputs=lambda args: [args.out, Mix(args.out.parent).stamp],
    )
    _values(mix, spec="all that the rows depend on", files="the user's data files by name")
    _paths(mix, answers="the base's rehearsal answers", out="rows.tsv to write")
    _sources(mix)
    _asked(mix)

    placebo = _command(
        data,
        "placebo",
        "placebo",
        "write a mix anew with the base's own answers as targets of all that is taught",
        ["rows", "export"],
        outputs=lambda args: [args.out, Mix(args.out.parent).stamp],
        also=lambda args: [Mix(args.rows.parent).stamp, Export(args.export.parent).exported],
    )
    _values(placebo, spec="all that the rows depend on")
    _paths(placebo, rows="rows.tsv of the mix", export="stamp of the base's export", out="rows.tsv to write")
    _chat(placebo)
    _guarded(placebo, "placebo", batch=True)

    audit = _command(data, "audit", "audit", "audit a mix or a file of your own rows (exit 100: errors)", AUDITED)
    audit.add_argument("file", type=Path, help="rows.tsv of a mix, or a file of your own rows, of any row format")
    audit.add_argument("--probes", type=Path, nargs="+", default=[], help="files of probes that no row may repeat")
    audit.add_argument("--goal", type=_json, metavar="JSON", help="persona and disambiguation (default: config.yaml)")
    audit.add_argument("--sources", type=Path, help="the written sources (default: data.folder of config.yaml)")
    _languages(audit)
    audit.add_argument("--files", type=_json, default={}, metavar="JSON", help="the user's files that a mix is made of")
    audit.add_argument("--format", default="", metavar="NAME", help="row format of a file (default: as it looks)")
    audit.add_argument("--accept", nargs="+", default=[], metavar="CODE", help="faults of a file that are let through")
    audit.add_argument("--weights", type=Path, metavar="PATH", help="folder whose tokenizer counts (default: the base)")
    audit.add_argument("--seq-len", type=int, metavar="N", help="most tokens of a row (default: least of the stages)")
    _chat(audit)
    audit.set_defaults(chat=None)  # the config.yaml's
    audit.add_argument("--out", type=Path, help="audit.json to write; without it the audit is only shown")

    identity = _command(
        data, "identity", "identity", "write an identity file of your own (prompt<TAB>target)", ["config"], people=True
    )
    identity.add_argument("--count", type=int, default=1000, help="rows")
    identity.add_argument("--seed", type=int, default=20260226, help="another seed, other wordings")
    identity.add_argument("--target", help="the one target of every row (default: the persona's reply by language)")
    identity.add_argument("--config", type=Path, default=Path("config.yaml"), help="whose persona and sources are used")
    identity.add_argument("--out", type=Path, required=True, help="file to write; never overwritten")


class _ExplainMemory(argparse.Action):
    """Needs --recipe and --weights alone, given before it, and ends the program as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        from fgod import commands as implementation

        if namespace.recipe is None or namespace.weights is None:
            parser.error("--explain-memory: expected --recipe FILE --weights FOLDER before it")
        with exit_on_fgod_error():
            parser.exit(implementation.explain_memory(namespace))


def _add_training(commands: Any) -> None:
    from fgod.guard import Limits

    recipe = _command(commands, "recipe", "recipe", "write a run's recipe", [])
    recipe.add_argument("--json", type=_json, required=True, metavar="JSON", help="the recipe")
    _paths(recipe, out="recipe.json to write")

    def outputs(args: argparse.Namespace) -> list[Path]:
        if args.memory_report:
            return [args.memory_report]
        run, weights = RunRecords(args.outcome.parent), RunWeights(args.stamp.parent)
        return [args.outcome, *run.training_tables, run.mix_audit, args.stamp, weights.master]

    train = _command(
        commands,
        "train",
        "train",
        "train one stage under the guard",
        ["recipe", "weights", "start", "rows", "audit", "teacher", "probes", "sources"],
        outputs,
        also=lambda args: [
            Mix(args.rows.parent).stamp,
            *([Teacher(args.teacher.parent).soft_labels] if args.teacher else []),
        ],
    )
    _paths(
        train,
        recipe="recipe.json",
        weights="folder of the weights to start from",
        start="the stamp that holds their digest",
        rows="rows.tsv of the mix",
        audit="audit.json of the mix",
        outcome="outcome.json to write, beside the run's tables",
        stamp="trained.json to write, beside master/",
    )
    train.add_argument("--teacher", type=Path, metavar="PATH", help="teacher.json of these rows, for train.kl")
    asked = train.add_argument_group("for train.check")
    asked.add_argument("--probes", type=Path, nargs="+", default=[], metavar="PATH", help="files of probes")
    asked.add_argument("--sources", type=Path, metavar="PATH", help="folder of the written sources")
    _languages(asked)
    asked.add_argument("--goal", type=_json, metavar="JSON", help="persona and disambiguation")
    add_options(train, Limits)
    train.add_argument(
        "--too-large-ok", action="store_true", help="go on where more is predicted than the limit: the guard is left"
    )
    train.add_argument("--fit", type=int, default=0, help="shown in its progress")
    train.add_argument("--checkpoint-secs", type=float, default=0.0, help="a checkpoint this often (0: none by time)")
    train.add_argument("--checkpoint-steps", type=int, default=0, help="and after this many steps (0: none by count)")
    explain = train.add_argument_group("instead of training")
    explain.add_argument(
        "--memory-report",
        type=Path,
        metavar="FILE",
        help="train a few steps under the guard, write the memory of each phase to FILE (TSV) and leave nothing else",
    )
    explain.add_argument("--steps", type=int, help="steps of a --memory-report (default 1)")
    explain.add_argument(
        "--explain-memory",
        nargs=0,
        action=_ExplainMemory,
        help="print the predicted memory of --recipe on --weights (a folder with a config.json) and stop",
    )


def _add_interpolation(commands: Any) -> None:
    between = _command(
        commands,
        "interpolate",
        "interpolate",
        "write the weights between the start and the end of a training",
        ["recipe", "weights", "start", "end", "trained", "audit"],
        outputs=lambda args: [
            args.outcome,
            *RunRecords(args.outcome.parent).training_tables,
            RunRecords(args.outcome.parent).mix_audit,
            args.stamp,
            RunWeights(args.stamp.parent).master,
        ],
        also=lambda args: [RunWeights(args.end.parent).master, RunRecords(args.trained.parent).participation],
    )
    _paths(
        between,
        recipe="recipe.json, with interpolate",
        weights="folder of the weights that the training started from",
        start="the stamp that holds their digest",
        end="trained.json of the training, beside master/",
        trained="outcome.json of the training",
        audit="audit.json of the mix",
        outcome="outcome.json to write, beside the run's tables",
        stamp="trained.json to write, beside master/",
    )
    _gpus(between)
    _guarded(between, "interpolate")


def _add_judging(commands: Any) -> None:
    def probed(args: argparse.Namespace) -> list[Path]:
        weights, answers = RunWeights(args.export.parent), Answers(args.reference.parent)
        asked = [] if args.model else [weights.of(args.format), weights.master]
        return [answers.stamp, Export(args.reference_weights.parent).exported, *asked]

    probe = _command(
        commands,
        "probe",
        "probe",
        "ask a run's export all probes",
        ["export", "model", "reference", "reference_weights", "probes", "sources", "rows"],
        outputs=lambda args: [args.out, RunRecords(args.out.parent).probes],
        also=probed,
    )
    _paths(
        probe,
        export="stamp of the run's export",
        reference="answers.tsv of the base",
        reference_weights="stamp of the base's export, which gave them",
        out="metrics.json to write, beside probes.tsv",
    )
    _probes(probe)
    _fold(probe)
    _sources(probe)
    _values(
        probe,
        base="the config's key base",
        goal="persona and disambiguation",
        held_out="topics never rehearsed",
        settings="the key probe",
    )
    help = "the base itself: the folder that the stamp --export speaks of (default: the export beside it, of a run)"
    probe.add_argument("--model", type=Path, metavar="FOLDER", help=help)
    _format(probe)
    probe.add_argument("--rows", type=Path, nargs="+", required=True, help="rows that it was trained on: no probe")
    _chat(probe)
    _guarded(probe, "probe", batch=True)

    def items(args: argparse.Namespace) -> list[Path]:
        from fgod.abilities.items import path_of

        return [path_of(source) for source in args.items]

    evaluate = _command(
        commands,
        "evaluate",
        "evaluate",
        "test what a model can do beside what the base can, on the same items",
        ["base", "tuned"],
        outputs=lambda args: [args.out, args.out.with_suffix(".tsv")],
        also=items,
    )
    for name in ("base", "tuned"):
        evaluate.add_argument(name, type=Path, metavar=name.upper(), help="a model folder, or a .gguf file")
    help = "JSONL files of items, or READER:PATH for the data of a package"
    evaluate.add_argument("--items", nargs="+", default=[], required=True, metavar="SOURCE", help=help)
    _paths(evaluate, out="FILE.json to write, beside FILE.tsv")
    help = "points of 100 that may be lost: what the 95 %% bound is held against (default %(default)g)"
    evaluate.add_argument("--loss-limit", type=float, default=2.0, metavar="POINTS", help=help)
    evaluate.add_argument("--code", action="store_true", help="run programs that the models write, in a sandbox")
    help = "ask multiple choice by the chat template (default: as plain text, as lm_eval does)"
    evaluate.add_argument("--chat-template", action="store_true", help=help)
    help = "of a reply (default %(default)s)"
    evaluate.add_argument("--max-tokens", type=_batch, default=512, metavar="N", help=help)
    evaluate.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it computes (default: cpu)")
    _chat(evaluate)
    _guarded(evaluate, "evaluate", batch=True, limit=False)

    def judged(args: argparse.Namespace) -> list[Path]:
        return [*ConfirmationRecords(args.out.parent).judged, run_records(*run_of_path(args.out)).metrics, folds()]

    confirm = _command(commands, "confirm", "confirm", "judge a candidate by held-back wordings", [], also=judged)
    _values(confirm, limits="the key gate", require="what the last stage requires", own="the key confirm")
    confirm.add_argument("--fold", type=_batch, required=True, metavar="N", help="the fold that it was asked")
    _paths(confirm, out="confirmation.json to write, beside the records it judges")

    gate = _command(
        commands,
        "gate",
        "gate",
        "judge a run by its records",
        [],
        also=lambda args: list(RunRecords(args.out.parent).judged),
    )
    _values(gate, limits="the key gate", require="what the stage requires")
    _paths(gate, out="verdict.json to write, beside the records it judges")


def _add_talk(commands: Any) -> None:
    places = "a master, export, release, base or Hugging Face folder, or a .gguf file"
    ask = _command(commands, "ask", "ask", "ask any weights questions, each by itself")
    ask.add_argument("folder", type=Path, metavar="FOLDER", help=places)
    ask.add_argument("prompts", nargs="+", metavar="PROMPT", help="a question")
    _path(ask, "--path")
    _answered(ask)
    _guarded(ask, "ask", limit=False)

    chat = _command(commands, "chat", "chat", "talk with any weights (exit 100: a reply is not as a script expects)")
    chat.add_argument("folder", type=Path, metavar="FOLDER", help=places)
    chat.add_argument("--against", type=Path, metavar="OTHER", help="answer with these weights too, side by side")
    chat.add_argument("--script", type=Path, metavar="FILE", help="ask its turns: YAML, or JSONL by its name")
    _answered(chat)
    _guarded(chat, "chat", limit=False)

    parity = _command(commands, "parity", "parity", "how far the logits of two models are apart")
    for name in ("a", "b"):
        parity.add_argument(name, type=Path, metavar=name.upper(), help=places)
        _path(parity, f"--path-{name}")
    parity.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt on each line (default: five)")
    parity.add_argument("--limit", type=float, metavar="X", help="exit 100 where a difference is larger")
    parity.add_argument("--max-tokens", type=_batch, default=32, metavar="N", help="of a reply (default %(default)s)")
    _device(parity)
    _chat(parity)
    _guarded(parity, "parity", limit=False)


def _path(parser: argparse.ArgumentParser, option: str) -> None:
    help = "as its weights are stored (default), or as the training forward computes them, through NVFP4 rounding"
    parser.add_argument(option, choices=["stored", "training"], default="stored", help=help)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where it computes (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _answered(parser: argparse.ArgumentParser) -> None:
    """Options of commands that show replies."""
    parser.add_argument("--max-tokens", type=_batch, default=512, metavar="N", help="of a reply (default %(default)s)")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt; '' for none (default: as --chat says)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="draw tokens (default: likeliest)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="from the likeliest of this probability")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="from so many of the likeliest")
    parser.add_argument("--seed", type=int, metavar="N", help="of the draws")
    parser.add_argument("--replay", action="store_true", help="compute the whole conversation anew for each reply")
    parser.add_argument("--verbose", action="store_true", help="say what was computed anew and what was cached")
    _device(parser)
    _chat(parser)
