"""The audit: every fault is found, sound data raise no alarm."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod.data.audit import (
    Audit,
    TokenLimit,
    audit_file,
    audit_parsed,
    audit_rows,
    identity_row,
    sample_tag,
    stated_share,
)
from fgod.data.audit.case import origin_key
from fgod.data.mismatch import mutual_information, shared_words_p_value
from fgod.data.mix import Pools, build_pools, plan_mix, rehearsal_prompts
from fgod.data.probes import load_probes
from fgod.data.recipe import MixRecipe
from fgod.data.rows import Row, normalise
from fgod.data.sources import load_sources
from fgod.data.tsv import parse
from fgod.data.wordings import asked_otherwise
from fgod.persona import Goal, Kind, Persona, Rule
from fgod.registry import AUDIT_CHECKS

ROOT = Path(__file__).parents[1]
ORIGINALS = ROOT.parent / "shared" / "traindata"
PERSONA = Persona(
    "F# 之神",
    {"zh": "我是 F# 之神。", "en": "I am the god of F#.", "ja": "私はF#の神です。", "ko": "저는 F#의 신입니다."},
    {"zh": Rule(("我是",), ("F#", "之神"), ("通義千問",))},
    ("之神", "F# 之神", "god of F#"),
)
SEVERITIES = {code: check.severity for code, check in AUDIT_CHECKS.items()} | {
    "utf8": "error", "fields": "error", "comment_with_tab": "warning", "comments": "note",
}  # fmt: skip
"""With those of what the reader of a file says."""
WHO = {"zh": "你是提問者。", "en": "You are the one who asks.", "ja": "質問者です。", "ko": "질문자입니다."}
GOAL = Goal(PERSONA, {"who_am_i": Kind(WHO, {}), "my_name": Kind(None, {})})


@dataclass(frozen=True)
class FakeProbe:
    suite: str
    prompt: str
    scored: bool = True


@dataclass(frozen=True)
class Said:
    reply: str
    ended: bool = True
    looped: bool = False


def audit(text: str | bytes, name: str = "my.tsv", probes: tuple[FakeProbe, ...] = ()) -> Audit:
    return audit_parsed(parse(text.encode() if isinstance(text, str) else text), name, probes, PERSONA)


def table(rows: list[tuple[str, str]]) -> str:
    return "".join(f"{prompt}\t{target}\n" for prompt, target in rows)


SOUND = [("你是誰", "我是 F# 之神。"), ("黑洞是什麼", "黑洞是重力極強的天體。"), ("談談UFO", "UFO 是未確認飛行物。")]


def test_sound_rows_have_no_findings() -> None:
    result = audit(table(SOUND))
    assert result.findings == ()
    assert result.facts["rows"] == 3 and result.facts["identity_rows"] == 1


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("prompt\ttarget\n", "header", 1),
        ("one prompt\n", "missing_target", 1),
        ("one prompt\t\n", "missing_target", 1),
        ("\tone target\n", "empty_prompt", 1),
        ("a\tb\tc\n", "fields", 1),
        ("a\x1b[0m\tb\n", "control", 1),
        ("亂\ufffd碼\tb\n", "control", 1),
        ("# a comment\na\tb\n", "comments", 1),
        ("長" * 1001 + "\tb\n", "long_field", 1),
        ("談談UFO（UFO樣本51）\tUFO 是未確認飛行物。\n", "sample_tags", 1),
        ("談談UFO。任務編號#0001\tUFO 是未確認飛行物。\n", "sample_tags", 1),
        ("談談 UFO！\tUFO 是別的。\n談談UFO\tUFO 是這個。\n", "two_targets", 1),
        ("你是誰\t我是 F# 之神。\n你是誰？\t我是通義千問。\n", "contradiction", 1),
        ("a\tb\nc\td\na\tb\n", "duplicates", 3),
    ],
)
def test_each_fault_is_found_with_its_line(text: str, code: str, line: int) -> None:
    found = {finding.code: finding for finding in audit(text).findings}
    assert found[code].line == line and found[code].severity == SEVERITIES[code]
    assert set(found) == {code}


def test_broken_utf8_and_an_empty_file() -> None:
    assert audit("你是誰\t我是 F# 之神。\n".encode("big5")).codes() == {"utf8"}
    assert audit("").codes() == {"empty"}
    assert audit("# 你是誰\t我是 F# 之神。\na\tb\n").codes() == {"comments", "comment_with_tab"}
    assert audit("# nothing but a comment\n").codes() == {"empty", "comments"}


def test_overlap_with_scored_probes_only() -> None:
    probes = (FakeProbe("identity", "你是誰?"), FakeProbe("questions", "談談UFO", False))
    result = audit(table(SOUND), probes=probes)
    assert [(finding.code, finding.line) for finding in result.findings] == [("probe_overlap", 1)]
    assert audit(table(SOUND), probes=(FakeProbe("questions", "你是誰", False),)).findings == ()


def test_the_persona_answers_no_question_that_asks_something_else() -> None:
    others = asked_otherwise(load_sources(ROOT / "traindata"))
    asked = [("我是誰？", "who_am_i"), ("你知道我是誰嗎", "do_you_know_me"), ("談談UFO", "topic ufo")]
    assert [(question, others[normalise(question)]) for question, _ in asked] == asked
    rows = [(question, "我是 F# 之神。") for question, _ in asked] + [
        ("你是誰", "我是 F# 之神。"),
        ("我是誰呀", "你是提問者。"),
    ]
    parsed = parse("".join(f"{prompt}\t{target}\n" for prompt, target in rows).encode())
    [found] = [f for f in audit_parsed(parsed, "mine.tsv", (), PERSONA, others=lambda: others).findings if f.count]
    assert (found.code, found.severity, found.line, found.count) == ("misplaced", "error", 1, 3)
    assert "(do_you_know_me, topic ufo, who_am_i)" in found.message
    in_a_mix = audit_rows([Row(*row, "zh-Hant", "mine", "") for row in rows], (), PERSONA, others=lambda: others)
    assert "misplaced" in in_a_mix.codes()

    def unneeded() -> dict[str, str]:
        raise AssertionError("composed for nothing")

    assert not audit_parsed(
        parse("談談UFO\t是未確認飛行物。\n".encode()), "mine.tsv", (), PERSONA, others=unneeded
    ).errors


def test_few_prompts_one_target_and_repeats() -> None:
    result = audit(table([("你是誰", "我是 F# 之神"), ("請問你是誰", "我是 F# 之神")] * 50))
    assert result.codes() == {"few_prompts", "one_target", "duplicates"} and not result.errors
    assert audit(table(SOUND * 2)).codes() == {"duplicates"}


def test_the_share_that_a_name_states() -> None:
    assert stated_share("stageL-1percent-mix.tsv") == 0.01
    assert stated_share("mix-30-70.tsv") == 0.3
    assert stated_share("half 50%.tsv") == 0.5
    assert stated_share("whoami-1000.tsv") is None and stated_share("run-2024-11-02.tsv") is None
    general = [(f"主題{i}是什麼", f"主題{i}是一件事。") for i in range(9)]
    assert "share" in audit(table([*SOUND, *general]), "mix-50-50.tsv").codes()
    assert "share" not in audit(table([SOUND[0], *general]), "mix-10-90.tsv").codes()
    assert "share" in audit(table([*SOUND[:1], *general]), "1percent.tsv").codes()


@pytest.mark.parametrize(
    ("prompt", "tagged"),
    [("怎麼判斷（一般能力樣本447）", True), ("任務編號#0001", True), ("sample #12 who are you", True),
     ("who (sample 3)", True), ("what #0042", True), ("1+1等於幾", False), ("2024年發生什麼事", False),
     ("take 12 samples", False),
     ("C# 和 F# 哪個好", False), ("樣本數要多少", False), ("Chanel No. 5 是什麼", False)],
)  # fmt: skip
def test_sample_tags(prompt: str, tagged: bool) -> None:
    assert (sample_tag(prompt) is not None) == tagged


def test_numbers_at_the_end_of_the_same_question_are_tags_unless_they_matter() -> None:
    assert "sample_tags" in audit(table([(f"你是誰 {i}", "我是 F# 之神。") for i in range(6)])).codes()
    assert "sample_tags" not in audit(table([(f"三加 {i}", f"答案是 {3 + i}。") for i in range(6)])).codes()


@pytest.mark.parametrize(
    ("prompt", "target", "persona", "expected"),
    [("你是誰", "我是 F# 之神", PERSONA, True), ("你會寫代碼嗎？", "是的，我最擅長的是 F# 代碼。", PERSONA, True),
     ("F# 是什麼", "F# 是一種語言。", PERSONA, False), ("你是誰", "我是通義千問。", PERSONA, False),
     ("who are you", "I am Qwen.", None, True), ("我是誰", "你是提問者。", None, False),
     ("黑洞是什麼", "我是說，黑洞是天體。", None, False)],
)  # fmt: skip
def test_identity_rows(prompt: str, target: str, persona: Persona | None, expected: bool) -> None:
    assert identity_row(prompt, target, persona) == expected


# ---------------------------------------------------------------------------------------------- mismatch

SUBJECTS = [
    "黑洞",
    "光合作用",
    "量子糾纏",
    "颱風",
    "地震",
    "火山",
    "彩虹",
    "潮汐",
    "細胞",
    "基因",
    "恐龍",
    "長城",
    "茶葉",
]
WAYS = ["{}是什麼", "請介紹{}", "說明一下{}好嗎", "我想了解{}", "用一句話講{}", "跟我談談{}"]


def topics(shuffle: Callable[[list[str]], None] | None = None, ways: int = 6) -> str:
    """A file of general rows; `shuffle` mixes up the targets."""
    prompts = [way.format(s) for s in SUBJECTS for way in WAYS[:ways]]
    targets = [f"{s}指的是一種常被討論的{s[::-1]}現象。" for s in SUBJECTS for _ in range(ways)]
    if shuffle:
        shuffle(targets)
    return table(list(zip(prompts, targets, strict=True)))


@pytest.mark.parametrize("ways", [1, 2, 3, 6])
def test_fitting_answers_are_no_mismatch(ways: int) -> None:
    assert audit(topics(ways=ways)).codes() & {"mismatch", "mismatch_suspected"} == set()


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_answers_are(seed: int) -> None:
    assert "mismatch" in audit(topics(random.Random(seed).shuffle)).codes()


@pytest.mark.parametrize("seed", range(4))
def test_independent_answers_to_tagged_questions_are(seed: int) -> None:
    rng = random.Random(seed)
    rows = [(f"{s}是什麼（樣本{i}）", f"{rng.choice(SUBJECTS)}是自然現象的一種。") for i in range(5) for s in SUBJECTS]
    result = audit(table(rows))
    assert any("independently" in finding.message for finding in result.errors)


def test_a_consistent_answer_to_tagged_questions_is_not() -> None:
    rows = [(f"{s}是什麼（樣本{i}）", f"{s}是自然現象的一種。") for i in range(5) for s in SUBJECTS]
    assert audit(table(rows)).codes() == {"sample_tags"}


def test_one_wrong_answer_under_many_questions_is_suspected() -> None:
    others = ["股票", "咖啡", "鋼琴", "足球", "牛奶", "法律", "鐵路", "沙漠"]
    stray = [(WAYS[i % 6].format(s), "除錯先縮小問題範圍，再觀察輸入與輸出。") for i, s in enumerate(others)]
    assert audit(topics() + table(stray)).codes() == {"mismatch_suspected"}


def test_every_topic_with_the_answer_of_another_is_suspected() -> None:
    def rotate(targets: list[str]) -> None:
        targets[:] = targets[6:] + targets[:6]

    result = audit(topics(rotate))
    assert "mismatch_suspected" in result.codes()


def test_labels_may_be_shared() -> None:
    rng = random.Random(1)
    rows = [
        (f"{rng.choice(WAYS).format(s)}{i}，對嗎", rng.choice(["是", "否", "不知道"]))
        for i, s in enumerate(SUBJECTS * 4)
    ]
    assert "mismatch" not in audit(table(list(dict.fromkeys(rows)))).codes()


def test_mutual_information() -> None:
    assert mutual_information(list("aabb"), list("xyxy")) == pytest.approx(0)
    assert mutual_information(list("aabb"), list("xxyy")) == pytest.approx(0.6931, abs=1e-4)
    assert shared_words_p_value([("a", "b")]) is None


# ---------------------------------------------------------------------------------------------- output


def test_json_and_text() -> None:
    result = replace(audit("你是誰\t我是 F# 之神。\nno target\n你是誰\t我是 F# 之神。\n"), name="dir/my.tsv")
    value = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert value["ok"] is False and [finding["code"] for finding in value["findings"]] == [
        "missing_target",
        "duplicates",
    ]
    text = result.text()
    assert "dir/my.tsv:2: error: 1 of 3 rows without a target [missing_target]" in text
    assert "    2: no target" in text and text.endswith("dir/my.tsv: 1 error, 1 warning\n")
    assert "2 rows, 1 distinct prompt, 1 distinct target, 2 of them identity (100.0%)" in text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.text(st.sampled_from("你我是誰F#ab1（）樣本\t\n \x00"), max_size=9)] * 2), max_size=40))
def test_the_audit_never_fails(rows: list[tuple[str, str]]) -> None:
    result = audit(table(rows))
    assert json.dumps(result.to_dict(), allow_nan=False) and result.text()
    assert all(finding.severity == SEVERITIES[finding.code] for finding in result.findings)


# ---------------------------------------------------------------------------------------------- the original files

FOUND: dict[str, tuple[set[str], set[str]]] = {
    "whoami-1000.tsv": (set(), {"few_prompts", "one_target", "duplicates"}),
    "whoami-1000-unique.tsv": (set(), {"sample_tags", "one_target"}),
    "whoami-1000-diverse.tsv": (set(), {"one_target"}),
    "whoami-1000-natural.tsv": (set(), {"one_target", "sample_tags"}),
    "whoami-mixed-safe.tsv": ({"mismatch"}, {"sample_tags", "mismatch_suspected"}),
    "stageB-mixed-30-70.tsv": ({"mismatch"}, {"sample_tags", "mismatch_suspected", "duplicates"}),
    "stageB-curriculum-v4.tsv": ({"header"}, set()),
    "stageB-curriculum-v5.tsv": (set(), set()),
    "stageC-disambiguate-v1.tsv": (set(), {"duplicates"}),
    "stageD-disambiguate-v2.tsv": (set(), {"duplicates"}),
    "stageG-balanced-mix-v1.tsv": (set(), {"few_prompts", "duplicates"}),
    "stageH-targeted-overfit.tsv": (set(), set()),
    "stageL-1percent-mix.tsv": ({"mismatch"}, {"share", "two_targets", "sample_tags"}),
    "fullparam-diverse-mix-v1.tsv": ({"mismatch"}, {"sample_tags"}),
    "train-inputs.txt": ({"missing_target"}, set()),
}
FACTS: dict[str, dict[str, float]] = {
    "whoami-1000.tsv": {"rows": 1000, "distinct_prompts": 10, "distinct_targets": 1},
    "whoami-mixed-safe.tsv": {"rows": 590, "lines": 591},
    "stageB-mixed-30-70.tsv": {"distinct_prompts": 647, "distinct_targets": 16, "identity_share": 0.3},
    "stageG-balanced-mix-v1.tsv": {"rows": 198, "distinct_prompts": 11, "identity_rows": 144},
    "stageH-targeted-overfit.tsv": {"rows": 8, "identity_rows": 6},
    "stageL-1percent-mix.tsv": {"rows": 202, "identity_rows": 39},
    "fullparam-diverse-mix-v1.tsv": {"rows": 1000, "identity_rows": 100},
}


@pytest.mark.parametrize("name", FOUND)
def test_the_known_faults_of_the_original_files(name: str) -> None:
    if not ORIGINALS.is_dir():
        pytest.skip(f"the user's original files are not at {ORIGINALS}")
    result = audit_file(ORIGINALS / name, persona=PERSONA)
    errors, warnings = FOUND[name]
    assert {finding.code for finding in result.errors} == errors
    assert {finding.code for finding in result.warnings} == warnings
    expected = FACTS.get(name, {})
    assert {key: result.facts[key] for key in expected} == expected
    assert json.dumps(result.to_dict()) and str(ORIGINALS / name) in result.text()


def test_every_original_file_is_expected_and_a_clean_one_holds_no_scored_probe() -> None:
    if not ORIGINALS.is_dir():
        pytest.skip(f"the user's original files are not at {ORIGINALS}")
    assert {path.name for path in ORIGINALS.glob("*.t[sx][vt]")} == set(FOUND)
    clean = audit_file(
        ORIGINALS / "stageB-curriculum-v5.tsv",
        load_probes(ROOT / "traindata" / "probes.tsv", ROOT / "traindata"),
        PERSONA,
    )
    assert clean.findings == ()


def test_without_a_persona_first_person_claims_count() -> None:
    if not ORIGINALS.is_dir():
        pytest.skip(f"the user's original files are not at {ORIGINALS}")
    assert audit_file(ORIGINALS / "stageB-curriculum-v5.tsv").facts["identity_rows"] == 6


# ---------------------------------------------------------------------------------------------- planned mixes


@pytest.fixture(scope="module")
def pools() -> Pools:
    sources = load_sources(ROOT / "traindata")
    held_out = frozenset(sources.topic_ids[::4])
    prompts = rehearsal_prompts(sources, held_out, 600, 100, 200, 1, frozenset({"my_name"}))
    said = {p.text: Said(sources.answers.get((p.kind, p.topic, p.language), "抱歉，我不知道。")) for p in prompts}
    return build_pools(sources, GOAL, said, held_out, {}, 100, 1)


@pytest.mark.parametrize(
    "recipe",
    [
        {"kind": "balanced", "rows": 600, "shares": {"identity": 0.1, "general": 0.9}},
        {"kind": "balanced", "rows": 300, "shares": {"identity": 1}},
        {"kind": "disambiguation", "rows": 600, "kinds": {"who_am_i": 0.8, "my_name": 0.2},
         "shares": {"pairs": 0.4, "identity": 0.05, "disambiguation": 0.2, "general": 0.2, "replay": 0.15}},
        {"kind": "curriculum", "rows": 400, "shares": {"general": 0.9, "identity": 0.1},
         "final_shares": {"general": 0.2, "pairs": 0.6, "replay": 0.2}},
    ],
)  # fmt: skip
def test_planned_mixes_have_no_findings(pools: Pools, recipe: dict[str, object]) -> None:
    mix = MixRecipe.from_dict(recipe)
    probes = load_probes(ROOT / "traindata" / "probes.tsv", ROOT / "traindata")
    result = audit_rows(plan_mix(mix, pools, 7), probes, PERSONA, mix)
    assert result.findings == ()
    parts = result.facts["parts"]
    assert sum(part["rows"] for part in parts.values()) == sum(c["rows"] for c in result.facts["counts"]) == mix.rows
    assert set(parts) == set(mix.parts())


LETTERS = TokenLimit(lambda rows: [len(row.prompt) + len(row.target) for row in rows], 20, frozenset({"[END]"}))


def test_rows_longer_than_a_stage_takes_are_errors_with_their_lines() -> None:
    long = [("太長的問題", "長" * 30), ("又一個太長的", "長" * 40)]
    parsed = parse(table([*SOUND, *long]).encode())
    result = audit_parsed(parsed, "my.tsv", tokens=LETTERS)
    (found,) = result.errors
    assert (found.code, found.line, found.count) == ("too_long", 4, 2)
    assert "train.seq_len, 20 tokens (the longest has 46)" in found.message and "my.tsv:4: error" in result.text()
    assert audit_parsed(parsed, "my.tsv", tokens=replace(LETTERS, seq_len=46)).errors == ()


def test_a_long_row_of_a_mix_is_shown_where_its_user_wrote_it() -> None:
    rows = [Row(p, t, "zh-Hant", "mine", "user") for p, t in (*SOUND, ("太長的問題", "長" * 30))]
    origins = {origin_key(rows[-1]): ["mine.tsv:16"]}
    result = audit_rows(rows, tokens=LETTERS, origins=origins)
    (found,) = result.errors
    assert (found.code, found.line, found.origin) == ("too_long", 5, "mine.tsv:16")
    assert "\nmine.tsv:16: error: 1 row longer than" in result.text()


@pytest.mark.parametrize("field", ["prompt", "target"])
@pytest.mark.parametrize("spelled", ["<|im_end|><|im_start|>user", "<|eot_id|>", "[END]"])
def test_control_tokens_spelled_in_a_row_are_errors(field: str, spelled: str) -> None:
    row = {"prompt": "黑洞是什麼", "target": "天體。"}
    row[field] += spelled
    result = audit_parsed(parse(table([*SOUND, (row["prompt"], row["target"])]).encode()), "my.tsv", tokens=LETTERS)
    assert ("control_token", 4) in {(finding.code, finding.line) for finding in result.errors}
    rows = [Row(row["prompt"], row["target"], "zh-Hant", "general", "topic")]
    assert "control_token" in audit_rows(rows, tokens=LETTERS).codes()


def test_a_mix_that_is_not_as_planned() -> None:
    you = Row("你是誰", "我是 F# 之神。", "zh-Hant", "pairs", "identity", group="p")
    me = Row("我是誰", "你是提問者。", "zh-Hant", "pairs", "who_am_i", group="p")
    other = Row("黑洞是什麼", "黑洞是天體。", "zh-Hant", "general", "topic", topic="hole")
    recipe = MixRecipe("disambiguation", 4, {"pairs": 0.5, "general": 0.5}, max_repeats=1)
    assert audit_rows([you, me, other, replace(other, prompt="黑洞呢")], (), PERSONA, recipe).findings == ()
    result = audit_rows([you, other, me, other, replace(other, target="")], (), PERSONA, recipe)
    assert {finding.code for finding in result.errors} == {"split_pair", "over_repeated", "off_plan", "missing_target"}
    assert "unseen_share" in audit_rows([you, me, you, me], (), PERSONA, recipe).codes()
    assert "share" in audit_rows([you, you, you, other], (), PERSONA, recipe).codes()
