"""Commands of fgod as the manifest has them, and what they are in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgod import manifest
from fgod.guard.ends import End
from fgod.guard.limits import MIB_PER_GB
from fgod.system.times import seconds_of

WORKFLOW: Mapping[str, str] = {
    "base": "the base is made or checked",
    "answers self-asked": "the base asks itself",
    "answers rehearsal": "the base answers the rehearsal prompts",
    "answers reference": "the base answers the probes",
    "answers check": "the base's answers to the probes are checked",
    "answers teacher": "the base's distributions over the rehearsed rows",
    "data mix": "a mix of rows is written",
    "data placebo": "the base answers the rows of a placebo",
    "data audit": "a mix is audited",
    "recipe": "a run's recipe is written",
    "train": "a stage trains",
    "interpolate": "weights between start and end of a training",
    "export": "weights are exported",
    "probe": "a model is asked the probes",
    "gate": "a run is judged",
    "served": "the export is loaded by transformers alone",
    "engine": "an engine is asked what was probed",
    "confirm": "the candidate is judged by held-back wordings",
    "evaluate": "what the model can do is tested",
    "comparison": "the placebo is compared",
    "walk": "the walk is written",
    "tables": "records are gathered into tables",
    "report": "the report is written",
    "promote": "the release is made",
    "campaign": "experiments are put side by side",
    "campaign-report": "the page of all experiments is written",
}
"""What rules of the workflow call, in words; other commands are a person's own."""


@dataclass(frozen=True)
class Command:
    """A command with its entry in the manifest (`fgod.manifest.join`: `state` and the rest are explained there).

    `name`: without options, as `answers rehearsal`; `fit` and `limit_mib`: as its options say, None without them;
    `start`, `end`: ISO 8601.
    """

    name: str
    state: str
    pid: int
    host: str
    start: str
    end: str = ""
    stage: str = ""
    lineage: str = ""
    fit: int | None = None
    limit_mib: float | None = None
    exit_code: int | None = None
    error: str = ""
    signalled: bool = False
    """Whether its guard passed a stop signal on."""

    @property
    def of_workflow(self) -> bool:
        """Whether a rule calls it, and no person alone."""
        return self.name in WORKFLOW

    @property
    def run(self) -> str:
        """The run that it is about: `B-nudge 4e4af4b93364`, empty where there is none."""
        return f"{self.stage} {self.lineage}".strip()


def command_of(entry: Mapping[str, Any]) -> Command:
    """The command of an entry.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: the entry was not written by `fgod.manifest`.
    """
    words = manifest.arguments(entry["argv"])
    pair = " ".join(words[:2])
    limit, fit = _option(words, "--limit-gb"), _option(words, "--fit")
    process, start = entry["process"], str(entry["start"])
    seconds_of(start)
    return Command(
        name=pair if pair in WORKFLOW else next(iter(words), ""),
        state=entry["state"],
        pid=int(process["pid"]),
        host=str(process.get("host", "")),
        start=start,
        end=str(entry.get("end", "")),
        stage=str(entry.get("stage", "")),
        lineage=str(entry.get("lineage", "")),
        fit=int(fit) if fit.isdecimal() else None,
        limit_mib=_number(limit, MIB_PER_GB),
        exit_code=entry.get("exit_code"),
        error=str(entry.get("error", "")),
        signalled=entry.get("guard", {}).get("end") == End.SIGNALLED,
    )


def _option(words: Sequence[str], flag: str) -> str:
    """The value of an option, empty without it."""
    for place, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == flag:
            return value if sign else next(iter(words[place + 1 :]), "")
    return ""


def _number(text: str, factor: float) -> float | None:
    try:
        return float(text) * factor
    except ValueError:
        return None
