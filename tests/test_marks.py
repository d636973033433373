"""Marks that the base writes itself, and its answers that name whom the persona replaces: found, shown, let through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fgod.config import resolve
from fgod.data.audit import audit_rows
from fgod.data.marks import MARKED, Exchange, accepted_of, marked_by_itself, narrower_mark
from fgod.data.mix import OLD_IDENTITY, OldIdentity, build_pools
from fgod.data.probes import Probe
from fgod.data.rows import BASE, Message, Prompt, Row, chat_key
from fgod.data.sources import load_sources
from fgod.errors import RefusedError, UsageError
from fgod.evaluate.scoring import Standard
from fgod.persona import Goal, Kind, Persona, fold
from fgod.probe.harness import check_marks, check_reference
from tests.test_mix import Said

ROOT = Path(__file__).parents[1]
PERSONA = Persona(
    "F# 之神",
    {"zh": "我是 F# 之神。", "en": "I am the god of F#.", "ja": "私はF#の神です。", "ko": "저는 F#의 신입니다."},
    {},
    ("之神", "god of", "の神", "의 신"),
)


@pytest.mark.parametrize(
    ("mark", "said", "narrower"),
    [
        ("之神", "歐拉被譽為數學之神。", "F# 之神"),
        ("god of", "Thor is the god of thunder.", "god of F#"),
        ("の神", "ポセイドンは海の神です。", "F#の神"),
        ("의 신", "포세이돈은 바다의 신입니다.", "F#의 신"),
        ("I am the god of F#", "I am the god of F# and more", ""),
    ],
)
def test_the_narrower_mark_has_the_words_around_it(mark: str, said: str, narrower: str) -> None:
    assert narrower_mark(PERSONA, mark, [fold(said)]) == narrower


@given(
    st.sampled_from(PERSONA.marks), st.lists(st.sampled_from([*PERSONA.replies.values(), "the god of F", "F# の神"]))
)
def test_a_narrower_mark_has_the_mark_and_is_in_no_reply(mark: str, replies: list[str]) -> None:
    found = narrower_mark(PERSONA, mark, list(map(fold, replies)))
    assert not found or (fold(mark) in fold(found) and not any(fold(found) in fold(reply) for reply in replies))


def test_what_a_question_says_already_is_no_mark_of_the_base_s() -> None:
    said = [
        Exchange("Who is Thor?", "The God Of thunder."),
        Exchange("Who is the god of war?", "Ares is the god of war."),
    ]
    [found] = marked_by_itself(PERSONA, said)
    assert (found.mark, found.exchanges, found.narrower) == ("god of", (said[0],), "god of F#")
    assert found.words.endswith("None of its replies has 'god of F#': take that as the mark")
    assert found.shown == ["Who is Thor? → The God Of thunder."]
    assert marked_by_itself(replace(PERSONA, marks=("god of F#",)), said) == []


def probe(prompt: str, history: tuple[Message, ...] = (), scored_by: str = "reference") -> Probe:
    return Probe("general", "topic", "en", "", prompt, scored_by=scored_by, history=history)


def test_the_reference_may_not_write_a_mark() -> None:
    probes = [probe("Who is Thor?"), probe("And?", (Message("user", "the god of war"), Message("assistant", "Yes?")))]
    replies = ("The god of thunder.", "He is the god of war.")
    answers = {one.key: Said(reply) for one, reply in zip(probes, replies, strict=True)}
    standard = Standard(Goal(PERSONA, {}), closed=False)
    with pytest.raises(
        RefusedError, match=r"(?s)'god of'.* in 1 of its .*'god of F#'.*Thor\? → The god .*persona\.audit"
    ):
        check_reference(probes, answers, {}, standard)
    with pytest.raises(RefusedError, match="no probe is scored by persona"):  # what else is checked
        check_reference(probes, answers, {}, standard, accept=[MARKED])
    check_marks([probe("Who is Thor?", scored_by="shown"), probes[1]], answers, PERSONA)


def base_row(prompt: str, target: str, **more: Any) -> Row:
    return Row(prompt, target, "en", "general", "topic", answered_by="base", **more)


def test_the_audit_shows_rehearsed_rows_with_a_mark() -> None:
    rows = [
        base_row("Who is Thor?", "The god of thunder."),
        base_row("Who is the god of war?", "Ares is the god of war."),
        base_row("And he?", "The god of war.", system="You know every god of Greece."),
        Row("Who are you?", "I am the god of F#.", "en", "identity", "identity", answered_by="config"),
    ]
    [error] = audit_rows(rows, persona=PERSONA).errors
    assert (error.code, error.line, error.count) == (MARKED, 2, 1) and "'god of F#'" in error.message
    accepted = audit_rows(rows, persona=PERSONA, accept={"general": [MARKED]})
    assert not accepted.errors and [f.code for f in accepted.findings if f.severity == "accepted"] == [MARKED]
    assert MARKED not in audit_rows(rows, persona=replace(PERSONA, marks=("god of F#",))).codes()


@pytest.mark.parametrize("kept", [1, 9])
def test_the_audit_warns_of_a_kind_that_loses_most_of_its_answers(kept: int) -> None:
    old = [
        OldIdentity("disambiguation", "my_name", 5, kept, ("a → b",)),
        OldIdentity("self_asked", "self_asked", 9, 1, ("c",)),
    ]
    found = {f.code: f for f in audit_rows([base_row("a", "b")], old_identity=old).findings}
    assert found["old_identity"].severity == "note" and found["old_identity"].examples == ("a → b", "c")
    assert "14 of the base's answers" in found["old_identity"].message
    assert ("old_identity_kind" in found) == (kept == 1)
    if kept == 1:
        assert "disambiguation.my_name.replies" in found["old_identity_kind"].message


def test_pools_count_what_names_the_old_identity_by_kind() -> None:
    sources = load_sources(ROOT / "traindata", ["en"])
    goal = Goal(PERSONA, {"my_name": Kind(None, {}), "who_am_i": Kind(None, {})})
    own = [Prompt(f"Question {i}?", "en", "self_asked", "self_asked") for i in range(5)]
    said = {prompt.text: Said("I am Qwen." if i < 4 else "No.") for i, prompt in enumerate(own)}
    pools = build_pools(sources, goal, said, frozenset(), {}, rehearsed={"self_asked": own}, replaces=["Qwen"])
    shown = tuple(f"Question {i}? → I am Qwen." for i in range(3))
    assert pools.old_identity == (OldIdentity("self_asked", "self_asked", 4, 1, shown),)
    assert pools.dropped["self_asked"] == {OLD_IDENTITY: 4}


def test_a_prompt_that_was_asked_again_is_rehearsed_as_the_base_answers_without_a_name() -> None:
    sources = load_sources(ROOT / "traindata", ["en"])
    goal = Goal(PERSONA, {"my_name": Kind(None, {}), "who_am_i": Kind(None, {})})
    neutral = "You are helpful."
    own = [Prompt(text, "en", "self_asked", "self_asked") for text in ("old?", "Sky?", "you?")]
    said = {"old?": Said("I, Qwen, am young."), "Sky?": Said("Blue."), "you?": Said("Qwen.")}
    again = {"old?": Said("I have no age."), "Sky?": Said("Grey."), "you?": Said("Qwen, still.")}
    said |= {chat_key(prompt, neutral): reply for prompt, reply in again.items()}
    made = {"rehearsed": {"self_asked": own}, "replaces": ["Qwen"]}
    pools = build_pools(sources, goal, said, frozenset(), {}, **made, neutral=neutral)
    rows = [row for (row,) in pools.units["self_asked"]]
    assert [(row.prompt, row.target, row.asked_under, row.system) for row in rows] == [
        ("old?", "I have no age.", neutral, ""),
        ("Sky?", "Blue.", "", ""),
    ]
    assert all(row.answered_by == BASE for row in rows)
    assert pools.old_identity == (OldIdentity("self_asked", "self_asked", 1, 2, ("you? → Qwen.",)),)
    without = build_pools(sources, goal, said, frozenset(), {}, **made)
    assert [row.prompt for (row,) in without.units["self_asked"]] == ["Sky?"]


def test_a_config_lets_marks_of_the_base_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def persona(audit: Mapping[str, Any]) -> Mapping[str, Any]:
        raw = yaml.safe_load((ROOT / "config.yaml").read_text())
        raw["persona"]["audit"] = audit
        found: Mapping[str, Any] = resolve(raw, "config.yaml")["persona"]
        return found

    assert accepted_of(persona({"accept": [MARKED]})) == (MARKED,) and accepted_of(persona({})) == ()
    with pytest.raises(UsageError, match=r"persona\.audit\.accept.*'two_targets'"):
        persona({"accept": ["two_targets"]})
