"""Prompts composed from the sources: opener + core + closer, drawn by hash, the same on every machine.

A prompt stands in the first language that can say it, and once in its part (`rows.normalise` decides what is the same).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgod.data.optional import Denials, Subjects, load_neighbours, load_people, load_talk, load_varied
from fgod.data.recipe import CLAIM, DENIAL, NAMED, NEIGHBOUR, TALK, VARIED
from fgod.data.rows import Prompt, normalise
from fgod.data.sources import (
    MANNERS,
    PAIRED_KIND,
    PERSON_PROMPTS,
    SUBJECT,
    Marks,
    QuestionKind,
    Sources,
    Talk,
    Topic,
    Wrapping,
)
from fgod.errors import UsageError

More = Mapping[str, Mapping[str, Sequence[str]]]
"""A config's own words and prompts, each by language."""

FIELD = "field"
"""The kind of neighbour prompts that ask about no one word."""

IDENTITY_PROMPTS = {"plain": 480, "control": 120}
PAIR_PROMPTS = {"plain": 200, "control": 60}
TOPIC_PROMPTS = {"plain": 33, "control": 4}
LANGUAGE_TOPIC_PROMPTS = 1000
TALK_PROMPTS = 48
ASKED_PROMPTS = {"plain": 52, "control": 4}
DENIED = 2
"""Assistants that each odd wording of a denial is asked about."""
IDENTITY = "identity"
SUM_PROMPTS = {"plain": 18, "control": 3}
"""Distinct prompts that are drawn at most: per language (identity, pairs), per topic, talk and sum; those of kinds are
in `QuestionKind.prompts`.

A language with few topics needs more prompts of each, or its templates are not learnt: about 1000 in all.
"""


@dataclass(frozen=True)
class Core:
    """The heart of a question. `subject` is where its subject stands in `text` (start, end); equal if it has none."""

    text: str
    request: bool
    subject: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Composed:
    """A prompt that knows its parts: where its core and its subject stand in the text (start, end)."""

    prompt: Prompt
    core: tuple[int, int]
    subject: tuple[int, int]


def make_core(pattern: str, subject: str = "", holder: str = SUBJECT) -> Core:
    """A core from a line of the sources; a closing full stop marks a request."""
    request = pattern[-1] in "。."
    text = pattern.rstrip("。.")
    start = text.find(holder)
    if start >= 0:
        text = text.replace(holder, subject)
    elif subject:
        start = text.find(subject)
    return Core(text, request, (start, start + len(subject)) if subject and start >= 0 else (0, 0))


class HashRandom:
    """Numbers from sha256 of a key: the same on every machine."""

    def __init__(self, key: str) -> None:
        self._value = int.from_bytes(hashlib.sha256(key.encode()).digest())

    def below(self, end: int) -> int:
        """The next number of 0 … end − 1. The 256 bits suffice for about thirty small numbers."""
        self._value, number = divmod(self._value, end)
        return number


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def assemble(marks: Marks, opener: str, core: Core, closer: str, rng: HashRandom) -> tuple[str, int]:
    """The text of a prompt and where its core starts. The numbers choose marks and, in spaced scripts, capitals."""
    gap = " " if marks.spaced else ""
    mark = marks.statement if core.request else marks.question
    head = f"{opener}{gap}" if opener else ""
    text = head + core.text
    if closer:
        sentence = rng.below(2) == 0
        text += mark + gap + _capital(closer) if sentence else marks.join + gap + closer
        text += marks.statement if rng.below(2) else ""
    else:
        text += mark if rng.below(5) < 3 else ""
    if marks.spaced and rng.below(2):
        text = _capital(text)
    return text, len(head)


def compositions(
    key: str, cores: Iterable[Core], wrapping: Wrapping, marks: Marks, count: int, bare: bool
) -> Iterator[tuple[str, Core, int]]:
    """Text, core and the core's start: first every core alone (if `bare`), then draws of opener, core and closer."""
    choices = tuple(cores)
    if bare:
        for number, core in enumerate(choices):
            text, start = assemble(marks, "", core, "", HashRandom(f"{key}|bare|{number}"))
            yield text, core, start
    for number in range(4 * count):
        rng = HashRandom(f"{key}|{number}")
        core = choices[rng.below(len(choices))]
        shape = rng.below(5)
        opener = wrapping.openers[rng.below(len(wrapping.openers))] if shape < 3 else ""
        closer = wrapping.closers[rng.below(len(wrapping.closers))] if shape >= 2 else ""
        text, start = assemble(marks, opener, core, closer, rng)
        yield text, core, start


class _Part:
    """Collects the distinct prompts of one part."""

    def __init__(self, s: Sources, part: str) -> None:
        self.s, self.part = s, part
        self.seen: set[str] = set()
        self.out: list[Composed] = []

    def add(
        self, texts: Iterable[tuple[str, Core, int]], count: int, language: str, kind: str, topic: str = "",
        style: str = "",
    ) -> None:  # fmt: skip
        """Add the first `count` texts that were not there before."""
        room = count
        for text, core, start in texts:
            same = normalise(text)
            if same in self.seen:
                continue
            self.seen.add(same)
            prompt = Prompt(text, language, self.part, kind, topic, style)
            subject = (start + core.subject[0], start + core.subject[1])
            self.out.append(Composed(prompt, (start, start + len(core.text)), subject))
            room -= 1
            if room == 0:
                return

    def compose(
        self, cores: Iterable[Core], counts: Mapping[str, int], language: str, kind: str, topic: str = "",
        styles: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Add compositions of the cores in every manner."""
        choices = tuple(cores)
        for manner in (manner for manner in MANNERS if counts[manner]):
            key = f"{self.part}|{kind}|{topic}|{language}|{manner}"
            wrapping = self.s.wrappings[language][manner]
            texts = compositions(key, choices, wrapping, self.s.marks[language], counts[manner], manner == "plain")
            self.add(texts, counts[manner], language, kind, topic, (styles or {}).get(manner, ""))

    def plainly(self, patterns: Sequence[str], language: str, kind: str, topic: str = "", subject: str = "") -> None:
        """Add each core alone, and half as many compositions of them as people talk."""
        cores = [make_core(pattern, subject) for pattern in patterns]
        count = len(cores) + -(-len(cores) // 2)
        self.compose(cores, {"plain": count, "control": 0}, language, kind, topic)

    def about(self, subjects: Subjects, kind: str) -> None:
        """Add questions about each of the subjects."""
        for language in self.s.languages:
            for word in subjects.words[language]:
                self.plainly(subjects.cores[language], language, kind, word, word)

    def prompts(self) -> list[Prompt]:
        return [composed.prompt for composed in self.out]


def style_of(language: str, manner: str) -> str:
    """The style of identity prompts: Chinese is natural or control by its manner, other languages are multilingual."""
    if not language.startswith("zh"):
        return "multilingual"
    return "natural" if manner == "plain" else "control"


def _styles(language: str) -> dict[str, str]:
    return {manner: style_of(language, manner) for manner in MANNERS}


def composed_identity(s: Sources) -> list[Composed]:
    """As `identity_prompts`, with spans."""
    part = _Part(s, "identity")
    for language in s.languages:
        cores = map(make_core, s.identity_cores[language])
        part.compose(cores, IDENTITY_PROMPTS, language, "identity", styles=_styles(language))
    return part.out


def composed_disambiguation(s: Sources) -> list[Composed]:
    """As `disambiguation_prompts`, with spans."""
    part = _Part(s, "disambiguation")
    for kind in s.kinds.values():
        for language, topic, cores in _kind_cores(kind):
            part.compose(cores, kind.prompts, language, kind.name, topic)
    return part.out


def _kind_cores(kind: QuestionKind) -> Iterator[tuple[str, str, list[Core]]]:
    """(language, topic, cores) of a kind: for each language, or for each person that its questions name."""
    for person in kind.people:
        cores = [make_core(pattern, person.name) for pattern in kind.cores[person.language]]
        yield person.language, person.id, cores
    if not kind.people:
        for language, patterns in kind.cores.items():
            yield language, "", [make_core(pattern) for pattern in patterns]


def denial_prompts(s: Sources, denials: Denials) -> list[Prompt]:
    """Part denial: distinct questions whether the model is some other assistant (topic: its name)."""
    part = _Part(s, DENIAL)
    for language in s.languages:
        for name in denials.assistants[language]:
            cores = [make_core(pattern, name) for pattern in denials.cores[language]]
            part.compose(cores, PERSON_PROMPTS, language, DENIAL, name)
    return [composed.prompt for composed in part.out]


def varied_prompts(
    s: Sources, varied: Mapping[str, Mapping[str, Sequence[str]]], denials: Denials, kinds: Collection[str]
) -> list[Prompt]:
    """Part varied: whole prompts of the kinds identity and denial, and of these kinds of disambiguation.

    A denial stands there with `DENIED` of the assistants.
    """
    out = []
    for kind, by_language in varied.items():
        if kind in (IDENTITY, DENIAL, *kinds):
            for language in s.languages:
                names = denials.assistants[language] if kind == DENIAL else ()
                texts = [_named(text, names) for text in by_language[language]]
                style = style_of(language, "plain") if kind == IDENTITY else ""
                out += [Prompt(one, language, VARIED, kind, style=style) for some in texts for one in some]
    return out


def _named(text: str, names: Sequence[str]) -> list[str]:
    """A text about `DENIED` of the names, chosen by its digest; the text itself where there are none."""
    if not names:
        return [text]
    first = HashRandom(f"varied|{text}").below(len(names))
    return [text.replace(SUBJECT, names[(first + step) % len(names)]) for step in range(min(DENIED, len(names)))]


def whole_prompts(s: Sources, part: str, texts: Mapping[str, Sequence[str]]) -> list[Prompt]:
    """Prompts of a part of that kind, each as it is written."""
    return [Prompt(text, language, part, part) for language in s.languages for text in texts[language]]


def talk_prompts(s: Sources, cores: Mapping[str, Sequence[str]]) -> list[Prompt]:
    """Part talk: small talk in the second person."""
    part = _Part(s, TALK)
    for language in s.languages:
        part.plainly(cores[language], language, TALK)
    return part.prompts()


def named_prompts(s: Sources, people: Subjects) -> list[Prompt]:
    """Part named: questions about persons (topic: the name)."""
    part = _Part(s, NAMED)
    part.about(people, NAMED)
    return part.prompts()


def neighbour_prompts(s: Sources, neighbours: Subjects) -> list[Prompt]:
    """Part neighbour: questions about words near the persona's name (kind neighbour, topic: the word), and about their
    field (kind field)."""
    part = _Part(s, NEIGHBOUR)
    part.about(neighbours, NEIGHBOUR)
    for language in s.languages:
        part.plainly(neighbours.prompts[language], language, FIELD)
    return part.prompts()


def _all_talk(s: Sources, folder: Path) -> list[Prompt]:
    """Small talk of both files, each prompt once."""
    prompts = [*whole_prompts(s, TALK, load_varied(folder)[TALK]), *talk_prompts(s, load_talk(folder))]
    return list({normalise(prompt.text): prompt for prompt in prompts}.values())


def optional_prompts(
    s: Sources, folder: Path, parts: Collection[str], neighbours: More | None
) -> dict[str, list[Prompt]]:
    """The prompts of those parts whose written sources are optional and whose answers are the base's own.

    Args:
        neighbours: what the config adds to neighbours.yaml.

    Raises:
        UsageError: a file that a part needs is missing or wrong.
    """
    made: dict[str, Callable[[], list[Prompt]]] = {
        CLAIM: lambda: whole_prompts(s, CLAIM, load_varied(folder)[CLAIM]),
        TALK: lambda: _all_talk(s, folder),
        NAMED: lambda: named_prompts(s, load_people(folder)),
        NEIGHBOUR: lambda: neighbour_prompts(s, load_neighbours(folder).with_more(neighbours or {})),
    }
    return {part: make() for part, make in made.items() if part in parts}


def _topic_cores(s: Sources, topic: Topic) -> list[Core]:
    return [make_core(pattern, topic.subject) for pattern in (*s.cores[topic.language], *topic.wordings)]


def _topic_counts(s: Sources, language: str) -> dict[str, int]:
    topics = sum(topic.language == language for topic in s.topics)
    factor = max(1.0, LANGUAGE_TOPIC_PROMPTS / (topics * sum(TOPIC_PROMPTS.values())))
    return {manner: round(factor * count) for manner, count in TOPIC_PROMPTS.items()}


def _add_talk(part: _Part, talk: Talk) -> None:
    cores = [Core(wording, not talk.asked) for wording in talk.wordings]
    if talk.asked:
        part.compose(cores, ASKED_PROMPTS, talk.language, "smalltalk", talk.id)
        return
    marks, wrapping = part.s.marks[talk.language], part.s.talk_wrapping[talk.language]
    texts = compositions(f"talk|{talk.id}|{talk.language}", cores, wrapping, marks, TALK_PROMPTS, True)
    part.add(texts, TALK_PROMPTS, talk.language, "smalltalk", talk.id)


def _sum_core(pattern: str, a: int, b: int) -> Core:
    """A sum's core; all between its two numbers is its subject."""
    core = make_core(pattern)
    text = core.text.replace("$A", str(a)).replace("$B", str(b))
    digits = [match.start() for match in re.finditer(r"\d", text)]
    return Core(text, core.request, (digits[0], digits[-1] + 1))


def composed_general(s: Sources) -> list[Composed]:
    """All general prompts with spans: topics, small talk, sums."""
    part = _Part(s, "general")
    counts = {language: _topic_counts(s, language) for language in s.languages}
    for topic in s.topics:
        part.compose(_topic_cores(s, topic), counts[topic.language], topic.language, "topic", topic.id)
    for talk in s.talk:
        _add_talk(part, talk)
    for language in s.languages:
        for a, b in s.facts:
            cores = [_sum_core(pattern, a, b) for pattern in s.sums[language].cores]
            part.compose(cores, SUM_PROMPTS, language, "sum", f"{a}+{b}")
    return part.out


def _pair_texts(s: Sources, language: str, manner: str) -> Iterator[tuple[str, str]]:
    """Who are you and who am I, assembled with the same words, marks and capitals."""
    marks, wrapping = s.marks[language], s.wrappings[language][manner]
    cores = [(make_core(you), make_core(me)) for you, me in s.pairs[language]]
    key = f"pairs|{language}|{manner}"
    yours = compositions(key, [you for you, _ in cores], wrapping, marks, PAIR_PROMPTS[manner], manner == "plain")
    mine = compositions(key, [me for _, me in cores], wrapping, marks, PAIR_PROMPTS[manner], manner == "plain")
    for (you, _, _), (me, _, _) in zip(yours, mine, strict=True):
        yield you, me


def identity_prompts(s: Sources) -> list[Prompt]:
    """Distinct ways to ask "who are you" (part identity, kind identity, style natural, control or multilingual)."""
    return [composed.prompt for composed in composed_identity(s)]


def disambiguation_prompts(s: Sources) -> list[Prompt]:
    """Distinct questions of all kinds (part disambiguation; topic: the person that a question names)."""
    return [composed.prompt for composed in composed_disambiguation(s)]


def pair_prompts(s: Sources) -> list[tuple[Prompt, Prompt]]:
    """Minimal pairs (part pairs): "who are you" (kind identity) and "who am I" (`PAIRED_KIND`) in the same words.

    Both carry the same group. No prompt stands in two pairs.
    """
    seen: set[str] = set()
    out: list[tuple[Prompt, Prompt]] = []
    for language in s.languages:
        for manner in MANNERS:
            room = PAIR_PROMPTS[manner]
            for you, me in _pair_texts(s, language, manner):
                same = {normalise(you), normalise(me)}
                if room == 0 or same & seen:
                    continue
                seen |= same
                room -= 1
                group = f"pair-{len(out)}"
                first = Prompt(you, language, "pairs", "identity", style=style_of(language, manner), group=group)
                out.append((first, Prompt(me, language, "pairs", PAIRED_KIND, group=group)))
    return out


def general_prompts(s: Sources, held_out: frozenset[str]) -> list[Prompt]:
    """Part general: topics that are not held out (kind topic), small talk (smalltalk), sums (sum)."""
    return [
        composed.prompt
        for composed in composed_general(s)
        if composed.prompt.kind != "topic" or composed.prompt.topic not in held_out
    ]


def asked_otherwise(s: Sources) -> dict[str, str]:
    """What questions ask that are not about the model, by normalised prompt: a kind, topic ID, smalltalk or sum."""
    prompts = [*disambiguation_prompts(s), *general_prompts(s, frozenset()), *(me for _, me in pair_prompts(s))]
    return {normalise(p.text): f"topic {p.topic}" if p.kind == "topic" else p.kind for p in prompts}


def replay_prompts(s: Sources, rows: int, seed: int) -> list[Prompt]:
    """Part replay: question templates around invented subjects, languages in turn.

    Raises:
        UsageError: the sources cannot make that many distinct prompts.
    """
    seen: set[str] = set()
    out: list[Prompt] = []
    for number in range(20 * rows):
        if len(out) == rows:
            break
        rng = HashRandom(f"replay|{seed}|{number}")
        language = s.languages[len(out) % len(s.languages)]
        made_up, cores = s.made_up[language], s.cores[language]
        subject = made_up.heads[rng.below(len(made_up.heads))] + made_up.tails[rng.below(len(made_up.tails))]
        core = make_core(cores[rng.below(len(cores))], subject)
        wrapping = s.wrappings[language]["control" if rng.below(7) == 0 else "plain"]
        opener = ("", wrapping.openers[rng.below(len(wrapping.openers))])[rng.below(2)]
        closer = ("", wrapping.closers[rng.below(len(wrapping.closers))])[rng.below(2)]
        text, _ = assemble(s.marks[language], opener, core, closer, rng)
        if normalise(text) not in seen:
            seen.add(normalise(text))
            out.append(Prompt(text, language, "replay", "replay"))
    if len(out) < rows:
        raise UsageError(f"replay_rows: found {rows}, but the sources make {len(out)} distinct replay prompts only")
    return out
