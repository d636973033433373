"""The checks of an audit: each is one registered function, which names its code and how serious it is.

A check yields what it found in a `Case`. To add one, write it here, or in a plugin file:

    from fgod.data.audit.checks import Found, check

    @check("shouting", "warning")
    def shouting(case):
        loud = [line for line in case.users if line.row.prompt.isupper()]
        if loud:
            yield Found("{n} in capital letters", loud)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from fgod.data import mismatch
from fgod.data.audit.case import (
    WRITTEN_PARTS,
    Audited,
    Case,
    Finding,
    Group,
    Line,
    by,
    number_of,
    origin_key,
    sample_tag,
)
from fgod.data.formats import Severity
from fgod.data.marks import MARKED, Exchange, marked_by_itself
from fgod.data.mix import DROPPED, REORDERED
from fgod.data.recipe import SELF_ASKED, VARIED, VERBATIM, MixRecipe
from fgod.data.rows import BASE, normalise
from fgod.data.text import CONTROL_TOKEN, excerpt, has_control, is_header
from fgod.errors import UsageError, did_you_mean
from fgod.plugins import Registry

AUDIT_CHECKS: Registry[Check] = Registry("audit check")
"""In the order in which they are run."""

NEVER_ACCEPTED = "such rows cannot be trained on as they stand, or they would spoil the measurement"
EXAMPLES = 3
"""Rows that a finding shows."""
MANY_ROWS = 20
"""Rows below which few prompts or a single target are no fault."""
SHARE_TOLERANCE = 0.05
"""How far the share of identity rows may be from what a name or recipe says."""


@dataclass(frozen=True)
class Found:
    """What a check found. `{n}` in the message is the number of lines. Without examples the lines are shown."""

    message: str
    lines: Sequence[Line] = ()
    examples: Iterable[str] | None = None


SEVERITIES = ("error", "warning", "note")
"""What a check may call its findings. That one is accepted is for the config to say."""
Finder = Callable[[Case], Iterable[Found]]


@dataclass(frozen=True)
class Check:
    """A registered check. `on` says whether files, mixes or both are looked at, `acceptable` whether what it finds in a
    user's file may be let through (`data.sources.NAME.audit.accept`).

    Raises:
        UsageError: the severity or what it is on is none that there is.
    """

    code: str
    severity: Severity
    on: tuple[Audited, ...]
    find: Finder
    acceptable: bool = True

    def __post_init__(self) -> None:
        for key, found, known in (("severity", (self.severity,), SEVERITIES), ("on", self.on, get_args(Audited))):
            if not found or not set(found) <= {*known}:
                raise UsageError(f"audit check {self.code!r}: {key}: found {found!r}, expected of {', '.join(known)}")

    def findings(self, case: Case) -> Iterator[Finding]:
        """Its findings in a case, if it is for such."""
        for found in self.find(case) if case.on in self.on else ():
            lines = sorted(found.lines, key=lambda line: line.number)
            shown = (line.shown for line in lines) if found.examples is None else found.examples
            first, origin = (lines[0].number, lines[0].origin) if lines else (None, "")
            message = found.message.replace("{n}", number_of(len(lines), "row"))
            yield Finding(self.severity, self.code, first, message, tuple(shown)[:EXAMPLES], len(lines), origin)


def check(
    code: str, severity: Severity, on: tuple[Audited, ...] = ("file", "mix"), acceptable: bool = True
) -> Callable[[Finder], Finder]:
    """Register a function as the check of a code; raises UsageError where there is one, or what `Check` does."""

    def register(find: Finder) -> Finder:
        AUDIT_CHECKS.register(code, Check(code, severity, on, find, acceptable))
        return find

    return register


def check_accepted(codes: Iterable[str], where: str) -> None:
    """Refuse codes of faults that cannot be let through.

    Raises:
        UsageError: an unknown code, or one of rows that cannot be trained on or would spoil the measurement.
    """
    known = sorted(code for code, check in AUDIT_CHECKS.items() if check.acceptable)
    never = {*AUDIT_CHECKS} - {*known}
    for code in codes:
        if code in never:
            raise UsageError(
                f"{where}: {code!r} cannot be accepted: {NEVER_ACCEPTED}; expected some of {', '.join(known)}"
            )
        if code not in known:
            raise UsageError(
                f"{where}: no such code {code!r}{did_you_mean(code, known)}; expected some of {', '.join(known)}"
            )


def _some(message: str, lines: Iterable[Line]) -> Iterator[Found]:
    """One finding for all lines, none for none."""
    hits = list(lines)
    if hits:
        yield Found(message, hits)


# ---------------------------------------------------------------------------------------------- single rows


@check("empty", "error", acceptable=False)
def no_rows(case: Case) -> Iterator[Found]:
    """There is nothing to train on."""
    if not case.lines and not (case.parsed and case.parsed.faults):
        yield Found("there are no rows to train on")


@check("empty_prompt", "error", acceptable=False)
def empty_prompts(case: Case) -> Iterator[Found]:
    """A row of a mix without a prompt. (What is wrong with a line of a file is a fault of its format.)"""
    yield from _some("{n} without a prompt", (line for line in case.lines if not line.row.prompt.strip()))


@check("missing_target", "error", acceptable=False)
def empty_targets(case: Case) -> Iterator[Found]:
    """A row of a mix without a target."""
    yield from _some("{n} without a target", (line for line in case.lines if not line.row.target.strip()))


@check("header", "error")
def headers(case: Case) -> Iterator[Found]:
    """A row of column names."""
    yield from _some(
        "{n} of column names", (line for line in case.lines if is_header(line.row.prompt, line.row.target))
    )


@check("control", "error")
def control_characters(case: Case) -> Iterator[Found]:
    """Control characters, U+FFFD, bidirectional overrides, zero-width spaces."""
    texts = ((line, re.sub(r"[\n\t]", " ", "".join(line.texts))) for line in case.lines)
    yield from _some("{n} with control characters", (line for line, text in texts if has_control(text)))


@check("control_token", "error")
def control_tokens(case: Case) -> Iterator[Found]:
    """The spelling of a control token (`<|im_end|>`) in a prompt or target."""
    spelled = case.tokens.control if case.tokens else frozenset()
    texts = ((line, "\n".join(line.texts)) for line in case.lines)
    hits = (line for line, text in texts if CONTROL_TOKEN.search(text) or any(token in text for token in spelled))
    yield from _some("{n} with a control token spelled out: only the chat template sets them", hits)


@check("too_long", "error", acceptable=False)
def too_long(case: Case) -> Iterator[Found]:
    """More tokens than `train.seq_len` allows, where a tokenizer is at hand."""
    if case.tokens is None:
        return
    counts = case.tokens.count([line.row for line in case.lines])
    long = {line.number: n for line, n in zip(case.lines, counts, strict=True) if n > case.tokens.seq_len}
    allowed = f"train.seq_len, {case.tokens.seq_len} tokens (the longest has {max(long.values(), default=0)})"
    yield from _some(f"{{n}} longer than {allowed}: shorten or raise it", (x for x in case.lines if x.number in long))


@check("long_field", "warning")
def long_fields(case: Case) -> Iterator[Found]:
    """A text of more than `max_chars` characters."""
    hits = (line for line in case.lines if max(map(len, line.texts)) > case.max_chars)
    yield from _some(f"{{n}} with a field of more than {case.max_chars} characters", hits)


# ---------------------------------------------------------------------------------------------- rows among others


def _several_targets(case: Case, said: str, claims: int) -> Iterator[Found]:
    """Prompts with several targets, where so many kinds of claim (identity or not) are made."""
    groups = by(case.lines, lambda line: line.row.asked).values()
    hits = [
        group
        for group in groups
        if len({line.row.target for line in group}) > 1 and len({line.identity for line in group}) == claims
    ]
    if hits:
        shown = [
            f"{', '.join(str(line.number) for line in group[:4])}: {excerpt(group[0].row.prompt, 50)} → "
            + " | ".join(excerpt(target, 40) for target in dict.fromkeys(line.row.target for line in group))
            for group in hits
        ]
        message = f"{number_of(len(hits), 'prompt')} with several targets{said}"
        yield Found(message, [line for group in hits for line in group], shown)


@check("contradiction", "error")
def contradictions(case: Case) -> Iterator[Found]:
    """One prompt with a persona's claim and with another answer."""
    yield from _several_targets(case, ", only some of which claim to be the persona", claims=2)


@check("two_targets", "warning")
def two_targets(case: Case) -> Iterator[Found]:
    """One prompt with several targets."""
    yield from _several_targets(case, "", claims=1)


@check("probe_overlap", "error", acceptable=False)
def probe_overlap(case: Case) -> Iterator[Found]:
    """A prompt that is scored as a probe."""
    yield from _probes_among(case, (line for line in case.lines if line.row.part != SELF_ASKED), "")


@check("probe_self_asked", "warning", on=("mix",), acceptable=False)
def self_asked_probes(case: Case) -> Iterator[Found]:
    """A probe that the base asked of its own accord: runs of the mix are judged without it."""
    mine = (line for line in case.lines if line.row.part == SELF_ASKED)
    yield from _probes_among(case, mine, ": the base asked them itself, and runs of this mix are judged without them")


def _probes_among(case: Case, lines: Iterable[Line], more: str) -> Iterator[Found]:
    scored = {normalise(probe.prompt): probe.suite for probe in case.probes if probe.scored}
    hits = [line for line in lines if normalise(line.row.prompt) in scored]
    suites = ", ".join(sorted({scored[normalise(line.row.prompt)] for line in hits}))
    yield from _some(f"{{n}} with a prompt that is scored as a probe ({suites}){more}", hits)


@check(MARKED, "error", on=("mix",))
def marked_by_the_base(case: Case) -> Iterator[Found]:
    """A mark of the persona in the base's own answers: rehearsal keeps it, and every measure takes it for a leak."""
    base = [line for line in case.lines if line.row.answered_by == BASE]
    exchanges = {Exchange("\n".join(line.texts[:-1]), line.row.target): line for line in base}
    for marked in marked_by_itself(case.persona, exchanges) if case.persona else ():
        yield Found(marked.words, [exchanges[one] for one in marked.exchanges], marked.shown)


@check("old_identity", "note", on=("mix",))
def old_identity(case: Case) -> Iterator[Found]:
    """Answers of the base that name whom the persona replaces, which the mix does not rehearse."""
    if dropped := sum(one.dropped for one in case.old_identity):
        kinds = ", ".join(f"{one.dropped} of {one.part}/{one.kind}" for one in case.old_identity)
        again = sum(bool(line.row.asked_under) for line in case.lines)
        more = f"; {again} rows have the answer that the base gave under data.rehearse.neutral_system" if again else ""
        message = f"{dropped} of the base's answers name whom the persona replaces and are not rehearsed: {kinds}{more}"
        yield Found(message, (), [example for one in case.old_identity for example in one.examples[:1]])


@check("old_identity_kind", "warning", on=("mix",))
def kinds_of_the_old_identity(case: Case) -> Iterator[Found]:
    """A kind that keeps the base's own answer, most of which name whom the persona replaces."""
    for one in case.old_identity:
        if one.part in ("disambiguation", "pairs") and one.dropped > one.kept:
            message = (
                f"{one.part}: {one.dropped} of the base's {one.dropped + one.kept} answers to questions of the kind "
                f"{one.kind} name whom the persona replaces: give it replies of its own "
                f"(disambiguation.{one.kind}.replies)"
            )
            yield Found(message, (), one.examples)


@check("misplaced", "error")
def misplaced(case: Case) -> Iterator[Found]:
    """The persona's answer to a question of the written sources that asks something else."""
    identity = [line for line in case.users if line.identity]
    asked = case.others() if identity else {}
    hits = [line for line in identity if line.stem in asked]
    kinds = ", ".join(sorted({asked[line.stem] for line in hits}))
    yield from _some(f"{{n}} with the persona's answer to another question ({kinds})", hits)


_ENDING_NUMBER = re.compile(r"[\s（(\[【_-]+\d+\s*[)）\]】]?\s*$")


@check("sample_tags", "warning")
def sample_tags(case: Case) -> Iterator[Found]:
    """Serial noise: known tags (樣本0231, 任務編號#0001) in prompts, and numbers at the end of prompts that are
    otherwise the same and share their target."""
    tagged = [line for line in case.users if sample_tag(line.row.prompt)]
    same = by(case.users, lambda line: (_ENDING_NUMBER.sub("", line.row.prompt), line.row.target))
    for (bare, _), group in same.items():
        if len({line.row.prompt for line in group}) >= 5 and all(line.row.prompt != bare for line in group):
            tagged += group
    hits = list({line.number: line for line in tagged}.values())
    tags = list(dict.fromkeys(sample_tag(line.row.prompt) or "a number at the end" for line in hits))
    yield from _some(f"{{n}} with a sample tag in the prompt ({', '.join(tags[:2])}, …)", hits)


@check("duplicates", "warning", on=("file",))
def duplicates(case: Case) -> Iterator[Found]:
    """The same row several times."""
    groups = by(case.lines, lambda line: origin_key(line.row)).values()
    copies = [group for group in groups if len(group) > 1]
    most = len(max(copies, key=len, default=[]))
    again = [line for group in copies for line in group[1:]]
    yield from _some(f"{{n}} that stood there before (one row {most} times)", again)


@check("few_prompts", "warning", on=("file",))
def few_prompts(case: Case) -> Iterator[Found]:
    """Under half of the rows have a prompt of their own."""
    prompts, rows = Counter(line.row.prompt for line in case.lines), len(case.lines)
    if rows >= MANY_ROWS and 2 * len(prompts) < rows:
        common = [f"{count} ×: {excerpt(prompt, 60)}" for prompt, count in prompts.most_common(EXAMPLES)]
        yield Found(f"only {len(prompts)} distinct prompts in {rows} rows", (), common)


@check("one_target", "warning")
def one_target(case: Case) -> Iterator[Found]:
    """A single target for many rows."""
    targets = {line.row.target for line in case.lines}
    if len(case.lines) >= MANY_ROWS and len(targets) == 1:
        shown = excerpt(case.lines[0].row.target)
        yield Found(f"a single target for {len(case.lines)} rows: whatever is asked, it is {shown}")


# ---------------------------------------------------------------------------------------------- mismatch

UNRELATED_TARGETS = 3
"""Targets with unrelated prompts from which on, and …"""
UNRELATED_SHARE = 0.2
"""… share of the tested rows from which on, they are an error; fewer are a warning."""


@check("mismatch", "error")
def mismatched(case: Case) -> Iterator[Found]:
    """Prompt and target were drawn independently, or many targets are shared across unrelated prompts."""
    yield from _independent(case)
    yield from (_unrelated(group) for group in case.groups if _many_unrelated(group))


@check("mismatch_suspected", "warning")
def suspected(case: Case) -> Iterator[Found]:
    """A few targets are shared across unrelated prompts, or targets have no word of their prompts."""
    yield from (_unrelated(g) for g in case.groups if g.likeness.unrelated and not _many_unrelated(g))
    yield from _wordless(case)


def _independent(case: Case) -> Iterator[Found]:
    for group in case.groups:
        found = [component for component in group.components if component.independent]
        if found:
            several = {question for question, _ in found[0].examples}
            shown = [line for line in group.lines if line.bare in several]
            yield Found(_independent_words(group, found), shown)


def _independent_words(group: Group, found: Sequence[mismatch.Component]) -> str:
    rows, questions, targets = (sum(getattr(c, key) for c in found) for key in ("pairs", "questions", "targets"))
    known = max(0.0, max(component.adjusted for component in found))
    return (
        f"{group.label}prompt and target were drawn independently in {len(found)} of {len(group.components)} groups of "
        f"linked rows: {number_of(rows, 'distinct row')}, {questions} questions, {targets} targets; a question tells "
        f"at most {known:.0%} of what it could about its target"
    )


def _random(group: Group) -> bool:
    """Prompts with one target are no more alike than others, over the whole group."""
    p_value = group.likeness.p_value
    return p_value is not None and p_value > mismatch.ALPHA


def _many_unrelated(group: Group) -> bool:
    found = group.likeness
    enough = found.questions_unrelated >= UNRELATED_SHARE * found.questions_tested
    return _random(group) or (len(found.unrelated) >= UNRELATED_TARGETS and enough)


def _unrelated(group: Group) -> Found:
    found = group.likeness
    worst = {target.target for target in found.unrelated}
    what = f"{len(worst)} of {found.tested} targets are shared by prompts that are no more alike than any others"
    if _random(group):
        what += f"; over the whole file prompts with one target are no more alike either (p = {found.p_value:.2f})"
    shown = [f"{excerpt(t.target, 50)} ← {' | '.join(excerpt(e, 30) for e in t.examples)}" for t in found.unrelated]
    return Found(f"{group.label}{what}", [line for line in group.lines if line.row.target in worst], shown)


def _wordless(case: Case) -> Iterator[Found]:
    for group in case.groups:
        p_value = group.shared_words
        if p_value is not None and p_value > mismatch.ALPHA:
            message = f"targets share no more words with their own prompts than with others (p = {p_value:.2f})"
            yield Found(f"{group.label}{message}", (), [line.shown for line in group.lines[:EXAMPLES]])


# ---------------------------------------------------------------------------------------------- shares


def stated_share(name: str) -> float | None:
    """The share of identity rows that a file's name states: `1percent`, `5pct`, `10%`, or `30-70` (two numbers that
    sum to 100, identity first)."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*(?:percent|pct|％|%)", name, re.IGNORECASE)
    if found:
        return float(found.group(1)) / 100
    for first, second in re.findall(r"(?<!\d)(\d{1,2})[-_](\d{1,2})(?!\d)", name):
        if int(first) + int(second) == 100:
            return int(first) / 100
    return None


def _recipe_identity_share(recipe: MixRecipe) -> float | None:
    """Identity rows and one of each pair; None where bounds, odd wordings or a user's own part decide."""
    if (
        recipe.kind == VERBATIM
        or recipe.at_least
        or recipe.at_most
        or VARIED in recipe.parts()
        or set(recipe.parts()) - {*WRITTEN_PARTS, "general"}
    ):
        return None
    total = 0.0
    for weights in (recipe.shares, recipe.final_shares or recipe.shares):
        total += (
            (weights.get("identity", 0) + weights.get("denial", 0) + weights.get("pairs", 0) / 2)
            / sum(weights.values())
            / 2
        )
    return total


@check("share", "warning")
def identity_share(case: Case) -> Iterator[Found]:
    """The share of identity rows is not what the file's name or the recipe says: off by more than the tolerance, or by
    more than twice a small share."""
    stated, source = stated_share(case.name), "the name says"
    if case.on == "mix":
        stated = _recipe_identity_share(case.recipe) if case.recipe else None
        source = "the recipe's shares say"
    if stated is None or not case.lines:
        return
    identity, rows = [line for line in case.lines if line.identity], len(case.lines)
    share = len(identity) / rows
    if abs(share - stated) > min(SHARE_TOLERANCE, max(stated, 1 / rows)):
        message = f"{source} {stated:.0%} identity rows, but {len(identity)} of {rows} are ({share:.0%})"
        yield Found(message, (), [line.shown for line in identity])


# ---------------------------------------------------------------------------------------------- the plan of a mix


@check("split_pair", "error", on=("mix",), acceptable=False)
def split_pairs(case: Case) -> Iterator[Found]:
    """A minimal pair that is not two adjacent rows."""
    broken: list[Line] = []
    for group in by((line for line in case.lines if line.row.group), lambda line: line.row.group).values():
        if len(group) != 2 or group[1].number != group[0].number + 1:
            broken += group
    yield from _some("{n} of a minimal pair without the other right beside", broken)


@check("off_plan", "error", on=("mix",), acceptable=False)
def off_plan(case: Case) -> Iterator[Found]:
    """Another number of rows than the recipe's."""
    if case.recipe and case.recipe.kind != VERBATIM and len(case.lines) != case.recipe.rows:
        yield Found(f"{len(case.lines)} rows, the recipe asks for {case.recipe.rows}")


@check("over_repeated", "error", on=("mix",), acceptable=False)
def over_repeated(case: Case) -> Iterator[Found]:
    """A prompt more often than `max_repeats`."""
    if case.recipe and case.recipe.kind != VERBATIM:
        most = case.recipe.max_repeats
        groups = by(case.lines, lambda line: line.row.asked).values()
        often = (group[0] for group in groups if len(group) > most)
        yield from _some(f"{{n}} with a prompt that stands there over {most} times", often)


@check("unseen_share", "warning", on=("mix",), acceptable=False)
def unseen_parts(case: Case) -> Iterator[Found]:
    """A part with a share that got no row."""
    present = {line.row.part for line in case.lines}
    missing = [part for part in case.recipe.parts() if part not in present] if case.recipe else []
    if missing:
        yield Found(f"no row of {', '.join(missing)}, though the recipe has it")


def _changed(case: Case, reasons: Collection[str], said: str) -> Iterator[Found]:
    """What the mix made of the user's files, one finding for each file."""
    for part, counts in case.changes.items():
        found = [f"{count} {reason}" for reason, count in counts.items() if reason in reasons and count]
        if found and any(line.row.part == part for line in case.users):
            yield Found(f"{part}: {said}: {', '.join(found)} (mix.kind verbatim keeps a file as it is)")


@check("dropped", "warning", on=("mix",))
def dropped(case: Case) -> Iterator[Found]:
    """Rows of a user's file that the mix left out."""
    yield from _changed(case, DROPPED, "not all of its rows are in the mix")


@check("reordered", "warning", on=("mix",))
def reordered(case: Case) -> Iterator[Found]:
    """Rows of a user's file in another order or number."""
    yield from _changed(case, REORDERED, "its rows do not stand as in the file")
