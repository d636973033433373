"""All paths of results/ and artifacts/, relative to the project's folder. No file is read or written here.

Nothing else spells such a path. The rules of the workflow pass wildcards in braces where commands pass names.

    results/runs/{stage}/{lineage}/    a run's records                        RunRecords
    results/confirmations/{stage}/{lineage}/    of a candidate                ConfirmationRecords
    results/base/{base_id}/            what its own probes measured           base_records
    results/abilities/{stage}/         what its runs can do, by lineage       abilities
    artifacts/{stage}/{lineage}/       its weights                            RunWeights
    artifacts/work/{lineage}/          scratch of its training                Work
    artifacts/base/{base_id}/          the base, its exports, its answers     Base, Answers, SelfAsked
    artifacts/mixes/{mix}/             training rows and their audit          Mix, Teacher
    artifacts/releases/{number}/       what was released, each written once   Releases
    artifacts/releases/{experiment}/{number}/    of an experiment
    results/experiments/{experiment}/  what is told of an experiment          View
    artifacts/.trash/{stage}/{lineage}/    weights that were thrown away      trashed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgod.exporters.exporter import EXPORTERS
from fgod.exporters.names import NVFP4
from fgod.recipes import is_placebo
from fgod.system.files import digest

RESULTS = Path("results")
ARTIFACTS = Path("artifacts")
WORK = ARTIFACTS / "work"
CONFIRMATIONS = RESULTS / "confirmations"
EXPERIMENTS = "experiments"
"""Folder of results/ with what is told of each experiment."""
CAMPAIGN = RESULTS / "experiments.tsv"
"""All experiments side by side."""
CAMPAIGN_REPORT = RESULTS / "experiments.html"
"""The same as a page."""
DEVLOG = RESULTS / "DevLog.md"
"""No output of a rule: snakemake deletes these before it makes them, and people write into this."""
MANIFEST_FOLDER = RESULTS / "manifest.d"
MANIFEST = RESULTS / "manifest.jsonl"
PINS = RESULTS / "pins.json"
INVENTORY, INVENTORY_TABLE = RESULTS / "inventory.md", RESULTS / "inventory.tsv"
LOCKS = Path(".snakemake/locks")
"""Snakemake's own lock, as files: they stay when it is killed."""
DEVLOG_LOCK = Path(".snakemake/fgod/devlog")
"""Locked by who adds to the DevLog."""
RUNNING = Path(".snakemake/fgod/running")
"""Locked by the snakemake that is at work here, as long as it lives."""
AT_WORK = Path(".snakemake/fgod/at-work")
"""Locked by every command of the workflow, on whatever node, together; alone by who clears up after kills."""
SESSION = Path(".snakemake/fgod/session.json")
"""What the snakemake that is or was last at work here expects to do (`fgod.session`)."""

TRASH = ".trash"
"""Folder of artifacts/ with weights that were thrown away, each below the path that it came from."""

NOT_STAGES = ("base", "mixes", "work", "release", "releases", TRASH)
"""Folders of artifacts/ that are no stage's, so no stage has such a name."""


@dataclass(frozen=True)
class RunRecords:
    """What is on record about a run: results/runs/{stage}/{lineage}/."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def mix_audit(self) -> Path:
        return self.folder / "mix_audit.json"

    @property
    def outcome(self) -> Path:
        return self.folder / "outcome.json"

    @property
    def training(self) -> Path:
        return self.folder / "train.tsv"

    @property
    def efficiency(self) -> Path:
        return self.folder / "efficiency.tsv"

    @property
    def guard(self) -> Path:
        return self.folder / "guard.tsv"

    @property
    def participation(self) -> Path:
        return self.folder / "participation.tsv"

    @property
    def probes(self) -> Path:
        return self.folder / "probes.tsv"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def verdict(self) -> Path:
        return self.folder / "verdict.json"

    @property
    def served(self) -> Path:
        """That transformers alone computes from its export what was probed; of a candidate."""
        return self.folder / "served.json"

    def engine(self, engine: str, format: str) -> Path:
        """What an engine said to the probes, of its weights in a further format; of a candidate."""
        return self.folder / f"engine-{engine}-{format}.json"

    def engine_probes(self, engine: str, format: str) -> Path:
        """Its replies."""
        return self.engine(engine, format).with_suffix(".tsv")

    @property
    def trashed(self) -> Path:
        """What of its weights was moved to the trash."""
        return self.folder / "trashed.json"

    @property
    def training_tables(self) -> tuple[Path, ...]:
        """The tables of a training. They are made in its work folder, and copied here when it has an outcome."""
        return self.training, self.efficiency, self.guard, self.participation

    @property
    def judged(self) -> tuple[Path, ...]:
        """What the gate reads."""
        return self.outcome, self.metrics, self.probes


@dataclass(frozen=True)
class ConfirmationRecords:
    """How a candidate did on wordings that were held back: results/confirmations/{stage}/{lineage}/."""

    folder: Path

    @property
    def probes(self) -> Path:
        return self.folder / "probes.tsv"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def confirmation(self) -> Path:
        return self.folder / "confirmation.json"

    @property
    def judged(self) -> tuple[Path, ...]:
        """What its decision is made of."""
        return self.metrics, self.probes


@dataclass(frozen=True)
class Export:
    """Folders of weights in formats of `fgod.registry.EXPORTERS`, each with its stamp beside it."""

    folder: Path

    @property
    def stamp(self) -> Path:
        """The stamp of those that the workflow exports."""
        return self.stamp_of(NVFP4)

    def stamp_of(self, format: str) -> Path:
        """The stamp of the weights in the format of this name."""
        return self.folder / ("exported.json" if format == NVFP4 else f"exported-{format}.json")

    def of(self, format: str) -> Path:
        """The weights in the format of this name."""
        return self.folder / format

    def stamps(self) -> dict[Path, Path]:
        """The stamps that are there, by the folders of weights that they speak of."""
        further = {path.stem.removeprefix("exported-"): path for path in sorted(self.folder.glob("exported-*.json"))}
        own = {NVFP4: self.stamp} if self.stamp.exists() else {}
        return {self.of(name): path for name, path in (own | further).items()}

    @property
    def exported(self) -> Path:
        """Those that the workflow exports."""
        return self.of(NVFP4)


@dataclass(frozen=True)
class RunWeights(Export):
    """A run's weights: artifacts/{stage}/{lineage}/, the training's and the export of them."""

    @property
    def trained(self) -> Path:
        return self.folder / "trained.json"

    @property
    def master(self) -> Path:
        return self.folder / "master"

    @property
    def trash(self) -> Path:
        """Where its folders of weights lie after they were thrown away."""
        return self.folder.parents[1] / TRASH / self.folder.parent.name / self.folder.name


@dataclass(frozen=True)
class Work:
    """Scratch of a training, which a stopped one goes on from: artifacts/work/{lineage}/. Checkpoints lie here too."""

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def records(self) -> RunRecords:
        """The records of the training before they are copied to the run's."""
        return RunRecords(self.folder / "records")

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def phase(self) -> Path:
        return self.folder / "phase"

    @property
    def gpus(self) -> Path:
        """How many GPUs a stopped run goes on with, where `fgod resume` said another number than its recipe's."""
        return self.folder / "gpus.json"

    @property
    def guard_reason(self) -> Path:
        return self.folder / "reason.json"


@dataclass(frozen=True)
class Answers:
    """Replies of the base to many prompts."""

    folder: Path

    @property
    def table(self) -> Path:
        return self.folder / "answers.tsv"

    @property
    def stamp(self) -> Path:
        return self.folder / "answers.json"

    @property
    def harness(self) -> Path:
        return self.folder / "harness.json"


@dataclass(frozen=True)
class SelfAsked:
    """Prompts that the base asked of its own accord."""

    folder: Path

    @property
    def table(self) -> Path:
        return self.folder / "prompts.tsv"

    @property
    def stamp(self) -> Path:
        return self.folder / "prompts.json"


@dataclass(frozen=True)
class Base:
    """The original weights: artifacts/base/{base_id}/."""

    folder: Path

    @property
    def stamp(self) -> Path:
        return self.folder / "base.json"

    @property
    def master(self) -> Path:
        return self.folder / "master"

    def export(self, dtype: str) -> Export:
        """Its export with what stays unquantised in `dtype`."""
        return Export(self.folder / dtype)

    def answers(self, digest: str) -> Answers:
        """Its answers to the prompts and settings of this digest."""
        return Answers(self.folder / "answers" / digest)

    def self_asked(self, digest: str) -> SelfAsked:
        """The prompts that it asked itself by the settings of this digest."""
        return SelfAsked(self.folder / "self_asked" / digest)

    def all_answers(self) -> list[Answers]:
        """All its answers that are there."""
        return [Answers(folder) for folder in sorted((self.folder / "answers").iterdir())]


@dataclass(frozen=True)
class Mix:
    """The rows of a mix and their audit: artifacts/mixes/{mix}/."""

    folder: Path

    @property
    def rows(self) -> Path:
        return self.folder / "rows.tsv"

    @property
    def stamp(self) -> Path:
        return self.folder / "mix.json"

    def audit(self, seq_len: int | str) -> Path:
        """The audit of its rows for stages with so many tokens a row."""
        return self.folder / f"audit-{seq_len}.json"

    def teacher(self, digest: str) -> Teacher:
        """The base's distributions over its rehearsed rows, asked by the settings of this digest."""
        return Teacher(self.folder / f"teacher-{digest}")


PLACEBO = "-placebo"
"""Ends the name of a mix whose taught rows have the base's own answers (`fgod.placebo`)."""

SOFT_LABELS = "soft.safetensors"


@dataclass(frozen=True)
class Teacher:
    """The base's distributions at the labels of a mix's rehearsed rows: artifacts/mixes/{mix}/teacher-{digest}/."""

    folder: Path

    @property
    def stamp(self) -> Path:
        return self.folder / "teacher.json"

    @property
    def soft_labels(self) -> Path:
        return self.folder / SOFT_LABELS


@dataclass(frozen=True)
class View:
    """What is told of one chain of runs: of the config's own in results/, of an experiment in
    results/experiments/NAME/. The runs themselves belong to no chain."""

    folder: Path

    @property
    def walk(self) -> Path:
        return self.folder / "walk.json"

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    @property
    def context(self) -> Path:
        return self.tables / "context.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def comparison(self) -> Path:
        return self.folder / "comparison.tsv"

    @property
    def experiment(self) -> str:
        """The name of the experiment; empty of the config's own chain."""
        return self.folder.name if self.folder.parent.name == EXPERIMENTS else ""

    @property
    def results(self) -> Path:
        """The folder results/ that it lies in, or is."""
        return self.folder.parent.parent if self.experiment else self.folder


def view(experiment: str = "", results: Path = RESULTS) -> View:
    """What is told of an experiment; of the config's own chain without a name."""
    return View(results / EXPERIMENTS / experiment if experiment else results)


def views(results: Path = RESULTS) -> list[View]:
    """The chains of which something is told: the config's own first, then the experiments by name."""
    found = [view("", results), *(View(path) for path in sorted((results / EXPERIMENTS).glob("*")) if path.is_dir())]
    return [one for one in found if one.walk.exists()]


RELEASE_RECORD = "release.json"
NEWEST = "newest"
"""The link to the release of an experiment that counts."""
FORMATS = "formats"
"""Folder of a release: its weights in further formats, each in a folder of the format's name."""


@dataclass(frozen=True)
class Releases:
    """The releases of a chain, each written once, and the link to the one that counts.

    Of the config's own chain artifacts/releases/N/ and artifacts/release; of an experiment artifacts/releases/NAME/N/
    and artifacts/releases/NAME/newest.
    """

    results: Path = RESULTS
    artifacts: Path = ARTIFACTS
    experiment: str = ""

    @property
    def record(self) -> Path:
        """A copy of the record of the release that counts."""
        return view(self.experiment, self.results).folder / RELEASE_RECORD

    @property
    def promoted(self) -> Path:
        """What the rule promote declares as its output: snakemake deletes it before it promotes, and nothing else."""
        return view(self.experiment, self.results).folder / "promoted.json"

    @property
    def history(self) -> Path:
        """The folder of the numbered releases."""
        return self.artifacts / "releases" / self.experiment

    @property
    def link(self) -> Path:
        return self.history / NEWEST if self.experiment else self.artifacts / "release"

    @property
    def current(self) -> Path:
        """The record of the release that counts, beside its weights."""
        return self.link / RELEASE_RECORD

    def records(self) -> list[Path]:
        """The records of its releases, whether they count or not, oldest first."""
        found = [path for path in self.history.glob(f"[0-9]*/{RELEASE_RECORD}") if path.parent.name.isdecimal()]
        of_older_version = [self.current] if self.current.exists() and not self.link.is_symlink() else []
        return [*sorted(found, key=lambda path: int(path.parent.name)), *of_older_version]

    def next_folder(self) -> Path:
        """Where the next release goes."""
        taken = [int(path.name) for path in self.history.glob("[0-9]*") if path.name.isdecimal()]
        return self.history / str(max(taken, default=0) + 1)


def all_releases(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> list[Releases]:
    """Those of the config's own chain, and of each experiment that has some, by name."""
    named = sorted({path.parents[1].name for path in (artifacts / "releases").glob(f"*/[0-9]*/{RELEASE_RECORD}")})
    return [Releases(results, artifacts), *(Releases(results, artifacts, name) for name in named)]


def all_release_records(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> list[Path]:
    """The records of all releases of all chains, whether they count or not."""
    return [record for places in all_releases(results, artifacts) for record in places.records()]


def run_records(stage: str, lineage: str, results: Path = RESULTS) -> RunRecords:
    """The records of a run."""
    return RunRecords(results / "runs" / stage / lineage)


def confirmation_records(stage: str, lineage: str, results: Path = RESULTS) -> ConfirmationRecords:
    """The records of a candidate's confirmation."""
    return ConfirmationRecords(results / CONFIRMATIONS.name / stage / lineage)


def all_confirmations(results: Path = RESULTS) -> Iterator[ConfirmationRecords]:
    """The confirmations of all candidates that were asked."""
    found = (results / CONFIRMATIONS.name).glob("*/*/metrics.json")
    return (ConfirmationRecords(path.parent) for path in sorted(found))


def folds(results: Path = RESULTS) -> Path:
    """The record of which candidate was asked which fold of the held-back wordings."""
    return results / CONFIRMATIONS.name / "folds.json"


def reserved_folds(results: Path = RESULTS) -> Path:
    """Which candidate will be asked which fold. No record of what was: who is asked moves to `folds`."""
    return results / CONFIRMATIONS.name / "reserved.json"


def lineage_of(recipe: Mapping[str, Any]) -> str:
    """The name of a run: the digest of its recipe, and for an interpolated one the α at which its weights lie."""
    alpha = recipe.get("interpolate")
    return digest(recipe) if alpha is None else f"{digest(recipe)}-{alpha:g}"


def at_alpha(stage: str, alpha: float | None) -> str:
    """The name of a run of a stage: `B`, or `B at α 0.5` for an interpolated one."""
    return stage if alpha is None else f"{stage} at α {alpha:g}"


def abilities(stage: str, lineage: str, results: Path = RESULTS) -> Path:
    """What a run can do beside the base; its table lies beside it."""
    return results / "abilities" / stage / f"{lineage}.json"


def base_records(base_id: str, form: str, results: Path = RESULTS) -> RunRecords:
    """What the probes measured of the base itself: metrics.json and probes.tsv. `form`: plain or rounded."""
    return RunRecords(results / "base" / base_id / form)


def mix_of(recipe: Mapping[str, Any]) -> Mix:
    """The mix whose rows a run of this recipe is trained on."""
    return mix(f"{digest(recipe['mix'])}{PLACEBO if is_placebo(recipe) else ''}")


def recipes(stage: str, results: Path = RESULTS) -> Iterator[Path]:
    """The recipes on record of all runs of a stage."""
    return (results / "runs" / stage).glob("*/recipe.json")


def run_weights(stage: str, lineage: str, artifacts: Path = ARTIFACTS) -> RunWeights:
    """The weights of a run."""
    return RunWeights(artifacts / stage / lineage)


def work(lineage: str, artifacts: Path = ARTIFACTS) -> Work:
    """The scratch of a training."""
    return Work(artifacts / WORK.name / lineage)


def base(base_id: str) -> Base:
    """The base of this id."""
    return Base(ARTIFACTS / "base" / base_id)


def mix(digest: str) -> Mix:
    """The mix of this digest."""
    return Mix(ARTIFACTS / "mixes" / digest)


def remade_by_deleting(weights: Path) -> str:
    """What a person does about a folder of weights that is not what it was."""
    if weights == Export(weights.parent).exported:
        return f"delete {Export(weights.parent).stamp} and run snakemake again to export them anew"
    if weights.name in EXPORTERS:
        stamp = Export(weights.parent).stamp_of(weights.name)
        return (
            f"delete {stamp} and export them again: by snakemake where release.formats has {weights.name}, else with "
            f"`fgod export --format {weights.name} --out {stamp}`"
        )
    return f"delete {weights.parent} and run snakemake again to make them anew"


def run_of_path(path: Path) -> tuple[str, str]:
    """Stage and lineage of a path of a run's records, confirmation or artifacts, both empty for any other."""
    match path.parts:
        case (RESULTS.name, "runs" | "confirmations", stage, lineage, _, *_):
            return stage, lineage
        case (RESULTS.name, "abilities", stage, file):
            return stage, Path(file).stem
        case (ARTIFACTS.name, name, stage, lineage, _, *_) if name == TRASH:
            return stage, lineage
        case (ARTIFACTS.name, stage, lineage, _, *_) if stage not in NOT_STAGES:
            return stage, lineage
    return "", ""
