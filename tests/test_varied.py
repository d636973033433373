"""Parts varied and claim: odd wordings of what is taught, and what users say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgod.data.mix import build_pools
from fgod.data.optional import Denials, files_of, load_denials, load_varied
from fgod.data.recipe import DENIAL
from fgod.data.rows import BASE, CONFIG
from fgod.data.sources import Sources, load_sources
from fgod.data.wordings import varied_prompts, whole_prompts
from fgod.errors import UsageError
from fgod.persona import Goal, Kind, Persona
from tests.test_mix import Said

FOLDER = Path(__file__).parents[1] / "traindata"
PERSONA = Persona("F# 之神", {"zh": "我是。", "en": "I am.", "ja": "私。", "ko": "저."}, {}, ("F#",), {"en": "No."})
VARIED = {
    "identity": {"en": ("Name tag, please: yours?",)},
    "who_am_i": {"en": ("Introduce me.", "Describe me.")},
    "my_name": {"en": ("Spell my name.",)},
    DENIAL: {"en": ("Stop pretending, $X.",)},
    "claim": {"en": ("I bake bread. What is my job?",)},
}
DENIALS = Denials({"en": ("Qwen", "Siri", "Claude")}, {})


@pytest.fixture(scope="module")
def english() -> Sources:
    return load_sources(FOLDER, ("en",))


def test_what_the_config_answers_is_taught_by_its_kind(english: Sources) -> None:
    goal = Goal(PERSONA, {"who_am_i": Kind({"en": "You are the one asking."}, {}), "my_name": Kind(None, {})})
    prompts = varied_prompts(english, VARIED, DENIALS, ("who_am_i",))
    rows = [row for (row,) in build_pools(english, goal, {}, frozenset(), {}, varied=prompts).units["varied"]]
    assert {(row.kind, row.target, row.answered_by) for row in rows} == {
        ("identity", "I am.", CONFIG),
        ("who_am_i", "You are the one asking.", CONFIG),
        (DENIAL, "No.", CONFIG),
    }


def test_a_denial_is_about_some_of_the_assistants_each_once(english: Sources) -> None:
    texts = [p.text for p in varied_prompts(english, VARIED, DENIALS, ()) if p.kind == DENIAL]
    assert len(set(texts)) == len(texts) == 2
    assert {text.removeprefix("Stop pretending, ").rstrip(".") for text in texts} < {"Qwen", "Siri", "Claude"}


def test_claims_keep_the_base_s_own_answer(english: Sources) -> None:
    prompts = whole_prompts(english, "claim", VARIED["claim"])
    said = {prompt.text: Said("You are a baker.") for prompt in prompts}
    (unit,) = build_pools(english, Goal(PERSONA, {}), said, frozenset(), {}, rehearsed={"claim": prompts}).units[
        "claim"
    ]
    assert (unit[0].target, unit[0].answered_by) == ("You are a baker.", BASE)


def test_an_answer_with_a_character_that_nobody_sees_is_not_rehearsed(english: Sources) -> None:
    prompts = whole_prompts(english, "claim", VARIED["claim"])
    said = {prompt.text: Said("You are a \ufffdaker.") for prompt in prompts}
    pools = build_pools(english, Goal(PERSONA, {}), said, frozenset(), {}, rehearsed={"claim": prompts})
    assert pools.units["claim"] == () and sum(pools.dropped["claim"].values()) == 1


def test_the_shipped_file_has_every_language_and_its_denials_a_name() -> None:
    sources, varied = load_sources(FOLDER), load_varied(FOLDER)
    assert set(varied) == {"identity", "who_am_i", "my_name", "do_you_know_me", "who_is_he", DENIAL, "claim", "talk"}
    prompts = varied_prompts(
        sources, varied, load_denials(FOLDER), ("who_am_i", "my_name", "do_you_know_me", "who_is_he")
    )
    for kind in varied.keys() - {"claim", "talk"}:
        assert {p.language for p in prompts if p.kind == kind} == set(sources.languages)
    assert not any("$X" in p.text for p in prompts)
    assert files_of(["varied", "claim", DENIAL]) == ("denials.yaml", "varied.yaml")


def test_a_denial_without_a_name_is_said_with_file_and_key(tmp_path: Path) -> None:
    for file in FOLDER.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    every = "{zh-Hant: [甲], zh-Hans: [乙], en: [c], ja: [丁], ko: [무]}"
    (tmp_path / "varied.yaml").write_text(f"denial: {every}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"varied\.yaml: denial.*\$X"):
        load_varied(tmp_path)
