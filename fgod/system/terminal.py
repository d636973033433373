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
from typing import Protocol, TextIO

ERASE = "\r\x1b[J"
"""Escape codes: to the first column, and erase from there to the end of the screen (ECMA-48, ED)."""

WIDTH, NARROW = 80, 20
"""Columns of a terminal that does not say, and those below which nothing is drawn."""


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


class Followed(Protocol):
    """Work that is drawn: how many units are done, and of how many, since when (`fgod.progress.reached.Reached`)."""

    @property
    def label(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def first(self) -> int: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def begun(self) -> float: ...
    @property
    def rate(self) -> float | None: ...
    def left(self, now: float) -> float | None: ...


def draw(found: Sequence[Followed], now: float, stream: TextIO) -> None:
    """Draw a line with a bar for each; none: erase what was drawn."""
    columns = width(stream)
    lines = [bar(one, now, columns - 1, stream) for one in found] if columns > NARROW else []
    with suppress(OSError, ValueError):
        stream.write(drawn(lines))
        stream.flush()


def bar(reached: Followed, now: float, columns: int, stream: TextIO) -> str:
    """A line of at most so many columns with label, bar, count, time so far and left, rate and note, as tqdm writes
    it. Of a terminal that is not UTF-8 it is ASCII."""
    from tqdm import tqdm
    from tqdm.utils import disp_trim

    unicode = "utf" in (stream.encoding or "").lower()
    left = reached.left(now)
    label = reached.label if unicode else reached.label.replace(" · ", ", ")
    text = tqdm.format_meter(
        reached.done,
        reached.total,
        max(now - reached.begun, 0.0),
        ncols=columns,
        prefix=label,
        ascii=not unicode,
        unit=f" {reached.unit}",
        rate=reached.rate,
        postfix=reached.note,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}, {rate_fmt}{postfix}]",
        left="?" if left is None else tqdm.format_interval(left),
        initial=reached.first,
    )
    kept: str = disp_trim(text, columns)
    return kept if unicode else kept.encode("ascii", "replace").decode()
