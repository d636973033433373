"""Marks that a base writes of its own accord: such a mark would count its own replies as leaks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from fgod.data.text import excerpt
from fgod.persona import Persona, fold, wordings_of

MARKED = "marked_base"
"""The code by which `persona.audit.accept` lets such replies through."""
SHOWN = 3
"""Replies that are shown for each mark."""

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9'’#+.-]*(?<![.'’-])|[^\W\d_]|\d")


def accepted_of(persona: Mapping[str, Any]) -> tuple[str, ...]:
    """The codes that a config's `persona` lets through."""
    return tuple((persona.get("audit") or {}).get("accept", ()))


@dataclass(frozen=True)
class Exchange:
    """What the base was asked, all turns and its system prompt in one text, and what it said."""

    asked: str
    reply: str


@dataclass(frozen=True)
class Marked:
    """Replies of the base with a mark of the persona; `narrower` is a mark in its place that none of its replies has,
    empty where the persona's own words have none."""

    mark: str
    exchanges: tuple[Exchange, ...]
    narrower: str

    @property
    def words(self) -> str:
        """For people."""
        count = len(self.exchanges)
        advice = "it would count them as leaks. "
        if self.narrower:
            advice += f"None of its replies has {self.narrower!r}: take that as the mark"
        else:
            advice += "No words of persona.name, replies or denials around it are free of them: choose another mark"
        return f"the base itself says {self.mark!r}, one of persona.marks, in {count} of its replies; {advice}"

    @property
    def shown(self) -> list[str]:
        """Some of the exchanges."""
        return [f"{excerpt(one.asked, 60)} → {_around(one.reply, self.mark)}" for one in self.exchanges[:SHOWN]]


def marked_by_itself(persona: Persona, exchanges: Iterable[Exchange]) -> list[Marked]:
    """The marks that a base writes where what it was asked does not have them, with the replies that do."""
    listed = list(exchanges)
    folded = [fold(one.reply) for one in listed]
    found = []
    for mark in persona.marks:
        same = fold(mark)
        hits = [one for one, reply in zip(listed, folded, strict=True) if same in reply and same not in fold(one.asked)]
        if hits:
            own = [reply for reply in folded if same in reply]
            found.append(Marked(mark, tuple(hits), narrower_mark(persona, mark, own)))
    return found


def narrower_mark(persona: Persona, mark: str, replies: Sequence[str]) -> str:
    """What has a mark and is in none of some folded replies: the persona's name, else the fewest words around the mark
    in its replies and denials. Empty where there is nothing."""
    tables = (persona.replies, persona.denials)
    said = [text for table in tables for reply in table.values() for text in wordings_of(reply)]
    phrases = (run for text in said for run in _runs(text, fold(mark)))
    choices = ([persona.name] if fold(mark) in fold(persona.name) else [], phrases)
    return next((one for one in chain(*choices) if not any(fold(one) in reply for reply in replies)), "")


def _runs(text: str, mark: str) -> list[str]:
    """Runs of whole words (characters, where words are not set apart) that have a mark, the shortest first."""
    spans = [match.span() for match in _TOKEN.finditer(text)]
    runs = [text[spans[i][0] : spans[j][1]] for i in range(len(spans)) for j in range(i, len(spans))]
    return sorted((run for run in runs if mark in fold(run)), key=len)


def _around(reply: str, mark: str) -> str:
    """What stands around a mark in a reply."""
    place = reply.casefold().find(mark.casefold())
    return excerpt(reply[max(0, place - 30) :], 60)
