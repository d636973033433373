"""Probes: the held-out questions by which a model is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from fgod.data.rows import normalise
from fgod.data.sources import Sources, chosen_languages, load_yaml, source_languages
from fgod.errors import FgodError, UsageError, did_you_mean
from fgod.system.files import read_table

SUITES_FILE = "suites.yaml"
SHOWN = "shown"
SCORINGS = ("persona", "kind", "reference", SHOWN)
"""How a suite may be scored: by the persona's rule, by the rule of the question's kind, by agreement with the
reference; or shown before and after, and never scored."""


@dataclass(frozen=True)
class Probe:
    """One question. `topic` names the topic, person, small talk or sum that it is about, if the sources know it;
    `scored_by` is one of `SCORINGS`, that of its suite."""

    suite: str
    kind: str
    language: str
    topic: str
    prompt: str
    scored_by: str

    @property
    def scored(self) -> bool:
        return self.scored_by != SHOWN


PROBE_COLUMNS = tuple(field.name for field in fields(Probe) if field.name != "scored_by")


def load_suites(folder: Path) -> dict[str, str]:
    """How each suite is scored: suite → one of `SCORINGS`, from suites.yaml of the written sources.

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


def scored_suites(suites: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the suites that are scored."""
    return tuple(name for name, scoring in suites.items() if scoring != SHOWN)


def _check(path: Path, number: int, probe: Probe, languages: Sequence[str], seen: dict[str, int]) -> None:
    def fail(what: str) -> None:
        raise UsageError(f"{path}:{number}: {what}")

    if probe.language not in languages:
        hint = did_you_mean(probe.language, languages)
        fail(f"language {probe.language!r}{hint}, expected one of {', '.join(languages)} (marks in questions.yaml)")
    if not probe.kind:
        fail("kind is empty, expected what the probe asks, as identity, who_am_i or topic")
    if not normalise(probe.prompt):
        fail(f"prompt {probe.prompt!r}, expected a question")
    earlier = seen.setdefault(normalise(probe.prompt), number)
    if earlier != number and probe.scored:
        fail(f"prompt {probe.prompt!r} stands in line {earlier} too; write every probe once")


def load_probes(path: Path, folder: Path, languages: Sequence[str] = ()) -> list[Probe]:
    """Read probes: TSV with the header suite, kind, language, topic, prompt.

    Args:
        folder: the written sources, which say how suites are scored and which languages there are.
        languages: probes in others are checked and left out; empty: all that there are.

    Raises:
        UsageError: the file, a column, a suite, a language, a kind or a prompt is missing or wrong, or a prompt stands
            there twice; names file and line.
    """
    try:
        records = read_table(path, PROBE_COLUMNS)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error
    except UsageError:
        raise
    except FgodError as error:
        raise UsageError(str(error)) from error
    suites, known = load_suites(folder), source_languages(folder)
    chosen = chosen_languages(known, languages)
    probes: list[Probe] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(records, start=2):
        suite = record["suite"]
        if suite not in suites:
            allowed = f"expected one of {', '.join(suites)} ({folder / SUITES_FILE} declares them)"
            raise UsageError(f"{path}:{number}: suite {suite!r}{did_you_mean(suite, suites)}, {allowed}")
        probe = Probe(**{name: record[name] for name in PROBE_COLUMNS}, scored_by=suites[suite])
        _check(path, number, probe, known, seen)
        if probe.language in chosen:
            probes.append(probe)
    if not probes:
        raise UsageError(f"{path}: no probes in {', '.join(chosen)}, expected at least one")
    return probes


def expected(s: Sources, probe: Probe) -> tuple[str, ...]:
    """The answers that the sources know as right for the embedded base; empty where they know none."""
    answer = s.answers.get((probe.kind, probe.topic, probe.language))
    return () if answer is None else (answer,)
