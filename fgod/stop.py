"""When a command has to end: signals become exceptions, so that temporaries are removed and the manifest is told; and
what snakemake started does not outlive it, however it ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fgod.errors import FgodError, Stopped
from fgod.guard.tree import read_process

VARIABLE = "FGOD_SNAKEMAKE"
"""Environment variable: the number of the snakemake process that started this command."""

STOP_SIGNALS = (signal.SIGHUP, signal.SIGTERM)
"""Ctrl-C (SIGINT) is an exception of its own. Signals that are ignored (nohup) stay ignored."""


@contextmanager
def heeding() -> Iterator[None]:
    """Inside, signals to end raise `Stopped`; and we are sent one when the snakemake that started us is gone.

    Raises:
        FgodError: it is gone already.
    """
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heeded}
    try:
        if told := os.environ.get(VARIABLE):
            _follow(int(told))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


def heed_beside() -> None:
    """Let the handler of SIGTERM that is set run in a thread of its own.

    Snakemake's takes a lock that the code which it interrupts may hold: snakemake (9.27.1) then hangs for ever.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        signal.signal(signal.SIGTERM, lambda *told: threading.Thread(target=handler, args=told).start())


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def _follow(snakemake: int) -> None:
    """Watch a process among our ancestors from a thread, which sends us SIGTERM when it is gone."""
    try:
        handle = os.pidfd_open(snakemake)
    except ProcessLookupError:
        raise _gone(snakemake) from None
    if not is_ancestor(snakemake):  # it ended, and another process may have its number now
        os.close(handle)
        raise _gone(snakemake)
    threading.Thread(target=_end_after, args=(handle, snakemake), name="snakemake's end", daemon=True).start()


def _gone(snakemake: int) -> FgodError:
    return FgodError(f"the snakemake that started this command (process {snakemake}) is gone: nothing was begun")


def is_ancestor(pid: int) -> bool:
    """Whether a process is our parent, or its parent, and so on."""
    member = read_process(os.getpid())
    while member and member.parent:
        if member.parent == pid:
            return True
        member = read_process(member.parent)
    return False


def _end_after(handle: int, snakemake: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    print(f"fgod: snakemake (process {snakemake}) is gone; this command ends too", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
