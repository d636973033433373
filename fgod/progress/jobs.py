"""The live lines of all commands that a process has started: found below it, drawn by a thread of its own.

Each guarded command says how far it is in a file beside its phase, which its environment names.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from fgod.guard.phases import phase_file_of
from fgod.progress import drawing, reached
from fgod.progress.followed import VARIABLE
from fgod.progress.reached import Reached
from fgod.system import terminal
from fgod.system.process import ProcessTree

DRAW_SECS = 0.5
"""Between two looks."""

MOST = 8
"""Lines at most: more would push what stays off a small screen."""


def found_below(tree: ProcessTree) -> list[Reached]:
    """How far each command in a tree of processes is, the oldest first."""
    files = {file for member in tree.watched() if (file := phase_file_of(member.pid))}
    return in_order(reached.read(reached.file_beside(file)) for file in files)


def in_order(found: Iterable[Reached | None]) -> list[Reached]:
    """Those that say something, the oldest first."""
    return sorted((one for one in found if one is not None), key=lambda one: (one.begun, one.label))


class Drawing:
    """Draws how far the commands of this process are, from `begin` to `end`, on a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._drew = False

    def begin(self) -> None:
        """Start to draw, if that is a terminal; what this process starts from now on leaves it to us."""
        if self._thread is None and terminal.is_terminal(self._stream):
            os.environ[VARIABLE] = "1"
            self._thread = threading.Thread(target=self._draw_all, name="progress", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Erase what is drawn, and draw no more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            os.environ.pop(VARIABLE, None)

    def _draw_all(self) -> None:
        tree = ProcessTree(os.getpid())
        while not self._over.wait(DRAW_SECS):
            with suppress(OSError):  # of /proc, as processes come and go: there is another look soon
                self._draw(found_below(tree)[:MOST])
        self._draw([])

    def _draw(self, found: list[Reached]) -> None:
        if found or self._drew:
            drawing.draw(found, time.time(), self._stream)
        self._drew = bool(found)
