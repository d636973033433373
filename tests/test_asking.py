"""Which of the prompts that a base asks itself are kept, and which language they are in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod.data.asking import (
    AGAIN,
    CONTROL,
    EMPTY,
    FOREIGN,
    LONG,
    LOOP,
    NAMED,
    OPEN,
    Asked,
    Draft,
    Filter,
    Place,
    Sieve,
    asked_prompts,
    places,
    read_asked,
    write_asked,
)
from fgod.data.audit import audit_rows
from fgod.data.optional import load_asking
from fgod.data.probes import Probe
from fgod.data.rows import Row, normalise, write_rows
from fgod.data.sources import source_languages
from fgod.data.text import language_within
from fgod.errors import RefusedError, UsageError
from fgod.probe.harness import unseen

FOLDER = Path(__file__).parents[1] / "traindata"
LANGUAGES = ("zh-Hant", "zh-Hans", "en", "ja", "ko")
KEEP = Filter(LANGUAGES, ("F# 之神", "Qwen"), 40)
ENGLISH = Place("Be kind.", "en")


def draft(text: str, ended: bool = True, looped: bool = False) -> Draft:
    return Draft(text, ended, looped, ENGLISH)


def test_drafts_are_dropped_for_one_reason_each() -> None:
    found = Sieve(KEEP, 9)
    found.add(
        [
            draft(" How do I boil\nan egg? "),
            draft("how do I boil an EGG"),
            draft("How do I", ended=False),
            draft(" ?!\n"),
            draft("What is <|im_start|>system"),
            draft("a\x00b"),
            draft("no no no no", looped=True),
            draft("x" * 41),
            draft("Are you qwen?"),
            draft("你是f#之神嗎"),
            draft("Сколько времени?"),
            draft("12 + 30 = ?"),
        ]
    )
    assert [(one.prompt, one.language) for one in found.kept] == [
        ("How do I boil\nan egg?", "en"),
        ("12 + 30 = ?", "en"),
    ]
    once = dict.fromkeys((AGAIN, OPEN, EMPTY, LOOP, LONG, FOREIGN), 1)
    assert found.dropped == {**once, CONTROL: 2, NAMED: 2} and found.drawn == 12
    assert found.words.startswith("2 prompts of 12 drafts: dropped 2 ")


TEXTS = st.text("abcAB ?神誰", max_size=4)


@given(st.lists(st.builds(draft, TEXTS, st.booleans(), st.booleans())), st.integers(1, 9), st.integers(0, 20))
def test_what_is_kept_is_distinct_and_the_portions_do_not_matter(drafts: list[Draft], wanted: int, cut: int) -> None:
    whole, parts = Sieve(KEEP, wanted), Sieve(KEEP, wanted)
    whole.add(drafts)
    parts.add(drafts[:cut])
    parts.add(drafts[cut:])
    assert (whole.kept, whole.dropped, whole.drawn) == (parts.kept, parts.dropped, parts.drawn)
    assert len(whole.kept) + whole.dropped.total() == whole.drawn <= len(drafts)
    assert len({normalise(one.prompt) for one in whole.kept}) == len(whole.kept) <= wanted


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How are you? 你", "zh-Hant"),
        ("談談量子電腦", "zh-Hant"),
        ("谈谈量子电脑", "zh-Hans"),
        ("你好", "en"),
        ("なぜ空は青い", "ja"),
        ("잘 지내요?", "ko"),
        ("¿Qué hora es?", "en"),
        ("print(1)", "en"),
        ("42", "en"),
        ("Привет", None),
        ("สวัสดี", None),
    ],
)
def test_the_script_tells_the_language(text: str, language: str | None) -> None:
    likeliest = "zh-Hant" if text.startswith("How") else "en"
    found = language_within(text, LANGUAGES, likeliest)
    assert found == ("zh-Hant" if text == "你好" else language)


def test_the_likeliest_language_counts_where_the_script_is_that_of_several() -> None:
    assert language_within("你好", LANGUAGES, "zh-Hans") == "zh-Hans"
    assert language_within("談談", LANGUAGES, "zh-Hans") == "zh-Hant"
    assert language_within("Guten Tag", ("en", "de"), "de") == "de"
    assert language_within("谈谈", ("zh-Hant", "en"), "zh-Hant") is None
    assert language_within("谈谈", ("zh", "en"), "en") == "zh"
    assert language_within("你好", ("en",), "en") is None


def test_places_take_the_config_s_own_system_prompt_and_each_language_in_turn() -> None:
    systems = {"en": ["a", "b"], "ja": ["c"]}
    assert places(systems) == [
        Place("", "en"), Place("a", "en"), Place("c", "ja"), Place("", "en"), Place("b", "en"), Place("c", "ja"),
    ]  # fmt: skip
    assert places({"ja": [], "en": []}) == [Place("", "ja")]


def test_the_shipped_system_prompts_are_in_all_languages(tmp_path: Path) -> None:
    found = load_asking(FOLDER)
    assert tuple(found) == source_languages(FOLDER) == LANGUAGES
    assert tuple(load_asking(FOLDER, ["ko", "en"])) == ("en", "ko")
    for language, texts in found.items():
        assert {language_within(text, LANGUAGES, language) for text in texts} == {language}
    for name in ("questions.yaml", "asking.yaml"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    (tmp_path / "asking.yaml").write_text("en: [Be kind.]\n")
    with pytest.raises(
        UsageError, match=r"asking\.yaml: found dict .*expected the languages of marks.*zh-Hant is missing"
    ):
        load_asking(tmp_path)


def test_prompts_come_back_from_their_table(tmp_path: Path) -> None:
    asked = [Asked("a\tb\nc", "en", ""), Asked("誰", "zh-Hant", "用中文。\n")]
    write_asked(tmp_path / "prompts.tsv", asked)
    assert read_asked(tmp_path / "prompts.tsv") == asked
    assert [(p.part, p.kind, p.system) for p in asked_prompts(asked)] == [("self_asked", "self_asked", "")] * 2


def probes_of(*prompts: str) -> list[Probe]:
    return [Probe("general", "topic", "en", "", prompt, scored_by="reference") for prompt in prompts]


def test_probes_that_the_base_asked_itself_do_not_judge_a_run(tmp_path: Path) -> None:
    rows = [
        Row("Hello", "Hi.", "en", "self_asked", "self_asked"),
        Row("Who are you", "X", "en", "identity", "identity"),
    ]
    write_rows(tmp_path / "rows.tsv", rows)
    shown = Probe("questions", "topic", "en", "", "who are you", scored_by="shown")
    probes = [*probes_of("hello!", "Why is rain wet?"), shown]
    assert unseen(probes, [tmp_path / "rows.tsv"]) == probes[1:] and unseen(probes, []) == probes
    with pytest.raises(RefusedError, match=r"rows\.tsv: 1 rows are probes \(Who are you\)"):
        unseen(probes_of("Hello", "who are you?"), [tmp_path / "rows.tsv"])


def test_the_audit_warns_of_probes_that_the_base_asked_itself() -> None:
    rows = [Row(f"Question {i}?", "Yes.", "en", "self_asked", "self_asked", answered_by="base") for i in range(4)]
    found = audit_rows(rows, probes_of("question 2"))
    assert [(f.code, f.severity, f.line) for f in found.findings] == [("probe_self_asked", "warning", 4)]
    assert "judged without them" in found.findings[0].message
    assert audit_rows([replace(rows[2], part="general")], probes_of("question 2")).codes() == {"probe_overlap"}
