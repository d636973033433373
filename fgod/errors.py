"""Errors that a person can act on. `fgod` prints their message without a traceback and exits with their code."""


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
