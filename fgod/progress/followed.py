"""Follow a piece of work, and tell how far it is, to whom this process was told to tell it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from fgod.progress import drawing, reached
from fgod.progress.reached import Reached
from fgod.system import terminal

VARIABLE = "FGOD_PROGRESS_DRAWN"
"""Environment variable: set where a process above draws how far this one is, by its file."""

WRITE_SECS, DRAW_SECS = 0.25, 0.1
"""Least seconds between two writings of the file, and between two drawings."""

LINE_SHARE, LINE_SECS, SILENT_SECS = 0.1, 5.0, 30.0
"""In a log a line after each tenth, but not more often than every 5 s; and where a tenth takes longer, every 30 s."""

Made = TypeVar("Made")


class Listener(Protocol):
    """Who is told how far work is, that work is done, and that it is over, in whatever way (`left`)."""

    def moved(self, now: Reached) -> None: ...

    def done(self, last: Reached) -> None: ...

    def left(self) -> None: ...


class Nobody:
    """The listener of a process that sets none; others are told some of it alone."""

    def moved(self, now: Reached) -> None:
        pass

    def done(self, last: Reached) -> None:
        pass

    def left(self) -> None:
        pass


@dataclass
class _Told:
    """To whom this process tells it, with which label in front, and whether work is followed by now."""

    listener: Listener = field(default_factory=Nobody)
    label: str = ""
    follows: bool = False


_told = _Told()


@contextmanager
def reporting(listener: Listener, label: str = "") -> Iterator[None]:
    """Let all that this process follows in the block be told to a listener, with this in front of each label."""
    global _told
    before, _told = _told, _Told(listener, label)
    try:
        yield
    finally:
        _told = before


@dataclass
class Progress:
    """A piece of work that is followed: `to` says how many units are done."""

    now: Reached
    listener: Listener
    clock: Callable[[], float] = time.time

    def to(self, done: int, note: str = "") -> None:
        """So many units are done by now."""
        self.now = replace(self.now, done=done, note=note or self.now.note, at=self.clock())
        self.listener.moved(self.now)

    def next(self) -> None:
        """One unit more is done, as far as there are more."""
        self.to(min(self.now.done + 1, self.now.total))

    def each(self, made: Iterable[Made]) -> Iterator[Made]:
        """What is made, with each a unit done."""
        for one in made:
            yield one
            self.next()


@contextmanager
def follow(what: str, total: int, unit: str, first: int = 0) -> Iterator[Progress]:
    """Follow work of so many units in the block.

        with follow("answers", len(prompts), "prompt") as progress:
            found = list(progress.each(answers))

    Work inside of work is not told: it is a part of a unit. That work is done is told of what took 5 s, and of what a
    command is all about.

    Args:
        what: it is, in words; empty where the command is about nothing else.
        unit: the word for one of them.
        first: units that were done before.
    """
    told, begun = _told, time.time()
    listener = Nobody() if told.follows else told.listener
    label = " · ".join(filter(None, [told.label, what]))
    progress = Progress(Reached(label, unit, first, total, begun, begun, first), listener)
    outer, told.follows = told.follows, True
    try:
        listener.moved(progress.now)
        yield progress
        if not what or progress.now.at - begun >= LINE_SECS:
            listener.done(progress.now)
    finally:
        told.follows = outer
        listener.left()


# ------------------------------------------------------------------------------------------------------ who is told


@dataclass
class ToFile(Nobody):
    """Says it in the file that other processes read."""

    path: Path
    written: float = 0.0

    def moved(self, now: Reached) -> None:
        if now.at - self.written >= WRITE_SECS or now.done in (now.first, now.total):
            self.written = now.at
            reached.write(self.path, now)

    def left(self) -> None:
        reached.forget(self.path)


@dataclass
class ToEnd(Nobody):
    """Says on standard error that it is done: how far it is is drawn by another process."""

    say: Callable[[str], None] = terminal.line

    def done(self, last: Reached) -> None:
        self.say(last.end)


@dataclass
class ToLog(ToEnd):
    """Says it in plain lines, now and then and when it is done."""

    said: Reached | None = None
    """What was said last, or where it began."""

    def moved(self, now: Reached) -> None:
        if self.said is None:
            self.said = now
        elif is_due(self.said, now):
            self.said = now
            self.say(now.words(now.at))

    def left(self) -> None:
        self.said = None


def is_due(said: Reached, now: Reached) -> bool:
    """Whether a log gets a line: not of the end, which is said anyway."""
    quiet = now.at - said.at
    far = now.done - said.done >= LINE_SHARE * now.total and quiet >= LINE_SECS
    return now.done < now.total and (far or quiet >= SILENT_SECS)


@dataclass
class ToTerminal(ToEnd):
    """Draws it as a live line on standard error, which goes when it is over."""

    drawn: float = 0.0

    def moved(self, now: Reached) -> None:
        if now.at - self.drawn >= DRAW_SECS:
            self.drawn = now.at
            drawing.draw([now], now.at, sys.stderr)

    def left(self) -> None:
        drawing.draw([], 0.0, sys.stderr)


@dataclass(frozen=True)
class ToAll:
    """Tells it to several."""

    listeners: tuple[Listener, ...]

    def moved(self, now: Reached) -> None:
        for one in self.listeners:
            one.moved(now)

    def done(self, last: Reached) -> None:
        for one in self.listeners:
            one.done(last)

    def left(self) -> None:
        for one in self.listeners:
            one.left()


def listeners(phase_file: Path | None) -> ToAll:
    """Who is told by a command that computes: the file beside its phase, and people on standard error.

    Args:
        phase_file: None: there is no guard, and no file.
    """
    if phase_file is None:
        return ToAll((_people(),))
    drawn = bool(os.environ.get(VARIABLE))
    return ToAll((ToFile(reached.file_beside(phase_file)), ToEnd() if drawn else _people()))


def _people() -> Listener:
    return ToTerminal() if terminal.is_terminal(sys.stderr) else ToLog()
