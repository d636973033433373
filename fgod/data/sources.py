"""The source files of `traindata/`: what a person writes, read into frozen data and checked.

The languages are those of `marks` in questions.yaml, in that order; every other table by language has the same. The
kinds of disambiguation questions are the keys of disambiguation.yaml.

topics.yaml          subjects with one short true sentence each
questions.yaml       cores, openers and closers; invented subjects; filler words
identity.yaml        "who are you" and the untrained base's answer
disambiguation.yaml  the questions that sound like it, and the base's answers
pairs.yaml           "who are you" beside "who am I"
smalltalk.yaml       small talk and simple sums
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from fgod.errors import UsageError, did_you_mean

T = TypeVar("T")
Languages = tuple[str, ...]

SOURCE_NAMES = (
    "topics.yaml", "questions.yaml", "identity.yaml", "disambiguation.yaml", "pairs.yaml", "smalltalk.yaml",
)  # fmt: skip

PAIRED_KIND = "who_am_i"
"""The kind of the second questions in pairs.yaml."""

SUBJECT = "$X"
"""Stands for the subject in cores of questions, and for the name in those that name a person."""

MANNERS = ("plain", "control")
"""How questions are put: as people talk, and as test suites do."""


@dataclass(frozen=True)
class Topic:
    """One thing that the embedded base knows. `wordings` are complete questions beside the composed ones."""

    id: str
    language: str
    subject: str
    answer: str
    wordings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Person:
    """A named person, for a kind of question that names one."""

    id: str
    language: str
    name: str
    answer: str


@dataclass(frozen=True)
class QuestionKind:
    """A kind of disambiguation question.

    `cores` by language. `replies`, the untrained base's answer by language, is empty where the questions name `people`:
    the answers are theirs. `prompts` are the distinct prompts that are drawn at most for each language (or person), by
    manner; `base_rows` the rows for each language in the embedded base's corpus (of named people all are taken).
    """

    name: str
    cores: Mapping[str, tuple[str, ...]]
    replies: Mapping[str, str]
    people: tuple[Person, ...]
    prompts: Mapping[str, int]
    base_rows: int


PROMPTS = {"plain": 200, "control": 40}
PERSON_PROMPTS = {"plain": 26, "control": 4}
BASE_ROWS = 140
"""What a kind has where disambiguation.yaml does not say otherwise: see `QuestionKind`."""


@dataclass(frozen=True)
class Talk:
    """One entry of small talk in one language; `id` is the same in all languages. What is `asked` gets the words of
    other questions around it."""

    id: str
    language: str
    reply: str
    wordings: tuple[str, ...]
    asked: bool = False


@dataclass(frozen=True)
class Sums:
    """Questions for sums in one language: `$A`, `$B` and `$C` are the numbers and their sum."""

    language: str
    answer: str
    cores: tuple[str, ...]


@dataclass(frozen=True)
class Wrapping:
    """Words before and after a core."""

    openers: tuple[str, ...]
    closers: tuple[str, ...]


@dataclass(frozen=True)
class Marks:
    """Punctuation of a language; `spaced` if its words are set apart by spaces."""

    question: str
    statement: str
    join: str
    spaced: bool


@dataclass(frozen=True)
class MadeUp:
    """Parts of invented subjects: every head goes with every tail."""

    heads: tuple[str, ...]
    tails: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """All source files. Tables are by language; every one of `languages` is there."""

    languages: tuple[str, ...]
    """Tags (BCP 47)."""
    topics: tuple[Topic, ...]
    marks: Mapping[str, Marks]
    wrappings: Mapping[str, Mapping[str, Wrapping]]
    """By language, then by manner (`MANNERS`)."""
    cores: Mapping[str, tuple[str, ...]]
    made_up: Mapping[str, MadeUp]
    fillers: Mapping[str, tuple[str, ...]]
    identity_replies: Mapping[str, str]
    identity_cores: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, QuestionKind]
    """Kinds of disambiguation questions by name."""
    pairs: Mapping[str, tuple[tuple[str, str], ...]]
    talk: tuple[Talk, ...]
    talk_wrapping: Mapping[str, Wrapping]
    facts: tuple[tuple[int, int], ...]
    sums: Mapping[str, Sums]

    def of_languages(self, languages: Sequence[str]) -> Sources:
        """What the sources have in some of their languages; all of it where none is named.

        Raises:
            UsageError: they do not have one of them.
        """
        chosen = chosen_languages(self.languages, languages)

        def narrowed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: entry for key, entry in value.items() if key in chosen}
            return tuple(entry for entry in value if entry.language in chosen)

        by_language = {
            field.name: narrowed(getattr(self, field.name)) for field in fields(self) if field.name not in APART
        }
        kinds = {
            name: replace(kind, **{key: narrowed(getattr(kind, key)) for key in ("cores", "replies", "people")})
            for name, kind in self.kinds.items()
        }
        return replace(self, languages=chosen, kinds=kinds, **by_language)

    @property
    def topic_ids(self) -> tuple[str, ...]:
        """Ids of all topics in file order: what may be held out of rehearsal."""
        return tuple(topic.id for topic in self.topics)

    @cached_property
    def answers(self) -> Mapping[tuple[str, str, str], str]:
        """The untrained base's answer by (kind, topic, language); topic is "" where the kind has no topics."""
        out = {("identity", "", language): reply for language, reply in self.identity_replies.items()}
        for kind in self.kinds.values():
            out |= {(kind.name, "", language): reply for language, reply in kind.replies.items()}
            out |= {(kind.name, person.id, person.language): person.answer for person in kind.people}
        out |= {("topic", topic.id, topic.language): topic.answer for topic in self.topics}
        out |= {("smalltalk", talk.id, talk.language): talk.reply for talk in self.talk}
        for language, sums in self.sums.items():
            out |= {("sum", f"{a}+{b}", language): sums.answer.replace("$C", str(a + b)) for a, b in self.facts}
        return out


APART = ("languages", "kinds", "facts")
"""Fields of `Sources` that are no tables by language."""


def chosen_languages(known: Sequence[str], languages: Sequence[str]) -> Languages:
    """Those of the known languages that are named, in their order; all of them where none is.

    Raises:
        UsageError: one that is named is not known.
    """
    for language in languages:
        if language not in known:
            hint = did_you_mean(language, known)
            raise UsageError(f"languages: found {language!r}{hint}; the sources have {', '.join(known)}")
    return tuple(language for language in known if language in languages or not languages)


def source_files(folder: Path) -> list[Path]:
    """The files that determine every row; the probe file is not among them."""
    return [folder / name for name in SOURCE_NAMES]


class _Node:
    """A value of a YAML file that knows where it stands, for messages that name file and key."""

    def __init__(self, path: Path, key: str, value: Any) -> None:
        self.path, self.key, self.value = path, key, value

    def fail(self, expected: str) -> NoReturn:
        where = f"{self.path}: {self.key}" if self.key else str(self.path)
        found = "nothing" if self.value is None else f"{type(self.value).__name__} {str(self.value)[:60]!r}"
        raise UsageError(f"{where}: found {found}, expected {expected}")

    def items(self) -> dict[str, _Node]:
        if not isinstance(self.value, dict) or not self.value:
            self.fail("a table with entries")
        for key in self.value:
            if not isinstance(key, str):
                self.fail(f"names as keys; {key!r} needs quotes")
        return {key: _Node(self.path, f"{self.key}.{key}".lstrip("."), v) for key, v in self.value.items()}

    def table(self, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, _Node]:
        items = self.items()
        for key in needed:
            if key not in items:
                self.fail(f"the key {key}; it is missing")
        for key in items:
            if key not in needed + optional:
                self.fail(f"only the keys {', '.join(needed + optional)}, not {key}")
        return items

    def by_language(self, languages: Languages, read: Callable[[_Node], T]) -> dict[str, T]:
        items = self.items()
        wanted = f"the languages of marks in questions.yaml ({', '.join(languages)})"
        for language in (*languages, *items):
            if language not in items:
                self.fail(f"{wanted}; {language} is missing")
            if language not in languages:
                self.fail(f"{wanted}; {language} is none of them")
        return {language: read(items[language]) for language in languages}

    def count(self, least: int) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            self.fail(f"a whole number from {least}")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip() or self.value != self.value.strip():
            self.fail("text without white space around it (put words that YAML reads as others in quotes)")
        if any(ord(char) < 32 for char in self.value):
            self.fail("text on one line")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def nodes(self) -> list[_Node]:
        if not isinstance(self.value, list) or not self.value:
            self.fail("a list with entries")
        return [_Node(self.path, f"{self.key}[{i}]", value) for i, value in enumerate(self.value)]

    def texts(self, *holders: str) -> tuple[str, ...]:
        """A list of distinct texts, each of which holds every placeholder once."""
        out: list[str] = []
        for node in self.nodes():
            text = node.text()
            if any(text.count(holder) != 1 for holder in holders):
                node.fail(f"{' and '.join(holders)} once each")
            if text in out:
                node.fail("texts that are not listed twice")
            out.append(text)
        return tuple(out)


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser, where PyYAML was built with it, is ten times as fast."""


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """What a text says. Each experiment of a config reads the same files; nobody changes what they hold."""
    return yaml.load(text, _LOADER)


def load_yaml(path: Path) -> _Node:
    """A YAML file of the written sources.

    Raises:
        UsageError: missing, not UTF-8 or not YAML; names the file.
    """
    try:
        value = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        needed = f"; the folder needs {', '.join(SOURCE_NAMES)}" if path.name in SOURCE_NAMES else ""
        raise UsageError(f"{path}: no such file{needed}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return _Node(path, "", value)


def source_languages(folder: Path) -> Languages:
    """The languages of a folder's written sources: those of `marks` in questions.yaml, in that order.

    Raises:
        UsageError: the file is missing or wrong, or a tag is none of BCP 47.
    """
    root = load_yaml(folder / "questions.yaml")
    marks = root.items().get("marks")
    return _read_languages(marks) if marks else root.fail("the key marks; it is missing")


def source_kinds(folder: Path) -> tuple[str, ...]:
    """The kinds of disambiguation questions of a folder's written sources.

    Raises:
        UsageError: disambiguation.yaml is missing or no table.
    """
    return tuple(load_yaml(folder / "disambiguation.yaml").items())


def _read_languages(marks: _Node) -> Languages:
    for tag, node in marks.items().items():
        if not re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", tag):
            node.fail(f"language tags (BCP 47) as keys, such as en or zh-Hant, not {tag!r}")
    return tuple(marks.items())


def _read_topics(root: _Node, languages: Languages) -> tuple[Topic, ...]:
    topics: dict[str, Topic] = {}
    for language, entries in root.by_language(languages, _Node.items).items():
        for topic_id, node in entries.items():
            if topic_id in topics:
                node.fail(f"an id that no other topic has; {topics[topic_id].language} has it too")
            entry = node.table(("subject", "answer"), ("wordings",))
            wordings = entry["wordings"].texts() if "wordings" in entry else ()
            subject = entry["subject"].text()
            topics[topic_id] = Topic(topic_id, language, subject, entry["answer"].text(), wordings)
    return tuple(topics.values())


def _read_marks(node: _Node) -> Marks:
    entry = node.table(("question", "statement", "join", "spaced"))
    return Marks(entry["question"].text(), entry["statement"].text(), entry["join"].text(), entry["spaced"].flag())


def _read_wrapping(node: _Node) -> Wrapping:
    entry = node.table(("openers", "closers"))
    return Wrapping(entry["openers"].texts(), entry["closers"].texts())


def _read_manners(node: _Node) -> dict[str, Wrapping]:
    return {manner: _read_wrapping(value) for manner, value in node.table(MANNERS).items()}


def _read_made_up(node: _Node) -> MadeUp:
    entry = node.table(("heads", "tails"))
    return MadeUp(entry["heads"].texts(), entry["tails"].texts())


def _read_pairs(node: _Node) -> tuple[tuple[str, str], ...]:
    pairs = []
    for entry in node.nodes():
        if not isinstance(entry.value, list) or len(entry.value) != 2:
            entry.fail("two questions: [who are you, who am I]")
        you, me = entry.texts()
        pairs.append((you, me))
    return tuple(pairs)


def _read_people(node: _Node, languages: Languages) -> tuple[Person, ...]:
    people = []
    for language, entries in node.by_language(languages, _Node.items).items():
        for person_id, value in entries.items():
            entry = value.table(("name", "answer"))
            people.append(Person(person_id, language, entry["name"].text(), entry["answer"].text()))
    return tuple(people)


def _read_kind(name: str, node: _Node, languages: Languages) -> QuestionKind:
    names_people = isinstance(node.value, dict) and "people" in node.value
    optional = ("prompts",) if names_people else ("prompts", "base_rows")
    entry = node.table(("cores", "people" if names_people else "replies"), optional)
    holders = (SUBJECT,) if names_people else ()
    prompts = PERSON_PROMPTS if names_people else PROMPTS
    if "prompts" in entry:
        prompts = {manner: count.count(0) for manner, count in entry["prompts"].table(MANNERS).items()}
    return QuestionKind(
        name=name,
        cores=entry["cores"].by_language(languages, lambda cores: cores.texts(*holders)),
        replies={} if names_people else entry["replies"].by_language(languages, _Node.text),
        people=_read_people(entry["people"], languages) if names_people else (),
        prompts=prompts,
        base_rows=entry["base_rows"].count(0) if "base_rows" in entry else BASE_ROWS,
    )


def _read_kinds(root: _Node, languages: Languages) -> dict[str, QuestionKind]:
    kinds = {name: _read_kind(name, node, languages) for name, node in root.items().items()}
    if PAIRED_KIND not in kinds:
        root.fail(f"the key {PAIRED_KIND}; it is missing, and the second questions of pairs.yaml are of this kind")
    return kinds


def _read_talk(small: dict[str, _Node], languages: Languages) -> tuple[Talk, ...]:
    said, asked = small["talk"].items(), small["asked"].items()
    for talk_id in said.keys() & asked.keys():
        asked[talk_id].fail("an id that no entry of talk has")
    talk = []
    for talk_id, value in (said | asked).items():
        for language, entry in value.by_language(languages, lambda item: item.table(("reply", "wordings"))).items():
            wordings = entry["wordings"].texts()
            talk.append(Talk(talk_id, language, entry["reply"].text(), wordings, asked=talk_id in asked))
    return tuple(talk)


def _read_fact(node: _Node) -> tuple[int, int]:
    match = re.fullmatch(r"(\d)\+(\d)", node.text())
    if match is None:
        node.fail("a sum of two digits, as 2+3")
    return int(match[1]), int(match[2])


def _read_sums(node: _Node, languages: Languages) -> tuple[tuple[tuple[int, int], ...], dict[str, Sums]]:
    entry = node.table(("facts", "languages"))
    facts = tuple(_read_fact(fact) for fact in entry["facts"].nodes())
    sums = {}
    for language, value in entry["languages"].by_language(languages, _read_sum).items():
        if "$C" not in value["answer"].text():
            value["answer"].fail("$C, the place of the result")
        sums[language] = Sums(language, value["answer"].text(), value["cores"].texts("$A", "$B"))
    return facts, sums


def _read_sum(node: _Node) -> dict[str, _Node]:
    return node.table(("answer", "cores"))


def _read_talk_wrapping(root: dict[str, _Node], languages: Languages) -> dict[str, Wrapping]:
    openers, closers = (root[key].by_language(languages, _Node.texts) for key in ("openers", "closers"))
    return {language: Wrapping(openers[language], closers[language]) for language in languages}


def load_sources(folder: Path, languages: Sequence[str] = ()) -> Sources:
    """Read and check the source files of a folder, and leave out what is in other languages, if some are named.

    Raises:
        UsageError: a file is missing or not YAML, or a key is missing, unknown, empty or of the wrong type;
            names the file and the key, what was found and what was expected.
    """
    topics, questions, identity, kinds, pairs, smalltalk = map(load_yaml, source_files(folder))
    question = questions.table(("marks", "wrappings", "cores", "made_up", "fillers"))
    written = _read_languages(question["marks"])
    who = identity.table(("replies", "cores"))
    small = smalltalk.table(("openers", "closers", "talk", "asked", "sums"))
    facts, sums = _read_sums(small["sums"], written)
    return Sources(
        languages=written,
        topics=_read_topics(topics, written),
        marks=question["marks"].by_language(written, _read_marks),
        wrappings=question["wrappings"].by_language(written, _read_manners),
        cores=question["cores"].by_language(written, lambda node: node.texts(SUBJECT)),
        made_up=question["made_up"].by_language(written, _read_made_up),
        fillers=question["fillers"].by_language(written, _Node.texts),
        identity_replies=who["replies"].by_language(written, _Node.text),
        identity_cores=who["cores"].by_language(written, _Node.texts),
        kinds=_read_kinds(kinds, written),
        pairs=pairs.by_language(written, _read_pairs),
        talk=_read_talk(small, written),
        talk_wrapping=_read_talk_wrapping(small, written),
        facts=facts,
        sums=sums,
    ).of_languages(languages)
