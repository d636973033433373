"""A guarded command's side of the guard: it says its phase, and shows that it lives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fgod.guard import phases


class Heartbeat:
    """Called with a phase, or without one where the phase goes on. Without a guard it does nothing.

    Args:
        phase_file: that the guard reads; None: there is no guard.
    """

    def __init__(self, phase_file: Path | None) -> None:
        self.phase_file = phase_file

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Heartbeat:
        name = environment.get(phases.VARIABLE)
        return cls(Path(name) if name else None)

    def __call__(self, phase: str | None = None) -> None:
        if phase is not None and self.phase_file is not None:
            phases.write_phase(self.phase_file, phase)
        else:
            self.touch()

    def touch(self) -> None:
        """Show that the process lives, and nothing else: about 2 µs."""
        if self.phase_file is not None and self.phase_file.exists():
            os.utime(self.phase_file)
