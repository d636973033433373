"""The guard: runs a command in its own process group, watches the memory of its whole tree and kills it past a limit.

    fgod guard --limit-gb 8 --over-secs 0 --poll-secs 0.5 --table guard.tsv --reason reason.json -- python train.py

Linux only (/proc, pidfd). Modules: `limits` (what is allowed; pure), `tree` (whose memory counts), `sources` (how it
is read), `samples` (guard.tsv), `phases` (what the trainer is doing), `lock` (one trainer per run folder), `child`
(start, signals), `watch` (the loop), `command` (the command line).
"""

from fgod.guard.command import add_arguments, main
from fgod.guard.limits import KILLED_EXIT, Limits
from fgod.guard.lock import LockHeldError
from fgod.guard.phases import PHASES, read_phase, write_phase
from fgod.guard.samples import COLUMNS
from fgod.guard.sources import HostMemory, MemorySource
from fgod.guard.watch import GuardResult, report, run

__all__ = [
    "COLUMNS",
    "KILLED_EXIT",
    "PHASES",
    "GuardResult",
    "HostMemory",
    "Limits",
    "LockHeldError",
    "MemorySource",
    "add_arguments",
    "main",
    "read_phase",
    "report",
    "run",
    "write_phase",
]
