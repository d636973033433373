"""The suites of families in traindata/suites: how many prompts each split has, and that training sees none of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgod.data.optional import load_systems
from fgod.data.probes import Probe, load_probes, of_split
from fgod.data.rows import normalise
from fgod.data.sources import SUBJECT, Sources, load_sources
from fgod.data.suites import CHECK, CONFIRMATION, DEVELOPMENT, read_suite
from tests.mini import ROOT

FOLDER = ROOT / "traindata"
FILES = sorted((FOLDER / "suites").glob("*.yaml"))
FOLDS = (1, 2, 3, 4, 5, 6, 7)
EACH_LANGUAGE = {"general": 80, "tasks": 20, "refusal": 20}
"""Prompts of each language that a fold of the confirmation has at least, where these are not `USUALLY`: 200 in all."""
USUALLY = 40
SUBJECTS = ("assistants", "names", "words")
"""Keys of files in traindata/ whose entries go with the file's cores."""


@cache
def sources() -> Sources:
    return load_sources(FOLDER)


@cache
def probes() -> tuple[Probe, ...]:
    return tuple(load_probes(FILES, FOLDER))


def strings(value: Any) -> Iterator[str]:
    """All texts of a parsed file, at any depth, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


@cache
def trained() -> frozenset[str]:
    """Normalised: every text of the files that rows are made from, and every core with all subjects that go there."""
    files = [yaml.safe_load(file.read_text("utf-8")) for file in FOLDER.glob("*.yaml")]
    s = sources()
    filled = [((topic.subject,), s.cores[topic.language]) for topic in s.topics]
    for kind in s.kinds.values():
        filled += [((person.name,), kind.cores[person.language]) for person in kind.people]
    for file, key in product(files, SUBJECTS):
        filled += [(tuple(names), tuple(file["cores"][language])) for language, names in file.get(key, {}).items()]
    texts = [text for file in files for text in strings(file)]
    texts += [core.replace(SUBJECT, name) for names, cores in filled for core in cores for name in names]
    return frozenset(map(normalise, texts))


def unwrapped(text: str, language: str) -> Iterator[str]:
    """A normalised prompt, and what is left of it without an opener and a closer of its language."""
    s = sources()
    wrappings = (*s.wrappings[language].values(), s.talk_wrapping[language])
    openers = ["", *(normalise(opener) for wrapping in wrappings for opener in wrapping.openers)]
    closers = ["", *(normalise(closer) for wrapping in wrappings for closer in wrapping.closers)]
    for opener in filter(text.startswith, openers):
        rest = text.removeprefix(opener)
        for closer in filter(rest.endswith, closers):
            yield rest.removesuffix(closer)


def by_language(found: list[Probe]) -> Counter[str]:
    return Counter(probe.language for probe in found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_split_of_a_suite_has_its_size(path: Path) -> None:
    own = [probe for probe in probes() if probe.suite == path.stem]
    languages = {probe.language for probe in own}
    checked, developed = of_split(own, CHECK), of_split(own, DEVELOPMENT)
    assert len({probe.family for probe in checked}) <= 1
    assert all(4 <= count <= 6 for count in by_language(checked).values())
    assert {len(by_language(checked)), len(languages)} <= {0, len(languages)}  # of all languages, or not at all
    assert set(by_language(developed)) == languages
    assert all(12 <= count <= 130 for count in by_language(developed).values())
    for fold in FOLDS:
        held = of_split(own, CONFIRMATION, fold)
        assert len({probe.family for probe in held}) >= 4
        assert set(by_language(held)) == languages
        assert min(by_language(held).values()) >= EACH_LANGUAGE.get(path.stem, USUALLY)
    assert len(own) == len(checked) + len(developed) + sum(len(of_split(own, CONFIRMATION, fold)) for fold in FOLDS)


def test_no_wording_is_in_two_families() -> None:
    families: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for probe in probes():
        families[normalise(probe.prompt)].add((probe.suite, probe.family))
    assert {text: where for text, where in families.items() if len(where) > 1} == {}


def test_no_wording_is_a_row_or_a_probe_of_the_table() -> None:
    table = {normalise(probe.prompt) for probe in load_probes(FOLDER / "probes.tsv", FOLDER)}
    known = trained() | table
    assert [p.prompt for p in probes() if known.intersection(unwrapped(normalise(p.prompt), p.language))] == []


def test_no_system_prompt_of_a_suite_frames_rows() -> None:
    framed = {normalise(system) for systems in load_systems(FOLDER).values() for system in systems}
    assert [probe.system for probe in probes() if normalise(probe.system) in framed] == []


def test_a_family_of_a_foreign_name_is_a_small_part_of_its_suite() -> None:
    """The persona may rightly yield to a system prompt that gives another name: few prompts ask that, in each split."""
    own = [probe for probe in probes() if probe.suite == "frames"]
    for split, fold in ((DEVELOPMENT, 0), *((CONFIRMATION, fold) for fold in FOLDS)):
        asked = of_split(own, split, fold)
        renamed = [probe for probe in asked if probe.family.startswith("names-another")]
        assert 0 < len(renamed) <= len(asked) / 5


def test_families_of_a_suite_say_who_must_not_answer() -> None:
    """A claim of the user's may be used in many words; the persona's own may not be among them."""
    suite = read_suite(FOLDER / "suites" / "claims.yaml", sources().languages)
    accepted = [words for family in suite.families for words in (family.accept or {}).values()]
    assert accepted and all(words.any and words.none for words in accepted)
