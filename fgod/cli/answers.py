"""Commands that ask the base: what is rehearsed, what a run is compared with, what a teacher says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fgod import layout
from fgod.answers import BATCH, read_answers
from fgod.arguments import Input, JsonObject, Option, Output, PositiveFloat
from fgod.call import Call, say
from fgod.cli.command import Command, SideBySide
from fgod.cli.options import Asked, Chatting, Probing, Sourced
from fgod.data.marks import accepted_of
from fgod.data.probes import Probe, asked_in, expected, load_probes
from fgod.data.sources import load_sources
from fgod.documents import check_answers, check_rows, check_self_asked
from fgod.persona import goal_from_config
from fgod.stamps import check_export, check_weights
from fgod.system.files import write_json

if TYPE_CHECKING:
    from fgod.answers import Answer
    from fgod.cli.work.worker import Work
    from fgod.evaluate.scoring import Standard

TEACHER_BATCH = 64
"""Rows that the base is asked about at once."""

EXPORT = Input("stamp of the base's export")


@dataclass(frozen=True, kw_only=True)
class AskingBase(SideBySide):
    """A command that asks the base's export prompts."""

    export: Annotated[Path, EXPORT]
    out: Annotated[Path, Output("answers.tsv to write")]
    settings: Annotated[JsonObject, Option("what is asked, and how")]

    @property
    def gpu(self) -> bool:
        """Whether it asks on a GPU."""
        return bool(self.settings["device"] == "cuda")

    def inputs(self) -> list[Path]:
        return [*super().inputs(), layout.Export(self.export.parent).exported]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), layout.Answers(self.out.parent).stamp]


@dataclass(frozen=True, kw_only=True)
class SelfAsked(Chatting, AskingBase):
    """Let the base ask of its own accord."""

    out: Annotated[Path, Output("prompts.tsv to write")]

    def outputs(self) -> list[Path]:
        return [self.out, layout.SelfAsked(self.out.parent).stamp]

    def run(self, call: Call) -> None:
        check_export(self.export)
        self.supervised(call, "what the base asks itself", self.batch or BATCH, self.gpu)

    def work(self) -> Work:
        from fgod.cli.work.answers import self_asked

        return partial(self_asked, self)


@dataclass(frozen=True, kw_only=True)
class Rehearsal(Sourced, Chatting, AskingBase):
    """Ask the base the prompts whose answers are rehearsed."""

    asked: Asked = None

    def run(self, call: Call) -> None:
        check_export(self.export)
        if self.asked:
            check_self_asked(layout.SelfAsked(self.asked.parent))
        self.supervised(call, "the rehearsal answers of the base", self.batch or BATCH, self.gpu)

    def work(self) -> Work:
        from fgod.cli.work.answers import rehearsal

        return partial(rehearsal, self)


@dataclass(frozen=True, kw_only=True)
class Reference(Probing, Chatting, AskingBase):
    """Ask the base the probes."""

    def run(self, call: Call) -> None:
        check_export(self.export)
        batch = self.batch or self.settings["batch"]
        self.supervised(call, "the reference answers of the base", batch, self.gpu)

    def work(self) -> Work:
        from fgod.cli.work.answers import reference

        return partial(reference, self)


@dataclass(frozen=True, kw_only=True)
class Teacher(SideBySide):
    """Ask the base for its distributions at the labels of a mix's rehearsed rows."""

    weights: Annotated[Path, Input("folder of the base, or of its export")]
    stamp: Annotated[Path, Input("the stamp that holds their digest")]
    rows: Annotated[Path, Input("rows.tsv of the mix")]
    out: Annotated[Path, Output("teacher.json to write")]
    settings: Annotated[JsonObject, Option("how it is asked")]
    disk_gb: Annotated[PositiveFloat, Option("the most that it may write", "GIB")]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), layout.Teacher(self.out.parent).soft_labels]

    def run(self, call: Call) -> None:
        check_weights(self.weights, self.stamp)
        check_rows(layout.Mix(self.rows.parent))
        gpu = self.settings["device"] == "cuda"
        self.supervised(call, "the base as teacher", self.batch or TEACHER_BATCH, gpu)

    def work(self) -> Work:
        from fgod.cli.work.answers import teacher

        return partial(teacher, self)


def no_limits() -> dict[str, Any]:
    """No limit of a gate, and no stage that requires something."""
    return {"gate": {}, "require": []}


@dataclass(frozen=True, kw_only=True)
class Check(Probing, Command):
    """Refuse probes that the base itself does not answer (exit 100), and warn of limits with too few probes."""

    answers: Annotated[Path, Input("answers.tsv of the base")]
    out: Annotated[Path, Output("harness.json to write")]
    base: Annotated[JsonObject, Option("the config's key base")]
    goal: Annotated[JsonObject, Option("persona and disambiguation")]
    limits: Annotated[JsonObject, Option("gate and require of each stage: warn of those with too few probes")] = field(
        default_factory=no_limits
    )

    def inputs(self) -> list[Path]:
        return [*super().inputs(), layout.Answers(self.answers.parent).stamp]

    def run(self, call: Call) -> None:
        from fgod.evaluate.scoring import Standard
        from fgod.evaluate.words import load_reply_words
        from fgod.probe.harness import NEEDED, check_reference

        check_answers(layout.Answers(self.answers.parent))
        probes = asked_in(load_probes(self.probes, self.sources, self.languages), self.fold)
        known = self._known(probes)
        answers = read_answers(self.answers.parent)
        words = load_reply_words(self.sources, probes)
        standard = Standard(goal_from_config(self.goal), closed=self.base["closed_answers"], words=words)
        least, embedded = self.base["require"], self.base["kind"] == "embedded"
        needed, accepted = () if self.fold else NEEDED, accepted_of(self.goal["persona"])
        table = check_reference(probes, answers, known, standard, least, embedded, needed, accepted)
        say(table)
        weak = self._weak_limits(probes, answers, known, standard)
        for warning in weak:
            say(f"warning: {warning}")
        write_json(self.out, {"require": least, "table": table.splitlines(), "weak_limits": weak})

    def _known(self, probes: Sequence[Probe]) -> dict[str, Sequence[str]]:
        """By probe, the answers that the corpus knows as right: the embedded base has learned it."""
        sources = load_sources(self.sources, self.languages)
        embedded = self.base["kind"] == "embedded"
        return {probe.key: expected(sources, probe) if embedded else () for probe in probes}

    def _weak_limits(
        self,
        probes: Sequence[Probe],
        answers: Mapping[str, Answer],
        known: Mapping[str, Sequence[str]],
        standard: Standard,
    ) -> list[str]:
        """The limits of the stages with too few probes, in words."""
        from fgod.evaluate.measure import measure_all
        from fgod.evaluate.power import weak_limits
        from fgod.evaluate.requirements import parse_requirements
        from fgod.gate import checks_of
        from fgod.probe.harness import reference_records

        measured = measure_all(reference_records(probes, answers, known, standard))
        stages = [checks_of(self.limits["gate"], parse_requirements(require)) for require in self.limits["require"]]
        return list(weak_limits([check for checks in stages for check in checks], measured))
