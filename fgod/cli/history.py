"""Commands that ask the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fgod import layout, manifest
from fgod.arguments import Input, Option, Output
from fgod.call import Call, say
from fgod.cli import parse
from fgod.cli.command import Personal, ReadOnly
from fgod.errors import RefusedError, UsageError
from fgod.runs import RUNS, name_of, resolve
from fgod.system.files import scratch_folder

HERE = Path(".")


@dataclass(frozen=True, kw_only=True)
class Show(ReadOnly):
    """The commands on record, oldest first; of a run those that were about it, with what they made."""

    about: Annotated[str, Option(RUNS, "RUN", positional=True)] = ""

    def run(self, call: Call) -> None:
        from fgod.history.told import listing

        run = name_of(resolve(self.about)) if self.about else ""
        for line in listing(manifest.join(HERE), run):
            print(line)


@dataclass(frozen=True, kw_only=True)
class Why(ReadOnly):
    """Who made a file or folder, from what, by which command."""

    file: Annotated[Path, Input("file or folder of this project", "FILE", positional=True)]

    def run(self, call: Call) -> None:
        from fgod.history.told import why

        for line in why(HERE, self.file, manifest.join(HERE)):
            print(line)


@dataclass(frozen=True, kw_only=True)
class Verify(ReadOnly):
    """Check all digests on record: what commands made, weights and their stamps, releases, sealed records."""

    def run(self, call: Call) -> int:
        from fgod.history.verify import report, verify

        found = verify(HERE, manifest.join(HERE), say)
        for line in report(found):
            print(line)
        return RefusedError.exit_code if found.faults else 0


@dataclass(frozen=True, kw_only=True)
class Replay(Personal):
    """Make a run again from its record in an empty folder, and compare the bits of its weights."""

    about: Annotated[str, Option(RUNS, "RUN", positional=True)]
    out: Annotated[
        Path | None, Output("the folder, which must be new (default: a temporary one, removed at the end)", "FOLDER")
    ] = None
    from_rows: Annotated[bool, Option("take the rows of its mix as they stand; they are not made again")] = False

    def run(self, call: Call) -> int:
        from fgod.history.index import Index
        from fgod.history.replay import other_bytes, replay, steps_of, told
        from fgod.keep.trash import weights_of

        run = resolve(self.about)
        index = Index.of(e for e in manifest.join(HERE) if e["state"] == "done")
        steps = steps_of(run, index, self.from_rows, lambda words: parse(words).outputs())
        with self._folder() as folder:
            found = replay(HERE, run, steps, folder, say)
            for line in told(run, found, other_bytes(run, weights_of(run), folder)):
                print(line)
        facts = {"run": name_of(run), "same": found.same}
        call.note(replay={**facts, "differing": found.differing, "environment": found.environment})
        return 0 if found.same else RefusedError.exit_code

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.out is None:
            with scratch_folder(layout.ARTIFACTS / "replay") as folder:
                yield folder
            return
        if self.out.exists():
            raise UsageError(f"--out: found {self.out}, expected a new folder")
        self.out.mkdir(parents=True)
        yield self.out
