"""The JSON documents of results/ and artifacts/, typed: what each holds, read with a check, written whole.

A sealed document holds the sha256 of its own content under the key `seal`. Records are never edited by hand: an edited
one is refused when it is read. `fgod.layout` says where each lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from fgod.errors import FgodError
from fgod.evaluate.metric import Estimate
from fgod.layout import RunRecords
from fgod.system.files import canonical_json, differing, file_digests, read_json, write_json

SEAL = "seal"

DECISIONS = ("diverged", "killed", "collapsed", "damaged", "missed", "accepted")
"""Verdicts, the worst first."""


class Document(BaseModel):
    """A JSON object on disk. Keys that a model does not name are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, arbitrary_types_allowed=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a document.

        Raises:
            UsageError: the file is missing.
            FgodError: it is no such document; names file and key, what was found and what is wrong with it.
        """
        return cls._checked(_object(path), path)

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
        value = _object(path)
        seal = value.pop(SEAL, None)
        if seal != _seal_of(value):
            how = "it has no seal" if seal is None else "it has changed since it was written (its seal differs)"
            raise FgodError(
                f"{path}: {how}; records are not edited: bring it back, or delete {path} and run snakemake again to "
                "make it anew"
            )
        return cls._checked(value, path)

    def write(self, path: Path) -> None:
        """Write it atomically, with its seal."""
        value = self.content()
        write_json(path, {**value, SEAL: _seal_of(value)})


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise FgodError(f"{path}: found {type(value).__name__}, expected an object")
    return value


def _seal_of(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


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

    Without weights `status` is killed, diverged or skipped, and `reason` says why.
    """

    status: Literal["trained", "exported", "killed", "diverged", "skipped"]
    reason: str = ""
    weights_sha256: str = ""
    weights_files: dict[str, str] = {}


class BaseStamp(Stamp):
    """base.json. `base`: the config's key of that name; `facts`: what was found in the folder, or made."""

    base: dict[str, Any]
    facts: dict[str, Any]


class Outcome(Sealed):
    """outcome.json: how a training ended. Memory in MiB, `wall_s` in seconds.

    `tables_sha256`: digests of what stands beside it, by file name.
    """

    status: Literal["trained", "killed", "diverged"]
    reason: str = ""
    weights_sha256: str = ""
    weights_files: dict[str, str] = {}
    steps_done: int | None = None
    wall_s: float | None = None
    peak_memory_mib: float | None = None
    tables_sha256: dict[str, str] = {}


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
    """A probe that shows what went wrong."""

    suite: str
    language: str
    prompt: str
    reply: str
    reference: str


class Limit(Document):
    """A check that the gate made: `metric op limit` must hold, else `failed` is the verdict."""

    metric: str
    op: str
    limit: float
    failed: str
    source: str


class Finding(Document):
    """A fault that an audit found: error or warning. `line` counts from 1; None where no single line is meant."""

    severity: str
    code: str
    line: int | None = None
    message: str
    examples: list[str] = []


class Audit(Sealed):
    """audit.json of a mix, and mix_audit.json of a run: facts by name, and findings."""

    facts: dict[str, Any]
    findings: list[Finding]


class Recipe(Document):
    """recipe.json: all that a run's weights depend on. Its digest is the run's lineage, so it needs no seal."""

    numerics: int
    stage: str
    starts_from: str
    seed: int
    mix: dict[str, Any]
    train: dict[str, Any]


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


def judged_digests(run: RunRecords) -> dict[str, str]:
    """Digests of the records that a verdict is made of, of those that are there."""
    return file_digests(run.folder, (path for path in run.judged if path.is_file()))


def check_run(run: RunRecords) -> None:
    """Make sure that a run's records and tables are those that its training and its probe wrote.

    Raises:
        FgodError: one was changed or removed since; names it, and what to delete.
    """
    for path, document in ((run.outcome, Outcome.read(run.outcome)), (run.metrics, Metrics.read(run.metrics))):
        if changed := differing_files(run.folder, document.tables_sha256):
            raise FgodError(
                f"{run.folder}: {', '.join(changed)} since it was written (its sha256 stands in {path.name}); records "
                f"are not edited: bring it back, or delete {path} and run snakemake again to make it anew"
            )


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
