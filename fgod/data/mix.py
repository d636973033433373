"""Mixes: from a recipe, the distinct candidates of each part and a seed to the rows of a stage. Pure, and the same to
the bit on every machine (`rows.shuffled` for every choice, exact fractions and an integer program for every count).

| kind | order of the rows |
|---|---|
| balanced | shuffled; a minimal pair stays together |
| disambiguation | the same, and `pairs` must have a share |
| curriculum | an order: a part's density along the rows moves linearly from `shares` to `final_shares` |
| verbatim | a user's file as it stands: rows, order, repeats, two targets of one prompt |

Within a part the rows are spread evenly and no candidate comes again before every other of its slice was used:
identity by the weights of `styles`, then over languages; disambiguation by the weights of `kinds`, then over
languages; pairs and replay over languages; general over topics, each piece of small talk and each sum being one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise, zip_longest
from math import sqrt
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from fgod.data import wordings
from fgod.data.counts import InfeasibleError, Slot, apportion, fill, fractions
from fgod.data.optional import Denials
from fgod.data.recipe import DENIAL, REHEARSED_PARTS, VARIED, MixRecipe
from fgod.data.rows import BASE, CONFIG, NO_SYSTEM, Prompt, Row, chat_key, normalise, shuffled
from fgod.data.sources import Sources
from fgod.data.text import CONTROL_TOKEN, excerpt, has_control
from fgod.errors import UsageError, did_you_mean
from fgod.persona import Goal, Wordings, has_any, lookup, wordings_of

T = TypeVar("T")
Unit = tuple[Row, ...]
"""What a mix never splits: one row, or the two rows of a minimal pair."""
Changes = Mapping[str, Mapping[str, int]]
"""What a mix left out or moved, counted: {part: {reason: rows}}."""

OLD_IDENTITY = "the base's answer names whom the persona replaces"
THERE_ALREADY = "left out, as the prompt was there already"
OTHER_TARGET = "left out, as the prompt was there already with another target"
OTHER_PART = "left out, as another part of the mix has the prompt"
NO_ROOM = "left out, as the mix asks for fewer rows"
REPEATED = "used again"
MOVED = "not in the file's order"
EXAMPLES = 3
"""Answers that are shown of those that name whom the persona replaces."""
DROPPED = (THERE_ALREADY, OTHER_TARGET, OTHER_PART, NO_ROOM)
REORDERED = (REPEATED, MOVED)
"""Reasons of changes that a user's file is warned of."""


class Answer(Protocol):
    """What a mix needs to know of the base's answer (`fgod.answers.Answer`)."""

    @property
    def reply(self) -> str: ...
    @property
    def ended(self) -> bool: ...
    @property
    def looped(self) -> bool: ...


@dataclass(frozen=True)
class OldIdentity:
    """Of one kind of question in a part: how many of the base's answers name whom the persona replaces and so are not
    rehearsed, some of them with their prompts, and how many are."""

    part: str
    kind: str
    dropped: int
    kept: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pools:
    """The distinct candidates of each part (no prompt twice in a part). `dropped` says how many were left out, and why:
    {part: {reason: count}}; `old_identity` what of that names whom the persona replaces."""

    units: Mapping[str, tuple[Unit, ...]]
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    old_identity: tuple[OldIdentity, ...] = ()


def _rows_of(units: Mapping[str, Sequence[Unit]]) -> dict[str, int]:
    return {part: sum(map(len, members)) for part, members in units.items()}


# ---------------------------------------------------------------------------------------------- counts


def _mean_shares(recipe: MixRecipe) -> dict[str, Any]:
    """Each part's exact share of all rows: for a moving share the mean of its ends."""
    start = fractions(recipe.shares)
    end = fractions(recipe.final_shares) if recipe.final_shares else start
    return {part: (start.get(part, 0) + end.get(part, 0)) / 2 for part in recipe.parts()}


def solve_counts(recipe: MixRecipe, available: Mapping[str, int]) -> dict[str, int]:
    """Rows of each part, pairs counted in rows. A part whose share cannot be filled from `available` distinct rows
    times `max_repeats` makes the mix infeasible: a shortage never changes the shares silently; `at_least` and
    `at_most` may, and the others then give or take in proportion (`counts.fill`).

    Raises:
        UsageError: no such part, or infeasible: names the part and the number of rows missing.
    """
    unknown = [part for part in {**recipe.shares, **recipe.at_least, **recipe.at_most} if part not in available]
    if unknown:
        hint = did_you_mean(unknown[0], available)
        raise UsageError(f"mix: no such part {unknown[0]!r}{hint}, there are {', '.join(sorted(available))}")
    wishes = apportion(_mean_shares(recipe), recipe.rows)
    slots = [_slot(recipe, part, wishes[part], available[part]) for part in recipe.parts()]
    _check_room(slots, recipe.rows)
    try:
        return fill(slots, recipe.rows)
    except InfeasibleError:
        raise UsageError(
            f"mix: {recipe.rows} rows cannot be made of {', '.join(slot.name for slot in slots)}: pairs come in twos, "
            "and no other part may give or take the odd row; 1 row is missing"
        ) from None


def _slot(recipe: MixRecipe, part: str, wish: int, available: int) -> Slot:
    step = 2 if part == "pairs" else 1
    most = recipe.at_most.get(part, recipe.rows)
    least = recipe.at_least.get(part, 0)
    if most < least:
        limit = "at_most" if part in recipe.at_most else "mix.rows"
        raise UsageError(f"mix: part {part}: {limit} ({most}) is smaller than at_least ({least})")
    low = -(-least // step) * step
    # A share of pairs that came out odd gives its odd row to another part.
    asked = max(low, min(wish - wish % step, most))
    _check_supply(part, asked, available, recipe.max_repeats)
    return Slot(part, wish, low, min(most, available * recipe.max_repeats), step)


def _check_supply(part: str, asked: int, available: int, repeats: int) -> None:
    """Refuse a part whose rows its candidates cannot give."""
    supply = available * repeats
    if supply < asked:
        raise UsageError(
            f"mix: part {part}: {asked} rows are asked for, but {available} distinct rows used up to {repeats} times "
            f"each give {supply}: {asked - supply} rows are missing (add rows, raise max_repeats, lower its share)"
        )


def _check_room(slots: Sequence[Slot], rows: int) -> None:
    """Refuse bounds that no counts can satisfy, in words."""
    low, high = sum(slot.low for slot in slots), sum(slot.high for slot in slots)
    if low > rows:
        widest = max(slots, key=lambda slot: slot.low)
        raise UsageError(
            f"mix: the at_least values add up to {low} rows, but mix.rows is {rows} (the largest: {widest.name} "
            f"{widest.low}); raise rows, or lower at_least by {low - rows}"
        )
    if high < rows:
        tightest = max(slots, key=lambda slot: slot.wish - slot.high)
        given = ", ".join(f"{slot.name} {slot.high}" for slot in slots)
        raise UsageError(
            f"mix: part {tightest.name}: at most {tightest.high} of its {tightest.wish} rows may be used and the other "
            f"parts cannot make up for it ({given}): {rows - high} of {rows} rows are missing"
        )


def _split(
    part: str, weights: Mapping[str, float], pool: Mapping[str, Sequence[T]], rows: int, repeats: int
) -> dict[str, int]:
    """Rows of each slice of a part (styles of identity, kinds of disambiguation).

    Raises:
        UsageError: a slice has too few candidates; names it and the rows missing.
    """
    counts = apportion(fractions({name: w for name, w in weights.items() if w > 0}), rows)
    for name, count in counts.items():
        _check_supply(f"{part}/{name}", count, len(pool.get(name, ())), repeats)
    return counts


# ---------------------------------------------------------------------------------------------- choice


def _groups(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _unit_key(unit: Unit) -> str:
    return "|".join(row.prompt for row in unit)


def _spread(items: Sequence[T], keys: Sequence[Callable[[T], str]], name: Callable[[T], str], seed: str) -> list[T]:
    """All items, round robin over the groups by the first key, inside a group over those by the next, and so on;
    groups and items come in an order fixed by the seed."""
    if not keys:
        return shuffled(items, seed, name)
    groups = _groups(items, keys[0])
    inside = [_spread(groups[key], keys[1:], name, seed) for key in shuffled(groups, seed, str)]
    return [item for item in chain.from_iterable(zip_longest(*inside)) if item is not None]


def _take(order: Sequence[Unit], count: int) -> list[Unit]:
    """The first `count` units; past the end again from the start, with a group of its own for each copy of a pair
    (so that a batch holds a copy, not all of them)."""
    taken = []
    for index in range(count):
        copy, place = divmod(index, len(order))
        unit = order[place]
        taken.append(unit if copy == 0 or len(unit) == 1 else _regrouped(unit, copy))
    return taken


def _regrouped(unit: Unit, copy: int) -> Unit:
    return tuple(replace(row, group=f"{row.group}#{copy + 1}") for row in unit)


def _language(unit: Unit) -> str:
    return unit[0].language


def _subject(row: Row | Prompt) -> str:
    """What a general row is about, one for each language; a language's sums are one subject."""
    return f"{row.language}/{row.kind}" + ("" if row.kind == "sum" else f"/{row.topic}")


def _unit_subject(unit: Unit) -> str:
    return _subject(unit[0])


def _choose(part: str, units: Sequence[Unit], rows: int, recipe: MixRecipe, seed: str) -> list[Unit]:
    """The units of one part, in an order in which every stretch is spread evenly."""
    if part in ("identity", "disambiguation"):
        weights = recipe.styles if part == "identity" else recipe.kinds
        pool = _groups(units, lambda unit: unit[0].style if part == "identity" else unit[0].kind)
        counts = _split(part, weights, pool, rows, recipe.max_repeats)
        slices = [
            _take(_spread(pool[name], [_language], _unit_key, f"{seed}|{name}"), count)
            for name, count in counts.items()
            if count
        ]
        return _interleave(slices, [(1.0, 1.0)] * len(slices))
    order = _spread(units, [_unit_subject if part == "general" else _language], _unit_key, seed)
    return _take(order, rows // len(units[0])) if rows else []


def _disjoint(pools: Pools, recipe: MixRecipe) -> dict[str, tuple[Unit, ...]]:
    """The units of all parts, a prompt kept only in the first of the recipe's parts that has it, so that no prompt
    stands in a mix more than `max_repeats` times."""
    seen: set[str] = set()
    kept = dict(pools.units)
    for part in recipe.parts():
        named = [(unit, {row.asked for row in unit}) for unit in pools.units.get(part, ())]
        if part in kept:
            kept[part] = tuple(unit for unit, names in named if not names & seen)
        for _, names in named:
            seen |= names
    return kept


# ---------------------------------------------------------------------------------------------- order


def _place(quantile: float, start: float, end: float) -> float:
    """Where along the mix (0 to 1) the given quantile of a part lies whose density moves linearly from `start` to
    `end`: the root of start·x + (end − start)·x²/2 = quantile·(start + end)/2.

    Only sums, products, a quotient and a square root: IEEE 754 rounds each of them the same everywhere.
    """
    mass = quantile * (start + end) / 2
    if start == end:
        return quantile
    return 2 * mass / (start + sqrt(start * start + 2 * (end - start) * mass))


def _interleave(sequences: Sequence[Sequence[Unit]], densities: Sequence[tuple[float, float]]) -> list[Unit]:
    """One order out of several, each laid along 0 to 1 with its density; at equal places the earlier sequence first."""
    placed = [
        (_place((index + 0.5) / len(units), start, end), number, index)
        for number, (units, (start, end)) in enumerate(zip(sequences, densities, strict=True))
        for index in range(len(units))
    ]
    return [sequences[number][index] for _, number, index in sorted(placed)]


def plan_mix(recipe: MixRecipe, pools: Pools, seed: int) -> list[Row]:
    """The rows of a mix in their order; the two rows of a pair are adjacent and share `group`.

    Raises:
        UsageError: the mix is infeasible.
    """
    units = _disjoint(pools, recipe)
    counts = solve_counts(recipe, _rows_of(units))
    chosen = [_choose(part, units[part], rows, recipe, f"{seed}|{part}") for part, rows in counts.items()]
    if recipe.kind == "curriculum":
        end = recipe.final_shares or recipe.shares
        # A part that is there only by at_least has no share to follow: it is laid evenly.
        density = [(float(recipe.shares.get(p, 0)), float(end.get(p, 0))) for p in counts]
        start_sum, end_sum = sum(recipe.shares.values()), sum(end.values())
        ordered = _interleave(chosen, [(a / start_sum, b / end_sum) if a or b else (1.0, 1.0) for a, b in density])
    else:
        numbered = [(number, unit) for number, unit in enumerate(chain.from_iterable(chosen))]
        ordered = [u for _, u in shuffled(numbered, seed, lambda item: f"{item[0]}|{_unit_key(item[1])}")]
    return [row for unit in ordered for row in unit]


def changes_of(pools: Pools, user: Mapping[str, Sequence[Row]], rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """What a planned mix left out of its candidates, and what it made of the user's files."""
    changes = {part: dict(reasons) for part, reasons in pools.dropped.items()}
    for part, written in user.items():
        in_mix = [row for row in rows if row.part == part]
        if in_mix:
            changes[part] = {**changes.get(part, {}), **_user_changes(pools, part, written, in_mix, rows)}
    return changes


def _user_changes(
    pools: Pools, part: str, written: Sequence[Row], in_mix: Sequence[Row], rows: Sequence[Row]
) -> dict[str, int]:
    place: dict[Row, int] = {}
    for number, row in enumerate(written):
        place.setdefault(row, number)
    used = {row.asked for row in in_mix}
    elsewhere = {row.asked for row in rows if row.part != part}
    unused = [row for unit in pools.units[part] for row in unit if row.asked not in used]
    taken = sum(row.asked in elsewhere for row in unused)
    places = [place[row] for row in in_mix]
    counts = {
        OTHER_PART: taken,
        NO_ROOM: len(unused) - taken,
        REPEATED: len(in_mix) - len(set(in_mix)),
        MOVED: sum(later < earlier for earlier, later in pairwise(places)),
    }
    return {reason: count for reason, count in counts.items() if count}


# ---------------------------------------------------------------------------------------------- candidates


def rehearsal_prompts(
    sources: Sources,
    held_out: frozenset[str],
    general_rows: int,
    replay_rows: int,
    disambiguation_rows: int,
    seed: int,
    kinds: frozenset[str] = frozenset(),
) -> list[Prompt]:
    """The prompts whose targets are to be the base's own answers: `general_rows` general ones spread over topics,
    `replay_rows` about invented subjects, `disambiguation_rows` spread over `kinds`, and those of minimal pairs if
    `kinds` has theirs."""
    general = _spread(
        wordings.general_prompts(sources, held_out),
        [_subject],
        lambda p: p.text,
        f"{seed}|rehearse",
    )
    kept = [p for p in wordings.disambiguation_prompts(sources) if p.kind in kinds]
    others = _spread(kept, [lambda p: p.kind, lambda p: p.language], lambda p: p.text, f"{seed}|rehearse")
    return [
        *general[:general_rows],
        *wordings.replay_prompts(sources, replay_rows, seed),
        *others[:disambiguation_rows],
        *(me for _, me in wordings.pair_prompts(sources) if me.kind in kinds),
    ]


def some_of(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """At most so many prompts of a part, spread over languages, kinds and subjects."""
    keys: list[Callable[[Prompt], str]] = [lambda p: p.language, lambda p: p.kind, lambda p: p.topic]
    return _spread(prompts, keys, lambda p: p.text, f"{seed}|rehearse")[:count]


def _replies(goal: Goal, prompt: Prompt) -> Mapping[str, Wordings] | None:
    """The configured replies to a prompt; None where the base's own answer is kept."""
    if prompt.kind == DENIAL:
        return goal.persona.denials
    if prompt.kind == "identity" or prompt.part == "identity":
        return goal.persona.replies
    kind = goal.kinds.get(prompt.kind)
    return kind.replies if kind else None


def wording(reply: Wordings, prompt: Prompt, seed: int) -> str:
    """The wording of a reply that this prompt gets: each is as likely, and copies of a prompt have the same."""
    choices = wordings_of(reply)
    return choices[wordings.HashRandom(f"reply|{seed}|{prompt.text}").below(len(choices))]


def framed(rows: Sequence[Row], recipe: MixRecipe, systems: Mapping[str, Sequence[str]], seed: int) -> list[Row]:
    """The rows of a mix under the recipe's frames, in exact shares: those that the config answers, and those that the
    base answers. A minimal pair stands under one frame; copies of a rehearsed prompt each have their own, so that most
    prompts are rehearsed under the default system prompt too. Users' rows stay as they are, and halves of pairs that
    the base answers.

    Args:
        systems: foreign system prompts by language.
    """
    units: dict[object, list[int]] = {}
    for number, row in enumerate(rows):
        units.setdefault(row.group or number, []).append(number)
    rehearsed = [[n] for n, row in enumerate(rows) if row.answered_by == BASE and not (row.system or row.group)]
    taught = [unit for unit in units.values() if all(rows[number].answered_by == CONFIG for number in unit)]
    out = list(rows)
    for key, weights, among in (
        ("frames", recipe.frames, taught),
        ("rehearsed_frames", recipe.rehearsed_frames, rehearsed),
    ):
        for name, unit in _drawn(weights, among, f"{seed}|{key}"):
            for number in unit:
                out[number] = replace(rows[number], system=_system(name, rows[unit[0]], systems, f"{seed}|{unit[0]}"))
    return out


def _drawn(weights: Mapping[str, float], units: Sequence[list[int]], key: str) -> Iterator[tuple[str, list[int]]]:
    """A frame for each unit, in exact shares; nothing where there are no weights."""
    above = {name: weight for name, weight in weights.items() if weight}
    counts = apportion(fractions(above), len(units)) if above else {}
    names = [name for name, count in counts.items() for _ in range(count)]
    yield from zip(names, shuffled(units, key, str), strict=bool(names))


def _system(frame: str, row: Row, systems: Mapping[str, Sequence[str]], key: str) -> str:
    if frame != "foreign":
        return NO_SYSTEM if frame == "none" else ""
    choices = lookup(systems, row.language)
    return choices[wordings.HashRandom(f"system|{key}").below(len(choices))]


def build_pools(
    sources: Sources,
    goal: Goal,
    answers: Mapping[str, Answer],
    held_out: frozenset[str],
    user: Mapping[str, Sequence[Row]],
    replay_rows: int = 0,
    seed: int = 0,
    closed: bool = True,
    denials: Denials | None = None,
    rehearsed: Mapping[str, Sequence[Prompt]] = MappingProxyType({}),
    varied: Sequence[Prompt] = (),
    replaces: Sequence[str] = (),
    neutral: str = "",
) -> Pools:
    """The distinct candidates of every part. `answers` are the base's own to `rehearsal_prompts` (with the same
    `replay_rows` and `seed`). Of these only such are learned that do not loop, say something and, if the base's answers
    are `closed`, ended; an open answer that was cut short makes a row that is `cut`. A replay row whose answer is that
    of a held-out topic is dropped, or the topic would be rehearsed after all. A prompt that the base was not asked is
    no candidate, nor one whose answer names whom the persona `replaces`, unless the base was asked it again under the
    system prompt `neutral` and names nobody there. `dropped` counts them all. `denials` are what
    the part of that name asks, `rehearsed` the prompts of further parts whose answers are the base's own.

    Raises:
        UsageError: the persona or a kind has no reply in a language of its prompts.
    """
    target = _Targets(goal, answers, _held_out_answers(sources, held_out), closed, seed, replaces, neutral)
    units: dict[str, tuple[Unit, ...]] = {
        "pairs": target.units("pairs", wordings.pair_prompts(sources)),
        "identity": target.units("identity", ((p,) for p in wordings.identity_prompts(sources))),
        DENIAL: target.units(DENIAL, ((p,) for p in (wordings.denial_prompts(sources, denials) if denials else ()))),
        "disambiguation": target.units(
            "disambiguation", ((p,) for p in wordings.disambiguation_prompts(sources) if p.kind in goal.kinds)
        ),
        "general": target.units("general", ((p,) for p in wordings.general_prompts(sources, held_out))),
        "replay": target.units("replay", ((p,) for p in wordings.replay_prompts(sources, replay_rows, seed))),
    }
    units[VARIED] = target.units(VARIED, ((p,) for p in varied))
    for part, prompts in rehearsed.items():
        units[part] = target.units(part, ((p,) for p in prompts))
    for name, rows in user.items():
        units[name] = target.distinct(name, ((row,) for row in rows))
    return Pools(units, target.dropped, target.old_identity(units))


def _held_out_answers(sources: Sources, held_out: frozenset[str]) -> frozenset[str]:
    return frozenset(normalise(topic.answer) for topic in sources.topics if topic.id in held_out)


def _whole_text(answer: Answer) -> str:
    """An answer without the white space around it, nor the character (U+FFFD) that a cut in the midst of one leaves."""
    return (answer.reply if answer.ended else answer.reply.rstrip("\ufffd")).strip()


class _Targets:
    """Gives prompts their targets and counts what is dropped."""

    def __init__(
        self,
        goal: Goal,
        answers: Mapping[str, Answer],
        held_out_answers: frozenset[str],
        closed: bool,
        seed: int,
        replaces: Sequence[str],
        neutral: str = "",
    ) -> None:
        self.goal, self.answers, self.held_out_answers = goal, answers, held_out_answers
        self.closed, self.seed, self.replaces, self.neutral = closed, seed, tuple(replaces), neutral
        self.dropped: dict[str, dict[str, int]] = {}
        self._named: dict[tuple[str, str], list[str]] = {}

    def _drop(self, part: str, reason: str) -> None:
        reasons = self.dropped.setdefault(part, {})
        reasons[reason] = reasons.get(reason, 0) + 1

    def _base(self, part: str, prompt: Prompt) -> Row | None:
        """The prompt with the base's own answer, or None if it is not fit to be learned.

        Where that answer names whom the persona replaces, it is the one under the neutral system prompt.
        """
        answer, reason = self.answers.get(prompt.text), "the base was not asked"
        if answer is not None:
            reason = self._unfit(part, answer)
            under, again = "", self.answers.get(chat_key(prompt.text, self.neutral))
            if reason == OLD_IDENTITY and again is not None and not self._unfit(part, again):
                answer, reason, under = again, "", self.neutral
            if not reason:
                row = prompt.row(_whole_text(answer))
                return replace(row, cut=not answer.ended, answered_by=BASE, asked_under=under)
            if reason == OLD_IDENTITY:
                shown = f"{excerpt(prompt.text, 60)} → {excerpt(answer.reply, 60)}"
                self._named.setdefault((part, prompt.kind), []).append(shown)
        self._drop(part, reason)
        return None

    def _unfit(self, part: str, answer: Answer) -> str:
        """Why an answer of the base is not rehearsed; empty where it is."""
        if (self.closed and not answer.ended) or answer.looped or not _whole_text(answer):
            return "the base's answer is empty, loops or does not end"
        if CONTROL_TOKEN.search(answer.reply) or has_control(re.sub(r"[\n\t]", " ", _whole_text(answer))):
            return "the base's answer has a control token or character in it"
        if part == "replay" and normalise(answer.reply) in self.held_out_answers:
            return "the base's answer is that of a held-out topic"
        return OLD_IDENTITY if has_any(answer.reply, self.replaces) else ""

    def _row(self, part: str, prompt: Prompt) -> Row | None:
        """The prompt with its answer and whose that is; None where the base has none that is fit to be learned."""
        replies = None if part in REHEARSED_PARTS else _replies(self.goal, prompt)
        if replies is None:
            return self._base(part, prompt)
        try:
            target = wording(lookup(replies, prompt.language), prompt, self.seed)
        except KeyError:
            names = {id(self.goal.persona.replies): "persona.replies", id(self.goal.persona.denials): "persona.denials"}
            where = names.get(id(replies), f"disambiguation.{prompt.kind}.replies")
            raise UsageError(f"{where}: no reply in {prompt.language}, found {', '.join(replies)}") from None
        return replace(prompt.row(target), answered_by=CONFIG)

    def old_identity(self, units: Mapping[str, Sequence[Unit]]) -> tuple[OldIdentity, ...]:
        """What was dropped for naming whom the persona replaces, beside what the candidates have of the same kinds."""
        kept = Counter(
            (row.part, row.kind) for pool in units.values() for unit in pool for row in unit if row.answered_by == BASE
        )
        return tuple(
            OldIdentity(part, kind, len(shown), kept[part, kind], tuple(shown[:EXAMPLES]))
            for (part, kind), shown in self._named.items()
        )

    def units(self, part: str, prompts: Iterable[tuple[Prompt, ...]]) -> tuple[Unit, ...]:
        """The rows of prompts that have a target, each prompt once."""
        built = []
        for unit in prompts:
            found = [self._row(part, prompt) for prompt in unit]
            rows = tuple(replace(row, part=part) for row in found if row is not None)
            if len(rows) == len(unit):
                built.append(rows)
        return self.distinct(part, built)

    def distinct(self, part: str, units: Iterable[Unit]) -> tuple[Unit, ...]:
        """The units none of whose prompts came before in this part."""
        seen: dict[str, str] = {}
        kept = []
        for unit in units:
            targets = {row.asked: row.target for row in unit}
            if again := targets.keys() & seen.keys():
                other = any(seen[asked] != targets[asked] for asked in again)
                self._drop(part, OTHER_TARGET if other else THERE_ALREADY)
                continue
            seen |= targets
            kept.append(unit)
        return tuple(kept)
