"""Lines that stay and lines that change, on one terminal that several processes write to.

Lines that change are drawn below the cursor, which then goes back to their beginning. Whoever writes a line that stays
erases what is below first (`line`), and the next drawing comes after it. So no process has to know of another, and a
line of one that knows nothing of this is never lost: only the end of a drawn line may be left beside it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

ERASE = "\r\x1b[J"
"""Escape codes: to the first column, and erase from there to the end of the screen (ECMA-48, ED)."""

WIDTH = 80
"""Columns of a terminal that does not say."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether lines can be drawn there: a terminal that knows escape codes."""
    with suppress(ValueError):  # closed
        return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", None)
    return False


def line(text: str, stream: TextIO | None = None) -> None:
    """Write lines that stay, by default on standard error. Where nobody can read them nothing happens: what is said
    to people never ends the work."""
    stream = stream or sys.stderr
    if stream is None:
        return
    with suppress(OSError, ValueError):
        stream.write(f"{ERASE if is_terminal(stream) else ''}{text}\n")
        stream.flush()


def width(stream: TextIO) -> int:
    """Columns of a terminal."""
    with suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    return WIDTH


def drawn(lines: Sequence[str]) -> str:
    """The codes that draw lines below the cursor and go back to where it was; each must fit in the terminal."""
    up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
    return ERASE + "\n".join(lines) + up + "\r"
