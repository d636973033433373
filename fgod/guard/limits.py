"""What the guard allows, and when it acts. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from fgod.arguments import NonNegativeFloat, Option
from fgod.errors import UsageError

KILLED_EXIT = 75
"""Exit code of a guard that killed its command (EX_TEMPFAIL). 137 would be that of the kernel's OOM kill too."""

MIB_PER_GB = 1024
"""`limit_gb` counts GiB (2³⁰ bytes) as nvidia-smi and free do; tables are in MiB (2²⁰ bytes)."""

MIN_POLL_SECS = 0.005

HEADROOM = 0.05
"""Part of a machine or cgroup that the limit leaves free where it would be above what there is."""

WHOLE_GB = 2.0**20
"""A limit that no machine reaches: the guard lowers it to what there is."""

RANK_SECS = 600.0
"""Seconds that the ranks of a run on several GPUs wait for one of them, by default."""

LIMIT_HELP = "memory of the command and all its descendants in GiB (2^30), of the host and of each GPU"


@dataclass(frozen=True)
class Limits:
    """What a command under the guard may use; the keys of the config's `guard`. Sizes are GiB of 2³⁰ bytes.

    Raises:
        UsageError: a value is out of its range.
    """

    limit_gb: Annotated[float, Option(LIMIT_HELP, "GIB")]
    over_secs: Annotated[float, Option("seconds that it may stay above the limit (default %(default)g)", "S")] = 0.0
    poll_secs: Annotated[float, Option("seconds between two readings (default %(default)g)", "S")] = 0.5
    stall_secs: Annotated[
        float, Option("seconds without a heartbeat after which it is ended (default: never)", "S")
    ] = 0.0
    others_gb: Annotated[
        NonNegativeFloat, Option("GiB that others may use on the GPU when it starts (default: any)", "GIB")
    ] = math.inf
    wait_secs: Annotated[
        float,
        Option("seconds to wait for others to leave the GPU before refusing (default %(default)g)", "S"),
    ] = 0.0
    grace_secs: Annotated[
        float,
        Option("seconds to end by itself after a stop signal, which the guard passes on (default %(default)g)", "S"),
    ] = 5.0
    blind_ok: Annotated[bool, Option("go on where memory cannot be read")] = False

    def __post_init__(self) -> None:
        limit = self.limit_gb
        _require("limit_gb", limit, 0 < limit < math.inf, "a finite number above 0 (GiB)")
        for key in ("over_secs", "stall_secs", "grace_secs", "wait_secs"):
            secs = getattr(self, key)
            _require(key, secs, 0 <= secs < math.inf, "a finite number of seconds, 0 or more")
        poll = MIN_POLL_SECS <= self.poll_secs < math.inf
        _require("poll_secs", self.poll_secs, poll, f"a finite number of seconds, {MIN_POLL_SECS} or more")
        _require("others_gb", self.others_gb, self.others_gb >= 0, "GiB, 0 or more")

    @property
    def limit_mib(self) -> float:
        return self.limit_gb * MIB_PER_GB


@dataclass(frozen=True)
class WholeMachine(Limits):
    """Limits of a command that may use what the machine has, less a reserve, where nothing else is said."""

    limit_gb: Annotated[float, Option(f"{LIMIT_HELP} (default: what there is, less 5 %%)", "GIB")] = WHOLE_GB


def _require(key: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise UsageError(f"guard.{key}: found {value}, expected {expected}")


def lowered(limit_mib: float, total_mib: float | None) -> float:
    """The limit, lowered to `HEADROOM` below the total where that is smaller: else the kernel would kill before us."""
    return limit_mib if total_mib is None else min(limit_mib, total_mib * (1 - HEADROOM))


@dataclass
class OverTime:
    """Says when usage has been above the limit for `over_secs`. An unknown reading changes nothing."""

    limit_mib: float
    over_secs: float
    since: float | None = None

    def breached(self, t: float, used_mib: float | None) -> bool:
        """Take the reading of time `t` (seconds, not falling) and answer whether the limit is broken."""
        if used_mib is None:
            return False
        if used_mib <= self.limit_mib:
            self.since = None
            return False
        if self.since is None:
            self.since = t
        return t - self.since >= self.over_secs


@dataclass
class Stall:
    """Says when a command has given no sign of life for `stall_secs` (0: never)."""

    stall_secs: float
    beat: object = None
    since: float = 0.0

    def stalled(self, t: float, beat: object) -> bool:
        """Take what the heartbeat looks like at time `t` (seconds since the start)."""
        if beat != self.beat:
            self.beat, self.since = beat, t
        return 0 < self.stall_secs <= t - self.since
