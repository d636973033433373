"""The command line of fgod: one subcommand for each rule of the workflow, and those that people use directly.

Every recorded command can be run again by hand. People use init, doctor, plan, status, why-step, compare, devlog,
retry, resume, recover, guard, pin, trash, restore, prune, inventory, manifest, data audit, data identity, inspect, ask,
chat, parity and summary.

Exit codes: 0 done; 1 error; 2 bad usage or config; 75 stopped by the guard; 100 an audit or gate says no.

`COMMANDS` lists all of them. Each is a class in a module of this package, which is imported only for a command line
that names it: a frozen dataclass of its arguments (`fgod.arguments`) that says what it reads, makes and does
(`fgod.cli.command`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from fgod import __version__
from fgod.arguments import Parser, add_options, options_of
from fgod.imports import lasting_imports
from fgod.names import GROUPS
from fgod.plugins import load_plugins
from fgod.system.stop import exit_on_fgod_error, stop_signals_as_exceptions
from fgod.system.threads import spin_briefly

if TYPE_CHECKING:
    from fgod.cli.command import Command, Guarded


@dataclass(frozen=True)
class Entry:
    """A subcommand: MODULE:CLASS in this package, and what it does, in a line of help."""

    place: str
    help: str

    def load(self) -> type[Command]:
        """Import its class."""
        module, name = self.place.split(":")
        found: type[Command] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return found


COMMANDS: Mapping[str, Entry] = {
    "base": Entry("base:Base", "make the embedded base or a random one, or check a folder"),
    "export": Entry("base:Export", "export a folder of weights, or those of a run, to a format"),
    "answers self-asked": Entry("answers:SelfAsked", "prompts that it asks of its own accord"),
    "answers rehearsal": Entry("answers:Rehearsal", "its answers to the rehearsal prompts"),
    "answers reference": Entry("answers:Reference", "its answers to the probes"),
    "answers teacher": Entry("answers:Teacher", "its distributions at the labels of a mix's rehearsed rows"),
    "answers check": Entry("answers:Check", "refuse probes that it does not answer (exit 100)"),
    "data mix": Entry("data:Mix", "plan and write the rows of a mix"),
    "data placebo": Entry(
        "data:Placebo", "write a mix anew with the base's own answers as targets of all that is taught"
    ),
    "data audit": Entry("data:Audit", "audit a mix or a file of your own rows (exit 100: errors)"),
    "data identity": Entry("data:Identity", "write an identity file of your own (prompt<TAB>target)"),
    "recipe": Entry("training:Recipe", "write a run's recipe"),
    "train": Entry("training:Train", "train one stage under the guard"),
    "interpolate": Entry("training:Interpolate", "write the weights between the start and the end of a training"),
    "probe": Entry("judging:Probe", "ask a run's export all probes"),
    "served": Entry("judging:Served", "compare an export as transformers alone loads it with what was probed"),
    "engine": Entry("judging:Engine", "ask an inference engine what was probed, and judge what it says"),
    "evaluate": Entry("judging:Evaluate", "test what a model can do beside what the base can, on the same items"),
    "confirm": Entry("judging:Confirm", "judge a candidate by held-back wordings"),
    "gate": Entry("judging:Gate", "judge a run by its records"),
    "walk": Entry("results:Walk", "write the sequence of fits, verdicts and refits"),
    "tables": Entry("results:Tables", "gather the records of the walk into tables"),
    "report": Entry("results:Report", "write the report from the tables"),
    "comparison": Entry(
        "results:Comparison", "write the base, the base rounded, the placebo and the tuned run side by side"
    ),
    "promote": Entry("results:Promote", "release the last stage of an accepted fit"),
    "campaign": Entry("results:Campaign", "write all experiments side by side"),
    "campaign-report": Entry("results:CampaignReport", "write the page of all experiments from their tables"),
    "summary": Entry("results:Summary", "what was released, how good it is, where the report lies"),
    "init": Entry("people:Init", "lay out a project: config.yaml, traindata/, Snakefile"),
    "plan": Entry("people:Plan", "what snakemake would train, and why"),
    "doctor": Entry("doctor:Doctor", "whether this machine can do what the configs ask (exit 100: it cannot)"),
    "devlog": Entry("people:DevLog", "add what is missing to results/DevLog.md"),
    "retry": Entry("people:Retry", "forget a killed run of a stage, so that it trains again"),
    "resume": Entry("people:Resume", "let a stopped training go on with another number of GPUs"),
    "recover": Entry("people:Recover", "make this folder ready for snakemake after kills: unlock, clear up"),
    "status": Entry("status:Status", "what runs, how far it is, what comes next; or why nothing runs"),
    "why-step": Entry("status:WhyStep", "the rows that a step of a training was made of, and the loss of each"),
    "import": Entry("people:Import", "turn a GGUF file or a TorchSharp state dict into a folder that can be a base"),
    "compare": Entry("compare:Compare", "runs side by side: settings, metrics in pairs, changed replies"),
    "fetch": Entry("people:Fetch", "fetch a model from the Hugging Face hub"),
    "pin": Entry("keep:Pin", "hold a run's weights by a name, so that they are not thrown away"),
    "trash": Entry("keep:Trash", "move weights of runs to the trash, or empty it"),
    "restore": Entry("keep:Restore", "bring weights back from the trash"),
    "prune": Entry("keep:Prune", "move weights to the trash, but those of runs that are to be kept"),
    "inventory": Entry("keep:Inventory", "list every file of weights: purpose, origin, digest, size, status"),
    "manifest show": Entry("history:Show", "the commands on record, of all runs or of one"),
    "manifest why": Entry("history:Why", "who made a file, from what, by which command"),
    "manifest verify": Entry("history:Verify", "check all digests on record (exit 100: something is not as it was)"),
    "manifest replay": Entry(
        "history:Replay", "make a run again from its record and compare the bits (exit 100: other)"
    ),
    "inspect": Entry("people:Inspect", "what a folder of weights, a GGUF or a TorchSharp file holds"),
    "guard": Entry("people:Guard", "run a command under a memory limit (exit 75: killed)"),
    "ask": Entry("talk:Ask", "ask any weights questions, each by itself"),
    "chat": Entry("talk:Chat", "talk with any weights (exit 100: a reply is not as a script expects)"),
    "parity": Entry("talk:Parity", "how far the logits of two models are apart"),
}
"""The subcommands by their words."""

COMMAND = "COMMAND"
"""What jsonargparse calls the word of a subcommand, in help too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns or exits with its code."""
    spin_briefly()
    words = list(sys.argv[1:] if argv is None else argv)
    found = build_parser(words).parse_args(words)
    name, given = _named(found)
    child = given.get("child") is not None  # the command that started it follows snakemake, and records
    with exit_on_fgod_error(), stop_signals_as_exceptions(follow_snakemake=not child):
        plugins = tuple(map(Path, found.plugin))
        load_plugins(plugins)
        command: Any = options_of(COMMANDS[name].load(), given)
        return _work(command, name) if child else _run(command, words, plugins)


def _named(found: Namespace) -> tuple[str, Namespace]:
    """The words of the subcommand that was named, and what it was given."""
    words: list[str] = []
    while COMMAND in found:
        words.append(found[COMMAND])
        found = found[words[-1]]
    return " ".join(words), found


def _work(command: Guarded, name: str) -> int:
    """Be the child of a guarded command."""
    assert command.child is not None
    with lasting_imports():
        from fgod.cli.work.worker import Worker, run
        from fgod.progress.followed import listeners, reporting

        work = command.work()
    worker = Worker(command.child, command.guard.limit_gb, command.too_large_ok)
    label = " · ".join(filter(None, [name, " ".join(command.run_of()).strip()]))
    with reporting(listeners(worker.beat.phase_file), label):
        return run(work, worker)


def _run(command: Command, words: Sequence[str], plugins: Sequence[Path]) -> int:
    """Run a command, with its entry in the manifest if it leaves one."""
    from fgod import layout, manifest
    from fgod.call import Call
    from fgod.cli.command import Personal
    from fgod.system.lock import shared

    if not command.recorded:
        return command.run(Call(words, plugins)) or 0
    inputs = [*dict.fromkeys([*command.inputs(), *plugins])]
    stage, lineage = command.run_of()
    with ExitStack() as stack:
        if not isinstance(command, Personal):
            stack.enter_context(shared(layout.AT_WORK))
        entry = manifest.recorded(Path("."), ["fgod", *words], stage, lineage, inputs, command.outputs())
        record = stack.enter_context(entry)
        record.exit_code = command.run(Call(words, plugins, record)) or 0
        return record.exit_code


def parse(argv: Sequence[str]) -> Command:
    """The command of a command line.

    Raises:
        SystemExit: what jsonargparse refuses, which it says on standard error; --help and --version.
        UsageError: values that do not go together.
    """
    name, given = _named(build_parser(argv).parse_args(argv))
    return options_of(COMMANDS[name].load(), given)


def build_parser(argv: Sequence[str] | None = None) -> Parser:
    """The whole command line.

    Args:
        argv: what is to be parsed: subcommands that it does not name are listed, without their options; None: all
            have theirs.
    """
    parser = Parser(prog="fgod", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=f"fgod {__version__}")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="load a file that registers metrics, model families or row formats; as often as needed",
    )
    below = {"": parser.add_subcommands(dest=COMMAND, metavar=COMMAND, description=None)}
    for group, help in GROUPS.items():
        within = below[""].add_subcommand(group, Parser(description=help), help=help)
        within.prog = f"fgod {group}"
        below[group] = within.add_subcommands(dest=COMMAND, metavar=COMMAND, description=None)
    for name, entry in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        own = Parser(description=entry.help)
        below[group].add_subcommand(word, own, help=entry.help)
        own.prog = f"fgod {name}"
        parser.commands[name.replace(" ", ".")] = own
        if argv is None or set(name.split()) <= set(argv):
            with lasting_imports():
                add_options(own, entry.load())
    return parser
