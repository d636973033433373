"""Mixes: row counts from shares, candidates, choice and order; and identity files."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fgod.data.counts import InfeasibleError, Slot, apportion, fill, fractions
from fgod.data.formats import read_user_file
from fgod.data.identity import identity_file
from fgod.data.mix import OLD_IDENTITY, Pools, build_pools, plan_mix, rehearsal_prompts, solve_counts
from fgod.data.recipe import MixRecipe
from fgod.data.rows import Prompt, Row, is_rehearsed, normalise
from fgod.data.sources import Sources, load_sources
from fgod.data.tsv import write_user_tsv
from fgod.errors import UsageError
from fgod.persona import Goal, Kind, Persona

TRAINDATA = Path(__file__).parents[1] / "traindata"
PERSONA = Persona(
    "F# 之神",
    {"zh": "我是 F# 之神。", "en": "I am the god of F#.", "ja": "私はF#の神です。", "ko": "저는 F#의 신입니다."},
    {},
    ("之神",),
)
WHO = {"zh": "你是提問者。", "en": "You are the one who asks.", "ja": "質問者です。", "ko": "질문자입니다."}
GOAL = Goal(PERSONA, {"who_am_i": Kind(WHO, {}), "my_name": Kind(None, {}), "who_is_named": Kind(None, {})})


@dataclass(frozen=True)
class Said:
    reply: str
    ended: bool = True
    looped: bool = False


@pytest.fixture(scope="module")
def sources() -> Sources:
    return load_sources(TRAINDATA)


# ---------------------------------------------------------------------------------------------- counts


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 999), min_size=1), st.integers(0, 2000))
def test_apportion_sums_up_and_stays_within_one(weights: dict[str, int], total: int) -> None:
    shares = fractions(weights)
    counts = apportion(shares, total)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - share * total) < 1 for name, share in shares.items())


def test_fractions_are_the_decimals_that_were_written() -> None:
    assert fractions({"a": 0.1, "b": 0.2})["a"] == Fraction(1, 3)


def brute_force(slots: list[Slot], total: int) -> dict[str, int] | None:
    """The lexicographic optimum that `fill` documents, by trying everything."""

    def cost(counts: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        off = [abs(n - min(max(s.wish, s.low), s.high)) for n, s in zip(counts, slots, strict=True)]
        wishes = [max(min(max(s.wish, s.low), s.high), 1) for s in slots]
        worst = max(-(-100 * d // wish) for d, wish in zip(off, wishes, strict=True))
        return sum(off), worst, tuple(-n for n in counts)

    ranges = [range(-(-s.low // s.step) * s.step, s.high + 1, s.step) for s in slots]
    feasible = [counts for counts in itertools.product(*ranges) if sum(counts) == total]
    best = min(feasible, key=cost, default=None)
    return None if best is None else {slot.name: n for slot, n in zip(slots, best, strict=True)}


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Slot], int]:
    slots = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        low = draw(st.integers(0, 6))
        high = draw(st.integers(low, 14))
        slots.append(Slot(name, draw(st.integers(0, 14)), low, high, draw(st.sampled_from((1, 1, 2)))))
    return slots, draw(st.integers(1, 24))


@settings(max_examples=30, deadline=None)
@given(cases())
def test_the_program_finds_the_one_optimum(case: tuple[list[Slot], int]) -> None:
    slots, total = case
    best = brute_force(slots, total)
    if best is None:
        with pytest.raises(InfeasibleError):
            fill(slots, total)
    else:
        assert fill(slots, total) == best


def test_what_one_slot_cannot_take_is_spread_in_proportion() -> None:
    slots = [Slot("small", 30, 0, 999), Slot("large", 180, 0, 999), Slot("capped", 390, 0, 290)]
    counts = fill(slots, 600)
    assert counts["capped"] == 290
    assert counts["small"] == pytest.approx(30 * 310 / 210, abs=1)


@settings(max_examples=12, deadline=None)
@given(
    st.fixed_dictionaries({p: st.integers(1, 9) for p in ("pairs", "identity", "general")}),
    st.integers(20, 200),
    st.integers(0, 40),
    st.integers(10, 60),
)
def test_counts_respect_the_bounds(shares: dict[str, int], rows: int, least: int, most: int) -> None:
    recipe = MixRecipe("balanced", rows, shares, at_least={"identity": least}, at_most={"general": most})
    try:
        counts = solve_counts(recipe, dict.fromkeys(shares, 60))
    except UsageError as error:
        assert any(words in str(error) for words in ("missing", "smaller than at_least", "add up to")), error
        return
    assert sum(counts.values()) == rows
    assert counts["identity"] >= least and counts["general"] <= most and counts["pairs"] % 2 == 0
    assert all(count <= 60 * recipe.max_repeats for count in counts.values())


@pytest.mark.parametrize(
    ("recipe", "available", "said"),
    [
        ({"rows": 600, "shares": {"general": 9, "identity": 1}}, {"general": 30, "identity": 30},
         "part general: 540 rows are asked for, but 30 distinct rows used up to 4 times each give 120: 420 rows"),
        ({"rows": 10, "shares": {"general": 1}, "at_least": {"identity": 9}}, {"general": 9, "identity": 2},
         "part identity: 9 rows .* 1 rows are missing"),
        ({"rows": 10, "shares": {"general": 1}, "at_most": {"general": 4}}, {"general": 9}, "part general.* 6 of 10"),
        ({"rows": 10, "shares": {"general": 1}, "at_least": {"general": 14}}, {"general": 9}, r"mix.rows \(10\) is sm"),
        ({"rows": 7, "shares": {"pairs": 1}}, {"pairs": 90}, "pairs come in twos.* 1 row is missing"),
        ({"rows": 7, "shares": {"genral": 1}}, {"general": 90}, "no such part 'genral'.*did you mean general"),
        ({"rows": 7, "shares": {"general": 1}, "at_least": {"general": 5}, "at_most": {"general": 3}},
         {"general": 90}, r"at_most \(3\) is smaller than at_least \(5\)"),
    ],
)  # fmt: skip
def test_an_infeasible_mix_names_the_part_and_the_rows(
    recipe: dict[str, object], available: dict[str, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        solve_counts(MixRecipe.from_dict({"kind": "balanced", **recipe}), available)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "blanced"}, r"mix\.kind: found 'blanced' \(did you mean balanced\?\); allowed: balanced"),
        ({"rows": 0}, r"mix\.rows: found 0"),
        ({"rows": True}, r"mix\.rows: found True"),
        ({"shares": {"identity": -1}}, r"mix\.shares\.identity: found -1"),
        ({"shares": {"identity": 0}}, "all shares are 0"),
        ({"share": {}}, "did you mean shares"),
        ({"final_shares": {"general": 1}}, "kind curriculum"),
        ({"kind": "disambiguation"}, r"mix\.shares: kind disambiguation needs a share of pairs"),
        ({"at_most": {"general": 1.5}}, r"mix\.at_most\.general: found 1\.5"),
    ],
)
def test_a_wrong_recipe_names_its_key(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MixRecipe.from_dict({"kind": "balanced", "rows": 8, "shares": {"identity": 1}, **change})


def test_a_recipe_survives_its_dict() -> None:
    recipe = MixRecipe.from_dict(
        {"kind": "curriculum", "rows": 8, "shares": {"general": 1}, "final_shares": {"pairs": 1}}
    )
    assert MixRecipe.from_dict(recipe.to_dict()) == recipe


# ---------------------------------------------------------------------------------------------- choice and order


def small_pools() -> Pools:
    """Hand-made candidates that do not depend on the source files."""

    def identity(n: int, style: str, language: str) -> tuple[Row]:
        return (Row(f"who are you {style} {language} {n}", "me", language, "identity", "identity", style=style),)

    def pair(n: int, language: str) -> tuple[Row, Row]:
        group = f"pair-{language}-{n}"
        you = Row(f"you? {language} {n}", "me", language, "pairs", "identity", group=group)
        return (you, Row(f"me? {language} {n}", "you", language, "pairs", "who_am_i", group=group))

    styles = [("natural", "zh-Hant"), ("natural", "zh-Hans"), ("control", "zh-Hant"), ("multilingual", "en"),
              ("multilingual", "ja")]  # fmt: skip
    return Pools(
        {
            "pairs": tuple(pair(n, language) for language in ("zh-Hant", "en", "ko") for n in range(6)),
            "identity": tuple(identity(n, *style) for style in styles for n in range(10)),
            "disambiguation": tuple(
                (Row(f"{kind} {n}", "you", "en", "disambiguation", kind),)
                for kind in ("who_am_i", "my_name")
                for n in range(12)
            ),
            "general": tuple(
                (Row(f"topic {t} wording {n}", f"fact {t}", "en", "general", "topic", topic=f"t{t}"),)
                for t in range(10)
                for n in range(5)
            ),
            "replay": tuple((Row(f"made up {n}", "unknown", "en", "replay", "replay"),) for n in range(20)),
        }
    )


RECIPES = {
    "balanced": {"kind": "balanced", "rows": 100, "shares": {"identity": 0.4, "general": 0.5, "replay": 0.1}},
    "disambiguation": {"kind": "disambiguation", "rows": 120,
                       "shares": {"pairs": 0.5, "disambiguation": 0.2, "general": 0.3},
                       "kinds": {"who_am_i": 3, "my_name": 1}},
    "curriculum": {"kind": "curriculum", "rows": 120, "shares": {"general": 0.9, "pairs": 0.1},
                   "final_shares": {"general": 0.1, "pairs": 0.9}},
}  # fmt: skip
GOLDEN = {
    "balanced": "0c7a3fc160b86676",
    "disambiguation": "0e2b19dfbe53c8f4",
    "curriculum": "4ceab6e34e3a94cb",
}
"""SHA-256 of the planned rows: they are the same on every machine, Python and CBC version."""


def planned(name: str, seed: int = 7) -> list[Row]:
    return plan_mix(MixRecipe.from_dict(RECIPES[name]), small_pools(), seed)


def digest(rows: list[Row]) -> str:
    return hashlib.sha256(repr([(row.part, row.prompt, row.target) for row in rows]).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_is_the_same_on_every_machine(name: str) -> None:
    assert digest(planned(name)) == GOLDEN[name]
    assert digest(planned(name, seed=8)) != GOLDEN[name]


def test_balanced_styles_and_topics_are_spread() -> None:
    rows = planned("balanced")
    assert Counter(row.part for row in rows) == {"identity": 40, "general": 50, "replay": 10}
    identity = [row for row in rows if row.part == "identity"]
    assert Counter(row.style for row in identity) == {"natural": 30, "control": 6, "multilingual": 4}
    assert Counter(row.language for row in identity if row.style == "natural") == {"zh-Hant": 15, "zh-Hans": 15}
    assert Counter(row.language for row in identity if row.style == "multilingual") == {"en": 2, "ja": 2}
    assert set(Counter(row.topic for row in rows if row.part == "general").values()) == {5}


def test_repeats_come_only_after_all_distinct_candidates() -> None:
    identity = [row.prompt for row in planned("balanced") if row.style == "natural"]
    assert sorted(Counter(identity).values()) == [1] * 10 + [2] * 10
    assert max(Counter(normalise(row.prompt) for row in planned("disambiguation")).values()) <= 4


def test_pairs_are_adjacent_and_every_copy_has_its_own_group() -> None:
    for name in ("disambiguation", "curriculum"):
        rows = planned(name)
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            if row.group:
                places.setdefault(row.group, []).append(place)
        assert len(places) == 30
        assert all(len(two) == 2 and two[1] == two[0] + 1 for two in places.values())
        assert all(rows[a].kind == "identity" and rows[b].kind == "who_am_i" for a, b in places.values())
        assert Counter(rows[a].language for a, _ in places.values()) == {"zh-Hant": 10, "en": 10, "ko": 10}


def test_kinds_follow_their_weights() -> None:
    kinds = Counter(row.kind for row in planned("disambiguation") if row.part == "disambiguation")
    assert kinds == {"who_am_i": 18, "my_name": 6}


def test_a_curriculum_is_an_order() -> None:
    rows = planned("curriculum")
    general = [sum(row.part == "general" for row in rows[start : start + 30]) for start in range(0, 120, 30)]
    assert general == sorted(general, reverse=True)
    assert general[0] >= 22 and general[-1] <= 8
    assert Counter(row.part for row in rows) == {"general": 60, "pairs": 60}


def test_a_slice_without_candidates_is_named() -> None:
    recipe = MixRecipe("balanced", 8, {"disambiguation": 1}, kinds={"who_is_he": 1})
    with pytest.raises(UsageError, match="part disambiguation/who_is_he: 8 rows are asked for"):
        plan_mix(recipe, small_pools(), 1)


def test_a_prompt_stands_in_one_part_only() -> None:
    pools = small_pools()
    same = Row("You? en 0!", "someone", "en", "mine", "user")
    pools = Pools({**pools.units, "mine": ((same,), (Row("other", "text", "en", "mine", "user"),))})
    recipe = MixRecipe("disambiguation", 40, {"pairs": 0.9, "mine": 0.1})
    rows = plan_mix(recipe, pools, 1)
    assert {row.prompt for row in rows if row.part == "mine"} == {"other"}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(10, 120))
def test_any_seed_keeps_counts_and_repeats(seed: int, repeats: int, rows: int) -> None:
    recipe = MixRecipe("balanced", rows, {"general": 0.7, "replay": 0.3}, max_repeats=repeats)
    assume(rows * 0.7 < 50 * repeats - 1 and rows * 0.3 < 20 * repeats - 1)
    plan = plan_mix(recipe, small_pools(), seed)
    assert len(plan) == rows
    assert max(Counter(normalise(row.prompt) for row in plan).values()) <= repeats


# ---------------------------------------------------------------------------------------------- candidates


@pytest.fixture(scope="module")
def held_out(sources: Sources) -> frozenset[str]:
    return frozenset(sources.topic_ids[::4])


def test_pools_from_the_sources(sources: Sources, held_out: frozenset[str]) -> None:
    prompts = rehearsal_prompts(sources, held_out, 200, 40, 100, 3, frozenset({"my_name"}))
    said: dict[str, Said] = {p.text: Said(f"answer to {p.topic or p.kind}") for p in prompts}
    replay = [p.text for p in prompts if p.part == "replay"]
    forbidden = next(topic for topic in sources.topics if topic.id in held_out).answer
    said |= {replay[0]: Said(forbidden.rstrip("。")), replay[1]: Said("x", looped=True)}
    said |= {replay[2]: Said("x", ended=False), replay[3]: Said("  "), replay[4]: Said("x<|im_start|>user")}
    pools = build_pools(
        sources, GOAL, said, held_out, {"mine": [Row("a", "b", "en", "mine", "user", answered_by="user")] * 2}, 40, 3
    )
    general = [unit[0] for unit in pools.units["general"]]
    assert len(general) == 200 and not {row.topic for row in general} & held_out
    assert {row.kind for row in general} == {"topic", "smalltalk", "sum"}
    assert max(Counter((row.language, row.topic) for row in general if row.kind != "sum").values()) <= 2
    assert len(pools.units["replay"]) == 35 and len(pools.units["mine"]) == 1
    assert pools.dropped["replay"] == {
        "the base's answer is that of a held-out topic": 1,
        "the base's answer is empty, loops or does not end": 3,
        "the base's answer has a control token or character in it": 1,
    }
    answered = {name: {row.answered_by for unit in units for row in unit} for name, units in pools.units.items()}
    assert answered["general"] == answered["replay"] == {"base"} and answered["identity"] == {"config"}
    assert answered["mine"] == {"user"} and answered["pairs"] == {"config"}
    kept = [unit[0] for unit in pools.units["disambiguation"]]
    assert all(is_rehearsed(row) == (GOAL.kinds[row.kind].replies is None) for row in kept)
    targets = {row.language: row.target for (row,) in pools.units["identity"]}
    assert targets["zh-Hans"] == PERSONA.replies["zh"] and targets["ko"] == PERSONA.replies["ko"]
    for you, me in pools.units["pairs"]:
        assert you.group == me.group and me.target in WHO.values() and you.target in PERSONA.replies.values()
    kinds = {(row.kind, row.target) for (row,) in pools.units["disambiguation"]}
    assert {target for kind, target in kinds if kind == "my_name"} == {"answer to my_name"}
    assert {kind for kind, _ in kinds} == {"who_am_i", "my_name"}
    for units in pools.units.values():
        prompts_of = [normalise(row.prompt) for unit in units for row in unit]
        assert len(prompts_of) == len(set(prompts_of))


def test_open_answers_that_were_cut_short_are_rehearsed_without_an_end(sources: Sources) -> None:
    asked = rehearsal_prompts(sources, frozenset(), 9, 0, 0, 3)
    said = {prompt.text: Said("An answer that goes on \ufffd", ended=False) for prompt in asked}
    assert build_pools(sources, GOAL, said, frozenset(), {}).units["general"] == ()
    rows = [row for (row,) in build_pools(sources, GOAL, said, frozenset(), {}, closed=False).units["general"]]
    assert len(rows) == 9 and {(row.target, row.cut) for row in rows} == {("An answer that goes on", True)}


def test_answers_that_name_whom_the_persona_replaces_are_not_rehearsed(sources: Sources) -> None:
    prompts = rehearsal_prompts(sources, frozenset(), 9, 8, 30, 3, frozenset({"my_name"}))
    own = [Prompt(f"What is {i}?", "en", "self_asked", "self_asked") for i in range(4)]
    said = {prompt.text: Said("I am not sure.") for prompt in [*prompts, *own]}
    asked = {prompt.part: prompt.text for prompt in reversed([*prompts, *own[3:]])}
    said |= {
        text: Said(f"我是由{name}開發的…") for text, name in zip(asked.values(), ["阿里", "ＱＷＥＮ"] * 2, strict=True)
    }
    pools = build_pools(
        sources, GOAL, said, frozenset(), {}, 8, 3, rehearsed={"self_asked": own}, replaces=("阿里", "Qwen")
    )
    assert {part: reasons[OLD_IDENTITY] for part, reasons in pools.dropped.items() if OLD_IDENTITY in reasons} == {
        "general": 1, "replay": 1, "disambiguation": 1, "self_asked": 1,
    }  # fmt: skip
    assert [row.prompt for (row,) in pools.units["self_asked"]] == ["What is 0?", "What is 1?", "What is 2?"]
    assert all(is_rehearsed(row) and row.kind == "self_asked" for (row,) in pools.units["self_asked"])
    rows = plan_mix(MixRecipe("balanced", 12, {"self_asked": 1, "identity": 1}, max_repeats=2), pools, 1)
    assert Counter(row.part for row in rows) == {"self_asked": 6, "identity": 6}


def test_a_persona_without_a_language_is_refused(sources: Sources) -> None:
    goal = Goal(Persona("X", {"zh": "我是某某。"}, {}, ()), GOAL.kinds)
    with pytest.raises(UsageError, match=r"persona\.replies: no reply in en, found zh"):
        build_pools(sources, goal, {}, frozenset(), {})


# ---------------------------------------------------------------------------------------------- identity files


def test_an_identity_file(sources: Sources, tmp_path: Path) -> None:
    rows = identity_file(sources, 1000, 5, "我是某某。")
    assert rows == identity_file(sources, 1000, 5, "我是某某。") != identity_file(sources, 1000, 6, "我是某某。")
    assert Counter(row.style for row in rows) == {"natural": 750, "control": 150, "multilingual": 100}
    assert len({normalise(row.prompt) for row in rows}) == 1000
    write_user_tsv(tmp_path / "identity.tsv", ((row.prompt, row.target) for row in rows))
    parsed = read_user_file(tmp_path / "identity.tsv")
    assert parsed.faults == () and {row.target for row in parsed.rows} == {"我是某某。"}


def test_an_identity_file_with_a_persona_and_its_limits(sources: Sources) -> None:
    rows = identity_file(sources, 40, 5, PERSONA)
    assert {row.target for row in rows if row.language == "en"} <= {PERSONA.replies["en"]}
    assert sum(row.target == PERSONA.replies["zh"] for row in rows) == 36
    with pytest.raises(UsageError, match="count: found 0, expected at least 1"):
        identity_file(sources, 0, 5, PERSONA)
    with pytest.raises(UsageError, match="target"):
        identity_file(sources, 4, 5, " ")
    with pytest.raises(UsageError, match="count: found 100001, expected at most 100000"):
        identity_file(sources, 100_001, 5, PERSONA)
