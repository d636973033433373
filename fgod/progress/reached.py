"""How far a piece of work is: what people read, and the file by which other processes know it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reached:
    """`done` of `total` units (`unit`: the word for one, such as `step`), of which `first` were done before it began.

    `label`: whose work it is, and what; `note`: what else is to be said now, such as the loss; `begun`, `at`: when it
    began, and when `done` was reached (seconds since 1970).
    """

    label: str
    unit: str
    done: int
    total: int
    begun: float
    at: float
    first: int = 0
    note: str = ""

    @property
    def rate(self) -> float | None:
        """Units a second, on average since it began; None before the first."""
        made, seconds = self.done - self.first, self.at - self.begun
        return made / seconds if made > 0 and seconds > 0 else None

    def left(self, now: float) -> float | None:
        """Seconds until the last unit at that rate; None where that is not known."""
        return None if self.rate is None else max((self.total - self.done) / self.rate - (now - self.at), 0.0)

    def words(self, now: float) -> str:
        """`fit 1 · B-nudge · step 27 of 60 · loss 0.213 · 4.1/s · 8.0 s left`."""
        parts = [self.label, f"{self.unit} {self.done} of {self.total}", self.note]
        if (rate := self.rate) is not None:
            parts.append(rate_words(rate, self.unit))
        if (left := self.left(now)) is not None:
            parts.append(f"{duration(left)} left")
        return " · ".join(filter(None, parts))

    @property
    def end(self) -> str:
        """What is said when it is done: `fit 1 · B-nudge · step 60 of 60 · loss 0.000 · 14 s`."""
        parts = [self.label, f"{self.unit} {self.done} of {self.total}", self.note, duration(self.at - self.begun)]
        return " · ".join(filter(None, parts))

    def to_dict(self, now: float) -> dict[str, Any]:
        """For programs: the fields but for times, with `per_second` and `left_s`."""
        told = {key: value for key, value in asdict(self).items() if key not in ("begun", "at", "first")}
        return {**told, "per_second": self.rate, "left_s": self.left(now)}


def rate_words(rate: float, unit: str) -> str:
    """`4.1/s`, or of slow work `12 s a step`."""
    return f"{rate:.3g}/s" if rate >= 1 else f"{duration(1 / rate)} a {unit}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 5 s`, `2 h 7 min`, `3 d 4 h`."""
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, small, less in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // small} {less}"
    return f"{whole} s"


# --------------------------------------------------------------------------------------------------------- its file


def file_beside(phase_file: Path) -> Path:
    """Where a guarded command says how far it is: beside the file of its phase."""
    return phase_file.with_name(f"{phase_file.name}.progress")


def write(path: Path, reached: Reached) -> None:
    """Say it by rename, so that a reader sees the old or the new one; not synced. A full disk is no fault here."""
    temporary = path.with_name(f".{path.name}.next")
    with suppress(OSError):
        temporary.write_text(json.dumps(asdict(reached), ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)


def forget(path: Path) -> None:
    """Take it away: nothing is followed any more."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def read(path: Path) -> Reached | None:
    """What a file says; None where there is none (any more), or nothing that `write` wrote."""
    try:
        found = json.loads(path.read_bytes())
        return _typed(found)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _typed(found: Mapping[str, Any]) -> Reached:
    """Raises what a wrong value raises: another process wrote it, perhaps of another version."""
    label, unit, note = ("".join(c for c in str(found[key]) if c.isprintable()) for key in ("label", "unit", "note"))
    done, total, first = (int(found[key]) for key in ("done", "total", "first"))
    begun, at = float(found["begun"]), float(found["at"])
    if not (math.isfinite(begun) and math.isfinite(at)):
        raise ValueError(f"found {begun} and {at}, expected times")
    return Reached(label, unit, done, total, begun, at, first, note)
