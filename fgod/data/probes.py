"""Probes: the held-out questions by which a model is judged.

They stand in files of two kinds: tables (.tsv), each line a probe of the split development, whose scoring suites.yaml
says by suite; and suites of families (.yaml), see `fgod.data.suites`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgod.data.rows import Message, asked, chat_key, normalise
from fgod.data.sources import Sources, chosen_languages, load_yaml, source_languages
from fgod.data.suites import CONFIRMATION, DEVELOPMENT, SCORINGS, SHOWN, Family, Split, Suite, read_suite, wordings
from fgod.errors import FgodError, UsageError, did_you_mean
from fgod.persona import Rule
from fgod.system.table import read_texts

SUITES_FILE = "suites.yaml"
TABLE = ".tsv"
FAMILIES = (".yaml", ".yml")
"""Suffixes of files of probes."""


@dataclass(frozen=True)
class Probe:
    """One question. `topic` names the topic, person, small talk or sum that it is about, if the sources know it;
    `scored_by` is one of `SCORINGS`, that of its suite.

    `split` says what asks it, and `fold` which fold of the confirmation, from 1 (0: it is of another split). `family`
    is empty in tables. `system` and `history` are as in `fgod.data.rows.Prompt`. `accept`: what a right answer says,
    where its family states it.
    """

    suite: str
    kind: str
    language: str
    topic: str
    prompt: str
    scored_by: str
    split: Split = DEVELOPMENT
    fold: int = 0
    family: str = ""
    system: str = ""
    history: tuple[Message, ...] = ()
    accept: Rule | None = None

    @property
    def scored(self) -> bool:
        return self.scored_by != SHOWN

    @property
    def key(self) -> str:
        """Names the chat among answers (`fgod.answers`)."""
        return chat_key(self.prompt, self.system, self.history)


PROBE_COLUMNS = ("suite", "kind", "language", "topic", "prompt")
"""Columns of a table of probes."""


def probe_files(config: Mapping[str, Any]) -> list[Path]:
    """The files of a config's `data.probes`, which is one or a list of them."""
    named = config["data"]["probes"]
    return [Path(name) for name in ([named] if isinstance(named, str) else named)]


def load_suites(folder: Path) -> dict[str, str]:
    """How each suite of a table of probes is scored: suite → one of `SCORINGS`, from suites.yaml of the written
    sources.

    Raises:
        UsageError: the file is missing or wrong; names file and key.
    """
    path = folder / SUITES_FILE
    suites = {name: node.text() for name, node in load_yaml(path).items().items()}
    for name, scoring in suites.items():
        if scoring not in SCORINGS:
            hint = did_you_mean(scoring, SCORINGS)
            raise UsageError(f"{path}: {name}: found {scoring!r}{hint}, expected one of {', '.join(SCORINGS)}")
    return suites


def suites_of(files: Path | Sequence[Path], folder: Path) -> dict[str, str]:
    """How each suite of some files of probes is scored.

    Raises:
        UsageError: a file is missing or wrong, or two of them score one suite otherwise.
    """
    languages = source_languages(folder)
    found: dict[str, str] = {}
    for file in _listed(files):
        suite = None if _is_table(file) else read_suite(file, languages)
        for name, scoring in (load_suites(folder) if suite is None else {suite.name: suite.scored}).items():
            if found.setdefault(name, scoring) != scoring:
                raise UsageError(f"{file}: the suite {name} is scored by {scoring}, elsewhere by {found[name]}")
    return found


def scored_suites(suites: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the suites that are scored."""
    return tuple(name for name, scoring in suites.items() if scoring != SHOWN)


def of_split(probes: Iterable[Probe], split: Split, fold: int = 0) -> list[Probe]:
    """The probes of a split; of the confirmation those of one fold, from 1."""
    return [probe for probe in probes if (probe.split, probe.fold) == (split, fold)]


def asked_in(probes: Iterable[Probe], fold: int = 0) -> list[Probe]:
    """The probes that the gate asks; with a fold, from 1, those of the confirmation that has it."""
    return of_split(probes, CONFIRMATION if fold else DEVELOPMENT, fold)


def folds_of(probes: Iterable[Probe]) -> tuple[int, ...]:
    """The folds of wordings that are held back for confirmations, in order."""
    return tuple(sorted({probe.fold for probe in probes if probe.split == CONFIRMATION}))


def load_probes(files: Path | Sequence[Path], folder: Path, languages: Sequence[str] = ()) -> list[Probe]:
    """Read probes of all splits: tables with the header suite, kind, language, topic, prompt, and suites of families.

    Args:
        files: one or several, .tsv or .yaml.
        folder: the written sources, which say how suites of tables are scored and which languages there are.
        languages: probes in others are checked and left out; empty: all that there are.

    Raises:
        UsageError: a file, a column, a suite, a language, a kind or a prompt is missing or wrong, or a prompt stands
            there twice; names file and line, or file and key.
    """
    listed, known = _listed(files), source_languages(folder)
    chosen = chosen_languages(known, languages)
    probes: list[Probe] = []
    seen: dict[str, str] = {}
    for file in listed:
        for where, probe in _table(file, folder, known) if _is_table(file) else _of_suite(file, known):
            if not normalise(probe.prompt):
                raise UsageError(f"{where}: prompt {probe.prompt!r}, expected a question")
            key = asked(probe.prompt, probe.system, probe.history)
            if probe.scored and (earlier := seen.setdefault(key, where)) is not where:
                raise UsageError(f"{where}: prompt {probe.prompt!r} stands in {earlier} too; write every probe once")
            if probe.language in chosen:
                probes.append(probe)
    if not probes:
        names = ", ".join(map(str, listed))
        raise UsageError(f"{names}: no probes in {', '.join(chosen)}, expected at least one")
    return probes


def _listed(files: Path | Sequence[Path]) -> list[Path]:
    return [files] if isinstance(files, Path) else list(files)


def _is_table(file: Path) -> bool:
    if file.suffix not in (TABLE, *FAMILIES):
        raise UsageError(f"{file}: found a file of probes that ends with {file.suffix!r}, expected {TABLE} or .yaml")
    return file.suffix == TABLE


def _table(path: Path, folder: Path, languages: Sequence[str]) -> Iterator[tuple[str, Probe]]:
    """The probes of a table, each with its place for messages."""
    try:
        records = read_texts(path, PROBE_COLUMNS)
    except UsageError:
        raise
    except FgodError as error:
        raise UsageError(str(error)) from error
    suites = load_suites(folder)
    for number, record in enumerate(records, start=2):
        where, suite, language = f"{path}:{number}", record["suite"], record["language"]
        if suite not in suites:
            allowed = f"expected one of {', '.join(suites)} ({folder / SUITES_FILE} declares them)"
            raise UsageError(f"{where}: suite {suite!r}{did_you_mean(suite, suites)}, {allowed}")
        if language not in languages:
            allowed = f"expected one of {', '.join(languages)} (marks in questions.yaml)"
            raise UsageError(f"{where}: language {language!r}{did_you_mean(language, languages)}, {allowed}")
        if not record["kind"]:
            raise UsageError(f"{where}: kind is empty, expected what the probe asks, as identity, who_am_i or topic")
        yield where, Probe(suite, record["kind"], language, record["topic"], record["prompt"], suites[suite])


def _of_suite(path: Path, languages: Sequence[str]) -> Iterator[tuple[str, Probe]]:
    """The probes of a suite of families, each with its place for messages."""
    suite = read_suite(path, languages)
    for family in suite.families:
        yield from ((f"{path}: {family.name}", probe) for probe in _of_family(suite, family))


def _of_family(suite: Suite, family: Family) -> Iterator[Probe]:
    for one in wordings(suite.name, family):
        yield Probe(
            suite.name, family.kind, one.language, "", one.text, suite.scored, family.split, family.fold or 0,
            family.name, one.system, one.history, one.accept,
        )  # fmt: skip


def expected(s: Sources, probe: Probe) -> tuple[str, ...]:
    """The answers that the sources know as right for the embedded base; empty where they know none."""
    answer = s.answers.get((probe.kind, probe.topic, probe.language))
    return () if answer is None else (answer,)
