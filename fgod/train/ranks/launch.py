"""Starts the ranks of a run, waits for them and says which one failed; when one ends, all end.

    fgod train → guard → keeper → python -m fgod.train.ranks.launch … → python -m fgod.train.ranks …, one for each GPU

torch's elastic launcher starts and ends them. A rank that hangs is killed here, so that it is the one that has failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from fgod.errors import FgodError, RefusedError, UsageError
from fgod.guard.limits import KILLED_EXIT
from fgod.system import files
from fgod.system.stop import exit_on_fgod_error
from fgod.train.ranks.beats import Hangs, read_beats
from fgod.train.trainer import Trainer

LOOK_SECS = 0.5
"""Between two looks at what ranks show."""

MONITOR_SECS = 0.1
"""Between two looks at whether ranks run."""

RANKS = "ranks"
"""In the work folder: what ranks show, their errors, and scratch of all but the first one."""

ELASTIC = "torch.distributed.elastic"
"""Loggers of torch's launcher."""


class HangWatch(Thread):
    """Kills a rank that hangs while others wait for it; `found`: the ranks that did."""

    def __init__(self, folder: Path, secs: float) -> None:
        super().__init__(daemon=True)
        self.folder, self.hangs = folder, Hangs(secs)
        self.found: set[int] = set()
        self._over = Event()

    def run(self) -> None:
        while self.hangs.secs and not self._over.wait(LOOK_SECS):
            beats = read_beats(self.folder)
            rank = self.hangs.judge(time.monotonic(), beats)
            if rank is not None and rank not in self.found:
                self.found.add(rank)
                try:
                    os.kill(beats[rank].pid, signal.SIGKILL)
                except ProcessLookupError:  # it has just ended by itself, and the launcher says how
                    self.found.discard(rank)

    def __enter__(self) -> HangWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def run_ranks(module: str, words: Sequence[str], count: int, folder: Path, secs: float) -> int:
    """Run `python -m MODULE WORDS…` as ranks of this host, to their end.

    Args:
        folder: for what ranks leave (`fgod.train.ranks.beats`, `leave_error`); made anew.
        secs: that ranks may wait for one of them; 0: as long as torch's default.

    Returns:
        0, or `KILLED_EXIT` where a rank ended with that.

    Raises:
        FgodError: a rank failed; names it.
    """
    files.remove_folder(folder)
    folder.mkdir(parents=True)
    for name in [ELASTIC, *logging.root.manager.loggerDict]:
        if name.startswith(ELASTIC):  # what it says stands in our own message
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=folder.parent.name, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost", monitor_interval=MONITOR_SECS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )  # fmt: skip
    with HangWatch(folder, secs) as watch:
        try:
            launch_agent(config, sys.executable, ["-m", module, *words])
        except ChildFailedError as failed:
            rank, failure = root(failed.failures, watch.found)
            if failure.exitcode == KILLED_EXIT:
                return KILLED_EXIT
            raise error_of(folder, rank, failure, count, rank in watch.found, secs) from None
        except SignalException as stopped:
            sys.exit(128 + stopped.sigval)
    return 0


def root(failures: Mapping[int, ProcessFailure], hanging: Collection[int]) -> tuple[int, ProcessFailure]:
    """The rank that failed first: one that hung, else one that a signal ended, else one that failed by itself, perhaps
    for want of another; those that were ended because of it come last."""

    def place(rank: int) -> tuple[bool, bool, bool, float]:
        code = failures[rank].exitcode
        return rank not in hanging, code == -signal.SIGTERM, code >= 0, failures[rank].timestamp

    first = min(failures, key=place)
    return first, failures[first]


def error_of(folder: Path, rank: int, failure: ProcessFailure, count: int, hung: bool, secs: float) -> FgodError:
    """The failure of a rank in words: its own, or how it ended."""
    name, then = f"rank {rank} of {count}", "all ranks were ended"
    own = {one: folder / f"{one}.error.json" for one in (0, rank)}
    for one, path in own.items():  # what the first rank found is what all find
        if path.exists():
            left = files.read_json(path)
            kind = {2: UsageError, 100: RefusedError}.get(left["exit_code"], FgodError)
            return kind(left["message"] if one == 0 else f"{name}: {left['message']}")
    if hung:
        return FgodError(f"{name} hung: the others waited {secs:g} s for it (guard.rank_secs); {then}")
    if failure.exitcode < 0:
        return FgodError(f"{name} was ended by {signal.Signals(-failure.exitcode).name}; {then}")
    return FgodError(f"{name} failed with exit code {failure.exitcode}, see above; {then}")


def leave_error(folder: Path, rank: int, error: FgodError) -> None:
    """By a rank: for the launcher to say."""
    files.write_json(folder / f"{rank}.error.json", {"message": str(error), "exit_code": error.exit_code})


def main() -> None:
    """Start the ranks of a training; arguments as of `python -m fgod.train`."""
    args = Trainer.parse("fgod.train.ranks.launch", main.__doc__)
    try:
        code = run_ranks("fgod.train.ranks", sys.argv[1:], args.gpus, args.work / RANKS, args.rank_secs)
    finally:
        files.remove_folder(args.work / RANKS)
    if code == KILLED_EXIT and not args.result.exists():
        raise FgodError(f"a rank ended with {KILLED_EXIT} and left no {args.result}")


if __name__ == "__main__":
    with exit_on_fgod_error():
        main()
