"""Written sources that only some configs use: their digests are part of nothing else.

denials.yaml    names of assistants that the model is not, and ways to ask whether it is one
systems.yaml    system prompts of other people's making
varied.yaml     odd wordings of what is taught, claims of users about themselves, and odd small talk
talk.yaml       small talk in the second person
people.yaml     names of persons, and ways to ask about them
neighbours.yaml words that stand near the persona's name, ways to ask about them, and prompts about their field
asking.yaml     system prompts under which the base asks itself, one language after the other
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fgod.data.recipe import CLAIM, DENIAL, NAMED, NEIGHBOUR, TALK, VARIED, MixRecipe
from fgod.data.sources import SUBJECT, chosen_languages, load_yaml, source_languages
from fgod.errors import UsageError
from fgod.persona import lookup

DENIALS_FILE = "denials.yaml"
SYSTEMS_FILE = "systems.yaml"
TALK_FILE = "talk.yaml"
PEOPLE_FILE = "people.yaml"
NEIGHBOURS_FILE = "neighbours.yaml"
ASKING_FILE = "asking.yaml"
VARIED_FILE = "varied.yaml"
FILES_OF_PARTS = {
    DENIAL: (DENIALS_FILE,),
    VARIED: (VARIED_FILE, DENIALS_FILE),
    TALK: (TALK_FILE, VARIED_FILE),
    NAMED: (PEOPLE_FILE,),
    NEIGHBOUR: (NEIGHBOURS_FILE,),
    CLAIM: (VARIED_FILE,),
}
"""The optional files that a part is made of, the first its own."""


@dataclass(frozen=True)
class Denials:
    """Names of assistants, and cores of questions in which `SUBJECT` stands for one; both by language."""

    assistants: Mapping[str, tuple[str, ...]]
    cores: Mapping[str, tuple[str, ...]]


def load_denials(folder: Path) -> Denials:
    """Read and check denials.yaml of the written sources, which is in all of their languages.

    Raises:
        UsageError: it is missing or wrong; names file and key.
    """
    languages = source_languages(folder)
    root = load_yaml(folder / DENIALS_FILE).table(("assistants", "cores"))
    return Denials(
        assistants=root["assistants"].by_language(languages, lambda node: node.texts()),
        cores=root["cores"].by_language(languages, lambda node: node.texts(SUBJECT)),
    )


def load_systems(folder: Path) -> dict[str, tuple[str, ...]]:
    """System prompts by language, from systems.yaml of the written sources.

    Raises:
        UsageError: it is missing or wrong; names file and key.
    """
    return load_yaml(folder / SYSTEMS_FILE).by_language(source_languages(folder), lambda node: node.texts())


@dataclass(frozen=True)
class Subjects:
    """Names or words, and cores of questions in which `SUBJECT` stands for one; both by language. `prompts`: cores of
    their own."""

    words: Mapping[str, tuple[str, ...]]
    cores: Mapping[str, tuple[str, ...]]
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def with_more(self, more: Mapping[str, Mapping[str, Sequence[str]]]) -> Subjects:
        """These and a config's own `words` and `prompts` by language (zh serves zh-Hant and zh-Hans)."""
        return replace(
            self,
            words=_joined(self.words, more.get("words") or {}),
            prompts=_joined(self.prompts, more.get("prompts") or {}),
        )


def _joined(table: Mapping[str, tuple[str, ...]], more: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    def added(language: str) -> Sequence[str]:
        try:
            return lookup(more, language)
        except KeyError:
            return ()

    return {language: tuple(dict.fromkeys([*texts, *added(language)])) for language, texts in table.items()}


def load_talk(folder: Path) -> dict[str, tuple[str, ...]]:
    """Cores of small talk by language, from talk.yaml of the written sources.

    Raises:
        UsageError: it is missing or wrong; names file and key.
    """
    root = load_yaml(folder / TALK_FILE).table(("cores",))
    return root["cores"].by_language(source_languages(folder), lambda node: node.texts())


def load_varied(folder: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """Whole prompts by what they ask and language, from varied.yaml of the written sources.

    What they ask is identity, denial (`SUBJECT`: an assistant of denials.yaml), claim, talk, or a disambiguation kind.

    Raises:
        UsageError: it is missing or wrong; names file and key.
    """
    languages = source_languages(folder)
    sections = load_yaml(folder / VARIED_FILE).items()
    found = {name: node.by_language(languages, lambda texts: texts.texts()) for name, node in sections.items()}
    for language, texts in found.get(DENIAL, {}).items():
        if unnamed := [text for text in texts if SUBJECT not in text]:
            raise UsageError(
                f"{folder / VARIED_FILE}: {DENIAL}.{language}: found {unnamed[0]!r}, expected the placeholder "
                f"{SUBJECT} in each text (the name of an assistant)"
            )
    return found


def load_people(folder: Path) -> Subjects:
    """Read and check people.yaml of the written sources.

    Raises:
        UsageError: it is missing or wrong; names file and key.
    """
    languages = source_languages(folder)
    root = load_yaml(folder / PEOPLE_FILE).table(("names", "cores"))
    return Subjects(
        words=root["names"].by_language(languages, lambda node: node.texts()),
        cores=root["cores"].by_language(languages, lambda node: node.texts(SUBJECT)),
    )


def load_neighbours(folder: Path) -> Subjects:
    """Read and check neighbours.yaml of the written sources.

    Raises:
        UsageError: it is missing or wrong; names file and key.
    """
    languages = source_languages(folder)
    root = load_yaml(folder / NEIGHBOURS_FILE).table(("words", "cores", "prompts"))
    return Subjects(
        words=root["words"].by_language(languages, lambda node: node.texts()),
        cores=root["cores"].by_language(languages, lambda node: node.texts(SUBJECT)),
        prompts=root["prompts"].by_language(languages, lambda node: node.texts()),
    )


def load_asking(folder: Path, languages: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """System prompts that make a base ask in a language, from asking.yaml of the written sources.

    Args:
        languages: only these; none: all.

    Raises:
        UsageError: it is missing or wrong; names file and key.
    """
    written = source_languages(folder)
    found = load_yaml(folder / ASKING_FILE).by_language(written, lambda node: node.texts())
    return {language: found[language] for language in chosen_languages(written, languages)}


def files_used(recipe: MixRecipe) -> tuple[str, ...]:
    """The optional files that a mix is made of."""
    foreign = recipe.frames.get("foreign") or recipe.rehearsed_frames.get("foreign")
    return (*files_of(recipe.parts()), *((SYSTEMS_FILE,) if foreign else ()))


def files_of(parts: Iterable[str]) -> tuple[str, ...]:
    """The optional files that parts are made of."""
    there = set(parts)
    return tuple(dict.fromkeys(name for part, names in FILES_OF_PARTS.items() if part in there for name in names))


LOADERS: Mapping[str, Callable[[Path], Any]] = {
    DENIALS_FILE: load_denials,
    VARIED_FILE: load_varied,
    TALK_FILE: load_talk,
    PEOPLE_FILE: load_people,
    NEIGHBOURS_FILE: load_neighbours,
    SYSTEMS_FILE: load_systems,
}
