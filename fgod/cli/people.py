"""Commands that people use directly, and no rule of the workflow calls: new projects, plans, models, the guard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fgod import checkpoints, layout, records
from fgod.arguments import Input, Option, Output, PositiveInt
from fgod.call import Call, say
from fgod.cli.command import Personal, ReadOnly, check_new
from fgod.cli.options import Like
from fgod.errors import UsageError
from fgod.guard.command import GuardOptions
from fgod.imports import lasting_imports
from fgod.layout import RunRecords
from fgod.models.files import beside_weights
from fgod.project import DEFAULT, lay_out, next_commands, project_files
from fgod.runs import RUNS, all_runs, matching, name_of
from fgod.system.files import read_json, remove_folder, write_json
from fgod.system.lock import held

if TYPE_CHECKING:
    from fgod.chain import Run
    from fgod.experiments import Experiment


def chains_of(config_file: Path) -> dict[str, Experiment]:
    """The chains of a config by name, its own first."""
    from fgod.config import read_yaml
    from fgod.experiments import experiments_of

    return experiments_of(read_yaml(config_file), str(config_file))


@dataclass(frozen=True, kw_only=True)
class Init(Personal):
    """Lay out a project."""

    folder: Annotated[Path, Output("where to; nothing there is overwritten", "FOLDER", positional=True)]
    config: Annotated[str, Option("a config that comes with fgod (default: that of the default run)", "NAME")] = DEFAULT

    def outputs(self) -> list[Path]:
        return [self.folder / name for name in project_files(self.config)]

    def run(self, call: Call) -> None:
        files = project_files(self.config)
        lay_out(self.folder, files)
        where = "this folder" if self.folder.resolve() == Path.cwd() else self.folder
        print(f"In {where}: {', '.join(dict.fromkeys(Path(name).parts[0] for name in files))}. Next:")
        for command in next_commands(self.folder):
            print(f"    {command}")


CONFIG = Input("the config (default: config.yaml)")


@dataclass(frozen=True, kw_only=True)
class Plan(ReadOnly):
    """What snakemake would train, and why."""

    config: Annotated[Path, CONFIG] = Path("config.yaml")

    def run(self, call: Call) -> None:
        from functools import cache, partial

        from fgod.confirm.folds import Reservations
        from fgod.context import context_of
        from fgod.experiments import OWN
        from fgod.inputs import folds
        from fgod.outlook import Counted, said
        from fgod.plan import expected, plan, text, to_train, without_shared

        chains = chains_of(self.config)
        stands = {name: cache(partial(records.standing, one.config)) for name, one in chains.items()}
        candidates = records.candidates(expected(one.chain, stands[name]) for name, one in chains.items())
        reserved = Reservations(layout.RESULTS, folds(chains[OWN].config), candidates)
        planned: dict[Run, str] = {}
        counted = Counted()
        for name, one in chains.items():
            if name:
                print(f"\nExperiment {name}, starts from {one.starts_from}{f': {one.note}' if one.note else ''}")
            context = context_of(one.config, str(self.config), one.origin, name)
            found, closing = plan(one.chain, reserved, context, one.view, one.origin.base, stands[name])
            steps = list(without_shared(found, planned, one.words))
            print(text(steps, closing))
            for line in said({**one.config, "base": one.origin.base}, one.origin.id, to_train(steps), counted):
                print(line)


@dataclass(frozen=True, kw_only=True)
class DevLog(Personal):
    """Add what is missing to results/DevLog.md (exit 1: an entry could not be made)."""

    config: Annotated[Path, CONFIG] = Path("config.yaml")

    def run(self, call: Call) -> int:
        from fgod.config import load
        from fgod.devlog.log import lines, update
        from fgod.devlog.next_step import LogSettings

        added = update(LogSettings.of_config(load(self.config)))
        call.note(outputs=[layout.DEVLOG] if added.runs else [])
        for line in lines(added):
            print(line)
        print(f"{layout.DEVLOG}: {len(added.runs)} new entries")
        return 1 if added.faults else 0


@dataclass(frozen=True, kw_only=True)
class Retry(Personal):
    """Forget the killed runs of a stage, so that they train again."""

    stage: Annotated[str, Option("name of the stage", "STAGE", positional=True)]
    config: Annotated[Path, CONFIG] = Path("config.yaml")

    def run(self, call: Call) -> None:
        chains = chains_of(self.config).values()
        walked = (run for one in chains for run in one.chain.walk(records.decision).runs)
        runs = list({run.lineage: run for run in walked if run.stage == self.stage}.values())
        if not runs:
            names = ", ".join(dict.fromkeys(stage["name"] for one in chains for stage in one.config["stages"]))
            raise UsageError(f"{self.config}: no run of stage {self.stage!r} on record; the stages are {names}")
        killed = [run for run in runs if records.outcome_status(run) == records.KILLED]
        if not killed:
            found = ", ".join(f"{run.lineage} {records.decision(run) or 'pending'}" for run in runs)
            raise UsageError(f"stage {self.stage}: no killed run; found {found}. Only a kill depends on the machine; "
                             "any other run would end the same way again")  # fmt: skip
        for run in killed:
            for folder in records.forget(run):
                call.note(outputs=[folder])
                print(f"removed {folder}")


@dataclass(frozen=True, kw_only=True)
class Resume(Personal):
    """Let a training that was stopped go on with another number of GPUs, from its newest checkpoint."""

    run_name: Annotated[str, Option(f"a stopped run: {RUNS}", "RUN", positional=True)]
    gpus: Annotated[PositiveInt, Option("GPUs that share the run from here on")]

    def run(self, call: Call) -> None:
        from fgod.train.recipe import TrainRecipe, check_recipe

        every = {name_of(run): run for run in all_runs()}
        stopped = {name: run for name, run in every.items() if not run.outcome.exists() and self._saved(run)}
        run = stopped[matching(self.run_name, stopped, "stopped run with a checkpoint")]
        check_recipe(TrainRecipe.from_dict(read_json(run.recipe)["train"]), self.gpus)
        work = layout.work(run.folder.name)
        with held(work.lock):
            write_json(work.gpus, {"gpus": self.gpus})
        call.note(outputs=[work.gpus])
        print(f"{name_of(run)} goes on after step {self._saved(run)} with gpus: {self.gpus}, by snakemake")

    @staticmethod
    def _saved(run: RunRecords) -> int:
        return checkpoints.saved_step(layout.work(run.folder.name).folder)


@dataclass(frozen=True, kw_only=True)
class Import(Personal):
    """Turn a GGUF file or a TorchSharp state dict into a folder that can be a base."""

    file: Annotated[
        Path, Input("a dense chat model of a known family: a .gguf or a .dat file", "FILE", positional=True)
    ]
    out: Annotated[Path, Output("folder to write; never overwritten", "OUT", positional=True)]
    like: Like = None
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        Option("of the weights (default: bfloat16; of a .dat file float32, which rounds nothing)"),
    ] = None

    def inputs(self) -> list[Path]:
        return [*super().inputs(), *(beside_weights(self.like) if self.like else ())]

    def run(self, call: Call) -> None:
        with lasting_imports():
            from fgod.importing.file import import_file

        check_new(self.out)
        facts = import_file(self.file, self.out, self.like, self.dtype, say=say)
        say(f"{self.out}: {facts.architecture}, {facts.layers} layers, {facts.dtypes[0]}")


@dataclass(frozen=True, kw_only=True)
class Fetch(Personal):
    """Fetch a model from the Hugging Face hub."""

    repository: Annotated[str, Option("a dense chat model of a known family", "OWNER/NAME", positional=True)]
    folder: Annotated[Path | None, Output("folder to write (default: models/NAME)", "OUT", positional=True)] = None
    revision: Annotated[str, Option("branch, tag or commit (default: main)")] = "main"

    @property
    def out(self) -> Path:
        return self.folder or Path("models") / self.repository.rpartition("/")[2]

    def outputs(self) -> list[Path]:
        return [self.out]

    def run(self, call: Call) -> None:
        with lasting_imports():
            from fgod.importing.hub import fetch

        check_new(self.out)
        commit = fetch(self.repository, self.out, self.revision, say=say)
        say(f"{self.out}: {self.repository} at {commit}")


@dataclass(frozen=True, kw_only=True)
class Inspect(ReadOnly):
    """What a folder of weights, a GGUF or a TorchSharp file holds."""

    folder: Annotated[
        Path,
        Input("master/ or an export of a run, any model folder, a .gguf or a .dat file", "FOLDER", positional=True),
    ]

    def run(self, call: Call) -> None:
        with lasting_imports():
            from fgod.inspected import text

        print(text(self.folder))


@dataclass(frozen=True, kw_only=True)
class Recover(Personal):
    """Make the folder ready for `snakemake` after kills: unlock it, clear up what was left half-written."""

    def run(self, call: Call) -> None:
        from fgod.system.clear import cleared
        from fgod.system.lock import held

        if not Path(".snakemake").is_dir():
            raise UsageError(f"{Path.cwd()}: no .snakemake here, so nothing ran; expected the folder of the Snakefile")
        with held(layout.RUNNING):  # names the snakemake that is at work
            locks = layout.LOCKS
            if locks.is_dir() and any(locks.iterdir()):
                remove_folder(locks)
                call.note(outputs=[locks])
                print("removed the lock that a killed snakemake left (as `snakemake --unlock` does)")
            for work in layout.WORK.glob("*/lock"):
                with held(work, "this training"):
                    pass
            said = cleared(layout.AT_WORK, layout.ARTIFACTS, layout.RESULTS)
            call.note(cleared=said)
            for done in said:
                print(done)
        print("Ready: run snakemake again. What is finished is not made again.")


@dataclass(frozen=True, kw_only=True)
class Guard(Personal, GuardOptions):
    """Run a command under a memory limit (exit 75: killed)."""

    @property
    def recorded(self) -> bool:
        return self.record or super().recorded

    def run(self, call: Call) -> int:
        ended = self.ended()
        call.note(guard=ended.facts())
        return ended.exit_code
