"""How far work is, as lines with a bar on a terminal (`fgod.system.terminal`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from fgod.progress.reached import Reached
from fgod.system import terminal

NARROW = 20
"""Columns below which nothing is drawn."""


def draw(found: Sequence[Reached], now: float, stream: TextIO) -> None:
    """Draw a line with a bar for each; none: erase what was drawn."""
    columns = terminal.width(stream)
    lines = [bar(one, now, columns - 1, stream) for one in found] if columns > NARROW else []
    with suppress(OSError, ValueError):
        stream.write(terminal.drawn(lines))
        stream.flush()


def bar(reached: Reached, now: float, columns: int, stream: TextIO) -> str:
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
