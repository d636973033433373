"""The check that the harness itself is sound: a fault of base or probes is an error, never a verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fgod.data.marks import MARKED, Exchange, marked_by_itself
from fgod.data.probes import Probe
from fgod.data.recipe import SELF_ASKED
from fgod.data.rows import normalise, read_rows
from fgod.errors import FgodError, RefusedError
from fgod.evaluate.scoring import Said, Scored, Standard, score
from fgod.persona import Persona

NEEDED = ("persona", "kind", "reference")
"""Scorings that the gate cannot judge without."""
BY_SUITE = (("suite",),)
BY_SUITE_AND_LANGUAGE = (("suite",), ("language",))
"""Each suite, and each language over all suites. (A language has as few as 6 probes in a suite: there one miss would
be .83.)"""


class AnswerLike(Protocol):
    """A greedy reply, such as `fgod.answers.Answer`."""

    @property
    def reply(self) -> str: ...
    @property
    def ended(self) -> bool: ...
    @property
    def looped(self) -> bool: ...


def check_reference(
    probes: Sequence[Probe],
    answers: Mapping[str, AnswerLike],
    known: Mapping[str, Sequence[str]],
    standard: Standard,
    least: float = 0.9,
    by_language: bool = False,
    needed: Sequence[str] = NEEDED,
    accept: Collection[str] = (),
) -> str:
    """`check_harness` on the reference's answers alone, before any run is there; returns its table.

    Args:
        answers: the reference's, by the keys of probes.
        known: key of a probe → the answers that the corpus knows as right for the base; empty where it knows none.
        by_language: ask it of each language too (the embedded base, which is to know all of them).
        needed: scorings that some probe must have.
        accept: codes of what is let through (`persona.audit.accept`).

    Raises:
        RefusedError: see `check_harness`; or the base itself writes a mark of the persona, which is not let through.
        FgodError: a probe has no answer.
    """
    records = reference_records(probes, answers, known, standard)
    if MARKED not in accept:
        check_marks(probes, answers, standard.goal.persona)
    groups = BY_SUITE_AND_LANGUAGE if by_language else BY_SUITE
    return check_harness(records, least, groups, standard.closed, needed)


def check_marks(probes: Sequence[Probe], answers: Mapping[str, AnswerLike], persona: Persona) -> None:
    """Refuse marks of the persona that the base writes of its own accord: each would count its replies as leaks.

    Raises:
        RefusedError: shows replies, and proposes a narrower mark.
    """
    exchanges = [
        Exchange(
            "\n".join((probe.system, *(turn.content for turn in probe.history), probe.prompt)),
            answer_to(probe, answers).text,
        )
        for probe in probes
        if probe.scored
    ]
    if found := marked_by_itself(persona, exchanges):
        lines = [line for marked in found for line in (marked.words, *(f"  {one}" for one in marked.shown))]
        lines.append(f"(persona.audit: {{accept: [{MARKED}]}} lets it through)")
        raise RefusedError("persona.marks: " + "\n".join(lines))


def reference_records(
    probes: Sequence[Probe],
    answers: Mapping[str, AnswerLike],
    known: Mapping[str, Sequence[str]],
    standard: Standard,
) -> list[Scored]:
    """The reference's answers as those of a run; the arguments are those of `check_reference`.

    Raises:
        FgodError: a probe has no answer.
    """
    said = [answer_to(probe, answers) for probe in probes]
    return [score(p, standard, one, one, known.get(p.key, ())) for p, one in zip(probes, said, strict=True)]


def answer_to(probe: Probe, answers: Mapping[str, AnswerLike]) -> Said:
    """The reference's answer to a probe.

    Raises:
        FgodError: there is none.
    """
    answer = answers.get(probe.key)
    if answer is None:
        raise FgodError(f"probes: the reference has no answer to {probe.prompt!r}; make its answers again")
    return Said(answer.reply, answer.ended, answer.looped)


def unseen(probes: Sequence[Probe], tables: Iterable[Path]) -> list[Probe]:
    """The probes that judge a run: without those that the base asked itself and that its mixes rehearse. Nobody chose
    these rows, and to leave them out by the probes would let the probes decide what is trained.

    Args:
        tables: rows.tsv of its mixes.

    Raises:
        RefusedError: a scored probe stands among other rows that the run was trained on (normalised); names the file
            and the first three.
    """
    asked = {normalise(probe.prompt) for probe in probes if probe.scored}
    rehearsed: set[str] = set()
    for table in tables:
        both = [row for row in read_rows(table) if normalise(row.prompt) in asked]
        rehearsed |= {normalise(row.prompt) for row in both if row.part == SELF_ASKED}
        if written := [row.prompt for row in both if row.part != SELF_ASKED]:
            some = ", ".join(dict.fromkeys(written[:3]))
            raise RefusedError(
                f"{table}: {len(written)} rows are probes ({some}): take them out of the probes or the data"
            )
    return [probe for probe in probes if not probe.scored or normalise(probe.prompt) not in rehearsed]


def check_harness(
    records: Sequence[Scored],
    least: float = 0.9,
    groups: Sequence[tuple[str, ...]] = BY_SUITE,
    closed: bool = True,
    needed: Sequence[str] = NEEDED,
) -> str:
    """Refuse to judge by probes that the reference itself does not answer; returns a table of how it does.

    Args:
        least: the share of proper reference answers that each group needs.
        groups: columns to group by, one grouping after the other; (("suite", "language"),) asks it of each language of
            each suite.
        closed: see `fgod.evaluate.scoring.Standard`.
        needed: scorings that some probe must have.

    Raises:
        RefusedError: no probe is scored in some way, or a group falls short; the message has a table of all groups.
    """
    found = {r.scored_by for r in records}
    empty = [scoring for scoring in needed if scoring not in found]
    if empty:
        raise RefusedError(
            f"probes: no probe is scored by {', '.join(empty)}; without one the gate cannot judge "
            "(suites.yaml says how each suite is scored)"
        )
    cells = [cell for columns in groups for cell in _proper_shares(records, columns)]
    table = "\n".join(_line(*cell, least) for cell in cells)
    if any(good < least * n for _, good, n, _ in cells):
        ended = "it ended, " if closed else ""
        raise RefusedError(
            f"probes: the reference answers under {least:.0%} of some probes properly ({ended}no loop, no persona "
            "mark, right where the corpus knows the answer), so they cannot judge a run. Mend the base, the probes or "
            f"persona.marks:\n{table}"
        )
    return table


def _line(name: str, good: int, n: int, worst: Scored | None, least: float) -> str:
    line = f"  {'!' if good < least * n else ' '} {name:<28} {good:>4} of {n:<4} {good / n:>4.0%}"
    return f"{line}   {worst.prompt} → {worst.reference or '(empty)'}" if worst and good < least * n else line


def _proper_shares(records: Sequence[Scored], columns: tuple[str, ...]) -> list[tuple[str, int, int, Scored | None]]:
    """(group, proper, all, an improper example) of each group, in order of appearance."""
    groups: dict[str, list[Scored]] = {}
    for r in (r for r in records if r.scored):
        groups.setdefault(" / ".join(getattr(r, c) for c in columns), []).append(r)
    return [
        (name, sum(r.proper for r in rows), len(rows), next((r for r in rows if not r.proper), None))
        for name, rows in groups.items()
    ]
