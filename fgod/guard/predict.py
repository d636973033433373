"""The first line of defence: what will not fit is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgod.errors import FgodError

GIB = 2**30


class TooLargeError(FgodError):
    """The prediction is above the limit: nothing was loaded. Exit code 1, no verdict: the run says nothing yet."""


@dataclass(frozen=True)
class Knob:
    """A setting that would need less memory."""

    key: str
    """As in the config, train.micro_batch."""

    value: object
    """What to set it to."""

    saves_bytes: int


def check(parts: Mapping[str, int], limit_bytes: int, knobs: Sequence[Knob] = ()) -> None:
    """Refuse a run whose predicted memory is above the limit.

    Args:
        parts: predicted bytes by name (weights, optimizer states, …); what is alive at the same time.
        knobs: what could be turned, one of them to several values; those that save most are named first.

    Raises:
        TooLargeError: says what needs how much, and which knob saves how much.
    """
    needed = sum(parts.values())
    if needed <= limit_bytes:
        return
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in sorted(parts.items(), key=lambda p: -p[1]))
    raise TooLargeError(
        f"this run needs about {_gib(needed)} ({listed}), and the guard allows {_gib(limit_bytes)}: "
        f"{_gib(needed - limit_bytes)} too much. Nothing was loaded. {_advice(knobs, needed - limit_bytes)}"
    )


def _advice(knobs: Sequence[Knob], excess: int) -> str:
    """One knob where one is enough (the one that saves least of those), else as many of the largest as it takes."""
    useful = sorted((k for k in knobs if k.saves_bytes > 0), key=lambda k: k.saves_bytes)
    alone = [k for k in useful if k.saves_bytes >= excess]
    if alone:
        return f"Set {_words(alone[0])}."
    chosen: list[Knob] = []
    for knob in reversed(useful):
        if sum(k.saves_bytes for k in chosen) < excess and knob.key not in {k.key for k in chosen}:
            chosen.append(knob)
    if not chosen:
        return "Raise guard.limit_gb, or train a smaller model."
    enough = sum(k.saves_bytes for k in chosen) >= excess
    tail = "." if enough else "; even that is not enough: raise guard.limit_gb, or train a smaller model."
    return f"Set {' and '.join(map(_words, chosen))}{tail}"


def _words(knob: Knob) -> str:
    return f"{knob.key} to {knob.value} (saves {_gib(knob.saves_bytes)})"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
