"""What the guard allows, and when it is over. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fgod.errors import UsageError

KILLED_EXIT = 75
"""Exit code of a guard that killed its command (EX_TEMPFAIL). 137 cannot be told from the kernel's own OOM kill."""

MIB_PER_GB = 1024
"""`limit_gb` counts GiB (2³⁰ bytes) as nvidia-smi and free do; tables are in MiB (2²⁰ bytes)."""

MIN_POLL_SECS = 0.005


@dataclass(frozen=True)
class Limits:
    """Raises UsageError when a value is out of its range."""

    limit_gb: float
    """GiB (2³⁰ bytes) that the command and all its descendants may use together."""

    over_secs: float = 0.0
    """Seconds that they may stay above it; 0 kills at the first reading above the limit."""

    poll_secs: float = 0.5
    """Seconds between two readings."""

    def __post_init__(self) -> None:
        _require("limit_gb", self.limit_gb, self.limit_gb > 0, "a number above 0 (GiB)")
        _require("over_secs", self.over_secs, self.over_secs >= 0, "a number of seconds, 0 or more")
        _require("poll_secs", self.poll_secs, self.poll_secs >= MIN_POLL_SECS, f"seconds, {MIN_POLL_SECS} or more")

    @property
    def limit_mib(self) -> float:
        return self.limit_gb * MIB_PER_GB


def _require(key: str, value: float, holds: bool, expected: str) -> None:
    if not (holds and math.isfinite(value)):
        raise UsageError(f"guard.{key}: found {value}, expected {expected}")


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
