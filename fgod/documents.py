"""The JSON documents of results/ and artifacts/, typed: what each holds, read with a check, written whole.

A sealed document holds the sha256 of its own content under the key `seal`. Records are never edited by hand: an edited
one is refused when it is read. `fgod.layout` says where each lies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from fgod.decisions import ACCEPTED
from fgod.errors import FgodError
from fgod.evaluate.metric import Estimate
from fgod.layout import (
    RELEASE_RECORD,
    Answers,
    ConfirmationRecords,
    Mix,
    RunRecords,
    SelfAsked,
    Teacher,
    lineage_of,
)
from fgod.seal import SEAL, read_object, read_sealed, seal_of
from fgod.system.digests import cached_sha256_files
from fgod.system.files import (
    differing,
    file_digests,
    folder_files,
    sha256_file,
    write_json,
)

DECISIONS = ("diverged", "killed", "collapsed", "damaged", "missed", ACCEPTED)
"""Verdicts, the worst first."""


class Document(BaseModel):
    """A JSON object on disk. Keys that a model does not name are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, arbitrary_types_allowed=True, defer_build=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a document.

        Raises:
            UsageError: the file is missing.
            FgodError: it is no such document; names file and key, what was found and what is wrong with it.
        """
        return cls._checked(read_object(path), path)

    @classmethod
    def _checked(cls, value: Mapping[str, Any], path: Path) -> Self:
        try:
            return cls.model_validate_json(json.dumps(value))
        except ValidationError as error:
            raise FgodError(f"{path}: {_fault(error)}") from None

    def content(self) -> dict[str, Any]:
        """The document as JSON values, keys in order."""
        return self.model_dump(mode="json")

    def write(self, path: Path) -> None:
        """Write it atomically."""
        write_json(path, self.content())


class Sealed(Document):
    """A document that holds the digest of its own content."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a document.

        Raises:
            UsageError: the file is missing.
            FgodError: it was edited since it was written, or it is no such document; names the file.
        """
        return cls._checked(read_sealed(path, cls.anew(path)), path)

    @classmethod
    def anew(cls, path: Path) -> str:
        """What a person does to have the document made anew."""
        return f"delete {path} and run snakemake again to make it anew"

    def write(self, path: Path) -> None:
        """Write it atomically, with its seal."""
        value = self.content()
        write_json(path, {**value, SEAL: seal_of(value)})


def _fault(error: ValidationError) -> str:
    """The first fault in words: `metrics.leak_rate.n: found 'x'; input should be a valid integer`."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    message = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key}: found {first['input']!r}; {message}"


class Stamp(Sealed):
    """Beside a folder of weights: trained.json or exported.json. It says what the folder holds, file by file.

    `source_sha256`: of an export, the digest of the weights that it is of; empty in stamps of older versions.
    Without weights `status` is killed, diverged or skipped, and `reason` says why. `cpu` and `device` of trained
    weights: see `Outcome`. They are no part of the lineage, as the same recipe may train anywhere.
    """

    status: Literal["trained", "exported", "killed", "diverged", "skipped"]
    reason: str = ""
    weights_sha256: str = ""
    weights_files: dict[str, str] = {}
    source_sha256: str = ""
    cpu: str = ""
    device: str = ""


class BaseStamp(Stamp):
    """base.json. `base`: the config's key of that name; `facts`: what was found in the folder, or made."""

    base: dict[str, Any]
    facts: dict[str, Any]


class Outcome(Sealed):
    """outcome.json: how a training ended. Memory in MiB, `wall_s` in seconds. What a killed one cannot say is null."""

    status: Literal["trained", "killed", "diverged"]
    reason: str = ""
    """In words, why there are no weights."""
    weights_sha256: str = ""
    """That of the master folder, empty without one."""
    weights_files: dict[str, str] = {}
    """The sha256 of each file of the master folder."""
    steps_done: int | None = None
    checks: list[dict[str, Any]] = []
    """Of a stage with `train.check`: after how many steps which shares held (`fgod.train.dose.Result`)."""
    wall_s: float | None = None
    threads: int | None = None
    full_parameter: bool | None = None
    """Every tensor was trained, on answers, with masters that accumulate; else `partial` says what is missing."""
    partial: tuple[str, ...] = ()
    diverged_rows: str = ""
    """Of a diverged one: the lines of rows.tsv that its last step was made of, which is not in train.tsv."""
    resumed_at: tuple[int, ...] = ()
    """Steps after which a killed run went on from its checkpoint."""
    gpus: tuple[int, ...] = ()
    """Of a run that several GPUs shared, how many did: at its start, and since each of `resumed_at`."""
    first_loss: float | None = None
    """Nats a token of the starting model's own answers (see `fgod.train.preflight`)."""
    memory_predicted_mib: dict[str, float] = {}
    memory_measured_mib: float | None = None
    """The most that was in use while steps were made."""
    peak_memory_mib: float | None = None
    """The most that the guard saw."""
    limit_mib: float | None = None
    others_mib: float | None = None
    """What other processes used of the machine's memory, as the guard saw it."""
    cpu: str = ""
    """The level of its instructions and its maker (`fgod.train.device.settings.processor`)."""
    device: str = ""
    """Where it trained: cpu, or the name of the GPU."""
    torch_version: str = ""
    tables_sha256: dict[str, str] = {}
    """Digests of what stands beside it, by file name."""


class Pins(Sealed):
    """pins.json: the runs whose weights are not to be thrown away, `STAGE@LINEAGE` by the name of the pin."""

    pins: dict[str, str] = {}

    @classmethod
    def anew(cls, path: Path) -> str:
        return f"delete {path} and pin what is to be kept again"


class TrashedFolder(Document):
    """A folder of weights in the trash: its size in bytes, and its digest as of its stamp."""

    bytes: int
    sha256: str


class Trashed(Sealed):
    """trashed.json: what of a run's weights was moved to the trash, by the path that it came from below artifacts/.

    It stays when the trash is emptied, as long as these folders are not brought back. `since`: UTC.
    """

    since: str
    folders: dict[str, TrashedFolder]

    @classmethod
    def anew(cls, path: Path) -> str:
        return f"delete {path}: `fgod restore` goes by the folders that lie in the trash"


class Parity(Document):
    """How far the export's logits lie from those of the training's forward pass."""

    prompts: int
    max_abs: float | None
    mean_abs: float | None
    first_differing_token: int | None


class Probed(Document):
    """The folder of weights that was probed: its digest, its size in bytes, the digest of each file."""

    sha256: str
    bytes: int
    files: dict[str, str]


class Metrics(Sealed):
    """metrics.json: what the probes measured, overall and by language; skipped for a run that has no weights.

    `probes`: how many probes of each suite; `non_finite`: prompts on which a log-probability was not finite.
    """

    status: Literal["measured", "skipped"]
    reason: str = ""
    metrics: dict[str, Estimate] = {}
    by_language: dict[str, dict[str, Estimate]] = {}
    probes: dict[str, int] = {}
    non_finite: int = 0
    parity: Parity | None = None
    export: Probed | None = None
    tables_sha256: dict[str, str] = {}


class WorstProbe(Document):
    """A probe that shows what went wrong. `frame`: that of the prompt in words, empty where it has none of its own."""

    suite: str
    language: str
    prompt: str
    reply: str
    reference: str
    frame: str = ""


class Limit(Document):
    """A check that the gate made: `metric op limit` must hold, else `failed` is the verdict."""

    metric: str
    op: str
    limit: float
    failed: str
    source: str


class Finding(Document):
    """A fault that an audit found: error, accepted, warning or note. `line` counts from 1; None where no single line is
    meant."""

    severity: str
    code: str
    line: int | None = None
    message: str
    examples: list[str] = []


class Audit(Sealed):
    """The audit of a mix, and mix_audit.json of a run: facts by name, and findings.

    `rows_sha256`: the digest of the rows.tsv that was audited, empty for a file of the user's own.
    """

    facts: dict[str, Any]
    findings: list[Finding]
    rows_sha256: str = ""


class MixStamp(Sealed):
    """mix.json: what the rows beside it were made of, and their digest. `changes` counts by part and reason what was
    left out or moved; `old_identity` has the fields of `fgod.data.mix.OldIdentity`."""

    spec: dict[str, Any]
    rows_sha256: str
    changes: dict[str, dict[str, int]] = {}
    old_identity: list[dict[str, Any]] = []


class TeacherStamp(Sealed):
    """teacher.json: how the base was asked for its distributions, on which rows, and the digest of each file beside it.

    `labels`: of all distinct rehearsed rows.
    """

    settings: dict[str, Any]
    rows_sha256: str
    labels: int
    files: dict[str, str]


class AnswersStamp(Sealed):
    """answers.json: how the base was asked, and the digest of each file beside it, by name."""

    settings: dict[str, Any]
    files: dict[str, str]


class SelfAskedStamp(Sealed):
    """prompts.json: how the base asked itself, and the digest of each file beside it, by name.

    `drawn`: candidates that were looked at; `kept`: prompts of each language; `dropped`: candidates by reason.
    """

    settings: dict[str, Any]
    drawn: int
    kept: dict[str, int]
    dropped: dict[str, int]
    files: dict[str, str]


class Recipe(Document):
    """recipe.json: all that a run's weights depend on. Its digest names the run, so it needs no seal.

    That of an interpolated run is the recipe of the trained one and `interpolate`, α, with `of`, whose end it is from.
    """

    numerics: int
    stage: str
    starts_from: str
    seed: int
    mix: dict[str, Any]
    train: dict[str, Any]

    @property
    def alpha(self) -> float | None:
        """Of an interpolated run; None: it was trained."""
        found = (self.model_extra or {}).get("interpolate")
        return None if found is None else float(found)

    @property
    def of(self) -> str:
        """The lineage of the training that an interpolated run is from; empty: it was trained."""
        return str((self.model_extra or {}).get("of", ""))


class Verdict(Sealed):
    """verdict.json: the gate's decision on a run, its reasons, and the digests of the records that it judged."""

    decision: str
    reasons: list[str]
    worst: WorstProbe | None
    limits: list[Limit]
    judged: dict[str, str]

    @field_validator("decision")
    @classmethod
    def _known(cls, decision: str) -> str:
        if decision not in DECISIONS:
            raise ValueError(f"expected one of {', '.join(DECISIONS)}")
        return decision


class FoldOf(Document):
    """One candidate's fold of the held-back wordings."""

    fold: int
    stage: str
    lineage: str


class Folds(Sealed):
    """folds.json: which candidate was asked which fold, in the order in which the folds were given out."""

    given: list[FoldOf] = []

    @classmethod
    def anew(cls, path: Path) -> str:
        return f"delete {path.parent} as a whole: which wordings were asked is not forgotten without their figures"


class ReservedFolds(Folds):
    """reserved.json: which candidate will be asked which fold, in the order in which the folds were given out."""

    @classmethod
    def anew(cls, path: Path) -> str:
        return f"delete {path} while no job of snakemake waits or is at work here"


class Compared(Document):
    """A metric on the wordings that the gate knows, on those that were held back, and confirmation - development.

    `contains_zero`: the interval of the difference does; None where there is no interval.
    """

    metric: str
    development: Estimate
    confirmation: Estimate
    difference: float | None
    low: float | None
    high: float | None
    contains_zero: bool | None


class Confirmation(Sealed):
    """confirmation.json: whether a candidate does on held-back wordings what the gate let it through for.

    `n`: probes that were asked; `unmeasured`: metrics with a limit that no probe of the fold measures; `leaks`: replies
    that name the persona where the reference's do not, and should not;
    `asked_before`: the lineages that were asked this fold before, so that its figures are no longer held back;
    `judged`: the digests of the records that it was made of.
    """

    decision: Literal["confirmed", "unconfirmed"]
    fold: int
    n: int
    reasons: list[str]
    worst: WorstProbe | None
    limits: list[Limit]
    unmeasured: list[str]
    compared: list[Compared]
    leaks: list[WorstProbe]
    asked_before: list[str]
    judged: dict[str, str]

    @property
    def confirmed(self) -> bool:
        return self.decision == "confirmed"

    @property
    def words(self) -> str:
        """`fold 2, n 412`, and whether its figures are still held back."""
        before = f", asked before of {', '.join(self.asked_before)}: no longer held back" if self.asked_before else ""
        return f"fold {self.fold}, n {self.n}{before}"


class PromotedRun(Document):
    """A run of the fit that was released. `alpha`: where an interpolated one lies (see `Recipe`)."""

    stage: str
    lineage: str
    alpha: float | None = None
    metrics: dict[str, Estimate]
    weights_sha256: str


class Served(Sealed):
    """served.json: the logits of an export are, to the bit, the same as `AutoModelForCausalLM` of transformers and as
    this package load it. They were compared on a CPU, on the `tokens` of some of the `prompts` that were probed.

    `cast`: this version of transformers cannot multiply what it unpacks; its weights were cast to `dtype` first.
    """

    export_sha256: str
    transformers: str
    torch: str
    dtype: str
    prompts: int
    tokens: int
    cast: bool

    @property
    def words(self) -> str:
        """What was compared, in a sentence."""
        how = f", after its weights were cast to {self.dtype}, which it needs to compute at all," if self.cast else ""
        return (
            f"transformers {self.transformers}{how} gives the logits that fgod computes from these files, to the bit, "
            f"on {self.prompts} prompts ({self.tokens} tokens, {self.dtype}, a CPU, torch {self.torch})"
        )


class EngineVerdict(Sealed):
    """engine-ENGINE-FORMAT.json: what an engine said to `probes` probes, of the weights in a format, beside what was
    probed; its replies stand in the table of the same name.

    `decision`, `reasons`: the gate's, of the checks `limits` (`fgod.engines.judge`); `unjudged`: metrics with a limit
    that none was made of. `engine_agreement`: the share of replies that are the same text; `first_token`: of its
    likeliest first tokens that are a likeliest one here, too (BF16 has ties); `first_kl`: KL(probed ‖ engine) of the
    first token in nats, over the tokens that the engine lists; `same_prompts`: of prompts that its template and
    tokenizer write alike. Speeds in tokens a second, the reading of the prompt included: of the engine, and of
    transformers on `timed` of the prompts, both with `threads`.
    """

    engine: str
    version: str
    format: str
    export_sha256: str
    probed_sha256: str
    decision: str
    reasons: list[str]
    limits: list[Limit]
    unjudged: list[str]
    probes: int
    engine_agreement: Estimate
    first_token: Estimate
    first_kl: Estimate
    same_prompts: Estimate
    metrics: dict[str, Estimate]
    threads: int
    cpu: str
    timed: int
    tokens_a_second: float
    tokens_a_second_transformers: float
    tables_sha256: dict[str, str]

    @property
    def accepted(self) -> bool:
        return self.decision == ACCEPTED

    @property
    def words(self) -> str:
        """What it said, in a sentence."""
        share = self.engine_agreement.value or 0.0
        return (
            f"{self.engine} ({self.version}) with {self.format}: {self.decision}, {100 * share:.1f} % of "
            f"{self.probes} replies as they were probed"
        )


def read_engine_verdict(run: RunRecords, engine: str, format: str) -> EngineVerdict:
    """What an engine said with a format, after its replies were compared with it.

    Raises:
        UsageError: it was not asked.
        FgodError: the verdict, or the replies, were edited; says what to delete.
    """
    path = run.engine(engine, format)
    found = EngineVerdict.read(path)
    if changed := differing_files(path.parent, found.tables_sha256):
        raise FgodError(
            f"{path.parent}: {', '.join(changed)} since {engine} was asked (sha256 in {path.name}); records are not "
            f"edited: bring it back, or {EngineVerdict.anew(path)}"
        )
    return found


class ReleasedFormat(Document):
    """The weights of a release in a further format: the digest of its folder, and its size in bytes."""

    sha256: str
    bytes: int


class Release(Sealed):
    """release.json: what was released and how good it is. `files`: sha256 of each file beside it, by its path.

    `formats`: what lies in formats/NAME/, by name; `served`: how transformers alone loads the release, None in releases
    of older versions; `engines`: what engines said to formats, also to those that are left out because of it.
    """

    fits: int
    promoted: list[PromotedRun]
    path: str
    base_id: str
    config_digest: str
    chat: dict[str, Any] = {}  # pydantic copies defaults
    persona: str
    export_sha256: str
    files: dict[str, str]
    formats: dict[str, ReleasedFormat] = {}
    served: Served | None = None
    engines: list[EngineVerdict] = []
    confirmation: Confirmation | None = None
    """None: the probes have no wordings that were held back."""

    @property
    def left_out(self) -> dict[str, EngineVerdict]:
        """Formats that are not released, each with the first engine that does not say what was probed."""
        refused = [one for one in self.engines if not one.accepted]
        return {one.format: one for one in reversed(refused)}


def differing_release_files(folder: Path, release: Release, cache: Path | None = None) -> list[str]:
    """In words, which files of a release's folder are not as they were released (see `fgod.release.release_faults`)."""
    paths = [path for path in folder_files(folder) if path != folder / RELEASE_RECORD]
    if cache is None:
        return differing(release.files, file_digests(folder, paths))
    digests = cached_sha256_files(paths, cache)
    return differing(release.files, {path.relative_to(folder).as_posix(): digests[path] for path in paths})


def check_rows(mix: Mix) -> MixStamp:
    """The stamp of a mix, after its rows were compared with it.

    Raises:
        FgodError: the rows were changed since they were made; names them, and what to delete.
    """
    stamp = MixStamp.read(mix.stamp)
    if sha256_file(mix.rows) != stamp.rows_sha256:
        raise FgodError(
            f"{mix.rows}: it has changed since the mix was made (sha256 in {mix.stamp.name}); rows are made from the "
            f"data, never edited: delete {mix.folder} and run snakemake again to make them anew"
        )
    return stamp


def _checked_recipe(recipe_file: Path, lineage: str) -> Recipe:
    recipe = Recipe.read(recipe_file)
    if lineage_of(recipe.content()) != lineage:
        raise FgodError(
            f"{recipe_file}: it is not the recipe of {lineage}, which is the digest of it; recipes are not edited: "
            f"delete {recipe_file} and run snakemake again to make it anew"
        )
    return recipe


def check_interpolation(recipe_file: Path, lineage: str, trained: str) -> None:
    """Make sure that a run is interpolated by the recipe that its lineage names, from the training that this names.

    Raises:
        FgodError: the recipe was changed, is one that trains, or is of another training; names the file.
    """
    recipe = _checked_recipe(recipe_file, lineage)
    if recipe.of != trained:
        found = f"interpolates {recipe.of}" if recipe.of else "is the recipe of a training"
        raise FgodError(f"{recipe_file}: it {found}; expected one that interpolates {trained}")


def check_training_data(recipe_file: Path, lineage: str, mix: Mix, audit_file: Path) -> None:
    """Make sure that a run trains by the recipe that its lineage names, on the rows of it, and on audited ones.

    Raises:
        FgodError: the recipe, the rows or their audit were changed; names the file, and what to delete.
    """
    recipe = _checked_recipe(recipe_file, lineage)
    stamp = check_rows(mix)
    if stamp.spec != recipe.mix:
        raise FgodError(
            f"{mix.stamp}: these rows were made by another mix than {recipe_file} says; delete {mix.folder}"
        )
    if Audit.read(audit_file).rows_sha256 != stamp.rows_sha256:
        raise FgodError(
            f"{audit_file}: it is the audit of other rows than {mix.rows}; delete it and run snakemake again"
        )


def check_teacher(teacher: Teacher, rows_sha256: str) -> None:
    """Make sure that the base's distributions are those that it gave, on these very rows.

    Raises:
        FgodError: they are of other rows, or were changed since; says what to delete.
    """
    stamp = TeacherStamp.read(teacher.stamp)
    changed = differing_files(teacher.folder, stamp.files)
    if changed or stamp.rows_sha256 != rows_sha256:
        how = f"{', '.join(changed)} since it was written" if changed else "it was made of other rows"
        raise FgodError(f"{teacher.folder}: {how}; delete {teacher.folder} and run snakemake again to make it anew")


def check_answers(answers: Answers) -> None:
    """Make sure that the base's answers are those that it gave.

    Raises:
        FgodError: a file was changed or removed since; names it, and what to delete.
    """
    _check_unchanged(answers.stamp, AnswersStamp.read(answers.stamp).files, "the base gave these answers", "ask it")


def check_self_asked(asked: SelfAsked) -> None:
    """Make sure that the prompts are those that the base asked itself.

    Raises:
        FgodError: a file was changed or removed since; names it, and what to delete.
    """
    _check_unchanged(asked.stamp, SelfAskedStamp.read(asked.stamp).files, "the base asked itself", "make it")


def _check_unchanged(stamp: Path, recorded: Mapping[str, str], since: str, again: str) -> None:
    """Raise FgodError where a file of a stamp's folder is not as the stamp has it."""
    if changed := differing_files(stamp.parent, recorded):
        raise FgodError(
            f"{stamp.parent}: {', '.join(changed)} since {since} (sha256 in {stamp.name}); delete {stamp.parent} and "
            f"run snakemake again to {again} anew"
        )


def judged_digests(run: RunRecords) -> dict[str, str]:
    """Digests of the records that a verdict is made of, of those that are there."""
    return file_digests(run.folder, (path for path in run.judged if path.is_file()))


def check_run(run: RunRecords) -> tuple[Outcome, Metrics]:
    """Make sure that a run's records and tables are those that its training and its probe wrote; returns both records.

    Raises:
        FgodError: one was changed or removed since; names it, and what to delete.
    """
    outcome, metrics = Outcome.read(run.outcome), Metrics.read(run.metrics)
    for path, tables in ((run.outcome, outcome.tables_sha256), (run.metrics, metrics.tables_sha256)):
        if changed := differing_files(run.folder, tables):
            raise FgodError(
                f"{run.folder}: {', '.join(changed)} since it was written (its sha256 stands in {path.name}); records "
                f"are not edited: bring it back, or delete {path} and run snakemake again to make it anew"
            )
    return outcome, metrics


def check_confirmation_records(place: ConfirmationRecords) -> None:
    """Make sure that the replies of a confirmation are those that the candidate gave.

    Raises:
        FgodError: they were changed or removed since; says what to delete.
    """
    if changed := differing_files(place.folder, Metrics.read(place.metrics).tables_sha256):
        raise FgodError(
            f"{place.folder}: {', '.join(changed)} since it was written (its sha256 stands in {place.metrics.name}); "
            f"records are not edited: bring it back, or delete {place.metrics} and run snakemake again to make it anew"
        )


def confirmation_digests(place: ConfirmationRecords, run: RunRecords) -> dict[str, str]:
    """Digests of the records that a confirmation is made of, by path below results/: its own, and what it is compared
    with."""
    results = place.folder.parents[2]
    return file_digests(results, [path for path in (*place.judged, run.metrics) if path.is_file()])


def confirmation_of(place: ConfirmationRecords, run: RunRecords) -> Confirmation | None:
    """The confirmation of a candidate; None while there is none, or if it was made of other records than those that
    stand now.

    Raises:
        FgodError: the confirmation, or a record that it was made of, was edited; names the file.
    """
    if not place.confirmation.exists():
        return None
    found = Confirmation.read(place.confirmation)
    if differing(found.judged, confirmation_digests(place, run)):
        if place.metrics.exists():
            check_confirmation_records(place)
        return None
    return found


def differing_files(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    """In words, which of the recorded files of a folder have changed or are gone."""
    return differing(recorded, file_digests(folder, _present(folder, recorded)))


def _present(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def verdict_of(run: RunRecords) -> Verdict | None:
    """The verdict on a run; None while there is none, or if it was made of other records than those that stand now.

    Raises:
        FgodError: the verdict, or a record that it was made of, was edited; names the file.
    """
    if not run.verdict.exists():
        return None
    verdict = Verdict.read(run.verdict)
    if differing_files(run.folder, verdict.judged):
        if run.outcome.exists() and run.metrics.exists():
            check_run(run)
        return None
    return verdict
