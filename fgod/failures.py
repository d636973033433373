"""What the refit rules answer to failed runs, one failure after the other. Pure.

A rule is of one of three kinds. `set` changes keys of the stage, and the chain is trained again from the base.
`interpolate` trains nothing: the next run of the stage has the weights start + α · (end - start) of the damaged one,
for the next α of its list; when one of these is missed, or the list is spent, the next rule that has the damage answers
it. `bisect` trains the stage again with a learning rate between one that missed and one that was too much, for all runs
of it that differ in nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fgod.config import refit
from fgod.errors import FgodError
from fgod.refits import DAMAGED, MISSED, Bracket, Tried, answering
from fgod.system.files import canonical_json

JUDGED = (MISSED, DAMAGED, "collapsed", "diverged")
"""Verdicts that say something of the rate."""


@dataclass(frozen=True)
class Adjustment:
    """One value that a refit rule changed: `rule` is its index in refits.rules, `cause` the verdict it answers."""

    fit: int
    stage: str
    key: str
    old: Any
    new: Any
    rule: int
    cause: str

    def __str__(self) -> str:
        return f"fit {self.fit}: {self.stage} {self.key} {self.old} → {self.new} (after {self.cause})"


@dataclass(frozen=True)
class Between:
    """Where the weights of a stage lie between its start and the end of its training: `alpha`, by this rule."""

    alpha: float
    rule: int


class Answers:
    """The stages of a config after the failures that were answered so far.

    `stages` are those of the config, changed; `between` says by name which of them are interpolated; `refits` counts
    the answers that train a stage again.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.rules: list[Mapping[str, Any]] = config["refits"]["rules"]
        self.stages: list[dict[str, Any]] = copy.deepcopy(config["stages"])
        self.between: dict[str, Between] = {}
        self.adjustments: list[Adjustment] = []
        self.failures = self.refits = 0
        self.tried: dict[str, list[Tried]] = {}

    def answer(self, stage: str, decision: str) -> None:
        """Take one more failure: the verdict on a run of this stage.

        Raises:
            FgodError: no rule answers it, or the one that does leaves what is allowed.
        """
        self.failures += 1
        cause, found = f"{stage} {self._at(stage)}{decision}", self.between.get(stage)
        if not found and decision in JUDGED:
            self._tried_by(stage).append(Tried(self._stage(stage)["train"]["lr"], decision))
        if found and decision == DAMAGED and (alpha := self._next_alpha(found)):
            self._interpolate(stage, Between(alpha, found.rule), cause)
            return
        answered, unable = DAMAGED if found and decision == MISSED else decision, ""
        for index in answering(self.rules, decision, bool(found)):
            unable = self._try(stage, index, cause + unable)
            if not unable:
                return
        other, at = ("other ", f", {self._at(stage)}{decision}") if found else ("", "")
        raise FgodError(f"no {other}rule under refits.rules answers {answered!r} (stage {stage}{at}){unable}")

    def _try(self, stage: str, index: int, cause: str) -> str:
        """Answer by a rule; returns why it has no answer left, or nothing."""
        rule = self.rules[index]
        if rule.get("interpolate"):
            self._interpolate(stage, Between(rule["interpolate"][0], index), cause)
            return ""
        if rule.get("set"):
            self._refit(stage, index, rule["set"], cause)
            return ""
        key, bracket = rule["bisect"]["key"], Bracket.of(self._tried_by(stage))
        middle = bracket.middle(rule["bisect"])
        if middle is None:
            return f"; {key} between {bracket.missed} and {bracket.too_much} has no middle"
        self._refit(stage, index, {key: middle}, cause)
        return ""

    def _at(self, stage: str) -> str:
        return f"at α {self.between[stage].alpha:g} " if stage in self.between else ""

    def _next_alpha(self, found: Between) -> float | None:
        return next((alpha for alpha in self.rules[found.rule]["interpolate"] if alpha < found.alpha), None)

    def _interpolate(self, stage: str, where: Between, cause: str) -> None:
        old = f"at α {self.between[stage].alpha:g}" if stage in self.between else "as trained"
        self._forget_from(stage)
        self.between[stage] = where
        self._note(stage, "weights", old, f"at α {where.alpha:g}", where.rule, cause)

    def _tried_by(self, stage: str) -> list[Tried]:
        """The rates of all trainings of a stage so far that start where it starts now and differ in nothing else."""
        names = [s["name"] for s in self.stages]
        until = names.index(stage) + 1
        same = copy.deepcopy(self.stages[:until])
        del same[-1]["train"]["lr"]
        starts = {name: where.alpha for name, where in self.between.items() if name in names[: until - 1]}
        return self.tried.setdefault(canonical_json([same, starts]), [])

    def _stage(self, name: str) -> dict[str, Any]:
        return next(stage for stage in self.stages if stage["name"] == name)

    def _refit(self, failed: str, index: int, changes: Mapping[str, Any], cause: str) -> None:
        self.refits += 1
        changed = [s for s in self.stages if s["name"] == failed or self.rules[index]["stage"] == "all"]
        self._forget_from(changed[0]["name"])
        for stage in changed:
            for key, old, new in refit(stage, index, self.config, changes):
                self._note(stage["name"], key, old, new, index, cause)

    def _note(self, stage: str, key: str, old: Any, new: Any, rule: int, cause: str) -> None:
        self.adjustments.append(Adjustment(self.failures, stage, key, old, new, rule, cause))

    def _forget_from(self, stage: str) -> None:
        """What starts from other weights than before is first trained to its end."""
        for name in self._names_from(stage):
            self.between.pop(name, None)

    def _names_from(self, stage: str) -> Iterator[str]:
        names = [s["name"] for s in self.stages]
        yield from names[names.index(stage) :]
