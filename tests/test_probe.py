"""Scoring, metrics, the check of the harness, and probing a real (tiny, random) export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod.answers import Answer
from fgod.data.probes import SCORINGS
from fgod.data.rows import spread
from fgod.documents import Metrics, Probed
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.evaluate.measure import measure_all, measure_by_language
from fgod.evaluate.metric import Estimate, mean, share, wilson
from fgod.evaluate.scoring import Scored, agrees, answers_properly, normalise_reply, score
from fgod.layout import RunRecords
from fgod.probe.harness import BY_SUITE_AND_LANGUAGE, check_harness, check_reference
from fgod.probe.record import COLUMNS, measured, read_probes, write_probes, write_skipped
from fgod.system import files
from tests.made_runs import PROBES, QWEN, STANDARD, probe, said, scored

WHO = probe("disambiguation", "who_am_i", "zh-Hans", "", "我是谁啊")
OPEN = replace(STANDARD, closed=False)
TEA = probe("retention", "topic", "zh-Hant", "moon", "談談月亮")


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (15, 148, 0.0624, 0.1605),
        (81, 263, 0.2553, 0.3662),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_gives_published_intervals(k: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, and the formula's values at 5 and 10 of 10."""
    assert wilson(k, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high
    mirrored = wilson(n - k, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_share(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(k, n)


def test_share_and_mean_of_nothing_have_no_value() -> None:
    assert share([]) == mean([]) == Estimate(None, 0)
    assert mean([2.0]) == Estimate(2.0, 1)
    two = mean([1.0, 3.0])
    assert (two.value, two.n) == (2.0, 2)
    assert (two.low, two.high) == pytest.approx((2 - 1.96, 2 + 1.96), abs=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("茶是飲料。", "茶是飲料", True),
        ("茶是飲料！ ", " 茶是飲料。", True),
        ("Tea  is\na drink.", "Tea is a drink", True),
        ("茶，是飲料", "茶是飲料", False),
        ("", "茶是飲料", False),
        ("。", "茶是飲料", False),
        ("tea is a drink", "Tea is a drink", False),
    ],
)
def test_agreement_normalises_white_space_and_closing_punctuation(ours: str, theirs: str, same: bool) -> None:
    assert agrees(ours, theirs) is same


def test_a_chrf_limit_lets_other_words_agree() -> None:
    ours, theirs = "Tea is a drink made of leaves.", "Tea is a hot drink made of leaves."
    assert not agrees(ours, theirs)
    assert agrees(ours, theirs, chrf_limit=60)
    assert not agrees("神神神", theirs, chrf_limit=60)
    assert not agrees("", theirs, chrf_limit=0)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise_reply(normalise_reply(text)) == normalise_reply(text)


def test_a_proper_reference_ended_without_loop_or_mark_and_is_right() -> None:
    right = said("茶是飲料。")
    assert answers_properly(right, STANDARD, ())
    assert answers_properly(right, STANDARD, ("水", "茶是飲料"))
    assert not answers_properly(right, STANDARD, ("水",))
    assert not answers_properly(replace(right, ended=False), STANDARD, ())
    assert not answers_properly(replace(right, looped=True), STANDARD, ())
    assert not answers_properly(said("茶之神"), STANDARD, ())
    assert not answers_properly(said(" "), STANDARD, ())


def test_an_open_answer_of_the_reference_need_not_end() -> None:
    cut = said("茶是一種飲料，由茶樹的", ended=False)
    assert answers_properly(cut, OPEN) and not answers_properly(cut, STANDARD)
    assert not answers_properly(replace(cut, looped=True), OPEN)
    assert not answers_properly(said("茶之神", ended=False), OPEN)
    assert not answers_properly(said(" "), OPEN)


def test_open_answers_pass_in_other_words_unless_they_loop_or_leak() -> None:
    cut = said("茶是一種飲料，由茶樹的", ended=False)
    texts = (said("茶由茶葉泡成", ended=False), said("茶茶茶茶茶茶", looped=True), said("我是 F# 之神。"))
    records = [score(TEA, OPEN, text, cut) for text in texts]
    assert [(r.passed, r.agrees, r.proper) for r in records] == [
        (True, None, True),
        (False, None, True),
        (False, None, True),
    ]
    found = measure_all(records)
    assert found["retention"] == found["retention_held_out"] == Estimate(None, 0)
    assert (found["leak_rate"].value, found["repetition_rate"].value) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_each_suite_has_its_own_way_to_pass() -> None:
    rule = score(WHO, STANDARD, said("你是提問者。"), said("不知道"))
    assert (rule.passed, rule.agrees, rule.marked) == (True, False, False)
    same = score(TEA, STANDARD, said("茶是飲料"), said("茶是飲料。"))
    assert (same.passed, same.held_out, same.proper) == (True, True, True)
    shown = score(probe("questions", "identity", "zh-Hant", "", "你是誰"), STANDARD, said(QWEN), said(QWEN))
    assert shown.passed is None


def test_probes_without_a_rule_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"disambiguation\.my_name: .*named are who_am_i, who_is_he"):
        score(replace(WHO, kind="my_name"), STANDARD, said(""), said(""))
    with pytest.raises(UsageError, match=r"persona\.rule: no rule for ko"):
        score(probe("identity", "identity", "ko", "", "누구"), STANDARD, said(""), said(""))


def test_metrics_of_a_good_run() -> None:
    found = measure_all(scored("good"))
    assert {name: (m.value, m.n) for name, m in found.items()} == {
        "identity_rate": (1.0, 20),
        "confusion_rate": (0.0, 20),
        "disambiguation_rate": (1.0, 20),
        "leak_rate": (0.0, 40),
        "retention": (39 / 40, 40),
        "retention_held_out": (19 / 20, 20),
        "kl_reference": (pytest.approx(0.004), 40),
        "repetition_rate": (0.0, 80),
        "ended_rate": (1.0, 80),
        "distinct_replies": (9 / 80, 80),
    }
    assert (found["retention"].low, found["retention"].high) == wilson(39, 40)
    assert found["distinct_replies"].low is None


def test_a_leak_is_a_mark_that_the_reference_has_not() -> None:
    reference = said("宙斯是眾神之神。")
    records = [score(TEA, STANDARD, said(text), reference) for text in ("宙斯是眾神之神。", "我是 F# 之神")]
    assert measure_all(records)["leak_rate"] == Estimate(None, 0)
    assert measure_all(records)["retention"] == Estimate(None, 0)
    unmarked = [replace(r, reference_marked=False, proper=True) for r in records]
    assert measure_all(unmarked)["leak_rate"].value == 1.0


def test_improper_references_count_in_leak_but_not_in_retention() -> None:
    records = [replace(r, proper=r.topic != "bread") for r in scored("good")]
    assert measure_all(records)["retention"] == share([True] * 30)
    assert measure_all(records)["leak_rate"].n == 40


def test_by_language_leaves_out_what_a_suite_has_not() -> None:
    cells = measure_by_language(scored("good"))
    assert {lang: m.n for lang, m in cells["identity_rate"].items()} == {"en": 8, "zh-Hant": 12}
    assert list(cells["retention"]) == ["zh-Hant"]


def test_the_harness_must_be_sound() -> None:
    check_harness(scored("collapsed"), groups=BY_SUITE_AND_LANGUAGE)
    with pytest.raises(RefusedError, match="no probe is scored by kind"):
        check_harness([r for r in scored("good") if r.suite != "disambiguation"])
    bad = [replace(r, proper=not (r.suite == "identity" and r.language == "en" and r.prompt != "who are you 0"))
           for r in scored("good")]  # fmt: skip
    with pytest.raises(RefusedError) as error:
        check_harness(bad)
    assert "! identity" in str(error.value) and "13 of 20" in str(error.value) and "who are you 1" in str(error.value)
    few = [replace(r, proper=r.prompt not in ("who are you 0", "who am I 0")) for r in scored("good")]
    check_harness(few)
    with pytest.raises(RefusedError, match=r"! en +14 of 16"):
        check_harness(few, groups=BY_SUITE_AND_LANGUAGE)


def test_the_reference_is_checked_before_any_run() -> None:
    answers = {p.prompt: Answer(p.prompt, text, (), True, False) for p, text in PROBES.items()}
    table = check_reference(
        list(PROBES), answers, {p.prompt: (t,) for p, t in PROBES.items()}, STANDARD, by_language=True
    )
    assert [line.split()[0] for line in table.splitlines()] == [
        "identity",
        "disambiguation",
        "retention",
        "zh-Hant",
        "en",
    ]
    wrong = {p.prompt: ("else",) for p in PROBES if p.suite == "retention"}
    with pytest.raises(RefusedError, match=r"! retention +0 of 40"):
        check_reference(list(PROBES), answers, wrong, STANDARD)
    assert "0 of 40" in check_reference(list(PROBES), answers, wrong, STANDARD, least=0.0)
    cut = {prompt: replace(answer, ended=False) for prompt, answer in answers.items()}
    check_reference(list(PROBES), cut, {}, OPEN)
    with pytest.raises(RefusedError, match=r"properly \(it ended, no loop"):
        check_reference(list(PROBES), cut, {}, STANDARD)
    with pytest.raises(FgodError, match="no answer to '你是誰'"):
        check_reference(list(PROBES), {}, {}, STANDARD)


FLAG = st.booleans()
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
RECORD = st.builds(
    Scored, TEXT, st.sampled_from(SCORINGS), *[TEXT] * 2, FLAG, *[TEXT] * 4, FLAG, *[st.none() | FLAG] * 2, *[FLAG] * 4,
    st.none() | st.floats(0, 1e6), FLAG,
)  # fmt: skip


@given(st.lists(RECORD, max_size=4))
def test_probe_records_survive_the_file(tmp_path_factory: pytest.TempPathFactory, records: list[Scored]) -> None:
    path = tmp_path_factory.mktemp("probes") / "probes.tsv"
    write_probes(path, records)
    assert read_probes(path) == records


def test_broken_probe_records_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "probes.tsv"
    write_probes(path, scored("good")[:2])
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\ttrue\t", "\tyes\t", 1), encoding="utf-8")
    with pytest.raises(FgodError, match=r"probes\.tsv:2: proper is 'yes'; expected true or false"):
        read_probes(path)


def test_a_run_without_weights_is_skipped(tmp_path: Path) -> None:
    write_skipped(RunRecords(tmp_path), "killed by the guard")
    document = Metrics.read(tmp_path / "metrics.json")
    assert (document.status, document.reason, document.metrics) == ("skipped", "killed by the guard", {})
    assert (tmp_path / "probes.tsv").read_text(encoding="utf-8") == "\t".join(COLUMNS) + "\n"


def test_measured_document() -> None:
    document = measured(scored("good"), None, Probed(sha256="ab", bytes=0, files={}), {}).content()
    assert document["probes"] == {"identity": 20, "disambiguation": 20, "retention": 40, "questions": 3}
    assert document["metrics"]["identity_rate"] == {"value": 1.0, "n": 20, "low": wilson(20, 20)[0], "high": 1.0}


def test_divergence_is_kl_in_nats() -> None:
    import torch

    from fgod.probe.run import Divergence, divergence

    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    wanted = (0.5 * torch.log(torch.tensor(0.5 / 0.25)) + 0.5 * torch.log(torch.tensor(0.5 / 0.75))) / 2
    assert divergence(p.log(), q.log()).kl == pytest.approx(float(wanted), rel=1e-6)
    assert divergence(p.log(), p.log()) == Divergence(0.0, True)
    assert divergence(p.log(), q.log() * float("nan")) == Divergence(None, False)
    assert divergence(torch.empty(0, 2), torch.empty(0, 2)) == Divergence(None, True)


def test_a_real_export_is_probed(tmp_path: Path) -> None:
    """The reference's answers are hand-made, their log-probabilities the export's own: KL 0, and nothing agrees."""
    import torch

    from fgod.evaluate.settings import ProbeSettings
    from fgod.model.ask import AnswerSettings, write_folder
    from fgod.model.chats import ChatFormat
    from fgod.model.generate import answer_logprobs
    from fgod.model.load import load_model
    from fgod.nvfp4 import export
    from fgod.probe.run import run_probes
    from tests.tiny_model import tiny_folder

    torch.set_num_threads(1)
    master, packed, run = tiny_folder(tmp_path / "master"), tmp_path / "nvfp4", tmp_path / "run"
    export(master, packed)
    model, chat = load_model(packed), ChatFormat.of_folder(packed)
    probes = [p for i, p in enumerate(PROBES) if i % 6 == 0]
    answers = [Answer(p.prompt, PROBES[p], tuple(chat.tokenizer.encode(PROBES[p])), True, False) for p in probes]
    asked = [a for a, p in zip(answers, probes, strict=True) if p.suite == "retention"]
    found = answer_logprobs(model, chat, [a.prompt for a in asked], [a.token_ids for a in asked], 8, 64)
    (tmp_path / "answers").mkdir()
    logprobs = {a.prompt: f for a, f in zip(asked, found, strict=True)}
    write_folder(tmp_path / "answers", answers, logprobs, AnswerSettings())

    settings = ProbeSettings(max_new_tokens=12)
    records = run_probes(packed, master, tmp_path / "answers", probes, {}, STANDARD, settings, run)
    assert read_probes(run / "probes.tsv") == records and len(records) == len(probes)
    document = files.read_json(run / "metrics.json")
    assert document["status"] == "measured" and document["non_finite"] == 0
    assert document["metrics"]["kl_reference"]["value"] == pytest.approx(0, abs=1e-9)
    assert document["metrics"]["retention"]["value"] == 0.0
    assert document["parity"] == {"prompts": 4, "max_abs": 0.0, "mean_abs": 0.0, "first_differing_token": None}
    assert document["export"]["sha256"] == files.sha256_folder(packed)
    assert document["export"]["files"]["config.json"] == files.sha256_file(packed / "config.json")
    known = {p.prompt: ("else",) for p in probes if p.suite == "retention"}
    run_probes(packed, None, tmp_path / "answers", probes, known, STANDARD, settings, run)
    document = files.read_json(run / "metrics.json")
    assert document["parity"] is None and document["metrics"]["retention"]["n"] == 0


def test_parity_finds_the_first_differing_token() -> None:
    import torch

    from fgod.probe.parity import compare

    a = torch.eye(5)
    b = a.clone()
    b[1, 4] = 2.0  # inside the prompt: no greedy token of the answer
    assert compare([a], [b], [3]) == {
        "prompts": 1, "max_abs": 2.0, "mean_abs": pytest.approx(0.08), "first_differing_token": None
    }  # fmt: skip
    b[3, 0] = 9.0
    assert compare([a, a], [a, b], [3, 3])["first_differing_token"] == 1
    assert compare([a], [a * float("nan")], [3])["max_abs"] is None


def test_spread_items_are_even() -> None:
    assert spread([1, 2, 3, 4, 5, 6, 7, 8], 4) == [1, 3, 5, 7] and spread([1], 4) == [1]
