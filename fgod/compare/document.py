"""What is said of runs side by side, from records alone: settings that differ, metrics in pairs, changed replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from string import ascii_uppercase
from typing import Any

from fgod import runs
from fgod.compare.operands import Operand
from fgod.compare.pairs import Difference, Pairs, difference, joined, paired
from fgod.documents import Metrics, Outcome, Recipe, Verdict, check_run, verdict_of
from fgod.errors import UsageError
from fgod.evaluate.metric import METRICS, Estimate
from fgod.evaluate.scoring import Scored
from fgod.layout import RunRecords
from fgod.probe.record import read_probes
from fgod.recipes import NOTHING, differing

Values = tuple[str, ...]
"""One for each side."""


@dataclass(frozen=True)
class Side:
    """A run that is compared. `decision` is empty while its gate is pending; `asked` counts its probes."""

    letter: str
    title: str
    records: str
    status: str
    decision: str
    reason: str
    asked: int


@dataclass(frozen=True)
class Setting:
    """A setting in which the sides differ."""

    key: str
    values: Values


@dataclass(frozen=True)
class Asked:
    """How far a side and the first were asked the same: probes that both were asked, and each alone.

    `other_reference`: of `both`, those that are compared with another reply of the reference; `otherwise_judged`: those
    with the same replies and other judgements, so by other rules.
    """

    letter: str
    both: int
    only_first: int
    only_other: int
    other_reference: int
    otherwise_judged: int


@dataclass(frozen=True)
class Measured:
    """A metric of each side, over all its probes; `differences` by the letter of the side that is compared with the
    first."""

    metric: str
    estimates: tuple[Estimate, ...]
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Changed:
    """A probe that not all sides answer in the same words. `replies`: None for a side that has none at all; `passed` as
    in `fgod.evaluate.scoring.Scored`."""

    suite: str
    language: str
    prompt: str
    frame: str
    replies: tuple[str | None, ...]
    passed: tuple[bool | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that is said. `common` counts the probes that all sides with replies were asked."""

    sides: tuple[Side, ...]
    notes: tuple[str, ...]
    settings: tuple[Setting, ...]
    asked: tuple[Asked, ...]
    metrics: tuple[Measured, ...]
    common: int
    changed: tuple[Changed, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    """The records of a side."""

    side: Side
    operand: Operand
    recipe: Recipe
    outcome: Outcome
    verdict: Verdict | None
    metrics: Metrics
    replies: list[Scored]


def compare(operands: Sequence[Operand]) -> Comparison:
    """Put runs side by side; differences are of each against the first.

    Raises:
        UsageError: fewer than two runs, more than letters, the same run twice, or one that was not probed yet.
        FgodError: a record was edited; names the file.
    """
    _check(operands)
    found = [_read(letter, one) for letter, one in zip(ascii_uppercase, operands, strict=False)]
    first, *others = found
    pairs = {run.side.letter: paired(first.replies, run.replies) for run in others}
    asked = tuple(_asked(first, run, pairs[run.side.letter]) for run in others)
    common = joined(run.replies for run in found if run.replies)
    return Comparison(
        sides=tuple(run.side for run in found),
        notes=tuple(_notes(found, asked)),
        settings=tuple(_settings(found)),
        asked=asked,
        metrics=tuple(_measured(found, pairs)),
        common=len(common),
        changed=tuple(_changed(found, common)),
    )


def _check(operands: Sequence[Operand]) -> None:
    if not 2 <= len(operands) <= len(ascii_uppercase):
        raise UsageError(f"compare: found {len(operands)} runs, expected from 2 to {len(ascii_uppercase)}")
    for one, other in combinations(operands, 2):
        if one.records.folder.resolve() == other.records.folder.resolve():
            raise UsageError(f"compare: found {one.title} and {other.title}, which are the same run; expected others")


def _read(letter: str, operand: Operand) -> _Run:
    run = operand.records
    if not run.metrics.is_file():
        raise UsageError(f"{run.metrics}: no such file: {operand.title} was not probed yet; run snakemake first")
    check_run(run)
    outcome, metrics = Outcome.read(run.outcome), Metrics.read(run.metrics)
    verdict = verdict_of(run)
    replies = read_probes(run.probes)
    side = Side(
        letter=letter,
        title=operand.title,
        records=run.folder.as_posix(),
        status=outcome.status,
        decision=verdict.decision if verdict else "",
        reason=outcome.reason,
        asked=len(replies),
    )
    return _Run(side, operand, Recipe.read(run.recipe), outcome, verdict, metrics, replies)


# -------------------------------------------------------------------------------------------------------- settings


def _settings(found: Sequence[_Run]) -> Iterator[Setting]:
    """In which the recipes differ, what stands before them, where they trained, and what the gate asked of them."""
    for key, values in differing(*(run.recipe.content() for run in found)):
        yield Setting(key, tuple(map(str, values)))
    chains = [runs.chain(run.operand.records, run.operand.results)[:-1] for run in found]
    yield from _row("stages before", [", ".join(map(_name, chain)) or NOTHING for chain in chains])
    yield from _earlier(chains)
    starts = [(*chain, run.operand.records)[0] for chain, run in zip(chains, found, strict=True)]
    bases = [Recipe.read(start.recipe).starts_from for start in starts]
    yield from _row("the base (digest)", bases)
    for key in ("device", "cpu", "torch_version"):
        yield from _row(key.replace("_", " "), [str(getattr(run.outcome, key)) or NOTHING for run in found])
    limits = [_limits(run.verdict) for run in found]
    for name in dict.fromkeys(name for one in limits for name in one):
        yield from _row(f"limit of {name}", [one.get(name, NOTHING) for one in limits])


def _row(key: str, values: Sequence[str]) -> Iterator[Setting]:
    if any(value != values[0] for value in values):
        yield Setting(key, tuple(values))


def _name(run: RunRecords) -> str:
    return f"{run.folder.parent.name} {run.folder.name}"


def _earlier(chains: Sequence[Sequence[RunRecords]]) -> Iterator[Setting]:
    """Settings of the stages before, of those that all chains have."""
    by_stage = [{run.folder.parent.name: run for run in chain} for chain in chains]
    for stage in by_stage[0]:
        same = [one[stage] for one in by_stage if stage in one]
        if len(same) == len(chains):
            for key, values in differing(*(Recipe.read(run.recipe).content() for run in same)):
                yield Setting(f"{stage}: {key}", tuple(map(str, values)))


def _limits(verdict: Verdict | None) -> dict[str, str]:
    checks = verdict.limits if verdict else []
    return {f"{check.metric} (else {check.failed})": f"{check.op} {check.limit:g}" for check in checks}


# --------------------------------------------------------------------------------------------------------- replies


def _asked(first: _Run, other: _Run, pairs: Pairs) -> Asked:
    both = len(pairs)
    return Asked(
        letter=other.side.letter,
        both=both,
        only_first=len(first.replies) - both,
        only_other=len(other.replies) - both,
        other_reference=sum(a.reference != b.reference for a, b in pairs),
        otherwise_judged=sum(_otherwise_judged(a, b) for a, b in pairs),
    )


def _otherwise_judged(a: Scored, b: Scored) -> bool:
    """Whether the same replies are judged in two ways, as other rules, marks or scorings do."""
    if a.scored_by != b.scored_by:
        return True
    same = (a.reply, a.reference) == (b.reply, b.reference)
    return same and (a.passed, a.agrees, a.marked, a.proper) != (b.passed, b.agrees, b.marked, b.proper)


def _notes(found: Sequence[_Run], asked: Iterable[Asked]) -> Iterator[str]:
    """What makes the sides hard to compare, in sentences."""
    for run in found:
        if not run.replies:
            yield f"{run.side.letter} has no replies: {run.side.reason or run.side.status}."
    by_letter = {run.side.letter: run for run in found}
    first = found[0].side.letter
    for one in asked:
        if not (found[0].replies and by_letter[one.letter].replies):
            continue
        if one.only_first or one.only_other:
            yield (
                f"{first} and {one.letter} were asked {one.both} probes alike, {one.only_first} of {first} alone and "
                f"{one.only_other} of {one.letter} alone; differences are of what both were asked."
            )
        if one.other_reference:
            yield (
                f"{first} and {one.letter} are compared with other references: on {one.other_reference} of {one.both} "
                "probes these reply differently, so what is measured beside the reference is of two yardsticks."
            )
        if one.otherwise_judged:
            yield (
                f"{first} and {one.letter} were judged by other rules: {one.otherwise_judged} of {one.both} probes "
                "have the same replies and other judgements, or another scoring."
            )
    unknown = sorted({name for run in found for name in run.metrics.metrics} - {*METRICS})
    if unknown:
        names = ", ".join(unknown)
        yield f"Left out, as no plugin that was loaded has them (fgod --plugin FILE.py compare …): {names}."


def _measured(found: Sequence[_Run], pairs: Mapping[str, Pairs]) -> Iterator[Measured]:
    none = Estimate(None, 0)
    for name, metric in METRICS.items():
        estimates = tuple(run.metrics.metrics.get(name, none) for run in found)
        if any(estimate.value is not None for estimate in estimates):
            yield Measured(name, estimates, {letter: difference(metric, pair) for letter, pair in pairs.items()})


def _changed(found: Sequence[_Run], common: Iterable[tuple[Scored, ...]]) -> list[Changed]:
    """Probes with other words; those that one side passes and another does not come first."""
    places = [place for place, run in enumerate(found) if run.replies]
    rows = []
    for replies in common:
        if len({reply.reply for reply in replies}) == 1:
            continue
        by_place = dict(zip(places, replies, strict=True))
        of = [by_place.get(place) for place in range(len(found))]
        first = replies[0]
        texts, passed = tuple(r.reply if r else None for r in of), tuple(r.passed if r else None for r in of)
        rows.append(Changed(first.suite, first.language, first.prompt, first.frame, texts, passed))
    return sorted(rows, key=_rank)


def _rank(row: Changed) -> int:
    """Lost since the first side comes first, then gained, then what passes or fails alike."""
    first, *others = row.passed
    if first and False in others:
        return 0
    return 1 if first is False and True in others else 2
