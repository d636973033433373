"""Suites of probes by families of wordings: traindata/suites/SUITE.yaml.

    scored: persona
    families:
      - name: polite-request      # a family's wordings are alike, and unlike those of all others and of training rows
        split: confirmation       # check, development or confirmation
        fold: 1                   # of confirmation alone
        kind: identity
        fill: {$X: {en: [calculus, the tides]}}
        cores: {en: ["would you explain $X", "what is $X about"]}
        limit: 3                  # of each language
        system: {en: [none, You are a poet.]}
        turns: {en: [[hello, "Hello! How can I help?"]]}

Pure but for `read_suite`; the same file always gives the same probes in the same order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Annotated, Literal, get_args

from annotated_types import MinLen
from pydantic import AfterValidator, StringConstraints
from pydantic.dataclasses import dataclass

from fgod.data.rows import NO_SYSTEM, Message, Role, shuffled
from fgod.data.sources import load_yaml
from fgod.errors import UsageError, did_you_mean
from fgod.persona import Rule, lookup
from fgod.rule import Rule as RuleKeys
from fgod.rule import RuleByLanguage
from fgod.validation import KEYS, Count, FromList, Keys, OneOf, Text, distinct, fault, validate

SHOWN = "shown"
COMPARED = ("reference", "talk", "neighbour", "named", "task", "refusal", "script", "framed")
"""Scorings by what the reference answers."""
SCORINGS = ("persona", "kind", "denial", "claim", *COMPARED, SHOWN)
"""How a suite may be scored: by the persona's rule, by the rule of the question's kind, as a denial that names the
persona, by the rule of the question's family, by comparison with the reference; or shown before and after, and never
scored."""

NAMING = ("persona", "denial")
"""Scorings of replies that are to name the persona."""

Split = Literal["check", "development", "confirmation"]
"""What asks a family: checks while training, the gate, or the confirmation of a release."""
CHECK, DEVELOPMENT, CONFIRMATION = get_args(Split)

NONE = "none"
"""The system prompt that stands for a chat without a system turn."""

_HOLDER = r"\$[A-Z][A-Z0-9_]*"

SomeDistinct = Annotated[tuple[Text, ...], MinLen(1), AfterValidator(distinct), FromList]
ByLanguage = Annotated[Mapping[str, SomeDistinct], MinLen(1)]


def _in_turn(turns: tuple[str, ...]) -> tuple[str, ...]:
    if len(turns) % 2:
        raise fault("", f"found {len(turns)} texts, expected an even number: user and assistant in turn")
    return turns


Exchanges = Annotated[tuple[Text, ...], MinLen(1), AfterValidator(_in_turn), FromList]


@dataclass(frozen=True, config=KEYS)
class Family(Keys):
    """Wordings that are like each other, and what they have in common. Tables are by language (zh serves zh-Hant and
    zh-Hans), `cores` by exactly the languages that the family is asked in."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Of all families of the suite no other has it."""
    split: Split
    """What asks it."""
    kind: Text
    """What is asked, such as identity, who_am_i or topic."""
    cores: ByLanguage
    """Prompts with placeholders."""
    fold: Count | None = None
    """Which of the confirmation's folds it belongs to."""
    fill: Mapping[Annotated[str, StringConstraints(pattern=f"^{_HOLDER}$")], ByLanguage] | None = None
    """What stands for each placeholder."""
    limit: Count | None = None
    """At most so many prompts of each language."""
    system: ByLanguage | None = None
    """The chats stand under these system prompts in turn; none: no system turn."""
    turns: Annotated[Mapping[str, Annotated[tuple[Exchanges, ...], MinLen(1), FromList]], MinLen(1)] | None = None
    """Earlier turns, of which the chats have one list each in turn: texts of user and assistant in turn."""
    accept: RuleByLanguage | None = None
    """Words of a right answer, where the suite is scored by claim; placeholders stand for what fills the prompt."""

    def __post_init__(self) -> None:
        if (self.fold is not None) != (self.split == CONFIRMATION):
            found = "nothing" if self.fold is None else self.fold
            raise fault("fold", f"found {found}, split {self.split}; every family of {CONFIRMATION} has one, no other")
        used = {holder for cores in self.cores.values() for core in cores for holder in _holders(core)}
        for holder in self.fill or {}:
            if holder not in used:
                raise fault(f"fill.{holder}", "no core names this placeholder")
        for language, cores in self.cores.items():
            for core in cores:
                self._check_holders(language, core)
            for key in ("system", "turns", "accept"):
                self._check_language(key, getattr(self, key), language)

    def _check_holders(self, language: str, core: str) -> None:
        for holder in _holders(core):
            if holder not in (self.fill or {}):
                known = f"fill has {', '.join(self.fill)}" if self.fill else "there is no fill"
                raise fault(f"cores.{language}", f"{core!r}: nothing fills {holder}; {known}")
            self._check_language(f"fill.{holder}", (self.fill or {})[holder], language)

    @staticmethod
    def _check_language(key: str, table: Mapping[str, object] | None, language: str) -> None:
        try:
            if table is not None:
                lookup(table, language)
        except KeyError:
            raise fault(key, f"no entry for {language}, which cores have; found {', '.join(table or ())}") from None

    def languages(self) -> Iterator[tuple[str, str]]:
        """Key and language tag of every entry by language."""
        tables = {"cores": self.cores, "system": self.system, "turns": self.turns, "accept": self.accept}
        tables |= {f"fill.{holder}": table for holder, table in (self.fill or {}).items()}
        for key, table in tables.items():
            yield from ((key, language) for language in table or ())


@dataclass(frozen=True, config=KEYS)
class _File(Keys):
    """What a file says."""

    scored: Annotated[str, OneOf(SCORINGS)]
    """How replies to the suite are scored."""
    families: Annotated[tuple[Family, ...], MinLen(1), FromList]
    """Its families."""


@plain_dataclass(frozen=True)
class Suite:
    """A file of families. `name` is the file's, `scored` one of `SCORINGS`."""

    name: str
    scored: str
    families: tuple[Family, ...]


@plain_dataclass(frozen=True)
class Wording:
    """A prompt of a family with its frame, `system` and `history` as in `fgod.data.rows.Prompt`, and what a right
    answer says, where the family states it."""

    language: str
    text: str
    system: str = ""
    history: tuple[Message, ...] = ()
    accept: Rule | None = None


def read_suite(path: Path, languages: Sequence[str]) -> Suite:
    """Read and check a suite of families.

    Args:
        languages: the tags that there are.

    Raises:
        UsageError: the file is missing or wrong; names file and key, what was found and what was expected.
    """
    found = validate(_File, load_yaml(path).value, where=str(path))
    seen: set[str] = set()
    tags = {*languages, *(tag.split("-")[0] for tag in languages)}
    for place, family in enumerate(found.families):
        where = f"{path}: families[{place} {family.name}]"
        if family.name in seen:
            raise UsageError(f"{where}: this name stands twice; expected one that no other family has")
        seen.add(family.name)
        for key, tag in family.languages():
            allowed = languages if key == "cores" else sorted(tags)
            if tag not in allowed:
                hint = did_you_mean(tag, allowed)
                raise UsageError(f"{where}.{key}: unknown language {tag!r}{hint}; expected {', '.join(allowed)}")
        if (family.accept is not None) != (found.scored == "claim"):
            said = "only a suite that is scored by claim has it" if family.accept else "missing; it says what is right"
            raise UsageError(f"{where}.accept: {said} (scored: {found.scored})")
    return Suite(path.stem, found.scored, found.families)


def wordings(suite: str, family: Family) -> Iterator[Wording]:
    """All prompts of a family in all its languages: cores in their order, each with its fillings in theirs."""
    for language, cores in family.cores.items():
        every = [filled for core in cores for filled in _fillings(core, family, language)]
        chosen = _limited(every, family.limit, f"{suite}|{family.name}|{language}")
        systems = cycle([""] if family.system is None else lookup(family.system, language))
        histories = cycle([()] if family.turns is None else lookup(family.turns, language))
        accept = None if family.accept is None else lookup(family.accept, language)
        for filled, system, turns in zip(chosen, systems, histories, strict=False):
            yield Wording(
                language,
                filled.text,
                NO_SYSTEM if system == NONE else system,
                tuple(Message(role, text) for role, text in zip(cycle(get_args(Role)), turns, strict=False)),
                None if accept is None else filled.rule(accept),
            )


def _holders(text: str) -> list[str]:
    """The placeholders that a text names, in order."""
    return list(dict.fromkeys(re.findall(_HOLDER, text)))


@plain_dataclass(frozen=True)
class _Filled:
    """A core with one choice of what stands for its placeholders."""

    core: str
    values: Mapping[str, str]

    def put(self, text: str) -> str:
        return re.sub(_HOLDER, lambda match: self.values.get(match.group(), match.group()), text)

    @property
    def text(self) -> str:
        return self.put(self.core)

    def rule(self, accept: RuleKeys) -> Rule:
        return Rule(*(tuple(map(self.put, words)) for words in (accept.all, accept.any, accept.none)))


def _fillings(core: str, family: Family, language: str) -> Iterator[_Filled]:
    """A core with all combinations of what fills it."""
    holders = _holders(core)
    choices = [lookup((family.fill or {})[holder], language) for holder in holders]
    for values in product(*choices):
        yield _Filled(core, dict(zip(holders, values, strict=True)))


def _limited(every: Sequence[_Filled], limit: int | None, seed: str) -> list[_Filled]:
    """At most so many, in their order: again and again the one whose core was taken least often so far, then whose
    fillings were, then the first by digest."""
    if limit is None or len(every) <= limit:
        return list(every)
    left = shuffled(range(len(every)), seed, key=lambda place: every[place].text)
    taken: list[int] = []
    cores: Counter[str] = Counter()
    values: Counter[tuple[str, str]] = Counter()
    for _ in range(limit):
        best = min(left, key=lambda i: (cores[every[i].core], sum(values[v] for v in every[i].values.items())))
        left.remove(best)
        taken.append(best)
        cores[every[best].core] += 1
        values.update(every[best].values.items())
    return [every[place] for place in sorted(taken)]
