"""Batches side by side on a CPU: shared out over processes that are forked from the one that has loaded the weights.

One thread computes a batch: sums over two threads have another order, hence other bits. So cores are used by batches
side by side, and what a batch is made of never depends on how many there are.

Why processes, and why fork: SmolLM2-135M on two cores answers 2.0 times as fast with two processes as with one, and
1.35 times with two threads of one process, as a token is some thousand small operations that take turns at the
interpreter's lock. A forked process has the loaded weights at once and shares their memory; one that is spawned would
import torch and unpack the weights again.

Why fork is safe here: it copies the calling thread alone, so that pools of threads are dead in the child. A child never
wakes one: it sets torch to one thread before it computes, enters no parallel region of OpenMP or MKL then, and its
tokenizers are told not to use theirs. A CUDA context does not survive a fork: on a GPU one process does it all.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from fgod.errors import FgodError
from fgod.guard.keeper import PR_SET_PDEATHSIG, prctl
from fgod.system.stop import STOP_SIGNALS

Job = TypeVar("Job")
Made = TypeVar("Made")

TOKENIZERS_POOL = "TOKENIZERS_PARALLELISM"
"""Environment variable: whether the tokenizers encode in threads of their own. They look when they encode, and when a
process is forked, where they warn if it is not set."""


class ForkLostError(FgodError):
    """A forked process ended before its work was done. Exit code 128 + n for a signal n, else 1."""

    def __init__(self, pid: int, code: int) -> None:
        self.exit_code = 128 - code if code < 0 else 1
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = (
            ", perhaps by the kernel, for want of memory; a lower --processes needs less"
            if code == -signal.SIGKILL
            else ""
        )
        super().__init__(f"process {pid}, which computed batches beside others, {how}{why}")


@contextmanager
def in_batches(
    work: Callable[[Sequence[int]], Iterable[Made]],
    batches: Sequence[Sequence[int]],
    processes: int,
    device: torch.device,
) -> Iterator[Iterator[tuple[int, Made]]]:
    """Indices, batch by batch in the order of the batches, each with what `work` makes of it (see `side_by_side`).

        with in_batches(work, [[2, 0], [1]], 2, model.device) as made:
            found = dict(made)

    Processes end with the block, however that ends.

    Args:
        work: makes one thing of each index of a batch, in their order.
        processes: at most; 1: this process does it all.
        device: of the models that work with them.

    Raises:
        ValueError: several processes are to compute on a GPU.
    """
    if processes > 1 and device.type != "cpu":
        raise ValueError(f"found {processes} processes that compute on {device}, expected 1: only a CPU is shared")
    with closing(side_by_side(work, batches, processes)) as made:
        yield (one for batch, some in zip(batches, made, strict=True) for one in zip(batch, some, strict=True))


def side_by_side(work: Callable[[Job], Made], jobs: Sequence[Job], processes: int = 1) -> Generator[Made, None, None]:
    """What `work` makes of each job, in the order of the jobs. Each process takes the next job as soon as it is free.

    Processes end when all is done, when the generator is closed, when anything raises here, and with this process,
    however that ends.

    Args:
        work: computes with torch on a CPU; what it changes stays in its process, and what it returns is pickled.
        processes: at most; 1: this process does it all.

    Raises:
        ForkLostError: a process was ended by something else.
        Exception: what `work` raised first, in whichever process.
    """
    count = min(processes, len(jobs))
    if count <= 1:
        yield from map(work, jobs)
        return
    forks: list[_Fork] = []
    made: dict[int, Made] = {}
    given = 0
    try:
        for _ in range(count):
            forks.append(_Fork(work, jobs))
            forks[-1].give(given)
            given += 1
        for number in range(len(jobs)):
            while number not in made:
                for line in wait([fork.line for fork in forks]):
                    fork = next(one for one in forks if one.line is line)
                    done, result = fork.take()
                    made[done] = result
                    if given < len(jobs):
                        fork.give(given)
                        given += 1
            yield made.pop(number)
    finally:
        for fork in forks:
            fork.end()


class _Fork:
    """A process that does one job after the other; it is told their numbers."""

    def __init__(self, work: Callable[[Any], Any], jobs: Sequence[Any]) -> None:
        context = get_context("fork")
        self.line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid(), work, jobs), daemon=True)
        with _without_pool():
            self._process.start()
        theirs.close()  # so that the line ends with the process

    def give(self, number: int) -> None:
        """Let it do this job."""
        try:
            self.line.send(number)
        except OSError:
            raise self._lost() from None

    def take(self) -> tuple[int, Any]:
        """The number of the job that it has done, and what came of it.

        Raises:
            ForkLostError: it has ended.
            Exception: what the work raised.
        """
        try:
            number, result, error = pickle.loads(self.line.recv_bytes())
        except (EOFError, OSError):
            raise self._lost() from None
        if error is not None:
            raise error
        return number, result

    def end(self) -> None:
        """Kill it, if it lives: it has nothing to lose."""
        self._process.kill()
        self._process.join()
        self.line.close()

    def _lost(self) -> ForkLostError:
        self._process.join()
        assert self._process.pid is not None and self._process.exitcode is not None
        return ForkLostError(self._process.pid, self._process.exitcode)


@contextmanager
def _without_pool() -> Iterator[None]:
    """What is forked meanwhile is told that tokenizers use no threads; here it stays as it was."""
    own = os.environ.get(TOKENIZERS_POOL)
    os.environ[TOKENIZERS_POOL] = "false"
    try:
        yield
    finally:
        if own is None:
            del os.environ[TOKENIZERS_POOL]
        else:
            os.environ[TOKENIZERS_POOL] = own


def _serve(line: Connection, parent: int, work: Callable[[Any], Any], jobs: Sequence[Any]) -> None:
    """Runs in the forked process: do the jobs that the line names, until it is killed."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends us
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        return
    gc.freeze()  # a collection would write to each object, and so copy its page
    torch.set_num_threads(1)
    while True:
        number = line.recv()
        line.send_bytes(_answer(number, work, jobs))


def _answer(number: int, work: Callable[[Any], Any], jobs: Sequence[Any]) -> bytes:
    """The job's number, what came of it and the exception instead, pickled: as bytes, so that tensors go through the
    pipe and not through files in shared memory, as multiprocessing would send them."""
    try:
        return pickle.dumps((number, work(jobs[number]), None))
    except Exception as error:
        if not isinstance(error, FgodError):
            error.add_note(f"In a process beside others:\n{traceback.format_exc()}")
        return pickle.dumps((number, None, error if _survives(error) else _told(error)))


def _survives(error: Exception) -> bool:
    """Whether an exception is the same once it was pickled: one with an `__init__` of its own need not be."""
    try:
        loaded = pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return type(loaded) is type(error) and str(loaded) == str(error)


def _told(error: Exception) -> Exception:
    """One that can be pickled, and says the same: of an `FgodError` with its exit code, else with type and notes."""
    if isinstance(error, FgodError):
        told = FgodError(str(error))
        told.exit_code = error.exit_code
        return told
    unknown = RuntimeError(f"{type(error).__name__}: {error}")
    for note in error.__notes__:
        unknown.add_note(note)
    return unknown
