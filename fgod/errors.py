"""Errors that a person can act on. `fgod` prints their message without a traceback and exits with their code."""

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fgod import terminal


class FgodError(Exception):
    """Something went wrong that the message explains. Exit code 1."""

    exit_code = 1


class UsageError(FgodError):
    """A config, data file, model folder or command line is wrong. Exit code 2.

    The message names the file, the key or line, what was found and what was expected.
    """

    exit_code = 2


class RefusedError(FgodError):
    """An audit, a gate or a check of the harness says no. Exit code 100."""

    exit_code = 100


class StorageError(FgodError, OSError):
    """A file or folder could not be written: the disk is full, the folder read-only, or the like. Exit code 1."""


class Stopped(KeyboardInterrupt):
    """This process received a stop signal other than Ctrl-C's. Exit code 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing where no allowed word is close."""
    import difflib  # for messages alone

    close = difflib.get_close_matches(str(found), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


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
