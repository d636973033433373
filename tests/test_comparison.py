"""Four columns: the base in its own number format, rounded, the placebo, the tuned run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fgod.abilities.paired import Paired
from fgod.compare.pairs import BOOTSTRAP, MCNEMAR, RESAMPLES, difference, is_share, paired, paired_bootstrap
from fgod.comparison import (
    COLUMNS,
    HOW,
    SIDES,
    check_same_probes,
    comparison_rows,
    in_words,
    read_comparison,
    write_comparison,
)
from fgod.confirm.compare import difference_interval
from fgod.dataframes import rows
from fgod.documents import Probed
from fgod.errors import FgodError
from fgod.evaluate.metric import Estimate, mean, share, value_alone, weighted_mean
from fgod.evaluate.scoring import Scored
from fgod.gather import gather
from fgod.layout import RunRecords
from fgod.probe.record import measured, write_probes, write_skipped
from fgod.registry import METRICS
from fgod.release import promote
from fgod.report import write_report
from fgod.system.files import file_digests
from fgod.system.table import read_texts, write_table
from tests.made_runs import STORY, context, walk

NAMES = {"stage": "A", "lineage": "a" * 12, "placebo_lineage": "b" * 12}


def replied(number: int, kl: float = 0.01, marked: bool = False) -> Scored:
    return Scored(
        suite="retention", scored_by="reference", kind="topic", language="en", held_out=False, topic="",
        prompt=f"prompt {number}", reply="said", reference="said", proper=True, passed=not marked, agrees=None,
        marked=marked, reference_marked=False, ended=True, looped=False, tokens=5 + number % 3, kl=kl, nll_shift=kl,
        top1=0.9,
    )  # fmt: skip


def side(shift: float, marked: int = 0, n: int = 60) -> list[Scored]:
    """Replies whose KL varies far more over probes than between sides."""
    spread = np.random.default_rng(1).exponential(1.0, n)
    return [replied(i, float(spread[i]) + shift, i < marked) for i in range(n)]


def test_the_difference_of_means_is_paired_over_probes() -> None:
    metric, tuned, placebo = METRICS["kl_reference"], side(0.3), side(0.2)
    found = difference(metric, paired(placebo, tuned))
    assert found.value == pytest.approx(0.1) and found.method == BOOTSTRAP
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1), "each probe differs by 0.1"
    unpaired = difference_interval(metric.compute(tuned), metric.compute(placebo))
    assert unpaired is not None and unpaired[0] < 0 < unpaired[1]


def test_the_paired_bootstrap_is_that_of_plain_numpy() -> None:
    tuned, placebo = side(0.0), [replace(r, kl=0.5 * (r.kl or 0)) for r in side(0.0)]
    x, y = (np.array([r.kl for r in records], dtype=float) for records in (tuned, placebo))
    w = np.array([r.tokens for r in tuned])
    picks = np.random.default_rng(0).integers(len(w), size=(RESAMPLES, len(w)))
    expected = [(((x - y) * w)[pick].sum()) / w[pick].sum() for pick in picks]
    found = paired_bootstrap(METRICS["kl_reference"], tuned, placebo)
    assert found == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))


def test_the_difference_of_shares_has_the_interval_of_pairs() -> None:
    found = difference(METRICS["leak_rate"], paired(side(0, 3), side(0, 9)))
    assert found.method == MCNEMAR and found.value == pytest.approx(0.1)
    assert (found.low, found.high) == Paired(both=3, lost=0, gained=6, neither=51).interval


def test_a_metric_without_an_interval_or_a_value_has_none_of_the_difference() -> None:
    found = difference(METRICS["distinct_replies"], paired(side(0), side(0)))
    assert (found.value, found.low, found.method) == (0.0, None, "")
    assert difference(METRICS["identity_rate"], paired(side(0), side(0))).value is None


def test_a_share_is_told_from_a_mean() -> None:
    assert is_share(share([True, False, True])) and is_share(share([False] * 4))
    assert not is_share(mean([0.5, 1.0, 0.0])) and not is_share(Estimate(0.5, 2)) and not is_share(Estimate(None, 0))


def test_values_alone_are_those_with_an_interval() -> None:
    with value_alone():
        alone = weighted_mean([1.0, 2.0, 4.0], [1, 1, 2])
    whole = weighted_mean([1.0, 2.0, 4.0], [1, 1, 2])
    assert alone == Estimate(whole.value, 3) and whole.low is not None, "and the interval is back afterwards"


def test_rows_have_four_columns_and_what_tuning_costs() -> None:
    sides = {"base": side(0.02), "rounded": side(0), "placebo": side(0.1), "tuned": side(0.3, 6)}
    rows = {str(row["metric"]): row for row in comparison_rows(sides, NAMES)}
    assert set(rows["leak_rate"]) == set(COLUMNS) and "identity_rate" not in rows
    assert [rows["leak_rate"][name] for name in SIDES] == [0, 0, 0, 0.1] and rows["leak_rate"]["tuned_n"] == 60
    assert rows["kl_reference"]["difference"] == pytest.approx(0.2)


def test_other_probes_are_no_pairs() -> None:
    with pytest.raises(FgodError, match="placebo was asked 59 probes and tuned 60"):
        check_same_probes({"placebo": side(0, n=59), "tuned": side(0)})


def record(run: RunRecords, records: list[Scored]) -> None:
    """Write what a probe would."""
    write_probes(run.probes, records)
    measured(records, None, Probed(sha256="", bytes=0, files={}), file_digests(run.folder, [run.probes])).write(
        run.metrics
    )


def test_the_table_is_made_of_records(tmp_path: Path) -> None:
    paths = {name: tmp_path / name / "metrics.json" for name in SIDES}
    for name, path in paths.items():
        record(RunRecords(path.parent), side(0.1 if name == "tuned" else 0))
    write_comparison(tmp_path / "comparison.tsv", paths)
    found = {row["metric"]: row for row in read_texts(tmp_path / "comparison.tsv", COLUMNS)}
    assert float(found["kl_reference"]["difference"]) == pytest.approx(0.1)
    assert found["kl_reference"]["lineage"] == "tuned"
    typed = read_comparison(tmp_path / "comparison.tsv", ["tuned"])
    (row,) = rows(typed[typed["metric"] == "kl_reference"])
    assert row["tuned_n"] == 60 and row["difference"] == pytest.approx(0.1)
    words = in_words(row, METRICS["kl_reference"].unit)
    assert len(words.sides) == 4 and "n 60" in words.sides[0] and words.difference == "+0.1 nats (0.1 to 0.1 nats)"
    assert read_comparison(tmp_path / "comparison.tsv", ["another"]).empty
    assert read_comparison(tmp_path / "none", ["tuned"]).empty
    probes = paths["base"].parent / "probes.tsv"
    probes.write_text(probes.read_text().replace("said", "SAID"))
    with pytest.raises(FgodError, match=r"probes\.tsv .*since it was written"):
        write_comparison(tmp_path / "comparison.tsv", paths)
    write_skipped(RunRecords(paths["base"].parent), "it diverged")
    with pytest.raises(FgodError, match=r"nothing was measured \(it diverged\)"):
        write_comparison(tmp_path / "comparison.tsv", paths)


def told(root: Path, lineage: str) -> tuple[str, str]:
    """The report and the model card of a walk, with a comparison of the run of this lineage on record."""
    entries, there = walk(root, STORY), root / "results"
    sides = {"base": side(0.02), "rounded": side(0), "placebo": side(0.1), "tuned": side(0.3, 6)}
    names = {"stage": "D-settle", "lineage": lineage, "placebo_lineage": "b" * 12}
    write_table(there / "comparison.tsv", COLUMNS, comparison_rows(sides, names))
    gather(entries, there, root / "artifacts", context())
    write_report(there / "tables", root / "report.html")
    promote(entries, there, root / "artifacts", context())
    return (root / "report.html").read_text(), (root / "artifacts" / "release" / "README.md").read_text()


def test_report_and_model_card_tell_the_four_columns(tmp_path: Path) -> None:
    report, card = told(tmp_path, "dddd11112222")
    assert "the same chain, taught the base's own answers" in report and "b" * 12 in report
    assert "+10 % (" in report and HOW not in report
    (line,) = (line for line in card.splitlines() if line.startswith(r"| leak\_rate |") and "+10 %" in line)
    assert line.count("|") == 7 and HOW not in card


def test_report_and_model_card_say_how_to_get_them(tmp_path: Path) -> None:
    report, card = told(tmp_path, "of another")
    assert HOW.replace("`snakemake placebo`", "<code>snakemake placebo</code>") in report
    assert HOW in card and "b" * 12 not in report + card
