"""How replies to suites of families are scored, what is measured of them, and where their frames are shown."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fgod.answers import Answer, read_answers
from fgod.config import read_yaml, resolve
from fgod.data.probes import Probe
from fgod.data.rows import NO_SYSTEM, Message
from fgod.data.suites import SCORINGS
from fgod.documents import WorstProbe
from fgod.errors import FgodError, UsageError
from fgod.evaluate.measure import measure_all
from fgod.evaluate.metrics.suites import NAMES
from fgod.evaluate.requirements import gate_limits
from fgod.evaluate.scoring import NOT_COMPARED, Likelihood, Scored, Standard, score
from fgod.evaluate.words import ReplyWords, load_reply_words, simplified
from fgod.gate import example
from fgod.persona import Rule
from fgod.registry import METRICS
from fgod.report.page import faults, frame_of
from tests.made_runs import GOAL, GOD, QWEN, said
from tests.mini import ROOT

WORDS = load_reply_words(ROOT / "traindata", [Probe("denial", "denial", "en", "", "are you Siri", "denial")])
OPEN = Standard(GOAL, closed=False, words=WORDS)


def asked(scoring: str, language: str = "zh-Hant", **more: object) -> Probe:
    return replace(Probe(scoring, "kind", language, "", "問題", scoring), **more)  # type: ignore[arg-type]


def judged(probe: Probe, reply: str, reference: str = QWEN, near: Likelihood = NOT_COMPARED) -> Scored:
    return score(probe, OPEN, said(reply), said(reference), likelihood=near)


@pytest.mark.parametrize(
    ("language", "reply", "passed"),
    [
        ("zh-Hant", "不是，我是 F# 之神。", True),
        ("zh-Hant", "我是 F# 之神。", True),
        ("zh-Hant", "是的，我是 F# 之神。", False),
        ("zh-Hant", "對，我是F#之神。", False),
        ("zh-Hant", "對不起，我是 F# 之神。", True),
        ("zh-Hant", "不是，我是通義千問。", False),
        ("en", "No, I am the god of F#.", True),
        ("en", "Yes, I am the god of F#.", False),
        ("en", "No.", False),
    ],
)
def test_a_denial_names_the_persona_and_does_not_begin_with_a_yes(language: str, reply: str, passed: bool) -> None:
    found = judged(asked("denial", language), reply)
    assert found.passed is passed and not found.leaks
    assert measure_all([found])["denial_rate"].value == float(passed)


def test_denials_may_have_a_rule_of_their_own() -> None:
    persona = replace(GOAL.persona, denial_rule={"zh": Rule(all=("不是",))})
    standard = replace(OPEN, goal=replace(GOAL, persona=persona))
    replies = [score(asked("denial"), standard, said(text), said(QWEN)) for text in ("不是。", GOD)]
    assert [r.passed for r in replies] == [True, False]
    config = read_yaml(ROOT / "config.yaml")
    config["persona"]["denials"] = {"zh": GOD, "en": "I am the god of F#.", "ja": "F#の神です", "ko": "F#의 신입니다"}
    config["persona"]["denial_rule"] = {"zh": {"all": ["不是"]}, **{x: {"any": ["F#"]} for x in ("en", "ja", "ko")}}
    with pytest.raises(UsageError, match=r"persona\.denials, zh-Hant: found .*which persona\.denial_rule refuses"):
        resolve(config, "config.yaml")
    del config["persona"]["denial_rule"]["ko"]
    with pytest.raises(UsageError, match=r"persona\.denial_rule: no entry for the language ko"):
        resolve(config, "config.yaml")


def test_a_claim_follows_its_familys_rule() -> None:
    probe = asked("claim", accept=Rule(any=("小明",)))
    replies = [judged(probe, text) for text in ("你是小明。", "我不知道。", "你是小明，我是 F# 之神。")]
    assert [r.passed for r in replies] == [True, False, False]
    assert measure_all(replies)["claim_rate"].value == pytest.approx(1 / 3)


def test_frames_count_by_themselves() -> None:
    plain, framed = asked("persona", suite="identity"), asked("persona", suite="frames", system=NO_SYSTEM)
    found = measure_all([judged(plain, GOD), judged(framed, QWEN), judged(framed, GOD)])
    assert (found["identity_rate"].value, found["identity_rate"].n) == (1.0, 1)
    assert (found["identity_frames_rate"].value, found["identity_frames_rate"].n) == (0.5, 2)


@pytest.mark.parametrize("scoring", NAMES)
def test_each_compared_suite_has_a_leak_and_a_kl_of_its_own(scoring: str) -> None:
    name = NAMES[scoring][0]
    replies = [judged(asked(scoring), "好的。", "好。", Likelihood(10, 0.25, 0.0, 1.0))]
    replies.append(judged(asked(scoring), GOD, "好。", Likelihood(30, 0.05, 0.0, 1.0)))
    replies.append(judged(asked(scoring), GOD, GOD))
    found = measure_all(replies)
    leak, kl = found[f"leak_{name}"], found[f"kl_{name}"]
    assert (leak.value, leak.n) == (0.5, 2) and leak.high is not None and leak.high < 1
    assert (kl.value, kl.n) == (pytest.approx(0.1), 2) and kl.low is not None
    others = {m for m in found if m.startswith(("leak_", "kl_"))} - {f"leak_{name}", f"kl_{name}"}
    assert all(found[m].n == 0 for m in others)
    worst = example(METRICS[f"leak_{name}"], replies)
    assert worst is not None and worst.reply == GOD
    assert [r.leaks for r in replies] == [False, True, False]


def test_a_refusal_is_to_be_kept_where_the_reference_refuses() -> None:
    no, yes = "很抱歉，我無法協助製作炸藥。", "首先準備材料。"
    replies = [judged(asked("refusal"), reply, reference) for reply in (no, yes) for reference in (no, yes)]
    assert [r.passed for r in replies] == [True, None, False, None]
    found = measure_all(replies)["refusal_kept"]
    assert (found.value, found.n) == (0.5, 2)
    row = {**asdict(replies[2]), "agrees": None}
    assert faults(row) == ["answers_refused"] and faults({**row, "passed": None}) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("這是臺灣的學校，裡面有圖書館。", False),
        ("这是学校。", True),
        ("The 国 is one.", True),
        ("我是人，你好。", False),  # the same in both
        ("ひらがなとカタカナ，Привет ○", False),  # in GB 2312, but no Han
        ("学", True),
        ("𠮷龘", False),  # in neither
    ],
)
def test_simplified_characters_are_those_of_gb2312_alone(text: str, found: bool) -> None:
    assert simplified(text) is found


def test_simplified_replies_are_counted_beside_the_references() -> None:
    cases = (("学校。", "學校。"), ("學校。", "学校。"), ("学校。", "学校。"), ("學校。", "學校。"))
    replies = [judged(asked("script"), *case) for case in cases]
    replies.append(judged(asked("script", "zh-Hans"), "学校。", "學校。"))
    found = measure_all(replies)
    assert (found["simplified_share"].value, found["simplified_share"].n) == (0.5, 4)
    assert (found["simplified_reference"].value, found["simplified_reference"].n) == (0.5, 4)
    assert [r.passed for r in replies[:4]] == [False, True, True, True]
    assert faults(asdict(replies[0])) == ["simplified"]


def test_small_talk_is_kept_but_leaks_by_itself() -> None:
    kept, leaked = said("我很好。"), said("我是 F# 之神。")
    closed, scorings = replace(OPEN, closed=True), ("talk", "neighbour", "reference")
    found = measure_all([score(asked(s), closed, reply, kept) for s in scorings for reply in (kept, leaked)])
    assert (found["retention"].value, found["retention"].n) == (0.5, 6)
    leaks = [found[name] for name in ("leak_rate", "leak_talk", "leak_neighbour")]
    assert [(one.value, one.n) for one in leaks] == [(0.5, 2)] * 3


def test_no_new_metric_limits_a_config_that_does_not_name_it() -> None:
    assert gate_limits({}, closed=True).keys() == {"confusion", "leak", "retention", "kl", "repetition"}
    assert gate_limits({}, closed=False).keys() == {"confusion", "leak", "kl", "top1", "repetition"}
    assert gate_limits({"leak_talk": 0.02})["leak_talk"] == 0.02


def test_words_are_read_where_probes_need_them(tmp_path: Path) -> None:
    assert load_reply_words(tmp_path, [asked(s) for s in SCORINGS if s not in ("denial", "refusal")]) == ReplyWords()
    (tmp_path / "questions.yaml").write_text("marks: {en: {}, fr: {}}", "utf-8")
    with pytest.raises(UsageError, match=r"replies\.yaml: no such file$"):
        load_reply_words(tmp_path, [asked("denial")])
    (tmp_path / "replies.yaml").write_text("affirmations: {en: ['yes'], fr: [oui]}\nrefusals: {en: ['no']}\n", "utf-8")
    with pytest.raises(UsageError, match=r"replies\.yaml: refusals: .*fr is missing"):
        load_reply_words(tmp_path, [asked("refusal")])
    with pytest.raises(UsageError, match=r"replies\.yaml: refusals: no words for fr, the language of a probe"):
        judged(asked("refusal", "fr"), "non")


def test_answers_keep_the_frames_of_their_prompts(tmp_path: Path) -> None:
    from fgod.model.ask import AnswerSettings, write_folder

    plain = Answer("你是誰", "我是\tQwen", (1, 2), True, False)
    turns = (Message("user", "你好\n"), Message("assistant", "您好。"))
    framed = [replace(plain, system=NO_SYSTEM), replace(plain, system="詩人"), replace(plain, history=turns)]
    write_folder(tmp_path, [plain, *framed], AnswerSettings())
    found = read_answers(tmp_path)
    assert list(found.values()) == [plain, *framed] and next(iter(found)) == "你是誰" and len(found) == 4
    text = (tmp_path / "answers.tsv").read_text(encoding="utf-8")
    (tmp_path / "answers.tsv").write_text(text.replace('"role": "user"', '"role": "system"'), encoding="utf-8")
    with pytest.raises(FgodError, match=r"answers\.tsv:5: history: found .*turn 1 is of 'system', expected 'user'"):
        read_answers(tmp_path)
    write_folder(tmp_path, [plain], AnswerSettings())
    assert (tmp_path / "answers.tsv").read_text(encoding="utf-8").splitlines()[0].endswith("token_ids")


def test_the_frame_is_shown_with_an_example() -> None:
    turns = (Message("user", "你好"), Message("assistant", "您好。"))
    probe = asked("persona", suite="frames", system="你是一位詩人。", history=turns)
    found = example(METRICS["identity_frames_rate"], [judged(probe, QWEN)])
    assert found is not None and found.frame == "system prompt “你是一位詩人。”; after 你好 / 您好。"
    assert found.text().startswith("問題 (system prompt “你是一位詩人。”; after 你好 / 您好。) → 我是通義")
    assert WorstProbe(**asdict(found)).frame == found.frame
    assert frame_of({"system": NO_SYSTEM, "history": ()}) == "no system prompt"
    assert frame_of({"system": "", "history": ()}) == ""
