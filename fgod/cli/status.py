"""Commands that say how it is going, and what a step was made of. They load nothing, and write nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fgod.arguments import Option, PositiveInt
from fgod.call import Call
from fgod.cli.command import ReadOnly


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End as SIGPIPE would, without a traceback, where nobody reads what is said any more: `fgod status | head -1`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its end
        raise SystemExit(128 + signal.SIGPIPE) from None


RUN = Option("STAGE (its newest run) or STAGE@LINEAGE (its first digits suffice)", "RUN", positional=True)


@dataclass(frozen=True, kw_only=True)
class Status(ReadOnly):
    """What runs, how far it is, and what comes next; when nothing runs, why."""

    watch: Annotated[bool, Option("again every 2 s, with the losses as a curve, until nothing runs")] = False
    json: Annotated[bool, Option("for programs (docs/status.md); with --watch an object a line")] = False

    def run(self, call: Call) -> None:
        with reader_may_leave():
            self._say()

    def _say(self) -> None:
        from fgod.status.judge import as_json
        from fgod.status.text import lines
        from fgod.status.watch import drawn, look, watch

        terminal = sys.stdout.isatty()
        if self.watch:
            watch(self.json, terminal)
        elif self.json:
            print(json.dumps(as_json(look()), ensure_ascii=False, indent=2))
        else:
            found = drawn(look(), shutil.get_terminal_size().columns) if terminal else lines(look())
            print("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class WhyStep(ReadOnly):
    """The rows that a step of a training was made of: prompts, targets, and the loss of each."""

    of: Annotated[str, RUN]
    step: Annotated[PositiveInt, Option("a step of its train.tsv, from 1", "STEP", positional=True)]
    json: Annotated[bool, Option("for programs: one object (docs/status.md)")] = False

    def run(self, call: Call) -> None:
        from fgod.why_step import as_json, find_run, read_step, text

        found = read_step(find_run(self.of), self.step)
        with reader_may_leave():
            print(json.dumps(as_json(found), ensure_ascii=False, indent=2) if self.json else text(found))
