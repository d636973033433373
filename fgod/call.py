"""How a command was called, and what it says to people: for the commands and for the work behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgod.manifest import Record
from fgod.system import terminal


def say(text: str) -> None:
    """For people, on standard error, above what is drawn there."""
    terminal.line(text)


@dataclass(frozen=True)
class Call:
    """How a command was called.

    Args:
        argv: the whole command line, without `fgod`.
        plugins: the files that it loaded.
        record: its entry in the manifest; one that is written nowhere for a command that leaves none.
    """

    argv: Sequence[str] = ()
    plugins: Sequence[Path] = ()
    record: Record = field(default_factory=lambda: Record(""))

    def note(self, inputs: Sequence[Path] = (), outputs: Sequence[Path] = (), **facts: Any) -> None:
        """Add to the entry what the command found out on its way."""
        self.record.inputs += inputs
        self.record.outputs += outputs
        self.record.facts |= facts
