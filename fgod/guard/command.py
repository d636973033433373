"""fgod guard --limit-gb 8 --over-secs 0 --poll-secs 0.5 [--table F --reason F --phase-file F --lock F] -- CMD …"""

from __future__ import annotations

import argparse
from pathlib import Path

from fgod.guard.limits import Limits
from fgod.guard.watch import report, run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit-gb", type=float, required=True, help="memory of the command and all its descendants in GiB (2^30)"
    )
    parser.add_argument(
        "--over-secs", type=float, default=Limits.over_secs, help="seconds that they may stay above it (default 0)"
    )
    parser.add_argument(
        "--poll-secs", type=float, default=Limits.poll_secs, help="seconds between two readings (default 0.5)"
    )
    parser.add_argument("--table", type=Path, help="write the readings here (guard.tsv)")
    parser.add_argument("--reason", type=Path, help="write here why the guard killed the command, if it did (JSON)")
    parser.add_argument("--phase-file", type=Path, help="where the command says what it is doing")
    parser.add_argument("--lock", type=Path, help="lock file: no second command runs while this one lives")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …", help="the command to run")


def main(args: argparse.Namespace) -> int:
    """Exit code: 75 killed by the guard (a reason file tells it from the command's own 75), else the command's own.

    Raises:
        UsageError: a limit out of its range, or a command that cannot be started.
        LockHeldError: the lock is held.
    """
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    limits = Limits(limit_gb=args.limit_gb, over_secs=args.over_secs, poll_secs=args.poll_secs)
    result = run(command, limits, args.table, args.reason, args.phase_file, args.lock)
    report(result)
    return result.exit_code
