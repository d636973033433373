"""Commands that make a run's weights: its recipe, its training, weights between the start and the end of one."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fgod import layout
from fgod.arguments import Input, JsonObject, NonNegativeFloat, NonNegativeInt, Option, Output, PositiveInt
from fgod.call import Call, say
from fgod.cli.command import Command, Guarded
from fgod.cli.options import LANGUAGES, Gpus
from fgod.documents import Outcome, Stamp, check_interpolation, check_teacher, check_training_data
from fgod.errors import UsageError
from fgod.guard.limits import RANK_SECS, Limits
from fgod.layout import RunRecords, RunWeights
from fgod.stamps import check_start, digests_of
from fgod.system.files import copy_file, file_digests, read_json, sha256_file, write_json
from fgod.system.stop import exit_on_fgod_error

if TYPE_CHECKING:
    from fgod.cli.work.worker import Work

RECORDS = Output("outcome.json to write, beside the run's tables")
STAMP = Output("trained.json to write, beside master/")
START = Input("the stamp that holds their digest")
AUDIT = Input("audit.json of the mix")

CHECKED = "for train.check"
INSTEAD = "instead of training"


@dataclass(frozen=True, kw_only=True)
class Recipe(Command):
    """Write a run's recipe."""

    json: Annotated[JsonObject, Option("the recipe")]
    out: Annotated[Path, Output("recipe.json to write")]

    def run(self, call: Call) -> None:
        write_json(self.out, self.json)


class ExplainMemory(argparse.Action):
    """Needs --recipe and --weights alone, given before it, and ends the program as --help does."""

    def __init__(self, option_strings: list[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        if namespace.recipe is None or namespace.weights is None:
            parser.error("--explain-memory: expected --recipe FILE --weights FOLDER before it")
        with exit_on_fgod_error():
            print(explained_memory(namespace.recipe, namespace.weights))
        parser.exit()


def explained_memory(recipe_file: Path, weights: Path) -> str:
    """What training by a recipe will need in memory, part by part, without loading anything.

    On the device that would train here; every row as long as `seq_len`, half of it answer.
    """
    from fgod.model.load import read_config
    from fgod.system.procfs import resident_mib
    from fgod.train.device.settings import choose_device
    from fgod.train.memory import MIB, explain
    from fgod.train.recipe import TrainRecipe
    from fgod.train.stage import prediction  # which makes this process as large as one that trains

    found = read_json(recipe_file)
    recipe = TrainRecipe.from_dict(found.get("train", found))
    config, device = read_config(weights), choose_device(recipe, say)
    rows, width = recipe.micro_batch or recipe.batch, recipe.seq_len
    predicted = prediction(config, recipe, device, rows, width, rows * width // 2, int(resident_mib() * MIB))
    return explain(weights, config, recipe, predicted)


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train one stage under the guard. Trained, killed by the guard and diverged are outcomes; all else is an error.

    `fgod.cli.work.train` starts the trainer and makes an outcome of how it ends.
    """

    recipe: Annotated[Path, Input("recipe.json")]
    weights: Annotated[Path, Input("folder of the weights to start from")]
    start: Annotated[Path, START]
    rows: Annotated[Path, Input("rows.tsv of the mix")]
    audit: Annotated[Path, AUDIT]
    outcome: Annotated[Path, RECORDS]
    stamp: Annotated[Path, STAMP]
    teacher: Annotated[Path | None, Input("teacher.json of these rows, for train.kl")] = None
    tokens_of: Annotated[
        Path | None, Option("folder of the base, whose tokenizer weights of another origin must have", "FOLDER")
    ] = None
    probes: Annotated[tuple[Path, ...], Input("files of probes", group=CHECKED)] = ()
    sources: Annotated[Path | None, Input("folder of the written sources", group=CHECKED)] = None
    languages: Annotated[tuple[str, ...], replace(LANGUAGES, group=CHECKED)] = ()
    goal: Annotated[JsonObject | None, Option("persona and disambiguation", group=CHECKED)] = None
    guard: Limits
    too_large_ok: Annotated[
        bool, Option("start even if more memory is predicted than the limit: only the guard still protects")
    ] = False
    fit: Annotated[NonNegativeInt, Option("shown in its progress")] = 0
    checkpoint_secs: Annotated[NonNegativeFloat, Option("a checkpoint this often (0: none by time)", "S")] = 0.0
    checkpoint_steps: Annotated[NonNegativeInt, Option("and after this many steps (0: none by count)")] = 0
    rank_secs: Annotated[
        NonNegativeFloat, Option("seconds that GPUs wait for one that shares the run (default %(default)g)", "S")
    ] = RANK_SECS
    memory_report: Annotated[
        Path | None,
        Output(
            "train a few steps under the guard, write the memory of each phase to FILE (TSV) and leave nothing else",
            "FILE",
            group=INSTEAD,
        ),
    ] = None
    steps: Annotated[PositiveInt | None, Option("steps of a --memory-report (default 1)", group=INSTEAD)] = None
    explain_memory: Annotated[
        bool,
        Option(
            "print the predicted memory of --recipe on --weights (a folder with a config.json) and stop",
            group=INSTEAD,
            action=ExplainMemory,
        ),
    ] = False

    @property
    def master(self) -> Path:
        """The folder of weights that it makes."""
        return RunWeights(self.stamp.parent).master

    def inputs(self) -> list[Path]:
        soft_labels = [layout.Teacher(self.teacher.parent).soft_labels] if self.teacher else []
        return [*super().inputs(), layout.Mix(self.rows.parent).stamp, *soft_labels]

    def outputs(self) -> list[Path]:
        if self.memory_report:
            return [self.memory_report]
        run = RunRecords(self.outcome.parent)
        return [self.outcome, *run.training_tables, run.mix_audit, self.stamp, self.master]

    def run_of(self) -> tuple[str, str]:
        return layout.run_of_path(self.outcome)

    def run(self, call: Call) -> int | None:
        from fgod.cli.work.train import report_memory, train

        if self.steps is not None and not self.memory_report:
            raise UsageError(
                "--steps: only with --memory-report; a stage trains as long as its recipe says (train.steps)"
            )
        check_start(self.weights, self.start)
        if self.tokens_of:
            from fgod.model.load import check_same_tokens

            check_same_tokens(self.weights, self.tokens_of)
        if self.memory_report:
            return report_memory(self, call)
        check_training_data(self.recipe, self.outcome.parent.name, layout.Mix(self.rows.parent), self.audit)
        if self.teacher is not None:
            check_teacher(layout.Teacher(self.teacher.parent), sha256_file(self.rows))
        train(self, call)
        return None


@dataclass(frozen=True, kw_only=True)
class Interpolate(Guarded):
    """Write the weights between the start and the end of a trained run; its records are those of a run."""

    recipe: Annotated[Path, Input("recipe.json, with interpolate")]
    weights: Annotated[Path, Input("folder of the weights that the training started from")]
    start: Annotated[Path, START]
    end: Annotated[Path, Input("trained.json of the training, beside master/")]
    trained: Annotated[Path, Input("outcome.json of the training")]
    audit: Annotated[Path, AUDIT]
    outcome: Annotated[Path, RECORDS]
    stamp: Annotated[Path, STAMP]
    gpus: Gpus = 0

    @property
    def records(self) -> RunRecords:
        """The records of the run that it makes."""
        return RunRecords(self.outcome.parent)

    @property
    def master(self) -> Path:
        """The folder of weights that it makes."""
        return RunWeights(self.stamp.parent).master

    @property
    def end_master(self) -> Path:
        """The weights at the end of the training."""
        return RunWeights(self.end.parent).master

    def inputs(self) -> list[Path]:
        return [*super().inputs(), self.end_master, RunRecords(self.trained.parent).participation]

    def outputs(self) -> list[Path]:
        return [
            self.outcome, *self.records.training_tables, self.records.mix_audit, self.stamp, self.master,
        ]  # fmt: skip

    def run(self, call: Call) -> None:
        from fgod.train.record import write_interpolated

        run = self.records
        check_interpolation(self.recipe, run.folder.name, self.end.parent.name)
        check_start(self.weights, self.start)
        check_start(self.end_master, self.end)
        begin = time.perf_counter()
        facts = self.supervised(call, f"the interpolation of {run.folder}", gpu=self.gpus > 0)
        trained = RunRecords(self.trained.parent)
        write_interpolated(run, trained, facts["changed"])
        copy_file(self.audit, run.mix_audit)
        run.trashed.unlink(missing_ok=True)  # of weights that were thrown away before: these are new
        before = Outcome.read(trained.outcome)
        found = {**digests_of(self.master), "cpu": before.cpu, "device": before.device}
        Stamp(status="trained", **found).write(self.stamp)
        Outcome(
            status="trained",
            steps_done=0,
            wall_s=round(time.perf_counter() - begin, 3),
            full_parameter=before.full_parameter,
            partial=before.partial,
            tables_sha256=file_digests(run.folder, run.training_tables),
            **found,
        ).write(self.outcome)

    def work(self) -> Work:
        from fgod.cli.work.weights import interpolate

        return partial(interpolate, self)
