"""fgod guard --limit-gb 108 --over-secs 0 --poll-secs 0.05 [--table F --reason F …] -- python train.py"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgod.guard.limits import Limits
from fgod.guard.watch import GuardResult, report, run

TOO_LARGE_OK = "too_large_ok"
"""The config's key that is no limit: it is for the trainer, which predicts its memory."""


WHOLE_GB = 2.0**20
"""A limit that no machine reaches: the guard lowers it to what there is."""


def add_limits(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that are the same for `fgod guard`, `fgod train` and the config's key `guard`.

    Args:
        required: whether a limit has to be given; else it is what the machine has, less a reserve.
    """
    options: dict[str, str] = {
        "over-secs": "seconds that it may stay above the limit (default %(default)g)",
        "poll-secs": "seconds between two readings (default %(default)g)",
        "soft-gb": "GiB past which it is asked to empty its cache, then to save and stop (default: never)",
        "stall-secs": "seconds without a heartbeat after which it is ended (default: never)",
        "others-gb": "GiB that others may use on the GPU when it starts (default: any)",
        "grace-secs": "seconds to end by itself after a stop signal, which the guard passes on (default %(default)g)",
        "wait-secs": "seconds to wait for others to leave the GPU before refusing (default %(default)g)",
    }
    help = "memory of the command and all its descendants in GiB (2^30), of the host and of each GPU"
    if required:
        parser.add_argument("--limit-gb", type=float, required=True, help=help)
    else:
        whole = f"{help} (default: what there is, less 5 %%)"
        parser.add_argument("--limit-gb", type=float, default=WHOLE_GB, help=whole)
    for name, text in options.items():
        default = getattr(Limits, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=default, help=text)
    parser.add_argument("--blind-ok", action="store_true", help="go on where memory cannot be read")


def limits_from(args: argparse.Namespace) -> Limits:
    """Raises UsageError when a value is out of its range."""
    names = ("limit_gb", "over_secs", "poll_secs", "soft_gb", "stall_secs", "others_gb", "wait_secs")
    return Limits(**{name: getattr(args, name) for name in names}, grace_secs=args.grace_secs, blind_ok=args.blind_ok)


def options(guard: Mapping[str, Any]) -> str:
    """The config's key `guard` as options of the command line; keys that are null are left out.

    Raises:
        UsageError: a value is out of its range, or they do not go together.
    """
    Limits(**{key: value for key, value in guard.items() if value is not None and key != TOO_LARGE_OK})
    words = []
    for key, value in guard.items():
        if value is True:
            words.append(f"--{key.replace('_', '-')}")
        elif value is not None and value is not False:
            words.append(f"--{key.replace('_', '-')} {value}")
    return " ".join(words)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_limits(parser)
    parser.add_argument("--table", type=Path, help="write the readings here (guard.tsv)")
    parser.add_argument("--reason", type=Path, help="write here why the command ended, if not by itself (JSON)")
    parser.add_argument("--phase-file", type=Path, help="where the command says what it is doing: its heartbeat")
    parser.add_argument("--lock", type=Path, help="lock file: no second command runs while this one lives")
    parser.add_argument("--lock-gpu", action="store_true", help="no second such command on the same GPUs")
    parser.add_argument(
        "--record",
        action="store_true",
        help="leave an entry in results/manifest.d, also where this folder is no project",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …", help="the command to run")


def run_with(args: argparse.Namespace) -> GuardResult:
    """Run the command and say on standard error what the guard did.

    Raises:
        UsageError: a limit out of its range, or a command that cannot be started.
        LockHeldError: a lock is held.
        BlindError: memory cannot be read.
        OccupiedError: others use too much of the GPU.
    """
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    limits = limits_from(args)
    result = run(command, limits, args.table, args.reason, args.phase_file, args.lock, lock_gpus=args.lock_gpu)
    report(result)
    return result
