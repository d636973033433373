"""Ending a command: stop signals become exceptions, so that temporaries are removed and the manifest gets an end
record; an error becomes a message and an exit code; and a command does not outlive the snakemake that started it.
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
from fgod.system import terminal
from fgod.system.process import read_process

VARIABLE = "FGOD_SNAKEMAKE"
"""Environment variable: the number of the snakemake process that started this command."""

STOP_SIGNALS = (signal.SIGHUP, signal.SIGTERM)
"""Ctrl-C (SIGINT) is an exception of its own. Signals that are ignored (nohup) stay ignored."""


@contextmanager
def stop_signals_as_exceptions(follow_snakemake: bool = True) -> Iterator[None]:
    """Raise `Stopped` in the body on SIGHUP and SIGTERM; send SIGTERM to this process when its snakemake has ended.

    Args:
        follow_snakemake: False for a child of a process that does it.

    Raises:
        FgodError: the snakemake that started this process has ended already.
    """
    hook, sys.unraisablehook = sys.unraisablehook, _resend_swallowed_signal
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in handled}
    try:
        if follow_snakemake and (snakemake := os.environ.get(VARIABLE)):
            _follow(int(snakemake))
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


@contextmanager
def exit_on_fgod_error() -> Iterator[None]:
    """Print an `FgodError`, Ctrl-C or another stop signal on stderr, without a traceback, and exit with its code."""
    try:
        yield
    except FgodError as error:
        terminal.line(f"fgod: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:
        why = str(stop) or "stopped by Ctrl-C"
        terminal.line(f"fgod: {why}: what stands is whole, nothing else was written; run it again to go on")
        sys.exit(stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT)


def run_sigterm_handler_in_thread() -> None:
    """Run the current handler of SIGTERM in a thread of its own.

    Snakemake's handler takes a lock that the interrupted code may hold; snakemake (9.27.1) then hangs for ever.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        signal.signal(signal.SIGTERM, lambda *args: threading.Thread(target=handler, args=args).start())


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


RESEND_SECS = 0.05
"""Delay of a re-sent signal: the callback that swallowed its exception has returned by then."""


def _resend_swallowed_signal(dropped: sys.UnraisableHookArgs) -> None:
    """Re-deliver a stop signal whose exception Python swallowed, as it does inside an import callback."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        number = dropped.exc_value.number if isinstance(dropped.exc_value, Stopped) else signal.SIGINT
        threading.Timer(RESEND_SECS, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(dropped)


def _follow(snakemake: int) -> None:
    """Start a thread that sends SIGTERM to this process when snakemake, or a shell between the two, has ended."""
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
    """Process numbers of our parent, its parent and so on up to `pid`; empty if `pid` is not an ancestor."""
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
    terminal.line(f"fgod: {name} (process {pid}) is gone; this command ends too")
    os.kill(os.getpid(), signal.SIGTERM)
