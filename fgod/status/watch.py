"""A status again and again, until nothing runs any more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from fgod.errors import Stopped
from fgod.status.facts import gather
from fgod.status.judge import Status, as_json, judge
from fgod.status.text import CURVE_HEIGHT, curve, line, lines

EVERY_SECS = 2.0


def look() -> Status:
    """The status now."""
    return judge(gather())


def watch(json_lines: bool, terminal: bool, see: Callable[[], Status] = look, secs: float = EVERY_SECS) -> None:
    """Show the status every few seconds until nothing runs, or Ctrl-C: drawn anew in a terminal, else a line each."""
    try:
        if terminal and not json_lines:
            _draw(see, secs)
        else:
            for status in _each(see, secs):
                print(json.dumps(as_json(status), ensure_ascii=False) if json_lines else line(status), flush=True)
    except KeyboardInterrupt as stop:
        if isinstance(stop, Stopped):  # another signal than Ctrl-C
            raise


def _each(see: Callable[[], Status], secs: float) -> Iterator[Status]:
    """Statuses until one in which nothing runs, that one too."""
    while True:
        yield (status := see())
        if status.state in ("stopped", "elsewhere"):
            return
        time.sleep(secs)


def _draw(see: Callable[[], Status], secs: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        for status in _each(see, secs):
            live.update(Text("\n".join(drawn(status, console.width))), refresh=True)


def drawn(status: Status, width: int) -> list[str]:
    """What a terminal of so many columns shows: the facts, and the losses of the training as a curve."""
    training = status.facts.training
    losses = training.made.losses if training else ()
    return [*lines(status), *curve(losses, max(width - 12, 10), CURVE_HEIGHT)]
