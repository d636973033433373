"""When a command has to end: signals become exceptions, so that temporaries are removed and the manifest is told; and
what snakemake started does not outlive it, however it ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
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
    hook, sys.unraisablehook = sys.unraisablehook, _told_again
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heeded}
    try:
        if told := os.environ.get(VARIABLE):
            _follow(int(told))
        yield
    finally:
        sys.unraisablehook = hook
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


AGAIN_SECS = 0.05
"""The callback is over by then."""


def _told_again(dropped: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a callback, and every import has one: a signal that met one is sent once more."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        number = dropped.exc_value.number if isinstance(dropped.exc_value, Stopped) else signal.SIGINT
        threading.Timer(AGAIN_SECS, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(dropped)


def _follow(snakemake: int) -> None:
    """Watch an ancestor and the shells between, from a thread that sends us SIGTERM when one of them is gone."""
    watched = _ancestors_to(snakemake)
    handles = {}
    try:
        for pid in watched:
            handles[os.pidfd_open(pid)] = pid
    except ProcessLookupError:
        watched = []
    if not watched or _ancestors_to(snakemake) != watched:  # one ended, and another process may have its number now
        for handle in handles:
            os.close(handle)
        raise FgodError(f"the snakemake that started this command (process {snakemake}) is gone: nothing was begun")
    threading.Thread(target=_end_after, args=(handles, snakemake), name="snakemake's end", daemon=True).start()


def _ancestors_to(pid: int) -> list[int]:
    """Our parent, its parent, and so on to this one; empty if it is none of them."""
    found = []
    member = read_process(os.getpid())
    while member and member.parent:
        found.append(member.parent)
        if member.parent == pid:
            return found
        member = read_process(member.parent)
    return []


def _end_after(handles: Mapping[int, int], snakemake: int) -> None:
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    gone = {handles[handle] for handle, _ in poll.poll()}
    name, pid = ("snakemake", snakemake) if snakemake in gone else ("what started this command", min(gone))
    print(f"fgod: {name} (process {pid}) is gone; this command ends too", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
