"""The guard: runs a command below a keeper, watches the memory of its whole tree and kills it past a limit.

    fgod guard --limit-gb 108 --over-secs 0 --poll-secs 0.05 --table guard.tsv --reason reason.json -- python train.py

Linux only (/proc, pidfd). Modules: `limits` (what is allowed; pure), `ends` (how the command ended; pure), `pools` (the
pools of memory of this machine), `sources`, `shared` and `gpu` (readings of a pool), `cuda`, `nvml`, `cgroup`
(interfaces that readings come from), `others` (other users of a GPU, and who takes which), `count` (how many GPUs
there are), `child` and `keeper` (start, signals, no
orphans), `watch` (the loop), `samples` (guard.tsv), `command` (options).

For the guarded command: `heartbeat`, `phases` (what it does), `cap` (limit of torch's allocator), `predict` (refuses
before anything is loaded). docs/guard.md is the users' guide.


A name below is imported from its module when it is first used: who needs a limit need not load the CUDA driver's
interface.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgod.guard.child import KeeperLostError
    from fgod.guard.command import GuardOptions, options
    from fgod.guard.ends import End
    from fgod.guard.limits import KILLED_EXIT, Limits, WholeMachine
    from fgod.guard.others import OccupiedError
    from fgod.guard.phases import PHASES, read_phase, write_phase
    from fgod.guard.pools import BlindError, Pool
    from fgod.guard.samples import COLUMNS
    from fgod.guard.sources import HostMemory, MemorySource, UnseenError
    from fgod.guard.watch import GuardResult, report, run
    from fgod.system.lock import LockHeldError

__all__ = [
    "COLUMNS",
    "KILLED_EXIT",
    "PHASES",
    "BlindError",
    "End",
    "GuardOptions",
    "GuardResult",
    "HostMemory",
    "KeeperLostError",
    "Limits",
    "LockHeldError",
    "MemorySource",
    "OccupiedError",
    "Pool",
    "UnseenError",
    "WholeMachine",
    "options",
    "read_phase",
    "report",
    "run",
    "write_phase",
]

_MODULES = {
    "fgod.guard.child": ("KeeperLostError",),
    "fgod.guard.command": ("GuardOptions", "options"),
    "fgod.guard.ends": ("End",),
    "fgod.guard.limits": ("KILLED_EXIT", "Limits", "WholeMachine"),
    "fgod.guard.others": ("OccupiedError",),
    "fgod.guard.phases": ("PHASES", "read_phase", "write_phase"),
    "fgod.guard.pools": ("BlindError", "Pool"),
    "fgod.guard.samples": ("COLUMNS",),
    "fgod.guard.sources": ("HostMemory", "MemorySource", "UnseenError"),
    "fgod.guard.watch": ("GuardResult", "report", "run"),
    "fgod.system.lock": ("LockHeldError",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # else mypy would take any name for one of this package

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
