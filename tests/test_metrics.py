"""The metric seam: units, what a metric refuses to be, and a metric in another unit from gate to model card."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fgod.config import schema
from fgod.errors import FgodError, UsageError
from fgod.evaluate.measure import measure
from fgod.evaluate.metric import NATS, SHARE, Estimate, Legend, Metric, Unit, mean
from fgod.evaluate.requirements import parse_requirements
from fgod.gate import GateLimits, limit_checks
from fgod.registry import METRICS
from fgod.release import promote, summary_text
from fgod.report import write_report
from fgod.tables import gather, stage_columns
from tests.made_runs import STORY, context, scored, walk, write_run

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


def test_every_limit_of_the_gate_is_that_of_a_metric() -> None:
    limits = GateLimits(**dict.fromkeys(schema()["$defs"]["gate"]["properties"], 0.5))
    assert {METRICS[check.metric].short for check in limit_checks(limits)} == set(
        schema()["$defs"]["gate"]["properties"]
    )


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


def test_a_metric_of_lengths_goes_from_gate_to_model_card(tmp_path: Path, length: Metric) -> None:
    assert write_run(tmp_path, "A", "a1", "good", require={"mean_length": ">=200"}) == "missed"
    assert write_run(tmp_path, "A", "a2", "good", require={"mean_length": ">=2"}) == "accepted"
    entries, results = walk(tmp_path, STORY), tmp_path / "results"
    gather(entries, results, tmp_path / "artifacts", context())
    write_report(results / "tables", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "characters of a reply" in page and " characters (" in page
    document = promote(entries, results, tmp_path / "artifacts", context())
    card = (tmp_path / "artifacts" / "release" / "README.md").read_text(encoding="utf-8")
    assert "| mean_length | 12" in card and " characters |" in card
    assert "mean_length" in summary_text(document, tmp_path / "report.html")
