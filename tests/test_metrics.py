"""The metric seam: units, what a metric refuses to be, and a metric in another unit from gate to model card."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from fgod.errors import FgodError, UsageError
from fgod.evaluate.measure import measure
from fgod.evaluate.metric import NATS, SHARE, Estimate, Legend, Metric, Unit, mean
from fgod.evaluate.requirements import gate_limits, parse_requirements
from fgod.gate import limit_checks
from fgod.plugins import load_plugins
from fgod.registry import METRICS
from fgod.system import files
from fgod.system.table import read_texts
from fgod.tables import stage_columns
from tests.made_runs import STORY, context, scored, walk

PLUGIN = Path(__file__).parent / "plugins" / "mean_length.py"

LENGTH = Metric(
    name="mean_length",
    short="length",
    unit=Unit("characters"),
    description="characters of a reply",
    better="higher",
    verdict="missed",
    compute=lambda records: mean(len(r.reply) for r in records),
    offends=lambda r: 1000 - len(r.reply),
    headline=True,
    by_language=True,
)


def other(**changes: object) -> Metric:
    return Metric(**{**vars(LENGTH), **changes})  # type: ignore[arg-type]


@pytest.fixture
def length(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """The project's metrics and one of lengths, in this test alone."""
    monkeypatch.setattr(METRICS, "_entries", {**dict(METRICS.items()), LENGTH.name: LENGTH})
    return LENGTH


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (SHARE, 0.975, "97.5 %"),
        (SHARE, 1.0, "100 %"),
        (NATS, 0.8751, "0.875 nats"),
        (Unit("tokens"), 23.5, "23.5 tokens"),
        (Unit("tokens"), 12345.6, "12,346 tokens"),
        (Unit("points", low=-10), -2.0, "-2 points"),
    ],
)
def test_a_unit_prints_its_values(unit: Unit, value: float, text: str) -> None:
    assert unit.text(value) == text
    assert unit.interval(value, value) == f"{text.split()[0]}–{text}"


def test_a_unit_knows_its_range() -> None:
    assert SHARE.contains(1.0) and not SHARE.contains(1.01) and not NATS.contains(-0.1)
    assert not NATS.contains(math.inf) and not NATS.contains(math.nan)
    assert (SHARE.noun, SHARE.range_words) == ("a share", "from 0 to 1")
    assert (NATS.noun, NATS.range_words) == ("a number of nats", "from 0")
    with pytest.raises(UsageError, match="expected low < high"):
        Unit("nothing", low=1, high=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Mean length"}, "expected a name of small letters"),
        ({"better": "more"}, "mean_length: better is 'more'; expected 'higher', 'lower' or None"),
        ({"verdict": "failed"}, "mean_length: verdict is 'failed'; expected one of"),
    ],
)
def test_a_faulty_metric_is_named(changes: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        other(**changes)


def test_a_value_outside_its_unit_is_an_error() -> None:
    wrong = other(unit=SHARE)
    with pytest.raises(FgodError, match=r"metric mean_length: value \d.*; expected a share from 0 to 1"):
        measure(wrong, scored("good"))
    assert measure(wrong, []) == Estimate(None, 0)


def test_a_legend_survives_json() -> None:
    for _, metric in METRICS.items():
        assert Legend.from_dict(metric.legend.to_dict()) == metric.legend


def test_the_gate_has_a_limit_for_every_metric_that_it_can_judge() -> None:
    shorts = {metric.short for _, metric in METRICS.items() if metric.gated}
    limits = gate_limits(dict.fromkeys(shorts, 0.5))
    assert {METRICS[check.metric].short for check in limit_checks(limits)} == shorts


def test_a_metric_has_no_other_columns_name() -> None:
    with pytest.raises(UsageError, match=r"steps is a column of stages\.tsv"):
        stage_columns(["steps"], [])


def test_a_requirement_is_checked_by_the_metrics_unit(length: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = parse_requirements({"mean_length": ">=20"})
    assert (check.op, check.limit, check.failed) == (">=", 20.0, "missed")
    with pytest.raises(UsageError, match="mean_length is a number of characters: expected a number from 0"):
        parse_requirements({"mean_length": ">=-1"})
    monkeypatch.setitem(METRICS._entries, "mean_length", other(verdict=None))
    with pytest.raises(UsageError, match="mean_length is only reported: no stage can require it"):
        parse_requirements({"mean_length": ">=20"})


def test_a_plugins_metric_is_judged_and_shown_by_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A metric in characters, required of the last stage: gate, tables, report, model card, summary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS.items()))
    load_plugins([PLUGIN])
    entries = walk(Path("."), STORY)

    def fgod(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "fgod", "--plugin", str(PLUGIN), *arguments], check=True, cwd=tmp_path)

    def decision(require: str) -> tuple[str, str]:
        verdict = Path("results/runs/D-settle/dddd11112222/verdict.json")
        limits = json.dumps({"leak": 0.05})
        fgod("gate", "--limits", limits, "--require", json.dumps({"mean_length": require}), "--out", str(verdict))
        document = files.read_json(verdict)
        return document["decision"], " ".join(document["reasons"])

    missed, reason = decision(">=200")
    assert missed == "missed" and re.match(r"length 1\d\.\d characters < 200 characters: .* → .* \(1\d", reason)
    assert decision(">=2") == ("accepted", "")

    visits = [asdict(entry) for entry in entries]
    decided = {"visits": visits, "spent": "", "adjustments": [[], []], "fold": None}
    shown = {key: value for key, value in asdict(context()).items() if key not in ("spent", "adjustments", "fold")}
    fgod("walk", "--json", json.dumps(decided), "--context", json.dumps(shown), "--out", "results/walk.json")
    fgod("tables", "--walk", "results/walk.json", "--out", "results/tables")
    fgod("report", "--tables", "results/tables", "--out", "results/report.html")
    fgod("promote", "--walk", "results/walk.json", "--out", "results/promoted.json")
    fgod("summary")
    assert re.search(r"mean_length +1\d\.\d characters", capfd.readouterr().out)
    page = Path("results/report.html").read_text(encoding="utf-8")
    assert "characters of a scored reply" in page and "≥ 2 characters" in page
    card = Path("artifacts/release/README.md").read_text(encoding="utf-8")
    assert re.search(r"\| mean_length \| 1\d\.\d characters \| [\d.]+ – [\d.]+ characters \| 80 \|", card)
    (last,) = read_texts(Path("results/tables/stages.tsv"), ["mean_length"])[-1:]
    assert 10 < float(last["mean_length"]) < 20
