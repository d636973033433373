"""The command line of fgod: one subcommand for each rule of the workflow, and those that people use directly.

Every recorded command can be run again by hand. People use init, plan, retry, recover, guard, data audit,
data identity, inspect, ask, chat, parity and summary.

Exit codes: 0 done; 1 error; 2 bad usage or config; 75 stopped by the guard; 100 an audit or gate says no.

`COMMANDS` lists all of them. Each is a class in a module of this package, which is imported only for a command line
that names it: a frozen dataclass of its arguments (`fgod.arguments`) that says what it reads, makes and does
(`fgod.cli.command`).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgod import __version__
from fgod.arguments import add_options, options_of
from fgod.cli import old
from fgod.errors import exit_on_fgod_error
from fgod.registry import load_plugins
from fgod.system.stop import stop_signals_as_exceptions

if TYPE_CHECKING:
    from fgod.cli.command import Command


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
    "walk": Entry("results:Walk", "write the walk as it was decided"),
    "tables": Entry("results:Tables", "gather the records of the walk into tables"),
    "report": Entry("results:Report", "write the report from the tables"),
    "comparison": Entry(
        "results:Comparison", "write the base, the base rounded, the placebo and the tuned run side by side"
    ),
    "promote": Entry("results:Promote", "release the last stage of an accepted fit"),
    "summary": Entry("results:Summary", "what was released, how good it is, where the report lies"),
    "init": Entry("people:Init", "lay out a project: config.yaml, traindata/, Snakefile"),
    "plan": Entry("people:Plan", "what snakemake would train, and why"),
    "retry": Entry("people:Retry", "forget a killed run of a stage, so that it trains again"),
    "recover": Entry("people:Recover", "make this folder ready for snakemake after kills: unlock, clear up"),
    "import": Entry("people:Import", "turn a GGUF file into a folder that can be a base"),
    "fetch": Entry("people:Fetch", "fetch a model from the Hugging Face hub"),
    "inspect": Entry("people:Inspect", "what a folder of weights holds"),
    "guard": Entry("people:Guard", "run a command under a memory limit (exit 75: killed)"),
}
"""The subcommands by their words."""

GROUPS: Mapping[str, str] = {}
"""Help of the words that stand before those of several subcommands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns or exits with its code."""
    words = list(sys.argv[1:] if argv is None else argv)
    found = build_parser(words).parse_args(words)
    if "command_class" not in found:
        return old.main(found, words)
    with exit_on_fgod_error(), stop_signals_as_exceptions():
        plugins = tuple(found.plugin)
        load_plugins(plugins)
        return _run(options_of(found.command_class, found), words, plugins)


def _run(command: Command, words: Sequence[str], plugins: Sequence[Path]) -> int:
    """Run a command, with its entry in the manifest if it leaves one."""
    from fgod import manifest
    from fgod.cli.command import Call

    if not command.recorded:
        return command.run(Call(words, plugins)) or 0
    inputs = [*dict.fromkeys([*command.inputs(), *plugins])]
    stage, lineage = command.run_of()
    with manifest.recorded(Path("."), ["fgod", *words], stage, lineage, inputs, command.outputs()) as record:
        record.exit_code = command.run(Call(words, plugins, record)) or 0
        return record.exit_code


def parse(argv: Sequence[str]) -> Command:
    """The command of a command line.

    Raises:
        SystemExit: what argparse refuses, which it says on standard error; --help and --version.
        UsageError: values that do not go together.
    """
    found = build_parser(argv).parse_args(argv)
    made: Command = options_of(found.command_class, found)
    return made


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The whole command line.

    Args:
        argv: what is to be parsed: subcommands that it does not name are listed, without their options; None: all
            have theirs.
    """
    parser = argparse.ArgumentParser(prog="fgod", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=f"fgod {__version__}")
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="load a file that registers metrics, model families or row formats; as often as needed",
    )
    below = {"": parser.add_subparsers(required=True, metavar="COMMAND")}
    for group, help in GROUPS.items():
        within = below[""].add_parser(group, help=help, description=help)
        below[group] = within.add_subparsers(required=True, metavar="WHAT")
    for name, entry in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        own = below[group].add_parser(word, help=entry.help, description=entry.help)
        if argv is None or set(name.split()) <= set(argv):
            made = entry.load()
            add_options(own, made)
            own.set_defaults(command_class=made)
    old.add(below[""])
    return parser
