"""Scoring, metrics, the check of the harness, and probing a real (tiny, random) export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod.answers import Answer, read_answers
from fgod.chat import chat_of
from fgod.data.rows import Message, spread
from fgod.data.suites import SCORINGS
from fgod.documents import Metrics, Probed
from fgod.errors import FgodError, RefusedError, UsageError
from fgod.evaluate.measure import measure_all, measure_by_language
from fgod.evaluate.metric import Estimate, mean, percentile, share, weighted_mean, wilson
from fgod.evaluate.scoring import NOT_COMPARED, Likelihood, Scored, agrees, answers_properly, normalise_reply, score
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
    assert {name: (m.value, m.n) for name, m in found.items() if m.n} == {
        "identity_rate": (1.0, 20),
        "confusion_rate": (0.0, 20),
        "disambiguation_rate": (1.0, 20),
        "leak_rate": (0.0, 40),
        "retention": (39 / 40, 40),
        "retention_held_out": (19 / 20, 20),
        "kl_reference": (pytest.approx(0.004), 40),
        "kl_p99": (pytest.approx(0.004), 40),
        "top1_agreement": (pytest.approx(0.98), 40),
        "nll_shift": (pytest.approx(0.002), 40),
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
    st.integers(0, 99), *[st.none() | st.floats(-1e6, 1e6)] * 3, FLAG, TEXT, TEXT,
    st.tuples() | st.tuples(*(st.builds(Message, st.just(r), TEXT.filter(bool)) for r in ("user", "assistant"))),
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
    with pytest.raises(FgodError, match=r"probes\.tsv:2: proper: found 'yes', expected true or false"):
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


def test_likelihoods_are_means_over_tokens() -> None:
    import torch
    from torch.nn.functional import kl_div

    from fgod.probe.likelihood import likelihood

    reference, ours = torch.randn(5, 40, generator=torch.manual_seed(1)), torch.randn(5, 40)
    found = likelihood(reference, ours, (3, 1, 4, 1, 39))
    p, q = reference.double().log_softmax(-1), ours.double().log_softmax(-1)
    assert found.kl == pytest.approx(float(kl_div(q, p, reduction="batchmean", log_target=True)), rel=1e-9)
    shift = sum(float(p[row, token] - q[row, token]) for row, token in enumerate((3, 1, 4, 1, 39))) / 5
    assert (found.tokens, found.finite) == (5, True) and found.nll_shift == pytest.approx(shift, rel=1e-9)
    assert found.top1 == sum(bool(a == b) for a, b in zip(p.argmax(-1), q.argmax(-1), strict=True)) / 5
    assert likelihood(reference, reference, (0,) * 5) == Likelihood(5, 0.0, 0.0, 1.0)
    assert likelihood(reference, ours * float("nan"), (0,) * 5) == Likelihood(5, finite=False)
    assert likelihood(reference[:0], ours[:0], ()) == NOT_COMPARED


def test_models_are_compared_in_batches_as_one_by_one(tmp_path: Path) -> None:
    import torch

    from fgod.exporters.write import export
    from fgod.model.chats import ChatFormat
    from fgod.model.load import load_model
    from fgod.probe.likelihood import compare, likelihood
    from tests.tiny_model import QUESTIONS, tiny_folder

    torch.set_num_threads(1)
    master, packed = tiny_folder(tmp_path / "master"), tmp_path / "nvfp4"
    export(master, packed)
    base, model, chat = load_model(master), load_model(packed), ChatFormat.of_folder(packed)
    answers = [
        Answer(q, "", tuple(chat.tokenizer.encode(f"回答{q * i}")), True, False) for i, q in enumerate(QUESTIONS)
    ]
    answers.append(replace(answers[1], system="你是一位詩人。"))
    answers.append(replace(answers[1], history=(Message("user", "你好"), Message("assistant", "您好。"))))
    for batch in (1, 3, 64):
        for answer, found in zip(answers, compare(base, model, chat, answers, batch), strict=True):
            start = chat.prompt_ids(chat_of(answer))
            read = torch.tensor([[*start, *answer.token_ids[:-1]]])
            with torch.inference_mode():
                theirs, ours = (m(read).logits[0, len(start) - 1 :] for m in (base, model))
            slow = likelihood(theirs, ours, answer.token_ids)
            assert (found.tokens, found.top1) == (slow.tokens, slow.top1)
            assert found.kl == pytest.approx(slow.kl, rel=1e-3) and found.kl and found.kl > 0
            assert found.nll_shift == pytest.approx(slow.nll_shift, rel=1e-2, abs=1e-6)
    with pytest.raises(FgodError, match="logits for '你是誰' are not finite; mend the base"):
        base.get_input_embeddings().weight.data.fill_(float("nan"))
        compare(base, model, chat, answers, 64)


def test_a_mean_over_tokens_weighs_replies_by_their_length() -> None:
    records = [replace(r, tokens=1 + 9 * (i % 2), kl=float(i % 2)) for i, r in enumerate(scored("good"))]
    found = measure_all(records)["kl_reference"]
    assert (found.value, found.n) == (pytest.approx(20 * 10 / 220), 40)
    assert found.low is not None and found.high is not None and 0.8 < found.low < found.value < found.high < 1


def test_bootstrap_intervals_are_those_of_the_delta_method() -> None:
    """Of a ratio of means: variance Σ w² (x − c)² / (Σ w)² (Cochran 1977, Sampling Techniques, 6.3)."""
    import numpy as np

    values = np.random.default_rng(3).normal(5, 2, size=400)
    tokens = np.random.default_rng(4).integers(1, 64, size=400)
    found = weighted_mean(values.tolist(), tokens.tolist())
    centre = np.average(values, weights=tokens)
    half = 1.96 * np.sqrt(((tokens * (values - centre)) ** 2).sum()) / tokens.sum()
    assert found.value == pytest.approx(centre)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=0.15 * half)
    assert found == weighted_mean(values.tolist(), tokens.tolist())
    assert weighted_mean([], []) == Estimate(None, 0) and weighted_mean([2.0], [3.0]) == Estimate(2.0, 1)


def test_a_percentile_lies_within_its_interval() -> None:
    values = [float(i * i % 101) for i in range(400)]
    found = percentile(values, 99)
    assert found.value == pytest.approx(sorted(values)[395], abs=2) and found.n == 400
    assert found.low is not None and found.high is not None and found.low <= found.value <= found.high <= max(values)
    assert percentile([], 99) == Estimate(None, 0) and percentile([2.0], 99) == Estimate(2.0, 1)


def test_a_real_export_is_probed(tmp_path: Path) -> None:
    """The reference's answers are hand-made, its weights the export's own: KL 0, and nothing agrees."""
    import torch

    from fgod.evaluate.settings import ProbeSettings
    from fgod.exporters.write import export
    from fgod.model.ask import AnswerSettings, write_folder
    from fgod.model.chats import ChatFormat
    from fgod.model.generate import greedy
    from fgod.model.load import load_model
    from fgod.probe.run import Reference, run_probes
    from tests.tiny_model import tiny_folder

    torch.set_num_threads(1)
    master, packed, run = tiny_folder(tmp_path / "master"), tmp_path / "nvfp4", tmp_path / "run"
    export(master, packed)
    chat = ChatFormat.of_folder(packed)
    probes = [p for i, p in enumerate(PROBES) if i % 6 == 0]
    turns = (Message("user", "你好"), Message("assistant", "您好。"))
    framed = replace(probes[-1], system="你是一位詩人。", history=turns, family="framed")
    probes.append(framed)
    said_to = {**PROBES, framed: "詩人說。"}
    answers = [
        Answer(p.prompt, text, tuple(chat.tokenizer.encode(text)), True, False, p.system, p.history)
        for p, text in ((p, said_to[p]) for p in probes)
    ]
    (tmp_path / "answers").mkdir()
    write_folder(tmp_path / "answers", answers, AnswerSettings())
    reference = Reference(tmp_path / "answers", packed)

    settings = ProbeSettings(max_new_tokens=12)
    records = run_probes(packed, master, reference, probes, {}, STANDARD, settings, run)
    assert read_probes(run / "probes.tsv") == records and len(records) == len(probes)
    assert read_answers(tmp_path / "answers") == {answer.key: answer for answer in answers}
    frame = records[-1]
    assert (frame.family, frame.system, frame.history, frame.reference) == ("framed", framed.system, turns, "詩人說。")
    replies = greedy(load_model(packed), chat, [chat_of(framed), framed.prompt], 12)
    assert frame.reply == replies[0].text and records[-2].reply == replies[1].text
    document = files.read_json(run / "metrics.json")
    assert document["status"] == "measured" and document["non_finite"] == 0
    assert document["metrics"]["kl_reference"]["value"] == document["metrics"]["kl_identity"]["value"] == 0
    assert document["metrics"]["top1_agreement"]["value"] == 1
    assert document["metrics"]["retention"]["value"] == 0.0
    assert document["parity"] == {"prompts": 4, "max_abs": 0.0, "mean_abs": 0.0, "first_differing_token": None}
    assert document["export"]["sha256"] == files.sha256_folder(packed)
    assert document["export"]["files"]["config.json"] == files.sha256_file(packed / "config.json")
    known = {p.key: ("else",) for p in probes if p.suite == "retention"}
    run_probes(packed, None, reference, probes, known, STANDARD, settings, run)
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
