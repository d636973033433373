"""Commands that measure and judge: probes, evaluations, the gate, confirmations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fgod import layout
from fgod.arguments import Input, JsonObject, NonNegativeFloat, Option, Output, PositiveInt
from fgod.call import Call, say
from fgod.cli.command import Batched, Command, Guarded, SideBySide
from fgod.cli.options import Chatting, Format, Like, Probing, Where
from fgod.documents import EngineVerdict, Stamp, check_answers
from fgod.documents import Served as ServedRecord
from fgod.engines.engine import ENGINES
from fgod.errors import FgodError, UsageError
from fgod.evaluate.requirements import check_limits
from fgod.exporters.names import NVFP4
from fgod.guard.limits import WholeMachine
from fgod.models.files import beside_weights
from fgod.stamps import check_export, check_weights

if TYPE_CHECKING:
    from fgod.cli.work.worker import Work
    from fgod.devlog.next_step import LogSettings

EVALUATION_BATCH = 32
"""Items that a model is asked at once."""

LIMITS = Option("the key gate")


@dataclass(frozen=True, kw_only=True)
class Probe(Probing, Chatting, SideBySide):
    """Ask a run's export the probes of the gate, or a candidate's those of a confirmation, or the base; and measure."""

    export: Annotated[Path, Input("stamp of the run's export")]
    reference: Annotated[Path, Input("answers.tsv of the base")]
    reference_weights: Annotated[Path, Input("stamp of the base's export, which gave them")]
    out: Annotated[Path, Output("metrics.json to write, beside probes.tsv")]
    base: Annotated[JsonObject, Option("the config's key base")]
    goal: Annotated[JsonObject, Option("persona and disambiguation")]
    held_out: Annotated[list[str], Option("topics never rehearsed", "JSON")]
    settings: Annotated[JsonObject, Option("the key probe")]
    model: Annotated[
        Path | None,
        Input(
            "folder of the model to probe (default: the run's export, beside the stamp --export)",
            "FOLDER",
        ),
    ] = None
    format: Format = NVFP4
    rows: Annotated[tuple[Path, ...], Input("training rows of the run: none of them may be a probe")]

    @property
    def trained(self) -> layout.RunWeights:
        """The weights of the run, its export beside them."""
        return layout.RunWeights(self.export.parent)

    @property
    def exported(self) -> Path:
        """The export of the run."""
        return self.trained.of(self.format)

    @property
    def reference_export(self) -> Path:
        """The folder of the weights that gave the reference's answers."""
        return layout.Export(self.reference_weights.parent).exported

    def inputs(self) -> list[Path]:
        asked = [] if self.model else [self.exported, self.trained.master]
        answers = layout.Answers(self.reference.parent)
        return [*super().inputs(), answers.stamp, self.reference_export, *asked]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), layout.RunRecords(self.out.parent).probes]

    def run(self, call: Call) -> None:
        stamp = Stamp.read(self.export)
        if stamp.status != "exported" and not self.model:
            from fgod.probe.record import write_skipped

            write_skipped(layout.RunRecords(self.out.parent), stamp.reason)
            return
        self._check_weights()
        if self.fold:
            self._give_fold(call)
        batch, gpu = self.batch or self.settings["batch"], self.settings["device"] == "cuda"
        self.supervised(call, f"the probe of {self.model or self.export.parent}", batch, gpu)

    def _check_weights(self) -> None:
        """What is asked and what it is compared with must be as their stamps say."""
        if self.model:
            check_weights(self.model, self.export)
        else:
            check_weights(self.exported, self.export)
            check_weights(self.trained.master, self.trained.trained)
        check_answers(layout.Answers(self.reference.parent))
        check_export(self.reference_weights)

    def _give_fold(self, call: Call) -> None:
        """Record that a candidate is asked a fold, before it is."""
        from fgod.confirm.folds import give_fold
        from fgod.data.probes import folds_of, load_probes

        stage, lineage = _candidate(self.out)
        available = folds_of(load_probes(self.probes, self.sources, self.languages))
        if self.fold not in available:
            names = ", ".join(map(str, self.probes))
            raise UsageError(f"--fold: found {self.fold}, expected one of {list(available)}, which {names} hold back")
        call.note(outputs=[layout.folds()])
        given = give_fold(layout.RESULTS, stage, lineage, self.fold, available)
        before = f", which was asked before of {', '.join(given.asked_before)}" if given.asked_before else ""
        say(f"confirm · {stage} {lineage} is asked fold {self.fold} of the held-back wordings{before}")

    def work(self) -> Work:
        from fgod.cli.work.probe import probe

        return partial(probe, self)


def _candidate(out: Path) -> tuple[str, str]:
    """Stage and lineage of a candidate, by the path of a record of its confirmation."""
    stage, lineage = layout.run_of_path(out)
    if out.parent != layout.confirmation_records(stage, lineage).folder:
        raise UsageError(f"--out: found {out}, expected {layout.CONFIRMATIONS}/STAGE/LINEAGE/{out.name} with --fold")
    return stage, lineage


@dataclass(frozen=True, kw_only=True)
class Served(Chatting, Guarded):
    """Load a candidate's export with transformers alone, and see that its logits are, to the bit, those that
    fgod computes from it: on a CPU, on some of the prompts that were probed."""

    export: Annotated[Path, Input("stamp of the run's export")]
    out: Annotated[Path, Output("served.json to write, beside probes.tsv")]

    @property
    def exported(self) -> Path:
        """The export of the run."""
        return layout.Export(self.export.parent).exported

    @property
    def records(self) -> layout.RunRecords:
        """The records of the run."""
        return layout.RunRecords(self.out.parent)

    def inputs(self) -> list[Path]:
        return [*super().inputs(), self.exported, self.records.probes]

    def run(self, call: Call) -> None:
        check_export(self.export)
        facts = self.supervised(call, f"the comparison of {self.exported} with what transformers makes of it")
        found = ServedRecord(export_sha256=Stamp.read(self.export).weights_sha256, **facts)
        found.write(self.out)
        say(f"served · {self.records.folder.parent.name} {self.records.folder.name} · {found.words}")

    def work(self) -> Work:
        from fgod.cli.work.served import served

        return partial(served, self)


@dataclass(frozen=True, kw_only=True)
class Engine(Probing, Chatting, Guarded):
    """Ask an inference engine what was probed, of a candidate's weights in a further format, on a CPU, by the template
    in its file; and judge its replies by the gate's limits. A format that fails is not released."""

    engine: Annotated[str, Option("the engine, as in release.engines", "NAME")]
    format: Annotated[str, Option("the format that it loads", "NAME")]
    stamp: Annotated[Path, Input("stamp of the weights in that format")]
    export: Annotated[Path, Input("stamp of the run's export, which was probed")]
    reference: Annotated[Path, Input("answers.tsv of the base")]
    base: Annotated[JsonObject, Option("the config's key base")]
    goal: Annotated[JsonObject, Option("persona and disambiguation")]
    held_out: Annotated[list[str], Option("topics never rehearsed", "JSON")]
    settings: Annotated[JsonObject, Option("the key probe")]
    limits: Annotated[JsonObject, LIMITS]
    require: Annotated[JsonObject, Option("what the stage requires")]
    count: Annotated[PositiveInt | None, Option("probes to ask, of each suite in turn (default: all)")] = None
    threads: Annotated[PositiveInt | None, Option("of the engine (default: the cores that it may use)")] = None
    out: Annotated[Path, Output("engine-ENGINE-FORMAT.json to write, beside probes.tsv")]

    @property
    def exported(self) -> Path:
        """The export that was probed."""
        return layout.Export(self.export.parent).exported

    @property
    def asked(self) -> Path:
        """The weights that the engine loads."""
        return layout.Export(self.stamp.parent).of(self.format)

    @property
    def records(self) -> layout.RunRecords:
        """The records of the run."""
        return layout.RunRecords(self.out.parent)

    def inputs(self) -> list[Path]:
        answers = layout.Answers(self.reference.parent)
        return [*super().inputs(), self.exported, self.asked, answers.stamp, self.records.probes]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), self.records.engine_probes(self.engine, self.format)]

    def run(self, call: Call) -> None:
        if missing := ENGINES[self.engine].missing:
            raise UsageError(f"--engine: {missing}")
        check_weights(self.asked, self.stamp)
        check_export(self.export)
        check_answers(layout.Answers(self.reference.parent))
        facts = self.supervised(call, f"what {self.engine} says with {self.asked}")
        digests = {
            "export_sha256": Stamp.read(self.stamp).weights_sha256,
            "probed_sha256": Stamp.read(self.export).weights_sha256,
        }
        found = EngineVerdict.model_validate_json(
            json.dumps({"engine": self.engine, "format": self.format, **digests, **facts})
        )
        found.write(self.out)
        run = f"{self.records.folder.parent.name} {self.records.folder.name}"
        _tell("engine", run, found.words, found.reasons)

    def work(self) -> Work:
        from fgod.cli.work.engine import engine

        return partial(engine, self)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Chatting, Batched):
    """Test what a model can do beside what the base can: what was lost is a figure, and no failure of the command."""

    guard: WholeMachine = field(default_factory=WholeMachine)
    base: Annotated[Path, Input("a model folder, a .gguf or a .dat file", "BASE", positional=True)]
    tuned: Annotated[Path, Input("a model folder, a .gguf or a .dat file", "TUNED", positional=True)]
    items: Annotated[
        tuple[str, ...], Option("JSONL files of items, or READER:PATH for the data of a package", "SOURCE")
    ]
    out: Annotated[Path, Output("FILE.json to write, beside FILE.tsv")]
    loss_limit: Annotated[
        NonNegativeFloat,
        Option("points of 100 that may be lost: what the 95 %% bound is held against (default %(default)g)", "POINTS"),
    ] = 2.0
    code: Annotated[bool, Option("run programs that the models write, in a sandbox")] = False
    chat_template: Annotated[
        bool, Option("ask multiple choice by the chat template (default: as plain text, as lm_eval does)")
    ] = False
    max_tokens: Annotated[PositiveInt, Option("of a reply (default %(default)s)")] = 512
    like: Like = None
    device: Where = "cpu"

    def inputs(self) -> list[Path]:
        from fgod.abilities.items import path_of

        beside = beside_weights(self.like) if self.like else []
        return [*super().inputs(), *beside, *map(path_of, self.items)]

    def outputs(self) -> list[Path]:
        return [*super().outputs(), self.out.with_suffix(".tsv")]

    def run(self, call: Call) -> None:
        from fgod.abilities.items import check_allowed, read_suites

        check_allowed(read_suites(self.items), self.code)
        batch = self.batch or EVALUATION_BATCH
        self.supervised(call, f"the evaluation of {self.tuned}", batch, self.device == "cuda")

    def work(self) -> Work:
        from fgod.cli.work.evaluate import evaluate

        return partial(evaluate, self)


@dataclass(frozen=True, kw_only=True)
class Confirm(Command):
    """Say whether a candidate is confirmed by its replies to held-back wordings."""

    limits: Annotated[JsonObject, LIMITS]
    require: Annotated[JsonObject, Option("what the last stage requires")]
    own: Annotated[JsonObject, Option("the key confirm")]
    fold: Annotated[PositiveInt, Option("the fold that it was asked")]
    out: Annotated[Path, Output("confirmation.json to write, beside the records it judges")]

    def inputs(self) -> list[Path]:
        measured = layout.run_records(*layout.run_of_path(self.out)).metrics
        return [*layout.ConfirmationRecords(self.out.parent).judged, measured, layout.folds()]

    def run(self, call: Call) -> None:
        from fgod.confirm.judge import confirmation_checks, judge_confirmation

        stage, lineage = _candidate(self.out)
        own = check_limits(self.own, where="confirm")
        checks = confirmation_checks(check_limits(self.limits), self.require, own)
        found = judge_confirmation(layout.RESULTS, stage, lineage, self.fold, checks)
        found.write(self.out)
        _tell("confirm", f"{stage} {lineage}", f"{found.decision} ({found.words})", found.reasons)


@dataclass(frozen=True, kw_only=True)
class Gate(Command):
    """Judge a run by its records."""

    limits: Annotated[JsonObject, LIMITS]
    require: Annotated[JsonObject, Option("what the stage requires")]
    log: Annotated[
        JsonObject | None, Option("what the DevLog needs of the config: language, stages, refits (default: no DevLog)")
    ] = None
    out: Annotated[Path, Output("verdict.json to write, beside the records it judges")]

    def inputs(self) -> list[Path]:
        return list(layout.RunRecords(self.out.parent).judged)

    def run(self, call: Call) -> None:
        from fgod.devlog.next_step import LogSettings
        from fgod.gate import judge_run

        folder, settings = self.out.parent, None if self.log is None else LogSettings.from_dict(self.log)
        verdict = judge_run(folder, check_limits(self.limits), self.require)
        _tell("gate", f"{folder.parent.name} {folder.name}", verdict.decision, verdict.reasons)
        if settings is not None:
            self._log(call, replace(settings, run=folder.name), folder.parents[2])

    def _log(self, call: Call, settings: LogSettings, results: Path) -> None:
        """Let the DevLog have an entry of the verdict. What no entry can be made of, and a log that cannot be
        written, are said, and stop nothing: the verdict stands."""
        from fgod.devlog.log import lines, update

        try:
            added = update(settings, results)
        except (FgodError, OSError) as error:
            say(f"DevLog · no entry: {error}; `fgod devlog` adds it later")
            return
        if added.runs:
            call.note(outputs=[results / layout.DEVLOG.name])
        for fault in lines(replace(added, runs=())):
            say(fault)


def _tell(what: str, run: str, decision: str, reasons: Sequence[str]) -> None:
    say(f"{what} · {run} · {decision}")
    for reason in reasons:
        say(f"       {reason}")
