"""Errors that a person can act on. `fgod` prints their message without a traceback and exits with their code
(`fgod.system.stop.exit_on_fgod_error`)."""

import signal
from collections.abc import Iterable


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
