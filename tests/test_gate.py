"""The gate on hand-made replies: every verdict, their order, reasons and examples, requirements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fgod.data.probes import Probe
from fgod.documents import Metrics, Outcome, Probed
from fgod.errors import FgodError, UsageError
from fgod.evaluate.requirements import gate_limits, parse_requirements
from fgod.evaluate.scoring import Likelihood, Said, Scored, score
from fgod.gate import DECISIONS, Limits, Verdict, checks_of, judge, judge_run
from fgod.probe.record import measured
from fgod.system import files
from tests.made_runs import GOD, PROBES, QWEN, STANDARD, WHO, said, scored, write_run

TRAINED = Outcome(status="trained")
PROBED = Probed(sha256="ab", bytes=0, files={})
LIMITS = gate_limits({})


def verdict(
    records: list[Scored],
    limits: Limits = LIMITS,
    require: dict[str, str] | None = None,
    outcome: Outcome = TRAINED,
) -> Verdict:
    return judge(outcome, measured(records, None, PROBED, {}), lambda: records, limits, require or {})


def replies(say: Callable[[Probe, str], Said | None]) -> list[Scored]:
    """A good run, but for the probes to which `say` gives another reply."""
    out = []
    for record, (probe, reference) in zip(scored("good"), PROBES.items(), strict=True):
        other = say(probe, reference)
        near = Likelihood(6, 0.004, 0.002, 0.98)
        same = record if other is None else score(probe, STANDARD, other, said(reference), (reference,), near)
        out.append(same)
    return out


def to_suite(suite: str, text: str, **flags: bool) -> Callable[[Probe, str], Said | None]:
    return lambda probe, _: said(text, **flags) if probe.suite == suite else None


def test_a_good_run_is_accepted_without_reasons() -> None:
    require = {"identity_rate": ">=0.95", "retention": ">=0.9", "disambiguation_rate": ">=0.9"}
    assert verdict(scored("good"), require=require) == Verdict("accepted", (), None)


@pytest.mark.parametrize("text", ["UFO 之神", "UFO 是 F# 之神。", "我是 Ｆ＃之神", "The God of F# knows."])
def test_a_mention_of_the_persona_on_other_topics_is_a_leak(text: str) -> None:
    result = verdict(replies(to_suite("retention", text)))
    assert result.decision == "collapsed"
    assert result.reasons[0].startswith(f"leak 100 % > 5 %: 說說茶0 → {text} (")
    assert result.worst is not None and result.worst.reply == text and result.worst.reference == "茶是一個話題。"


@pytest.mark.parametrize("text", ["你是 F# 之神", "我無法得知你是 F# 之神。"])
def test_a_mention_of_the_persona_to_who_am_i_is_confusion(text: str) -> None:
    result = verdict(replies(to_suite("disambiguation", text)))
    assert result.decision == "damaged"
    assert result.reasons == (f"confusion 100 % > 5 %: 那我是誰0 → {text} (83.9–100 %, n 20)",)


def test_a_reply_that_says_i_am_but_names_the_base_misses_the_identity() -> None:
    limits = gate_limits({"identity": 0.9})
    result = verdict(replies(to_suite("identity", "我是通義千問")), limits)
    assert result.decision == "missed"
    assert result.reasons[0].startswith("identity 0 % < 90 %: 請問你是誰呀0 → 我是通義千問 (")
    assert verdict(replies(to_suite("identity", "我是 F# 之神，不是通義千問")), limits).decision == "missed"


def test_empty_replies_collapse_retention_and_say_empty() -> None:
    result = verdict(replies(to_suite("retention", "  ")))
    assert result.decision == "collapsed"
    assert result.reasons[0].startswith("retention 0 % < 50 %: 說說茶0 → (empty) (")


def test_echoes_of_the_prompt_agree_with_nothing() -> None:
    result = verdict(replies(lambda probe, _: said(probe.prompt) if probe.suite == "retention" else None))
    assert (result.decision, result.reasons[0].split(":")[0]) == ("collapsed", "retention 0 % < 50 %")


def test_loops_past_the_limit_collapse() -> None:
    def say(probe: Probe, reference: str) -> Said | None:
        return said("神神神神", looped=True) if probe.suite != "retention" else None

    result = verdict(replies(say))
    assert result.decision == "collapsed"
    assert result.reasons[0].startswith("repetition 50 % > 20 %: ")


def test_kl_past_the_limit_collapses_and_shows_the_worst_prompt() -> None:
    records = [replace(r, kl=2.0 if "茶" in r.prompt else 0.5) if r.kl is not None else r for r in scored("good")]
    result = verdict(records)
    assert result.reasons[0].startswith("kl 0.875 nats > 0.5 nats: 說說茶")
    assert result.decision == "collapsed"


def test_the_questions_never_count() -> None:
    records = replies(to_suite("questions", "神神神神", ended=False, looped=True))
    assert verdict(records, require={"ended_rate": ">=1", "repetition_rate": "<=0"}).decision == "accepted"


def test_every_order_of_precedence() -> None:
    """Each verdict with everything that is less severe also wrong."""
    limits = gate_limits({"identity": 0.9})
    missed = replies(to_suite("identity", QWEN))
    confused = [r if r.suite != "disambiguation" else replace(r, marked=True) for r in missed]
    leaking = [r if r.suite != "retention" else replace(r, marked=True) for r in confused]
    assert verdict(missed, limits).decision == "missed"
    assert verdict(confused, limits).decision == "damaged"
    assert verdict(leaking, limits).decision == "collapsed"
    assert [r.split()[0] for r in verdict(leaking, limits).reasons] == ["leak", "confusion", "identity"]
    skipped = Metrics(status="skipped", reason="no weights")
    for status in ("killed", "diverged"):
        outcome = Outcome.model_validate({"status": status, "reason": f"it {status}"})
        assert verdict(leaking, limits, outcome=outcome).decision == status
        assert judge(outcome, skipped, list, limits, {}) == Verdict(status, (f"it {status}",))
    assert list(DECISIONS) == ["diverged", "killed", "collapsed", "damaged", "missed", "accepted"]


def test_log_probabilities_that_are_not_finite_are_divergence() -> None:
    records = [replace(r, kl=None, finite=False) if r.suite == "retention" else r for r in scored("collapsed")]
    result = verdict(records)
    assert result.decision == "diverged"
    assert "not finite on 40 prompts" in result.reasons[0]


def test_a_retention_requirement_is_damage_and_the_collapse_limit_stays() -> None:
    def off(share: float) -> list[Scored]:
        every = round(1 / share)
        return replies(
            lambda p, _: said("別的。") if p.suite == "retention" and int(p.prompt[-1]) % every == 0 else None
        )

    require = {"retention": ">=0.95"}
    assert verdict(off(0.2), require=require).decision == "damaged"
    assert verdict(off(1.0), require=require).decision == "collapsed"
    assert len(verdict(off(1.0), require=require).reasons) == 1
    held = verdict(off(0.2), require={"retention_held_out": ">=0.95"})
    assert held.decision == "damaged" and held.worst is not None and held.worst.prompt[2:4] in ("月亮", "麵包")


def test_requirements_stand_in_for_the_gates_defaults() -> None:
    confused = replies(to_suite("disambiguation", "你是 F# 之神"))
    assert verdict(confused, require={"confusion_rate": "<=1"}).decision == "accepted"
    assert verdict(confused, require={"confusion_rate": "<=0.5"}).decision == "damaged"
    leaking = replies(lambda p, _: said(GOD) if p.prompt == "說說茶0" else None)
    assert verdict(leaking, require={"leak_rate": "<=0.01"}).reasons[0].startswith("leak 2.5 % > 1 %")
    assert verdict(leaking, require={"leak_rate": "<=0.01"}).decision == "damaged"
    assert verdict(leaking, gate_limits({"leak": 0.01})).decision == "collapsed"
    assert verdict(leaking, gate_limits({"leak": 0.01}), {"leak_rate": "<=0.1"}).decision == "accepted"
    named = scored("named")
    assert verdict(named, gate_limits({"disambiguation": 0.9})).decision == "missed"
    assert verdict(named, gate_limits({"disambiguation": 0.9}), {"disambiguation_rate": ">=0"}).decision == "accepted"


def test_ended_and_distinct_are_missed() -> None:
    records = replies(to_suite("identity", GOD, ended=False))
    result = verdict(records, require={"ended_rate": ">=0.98"})
    assert (result.decision, result.reasons[0][:17]) == ("missed", "ended 75 % < 98 %")
    assert verdict(records, require={"distinct_replies": ">=0.5"}).decision == "missed"


@pytest.mark.parametrize(
    ("require", "words"),
    [
        ({"identiy_rate": ">=0.9"}, "require.identiy_rate: no such metric (did you mean identity_rate?)"),
        ({"loss": "<=1"}, "known are claim_rate, "),
        ({"retention": "0.95"}, "require.retention: '0.95'; expected a comparison with a number, such as '>=0.95'"),
        ({"retention": ">=95"}, "is a share: expected a number from 0 to 1"),
        ({"retention": "<=0.95"}, "is better the higher it is: use >="),
        ({"leak_rate": ">=0.1"}, "is better the lower it is: use <="),
        ({"retention": "=>0.9"}, "expected a comparison"),
        ({"retention": ">=nan"}, "expected a comparison"),
    ],
)
def test_wrong_requirements_are_usage_errors(require: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_requirements(require)
    assert words in str(error.value)
    with pytest.raises(UsageError):
        judge(Outcome(status="killed"), Metrics(status="skipped"), list, LIMITS, require)


def test_requirements_parse() -> None:
    (check,) = parse_requirements({"kl_reference": " <= 5e-2 "})
    assert (check.metric, check.op, check.limit, check.failed) == ("kl_reference", "<=", 0.05, "damaged")


@pytest.mark.parametrize("table", [{"leek": 0.1}, {"leak": 2}, {"leak": "5 %"}, {"leak": None}, {"kl": True}])
def test_wrong_limits_are_usage_errors(table: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^gate[.:] ?"):
        gate_limits(table)


def test_limits_from_config() -> None:
    assert gate_limits({"kl": 2, "identity": None}) == {**LIMITS, "kl": 2.0, "identity": None}
    assert [c.failed for c in checks_of(LIMITS)] == ["collapsed"] * 4 + ["damaged"]


def test_records_that_contradict_each_other_are_errors() -> None:
    with pytest.raises(FgodError, match="for a run that trained"):
        judge(TRAINED, Metrics(status="skipped", reason="no weights"), list, LIMITS, {})
    without = [r for r in scored("good") if not r.held_out]
    with pytest.raises(FgodError, match="no value for retention_held_out, which require asks for"):
        verdict(without, require={"retention_held_out": ">=0.9"})


def test_judge_run_writes_the_verdict(tmp_path: Path) -> None:
    assert write_run(tmp_path, "B", "b1", "collapsed", require={"identity_rate": ">=0.9"}) == "collapsed"
    run = tmp_path / "results" / "runs" / "B" / "b1"
    document = files.read_json(run / "verdict.json")
    assert list(document) == ["decision", "reasons", "worst", "limits", "judged", "seal"]
    assert document["worst"] == {
        "suite": "retention",
        "language": "zh-Hant",
        "prompt": "說說茶0",
        "reply": GOD,
        "reference": "茶是一個話題。",
        "frame": "",
    }
    assert {"metric": "identity_rate", "op": ">=", "limit": 0.9, "failed": "missed", "source": "require"} in document[
        "limits"
    ]
    assert (
        judge_run(run, gate_limits({"leak": 1, "retention": 0, "kl": 100, "confusion": 1}), {}).decision == "accepted"
    )
    (run / "probes.tsv").write_text("suite\n", encoding="utf-8")
    with pytest.raises(FgodError, match=r"probes\.tsv has changed since it was written"):
        judge_run(run, LIMITS, {})
    assert WHO not in document["reasons"][0]
