"""The probes of the split check: what a stage is asked while it trains (`train.check`), and what its replies come to.

They are judged by the functions of the gate. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from fgod.data.probes import Probe, of_split
from fgod.data.suites import CHECK, COMPARED
from fgod.errors import UsageError, did_you_mean
from fgod.evaluate.scoring import Said, Standard, passes
from fgod.evaluate.words import ReplyWords
from fgod.persona import Goal
from fgod.system.files import digest


@dataclass(frozen=True)
class CheckProbes:
    """Probes, the goal whose rules say what is right, and the words by which denials are judged."""

    probes: tuple[Probe, ...]
    goal: Goal
    words: ReplyWords = field(default_factory=ReplyWords)

    @cached_property
    def by_suite(self) -> Mapping[str, list[Probe]]:
        """The probes in their order."""
        found: dict[str, list[Probe]] = {}
        for probe in self.probes:
            found.setdefault(probe.suite, []).append(probe)
        return found

    @property
    def digests(self) -> dict[str, str]:
        """Of each suite: what is asked, and all that says what is right."""
        return {suite: digest([asdict(p) for p in probes], self._rules(probes)) for suite, probes in self._sorted()}

    def _sorted(self) -> list[tuple[str, list[Probe]]]:
        return sorted(self.by_suite.items())

    def _rules(self, probes: Sequence[Probe]) -> Mapping[str, object]:
        persona = {language: asdict(rule) for language, rule in sorted(self.goal.persona.rule.items())}
        asked = sorted({probe.kind for probe in probes}.intersection(self.goal.kinds))
        kinds = {kind: {tag: asdict(rule) for tag, rule in self.goal.kinds[kind].rule.items()} for kind in asked}
        found: dict[str, object] = {"persona": persona, "marks": self.goal.persona.marks, "kinds": kinds}
        if any(probe.scored_by == "denial" for probe in probes):
            denied = {tag: asdict(rule) for tag, rule in sorted(self.goal.persona.rule_of_denials.items())}
            found |= {"denials": denied, "affirmations": self.words.affirmations}
        return found

    def of(self, suites: Iterable[str]) -> CheckProbes:
        """Those of some suites.

        Raises:
            UsageError: a suite has none.
        """
        for suite in suites:
            if suite not in self.by_suite:
                there = ", ".join(self.by_suite) or "none"
                raise UsageError(
                    f"train.check.until: found {suite!r}{did_you_mean(suite, self.by_suite)}, expected a suite with "
                    f"probes of the split check that are judged by a rule; data.probes has {there}"
                )
        return CheckProbes(tuple(probe for probe in self.probes if probe.suite in suites), self.goal, self.words)

    def shares(self, replies: Sequence[Said]) -> dict[str, float]:
        """Share of right replies by suite.

        Args:
            replies: in the order of the probes.

        Raises:
            UsageError: the config has no rule for a probe.
        """
        standard = Standard(self.goal, closed=False, words=self.words)
        right: dict[str, list[bool]] = {suite: [] for suite in self.by_suite}
        for probe, reply in zip(self.probes, replies, strict=True):
            right[probe.suite].append(bool(passes(probe, standard, reply, reply, None)))
        return {suite: sum(passed) / len(passed) for suite, passed in right.items()}


def check_probes(probes: Iterable[Probe], goal: Goal, words: ReplyWords | None = None) -> CheckProbes:
    """The probes of the split check, of suites whose replies a rule judges, without the reference's beside them.

    Args:
        words: see `fgod.evaluate.words`; needed where one of them is a denial.
    """
    ruled = [probe for probe in of_split(probes, CHECK) if probe.scored and probe.scored_by not in COMPARED]
    return CheckProbes(tuple(ruled), goal, words or ReplyWords())
