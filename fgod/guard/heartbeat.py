"""A guarded command's side of the guard: it says its phase, shows that it lives, and does what the guard requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from fgod.errors import FgodError
from fgod.guard import phases
from fgod.guard.limits import KILLED_EXIT, Request
from fgod.guard.requests import RequestReader


class StopRequested(FgodError):
    """The guard asked to stop above its soft level. Exit code 75."""

    exit_code = KILLED_EXIT


class Heartbeat:
    """Called with a phase, or without one where the phase goes on. Without a guard it does nothing.

    Args:
        phase_file: that the guard reads; None: there is no guard.
        reader: of the guard's requests.
        empty_cache: gives memory back that no tensor uses.
    """

    def __init__(self, phase_file: Path | None, reader: RequestReader, empty_cache: Callable[[], None]) -> None:
        self._phase_file = phase_file
        self._reader = reader
        self._empty_cache = empty_cache

    @classmethod
    def from_environment(
        cls, empty_cache: Callable[[], None], environment: Mapping[str, str] = os.environ
    ) -> Heartbeat:
        name = environment.get(phases.VARIABLE)
        return cls(Path(name) if name else None, RequestReader.from_environment(environment), empty_cache)

    def __call__(self, phase: str | None = None) -> None:
        """Raises StopRequested when the guard asked to stop: there is nothing to save."""
        if phase is not None and self._phase_file is not None:
            phases.write_phase(self._phase_file, phase)
        else:
            self.touch()
        match self._reader.poll():
            case Request.EMPTY_CACHE:
                self._empty_cache()
                self._reader.done()
            case Request.SAVE_AND_STOP:
                self._reader.done()
                raise StopRequested("stopped, as the guard asked: memory is above its soft level")

    def touch(self) -> None:
        """Show that the process lives, and nothing else: about 2 µs."""
        if self._phase_file is not None and self._phase_file.exists():
            os.utime(self._phase_file)
