"""The trainer that `fgod train` starts under the guard, by its arguments. Imports no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fgod.arguments import JsonObject, Option, Parser, add_options, options_of, words_of
from fgod.guard.limits import RANK_SECS


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Arguments of the trainer."""

    recipe: Annotated[Path, Option("recipe.json")]
    weights: Annotated[Path, Option("folder of the weights to start from")]
    rows: Annotated[Path, Option("rows.tsv of the mix")]
    work: Annotated[Path, Option("the run's folder of scratch, named by its lineage")]
    run: Annotated[Path, Option("folder where its tables go")]
    phase_file: Annotated[Path, Option("where it says what it is doing")]
    result: Annotated[Path, Option("the outcome to write")]
    master: Annotated[Path | None, Option("folder of weights to write (default: none are written)")] = None
    teacher: Annotated[Path | None, Option("folder of the teacher's tables, for train.kl")] = None
    probes: Annotated[tuple[Path, ...], Option("files of probes, for train.check")] = ()
    sources: Annotated[Path | None, Option("folder of the written sources")] = None
    languages: Annotated[tuple[str, ...], Option("only these (default: all there are)", "TAG")] = ()
    goal: Annotated[JsonObject | None, Option("persona and disambiguation")] = None
    memory_report: Annotated[Path | None, Option("table to write of the memory of each phase")] = None
    steps: Annotated[int | None, Option("steps (default: as the recipe says)")] = None
    fit: Annotated[int, Option("shown in its progress")] = 0
    limit_gb: Annotated[float | None, Option("what the guard allows (default: nothing is refused)", "GIB")] = None
    too_large_ok: Annotated[bool, Option("start even if more memory is predicted than the limit")] = False
    checkpoint_secs: Annotated[float, Option("a checkpoint this often (0: none by time)", "S")] = 0.0
    checkpoint_steps: Annotated[int, Option("and after this many steps (0: none by count)")] = 0

    plugins: Annotated[tuple[Path, ...], Option("files of plugins")] = ()
    gpus: Annotated[int, Option("GPUs that share the run")] = 1
    rank_secs: Annotated[float, Option("seconds that they wait for one of them (0: torch's default)", "S")] = RANK_SECS

    @classmethod
    def parse(cls, module: str, description: str | None) -> Trainer:
        """What the command line of this process says.

        Args:
            module: that it runs.
            description: for its help.
        """
        parser = Parser(prog=f"python -m {module}", description=description)
        add_options(parser, cls)
        return options_of(cls, parser.parse_args())

    def command(self) -> list[str]:
        """The command line of the trainer."""
        module = "fgod.train" if self.gpus == 1 else "fgod.train.ranks.launch"
        return [sys.executable, "-m", module, *words_of(self)]
