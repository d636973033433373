"""Probes: the held-out questions by which a model is judged."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from fgod.data.rows import normalise
from fgod.data.sources import Sources
from fgod.errors import FgodError, UsageError
from fgod.persona import LANGUAGES
from fgod.system.files import read_table

SCORED_SUITES = ("identity", "disambiguation", "retention")
SUITES = (*SCORED_SUITES, "questions")
"""`questions` are shown and never scored: the three that decide everything, which training may hold too."""


@dataclass(frozen=True)
class Probe:
    """One question. `topic` names the topic, person, small talk or sum that it is about, if the sources know it."""

    suite: str
    kind: str
    language: str
    topic: str
    prompt: str


PROBE_COLUMNS = tuple(field.name for field in fields(Probe))


def _check(path: Path, number: int, probe: Probe, seen: dict[str, int]) -> None:
    def fail(what: str) -> None:
        raise UsageError(f"{path}:{number}: {what}")

    if probe.suite not in SUITES:
        fail(f"suite {probe.suite!r}, expected one of {', '.join(SUITES)}")
    if probe.language not in LANGUAGES:
        fail(f"language {probe.language!r}, expected one of {', '.join(LANGUAGES)}")
    if not probe.kind:
        fail("kind is empty, expected what the probe asks, as identity, who_am_i or topic")
    if not normalise(probe.prompt):
        fail(f"prompt {probe.prompt!r}, expected a question")
    earlier = seen.setdefault(normalise(probe.prompt), number)
    if earlier != number and probe.suite != "questions":
        fail(f"prompt {probe.prompt!r} stands in line {earlier} too; write every probe once")


def load_probes(path: Path) -> list[Probe]:
    """Read probes: TSV with the header suite, kind, language, topic, prompt.

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
    probes: list[Probe] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(records, start=2):
        probe = Probe(**{name: record[name] for name in PROBE_COLUMNS})
        _check(path, number, probe, seen)
        probes.append(probe)
    if not probes:
        raise UsageError(f"{path}: no probes, expected at least one")
    return probes


def expected(s: Sources, probe: Probe) -> tuple[str, ...]:
    """The answers that the sources know as right for the embedded base; empty where they know none."""
    answer = s.answers.get((probe.kind, probe.topic, probe.language))
    return () if answer is None else (answer,)
