"""Written sources that only some configs use: their digests are part of nothing else.

denials.yaml    names of assistants that the model is not, and ways to ask whether it is one
systems.yaml    system prompts of other people's making
asking.yaml     system prompts under which the base asks itself, one language after the other
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgod.data.recipe import DENIAL, MixRecipe
from fgod.data.sources import SUBJECT, chosen_languages, load_yaml, source_languages

DENIALS_FILE = "denials.yaml"
SYSTEMS_FILE = "systems.yaml"
ASKING_FILE = "asking.yaml"


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
    denials = (DENIALS_FILE,) if DENIAL in recipe.parts() else ()
    return (*denials, SYSTEMS_FILE) if recipe.frames.get("foreign") else denials
