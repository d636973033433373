"""A comparison for people: the strings that text and HTML both show, and the text. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fgod.compare.document import Asked, Changed, Comparison, Measured, Setting, Side
from fgod.compare.pairs import MCNEMAR, Difference
from fgod.confirm.words import side_words, signed
from fgod.escape import one_line
from fgod.evaluate.metric import METRICS, Legend, Unit

LISTED = 20
"""Changed replies that the text shows; HTML and JSON have all."""

HOW = (
    "Differences are of the same probes. Of shares: the exact test of McNemar, and the interval of Agresti and Min; of "
    "means and percentiles: a paired bootstrap over probes. Intervals are of 95 %. Nothing is decided by these figures."
)


@dataclass(frozen=True)
class DifferenceWords:
    """`B - A`, the difference with its interval, and what it was made of."""

    name: str
    value: str
    basis: str


@dataclass(frozen=True)
class MetricWords:
    """A metric in words: of each side, and each side against the first."""

    legend: Legend
    sides: tuple[str, ...]
    differences: tuple[DifferenceWords, ...]


def metric_words(row: Measured, first: str) -> MetricWords:
    """A metric for people.

    Args:
        first: the letter of the first side.
    """
    metric = METRICS[row.metric]
    return MetricWords(
        metric.legend,
        tuple(side_words(estimate, metric.unit) for estimate in row.estimates),
        tuple(_difference(first, letter, one, metric.unit) for letter, one in row.differences.items()),
    )


def _difference(first: str, letter: str, found: Difference, unit: Unit) -> DifferenceWords:
    name = f"{letter} - {first}"
    if found.value is None:
        return DifferenceWords(name, "–", "no probe of both")
    interval = "" if found.low is None or found.high is None else f" ({unit.interval(found.low, found.high, ' to ')})"
    basis = [f"n {found.n}"]
    if found.method == MCNEMAR:
        basis += [f"{found.only_first} in {first} alone", f"{found.only_other} in {letter} alone"]
        basis.append(f"p {found.p_value:.2g}")
    elif found.method:
        basis.append(found.method)
    return DifferenceWords(name, f"{signed(found.value, unit)}{interval}", ", ".join(basis))


def side_line(side: Side) -> str:
    """`accepted, 507 probes, results/runs/…`."""
    return f"{side.decision or f'{side.status}, its gate is pending'}, {side.asked} probes, {side.records}"


def asked_line(one: Asked, first: str) -> str:
    """How many probes two sides share."""
    alone = f"{one.only_first} of {first} alone, {one.only_other} of {one.letter} alone"
    return f"{one.letter} - {first}: {one.both} probes of both, {alone}"


def changed_line(found: Comparison) -> str:
    """How many replies changed."""
    return f"{len(found.changed)} of {found.common} replies changed"


def mark(passed: bool | None) -> str:
    """Whether a reply passes: `passes`, `fails`, or nothing where it is not judged so."""
    return {True: "passes", False: "fails", None: ""}[passed]


def asked_of(row: Changed) -> str:
    """Suite, language and frame of a probe."""
    return ", ".join(filter(None, (row.suite, row.language, row.frame)))


def text(found: Comparison) -> str:
    """The comparison for a terminal."""
    return "\n".join(_lines(found))


def _lines(found: Comparison) -> Iterator[str]:
    first = found.sides[0].letter
    for side in found.sides:
        yield f"{side.letter}  {side.title}: {side_line(side)}"
    yield from (f"   {asked_line(one, first)}" for one in found.asked)
    yield from (f"!  {note}" for note in found.notes)
    yield from ["", "Settings that differ" if found.settings else "No setting differs"]
    for setting in found.settings:
        yield from _setting(setting, found)
    yield from ["", f"Metrics. {HOW}"]
    for row in found.metrics:
        yield from _metric(metric_words(row, first), found)
    yield from ["", changed_line(found)]
    for changed in found.changed[:LISTED]:
        yield from _changed(changed, found)
    if len(found.changed) > LISTED:
        yield f"  and {len(found.changed) - LISTED} more: --html FILE and --json have all"


def _setting(row: Setting, found: Comparison) -> Iterator[str]:
    yield f"  {row.key}"
    yield from (f"    {side.letter}  {one_line(value)}" for side, value in zip(found.sides, row.values, strict=True))


def _metric(words: MetricWords, found: Comparison) -> Iterator[str]:
    yield f"  {words.legend.short}: {words.legend.description}"
    yield from (f"    {side.letter}      {value}" for side, value in zip(found.sides, words.sides, strict=True))
    yield from (f"    {one.name}  {one.value}, {one.basis}" for one in words.differences)


def _changed(row: Changed, found: Comparison) -> Iterator[str]:
    yield f"  {one_line(row.prompt)} ({one_line(asked_of(row))})"
    for side, reply, passed in zip(found.sides, row.replies, row.passed, strict=True):
        if reply is not None:
            yield f"    {side.letter}  {one_line(reply) or '(empty)'}{f'  [{mark(passed)}]' if mark(passed) else ''}"
