"""What follows a verdict, by the stages and the refit rules of a config. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgod.decisions import ACCEPTED
from fgod.devlog.words import LANGUAGES, Words
from fgod.errors import UsageError
from fgod.refits import DAMAGED, answering


@dataclass(frozen=True)
class LogSettings:
    """What the DevLog needs of a config: its language, the names of the stages, and `refits`; of an experiment its name
    and note."""

    language: str
    stages: tuple[str, ...]
    refits: Mapping[str, Any]
    experiment: str = ""
    note: str = ""
    run: str = ""
    """Lineage of the run that the experiment is about to have judged: the note is of no other."""

    @classmethod
    def of_config(cls, config: Mapping[str, Any], experiment: str = "", note: str = "") -> LogSettings:
        """Of a checked config."""
        stages = tuple(stage["name"] for stage in config["stages"])
        return cls(config.get("language", "en"), stages, config["refits"], experiment, note)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LogSettings:
        """The inverse of `to_dict`.

        Raises:
            UsageError: a key is missing, or there is no such language.
        """
        if missing := [key for key in ("language", "stages", "refits") if key not in values]:
            raise UsageError(f"--log: the keys {', '.join(missing)} are missing; found {', '.join(values) or 'none'}")
        if values["language"] not in LANGUAGES:
            found, known = values["language"], ", ".join(LANGUAGES)
            raise UsageError(f"--log: language: found {found!r}, expected one of {known}")
        experiment = (values.get(key, "") for key in ("experiment", "note"))
        return cls(values["language"], tuple(values["stages"]), values["refits"], *experiment)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        of = {"experiment": self.experiment, "note": self.note} if self.experiment else {}
        return {"language": self.language, "stages": list(self.stages), "refits": self.refits, **of}

    @property
    def words(self) -> Words:
        return LANGUAGES[self.language]


def next_step(settings: LogSettings, stage: str, decision: str, alpha: float | None) -> str:
    """What a verdict on a run of a stage leads to, in a sentence.

    Args:
        alpha: of an interpolated run; None: it was trained.
    """
    words = settings.words
    if decision == ACCEPTED:
        return _after(settings.stages, stage, words)
    rules: Sequence[Mapping[str, Any]] = settings.refits["rules"]
    if alpha is not None and decision == DAMAGED and (lower := _lower(rules, alpha)):
        return words.interpolate.format(alpha=f"{lower[1]:g}", rule=lower[0])
    index = next(answering(rules, decision, alpha is not None), None)
    if index is not None and (between := rules[index].get("interpolate")):
        return words.interpolate.format(alpha=f"{between[0]:g}", rule=index)
    if settings.refits["max"] == 0:  # of what trains anew: an interpolation does not
        return words.no_refits
    if index is None:
        return words.no_rule
    return words.gap.join([_refit(rules[index], index, words), words.at_most.format(max=settings.refits["max"])])


def _after(stages: Sequence[str], stage: str, words: Words) -> str:
    later = stages[stages.index(stage) + 1 :] if stage in stages else ()
    return words.next_stage.format(stage=later[0]) if later else words.candidate


def _lower(rules: Sequence[Mapping[str, Any]], alpha: float) -> tuple[int, float] | None:
    """The rule that interpolates, and its next α below this one."""
    for index, rule in enumerate(rules):
        if DAMAGED in rule["when"] and alpha in rule.get("interpolate", ()):
            return next(((index, lower) for lower in rule["interpolate"] if lower < alpha), None)
    return None


def _refit(rule: Mapping[str, Any], index: int, words: Words) -> str:
    if bisect := rule.get("bisect"):
        return words.bisect.format(key=bisect["key"], rule=index)
    changes = ", ".join(f"{key} {value}" for key, value in rule["set"].items())
    sentence = words.refit_all if rule["stage"] == "all" else words.refit
    return sentence.format(changes=changes, rule=index)
