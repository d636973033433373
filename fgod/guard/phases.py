"""The phase of a command, in a small file that the guard reads and records beside each reading of memory.

Each write is a heartbeat, also of the same phase; `touch` is one too.
"""

from __future__ import annotations

import os
from pathlib import Path

PHASES = (
    "start",
    "model_loaded",
    "batch_ready",
    "zero_grad_done",
    "backward_done",
    "optimizer_step_done",
    "answered",
    "scored",
    "saving",
)
"""The names that trainer, answers and probe use; the guard takes any."""

MAX_LENGTH = 64

VARIABLE = "FGOD_GUARD_PHASE"
"""Where a command under the guard finds the name of the file."""


def write_phase(path: Path, phase: str) -> None:
    """Write the phase by rename, so that a reader sees the old or the new one; not synced, as it is written every step.

    One process writes it; after a kill the next one uses the same temporary name.
    """
    temporary = path.with_name(f".{path.name}.next")
    temporary.write_text(phase + "\n", encoding="utf-8")
    temporary.replace(path)


def read_phase(path: Path | None) -> str:
    """The phase that was written last; `start` before the first."""
    if path is None:
        return PHASES[0]
    try:
        with path.open("rb") as stream:
            text = stream.read(4 * MAX_LENGTH).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return PHASES[0]
    line = next(iter(text.splitlines()), "")[:MAX_LENGTH].strip()
    return "".join(c for c in line if c.isprintable()) or PHASES[0]


def phase_file_of(pid: int, proc: Path = Path("/proc")) -> Path | None:
    """Where a guarded process says its phase, as its environment names it; None where it is not guarded, or gone, or
    hidden from us."""
    try:
        environment = (proc / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    for word in environment.split(b"\0"):
        name, _, value = word.partition(b"=")
        if name.decode(errors="replace") == VARIABLE and value:
            return Path(value.decode(errors="surrogateescape"))
    return None


class PhaseReader:
    """The phase and what the heartbeat looks like; the file is read again only when it changed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.beat: tuple[int, int] | None = None
        """Differs after each heartbeat; None before the first."""
        self.phase = PHASES[0]

    def read(self) -> None:
        """Look again."""
        if self._path is None:
            return
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            return
        beat = stat.st_ino, stat.st_mtime_ns
        if beat != self.beat:
            self.beat, self.phase = beat, read_phase(self._path)
