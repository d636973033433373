"""Prompts that a base asks of its own accord: which of its drafts are kept, and their table. Pure but for the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgod.data.recipe import SELF_ASKED
from fgod.data.rows import Prompt, normalise
from fgod.data.text import CONTROL_TOKEN, has_control, language_within
from fgod.persona import has_any
from fgod.system.table import columns_of, read_table, write_table

DRAFTS = 4
"""Drafts for each prompt that is wanted, at most: a base that hardly ever ends a question is not asked for ever."""

OPEN = "does not end"
EMPTY = "is empty"
CONTROL = "has a control token or character in it"
LOOP = "loops"
LONG = "is longer than data.self_asked.max_chars"
NAMED = "names the persona, or whom it replaces"
FOREIGN = "is in none of the languages"
AGAIN = "was asked before"


@dataclass(frozen=True)
class Place:
    """Where a draft is written: under a system prompt ("": the config's), in what language it is to be expected."""

    system: str
    language: str


@dataclass(frozen=True)
class Draft:
    """A user's turn as the base wrote it."""

    text: str
    ended: bool
    looped: bool
    place: Place


@dataclass(frozen=True)
class Asked:
    """A prompt that the base asked, the language that it is in, and the system prompt under which it asked."""

    prompt: str
    language: str
    system: str


@dataclass(frozen=True)
class Filter:
    """What drafts are kept by."""

    languages: tuple[str, ...]
    names: tuple[str, ...] = ()
    """No prompt names one of these."""
    max_chars: int = 400


def places(systems: Mapping[str, Sequence[str]]) -> list[Place]:
    """Where drafts are written in turn: under the config's own system prompt, then under the first one of each
    language, then under the config's again and the second ones, and so on.

    Args:
        systems: system prompts by language; the languages come in their order.
    """
    first = next(iter(systems))
    most = max(map(len, systems.values()))
    return [
        place
        for number in range(max(most, 1))
        for place in (
            Place("", first),
            *(Place(texts[number % len(texts)], language) for language, texts in systems.items() if texts),
        )
    ]


def fault_of(draft: Draft, keep: Filter) -> str:
    """Why a draft is no prompt to keep, apart from others; empty where it is one."""
    text = draft.text.strip()
    shown = text.replace("\n", " ").replace("\t", " ")
    tests = {
        OPEN: not draft.ended,
        EMPTY: not normalise(text),
        CONTROL: bool(CONTROL_TOKEN.search(text)) or has_control(shown),
        LOOP: draft.looped,
        LONG: len(text) > keep.max_chars,
        NAMED: has_any(text, keep.names),
        FOREIGN: language_within(text, keep.languages, draft.place.language) is None,
    }
    return next((reason for reason, found in tests.items() if found), "")


class Sieve:
    """Takes drafts in their order and keeps what is fit to be asked, until there is enough."""

    def __init__(self, keep: Filter, wanted: int) -> None:
        self.keep, self.wanted = keep, wanted
        self.kept: list[Asked] = []
        self.dropped: Counter[str] = Counter()
        self.drawn = 0
        self._seen: set[str] = set()

    @property
    def full(self) -> bool:
        return len(self.kept) >= self.wanted

    @property
    def words(self) -> str:
        """How many were kept, and why others were not."""
        dropped = "".join(f", {count} {reason}" for reason, count in self.dropped.most_common())
        return f"{len(self.kept)} prompts of {self.drawn} drafts{': dropped' + dropped[1:] if dropped else ''}"

    def add(self, drafts: Iterable[Draft]) -> None:
        """Look at the next drafts; those past what is wanted are not looked at."""
        for draft in drafts:
            if self.full:
                return
            self.drawn += 1
            text = draft.text.strip()
            same = normalise(text)
            reason = fault_of(draft, self.keep) or (AGAIN if same in self._seen else "")
            if reason:
                self.dropped[reason] += 1
                continue
            self._seen.add(same)
            language = language_within(text, self.keep.languages, draft.place.language)
            self.kept.append(Asked(text, language or draft.place.language, draft.place.system))


COLUMNS = columns_of(Asked)


def write_asked(path: Path, asked: Iterable[Asked]) -> None:
    """Write prompts.tsv atomically."""
    write_table(path, COLUMNS, map(asdict, asked))


def read_asked(path: Path) -> list[Asked]:
    """Read what `write_asked` wrote.

    Raises:
        UsageError: the file is missing.
        FgodError: it is no such table; names file and line.
    """
    return [Asked(**row) for row in read_table(path, COLUMNS)]


def asked_prompts(asked: Iterable[Asked]) -> list[Prompt]:
    """Part self_asked. They are answered under the config's own system prompt, whatever they were asked under."""
    return [Prompt(one.prompt, one.language, SELF_ASKED, SELF_ASKED) for one in asked]


def filter_of(settings: Mapping[str, Any]) -> Filter:
    """What the settings of the rule say of drafts (`fgod.inputs.asking_settings`)."""
    return Filter(tuple(settings["systems"]), tuple(settings["names"]), settings["max_chars"])
