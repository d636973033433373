"""Runs side by side: names of runs, statistics of pairs, and text, HTML and JSON that say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod import manifest, runs
from fgod.cli import main
from fgod.compare import words
from fgod.compare.document import Comparison, compare
from fgod.compare.operands import operand
from fgod.compare.pairs import BOOTSTRAP as PAIRED
from fgod.compare.pairs import MCNEMAR, difference, paired
from fgod.documents import Metrics, Outcome, Probed, Recipe
from fgod.errors import FgodError, UsageError
from fgod.evaluate.metric import BOOTSTRAP, Metric, Unit, mean
from fgod.evaluate.scoring import Scored
from fgod.layout import RunRecords, run_records
from fgod.probe.record import measured, read_probes, write_probes
from fgod.recipes import PLACEBO
from fgod.registry import METRICS
from fgod.release import promote
from fgod.report.compare import page
from fgod.system.files import file_digests
from tests.made_runs import STORY, context, scored, walk, write_run
from tests.test_comparison import replied, side
from tests.test_report import outline

# Statistics


def marked(places: Sequence[int], n: int = 40) -> list[Scored]:
    """Replies of which those at some places name the persona."""
    return [replied(i, marked=i in places) for i in range(n)]


def test_shares_are_compared_by_the_exact_test_of_mcnemar() -> None:
    first, other = marked(range(10)), marked([10, 11])
    found = difference(METRICS["leak_rate"], paired(first, other))
    assert (found.n, found.only_first, found.only_other, found.method) == (40, 10, 2, MCNEMAR)
    assert (found.first, found.other) == (0.25, 0.05) and found.value == pytest.approx(-0.2)
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert found.low is not None and found.high is not None and found.low < -0.2 < found.high < 0


def test_shares_over_the_same_probes_differ_where_unpaired_ones_would_not() -> None:
    found = difference(METRICS["leak_rate"], paired(marked(range(20)), marked(range(14))))
    assert found.p_value == pytest.approx(2 / 2**6) and (found.only_first, found.only_other) == (6, 0)


def test_means_have_a_paired_bootstrap_that_is_that_of_plain_numpy() -> None:
    first, other = side(0.0), [replace(r, kl=0.5 * (r.kl or 0)) for r in side(0.0)]
    x, y = (np.array([r.kl for r in records], dtype=float) for records in (first, other))
    w = np.array([r.tokens for r in first])
    picks = np.random.default_rng(0).integers(len(w), size=(BOOTSTRAP, len(w)))
    expected = ((y - x) * w)[picks].sum(1) / w[picks].sum(1)
    found = difference(METRICS["kl_reference"], paired(first, other))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))
    assert found.method == PAIRED and found.p_value is None
    again = difference(METRICS["kl_reference"], paired(first, other))
    assert again == found, "the same records give the same interval"


def test_a_shift_of_every_probe_has_an_interval_of_no_width() -> None:
    for name in ("kl_reference", "kl_p99", "nll_shift"):
        found = difference(METRICS[name], paired(side(0.2), side(0.3)))
        assert found.value == pytest.approx(0.1), name
        assert (found.low, found.high) == pytest.approx((0.1, 0.1)), name


def test_a_metric_that_makes_its_interval_otherwise_is_resampled_too() -> None:
    metric = Metric(
        name="reply_length", short="length", unit=Unit("characters"), better=None, verdict=None, description="",
        compute=lambda records: mean(len(r.reply) for r in records),
    )  # fmt: skip
    first = [replace(r, reply="x" * (i % 7 + 1)) for i, r in enumerate(side(0))]
    other = [replace(r, reply=r.reply + "xy") for r in first]
    found = difference(metric, paired(first, other))
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2.0, 2.0)) and found.method == PAIRED


def test_only_probes_that_the_metric_counts_in_both_are_pairs() -> None:
    first = [replace(r, reference_marked=i < 4) for i, r in enumerate(marked([0, 9]))]
    found = difference(METRICS["leak_rate"], paired(first, marked([0, 9, 10])))
    assert (found.n, found.only_first, found.only_other) == (36, 0, 1)
    assert difference(METRICS["identity_rate"], paired(first, first)).value is None


def test_distinct_replies_have_no_interval() -> None:
    found = difference(METRICS["distinct_replies"], paired(marked([]), marked([])))
    assert (found.value, found.low, found.method) == (0.0, None, "")


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.lists(st.floats(0, 9), min_size=12, max_size=12))
def test_the_other_way_round_a_difference_has_the_other_sign(a: set[int], b: set[int], kl: list[float]) -> None:
    first, other = marked([*a], 12), [replace(r, kl=x) for r, x in zip(marked([*b], 12), kl, strict=True)]
    for name in ("leak_rate", "kl_reference"):
        there, back = (difference(METRICS[name], paired(*two)) for two in ((first, other), (other, first)))
        assert there.value is not None and there.low is not None and there.high is not None
        assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)
        assert there.p_value == back.p_value and there.low <= there.high


def test_replies_are_paired_by_probe_and_in_their_order() -> None:
    first = [replied(1), replied(2), replace(replied(2), reply="again"), replace(replied(3), system="x")]
    other = [replied(4), replace(replied(2), reply="b"), replace(replied(2), reply="c"), replied(3)]
    assert [(a.reply, b.reply) for a, b in paired(first, other)] == [("said", "b"), ("again", "c")]


# Names of runs


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with the runs of `STORY`, their release, and a killed run."""
    root = tmp_path_factory.mktemp("story")
    promote(walk(root, STORY), root / "results", root / "artifacts", context())
    write_run(root, "B-nudge", "bbbb00000002", "killed")
    for number, run in enumerate(("A-mixed/aaaa11112222", "B-nudge/bbbb00000000", "B-nudge/bbbb11112222")):
        os.utime(root / "results/runs" / run / "outcome.json", (number, number))
    os.utime(root / "results/runs/B-nudge/bbbb00000002/outcome.json", (1, 1))
    return root


@pytest.fixture
def here(story: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(story)
    return story


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("B-nudge", "B-nudge bbbb11112222"),
        ("B-nudge@bbbb00000000", "B-nudge bbbb00000000"),
        ("B-nudge@bbbb1", "B-nudge bbbb11112222"),
        ("release", "release: D-settle dddd11112222"),
        ("artifacts/release", "artifacts/release: D-settle dddd11112222"),
        ("artifacts/releases/1", "artifacts/releases/1: D-settle dddd11112222"),
        ("results/runs/A-mixed/aaaa11112222", "A-mixed aaaa11112222"),
        (".", ".: D-settle dddd11112222"),
    ],
)
def test_a_run_is_named_in_many_ways(here: Path, name: str, title: str) -> None:
    found = operand(name)
    assert found.title == title and found.records.outcome.is_file() and (found.results / "runs").is_dir()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("B-nudg", r"is of stage 'B-nudg' \(did you mean B-nudge\?\); found those of A-mixed, B-nudge, C-dis"),
        ("B-nudge@cc", "no run in .* has this name; expected one of B-nudge@bbbb00000000, B-nudge@bbbb00000002, B"),
        ("B-nudge@bbbb0", "2 have this name; expected one of B-nudge@bbbb00000000, B-nudge@bbbb00000002$"),
        ("B-nudge@", "3 have this name"),
        ("artifacts", "artifacts: found a folder without results/, release.json or outcome.json; expected that of a"),
    ],
)
def test_a_name_of_no_run_says_what_there_is(here: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        operand(name)


def test_the_newest_run_is_no_placebo_and_no_beginning_of_another(tmp_path: Path) -> None:
    for lineage in ("aaaa11112222", "aaaa11112222-0.3"):
        write_run(tmp_path, "A", lineage, "named")
    results = tmp_path / "results"
    assert runs.resolve("A@aaaa11112222", results).folder.name == "aaaa11112222"
    of_placebo = run_records("A", "aaaa11112222-0.3", results)
    recipe = Recipe.read(of_placebo.recipe)
    recipe.model_copy(update={"mix": {**recipe.mix, PLACEBO: {}}}).write(of_placebo.recipe)
    os.utime(of_placebo.outcome, (2**33, 2**33))
    assert runs.resolve("A", results).folder.name == "aaaa11112222" == runs.newest(results).folder.name
    with pytest.raises(UsageError, match="found no run of B whose training has ended"):
        runs.newest(results, "B")
    with pytest.raises(UsageError, match="A: no run in nowhere/runs is of stage 'A'; there is none at all"):
        runs.resolve("A", Path("nowhere"))


def test_of_a_project_without_a_release_the_newest_run_is_meant(here: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "other", "A", "aaaa00000000", "named")
    found = told("A-mixed", str(tmp_path / "other"))
    assert found.sides[1].title == f"{tmp_path / 'other'}: A aaaa00000000"
    assert found.sides[1].records == str(tmp_path / "other/results/runs/A/aaaa00000000")


def test_a_release_that_is_not_on_record_is_named(here: Path, tmp_path: Path) -> None:
    away = tmp_path / "a/b/c"
    away.mkdir(parents=True)
    (away / "release.json").write_bytes((here / "results/release.json").read_bytes())
    with pytest.raises(UsageError, match=r"release of D-settle dddd11112222, which is not on record in \S+results"):
        operand(str(away))


# What is said


def told(*names: str) -> Comparison:
    return compare([operand(name) for name in names])


def test_text_html_and_json_say_the_same(here: Path) -> None:
    found = told("B-nudge@bbbb00000000", "B-nudge", "release")
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    shown = " ".join(outline(page(found)).text.split())
    text = " ".join(words.text(found).split())
    leak = next(row for row in values["metrics"] if row["metric"] == "leak_rate")
    assert leak["estimates"][0]["value"] == 0.75 and leak["differences"]["B"]["only_first"] == 30
    assert leak["differences"]["B"]["p_value"] == pytest.approx(2 / 2**30)
    strings = ["B - A: 83 probes of both, 0 of A alone, 0 of B alone", words.changed_line(found), "train.lr"]
    for row in found.metrics:
        metric = words.metric_words(row, "A")
        strings += [*metric.sides, metric.legend.description]
        strings += [one for part in metric.differences for one in (part.name, part.value, part.basis)]
    assert "-75 % (-85.9 to -57.0 %)" in strings and "n 40, 30 in A alone, 0 in B alone, p 1.9e-09" in strings
    for string in strings:
        assert " ".join(string.split()) in text and " ".join(string.split()) in shown, string
    assert len(values["changed"]) == len(found.changed)
    assert all(reply in shown for row in found.changed for reply in row.replies if reply)


def test_settings_are_those_of_the_run_of_what_stands_before_it_and_of_its_gate(here: Path, tmp_path: Path) -> None:
    found = {row.key: row.values for row in told("B-nudge@bbbb00000000", "B-nudge").settings}
    assert found == {"train.lr": ("0.01", "0.0003")}
    found = {row.key: row.values for row in told("A-mixed", "D-settle").settings}
    assert found["stage"] == ("A-mixed", "D-settle")


def test_the_stages_before_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for lr, start, end in ((1e-4, "aaaa00000000", "bbbb00000000"), (3e-4, "aaaa11111111", "bbbb11111111")):
        write_run(tmp_path, "A", start, "named", lr)
        require = {"identity_rate": ">=0.9"} if lr > 2e-4 else {}
        write_run(tmp_path, "B", end, "good", require=require)
        run = run_records("B", end, tmp_path / "results")
        Recipe.read(run.recipe).model_copy(update={"starts_from": start}).write(run.recipe)
    found = {row.key: row.values for row in told("B@bbbb0", "B@bbbb1").settings}
    assert found == {
        "stages before": ("A aaaa00000000", "A aaaa11111111"),
        "A: train.lr": ("0.0001", "0.0003"),
        "limit of identity_rate (else missed)": ("nothing", ">= 0.9"),
    }


def test_changed_replies_stand_side_by_side_what_was_lost_first(here: Path) -> None:
    found = told("B-nudge", "B-nudge@bbbb00000000")
    assert found.common == 83 and found.changed[0].passed == (True, False)
    assert found.changed[0].replies == ("UFO是一個話題。", "我是 F# 之神。")
    ranks = [row.passed for row in found.changed]
    assert ranks.index((False, False)) > ranks.index((True, False)) and (True, True) not in ranks
    assert "<b>" not in page(told("A-mixed", "D-settle")).split("<main>")[1], "replies are escaped"


def test_a_run_without_weights_is_compared_by_what_it_has(here: Path) -> None:
    found = told("B-nudge", "B-nudge@bbbb00000002")
    (note,) = found.notes
    assert note.startswith("B has no replies: 8600 MiB > limit 8192 MiB")
    assert found.changed == () and all(row.differences["B"].value is None for row in found.metrics)
    assert "killed, 0 probes" in words.text(found) and "no probe of both" in outline(page(found)).text
    assert "B has no replies" in outline(page(told("A-mixed", "B-nudge@bbbb00000002"))).text


def rewritten(root: Path, stage: str, lineage: str, change: Callable[[list[Scored]], list[Scored]]) -> str:
    """A run whose replies were changed, with the metrics of them; returns its name."""
    write_run(root, stage, lineage, "named")
    run = run_records(stage, lineage, root / "results")
    records = change(read_probes(run.probes))
    write_probes(run.probes, records)
    export = Probed(sha256="", bytes=0, files={})
    measured(records, None, export, file_digests(run.folder, [run.probes])).write(run.metrics)
    return f"{stage}@{lineage}"


def test_other_probes_references_and_rules_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "A", "aaaa00000000", "named")
    fewer = rewritten(tmp_path, "A", "aaaa00000001", lambda rows: [*rows[:70], replace(rows[70], prompt="another")])
    found = told("A@aaaa00000000", fewer)
    assert found.asked[0].both == 70 and (found.asked[0].only_first, found.asked[0].only_other) == (13, 1)
    assert found.notes == (
        "A and B were asked 70 probes alike, 13 of A alone and 1 of B alone; differences are of what both were asked.",
    )
    leak = next(row for row in found.metrics if row.metric == "leak_rate")
    assert leak.estimates[0].n == 40 and leak.estimates[1].n == 28 and leak.differences["B"].n == 27
    referred = [replace(r, reference=f"{r.reference}!") for r in scored("named")[:9]]
    other = rewritten(tmp_path, "A", "aaaa00000002", lambda rows: [*referred, *rows[9:]])
    assert "on 9 of 83 probes these reply differently" in told("A@aaaa00000000", other).notes[0]
    stricter = rewritten(
        tmp_path, "A", "aaaa00000003", lambda rows: [replace(r, passed=False) if r.passed else r for r in rows]
    )
    assert "were judged by other rules: " in told("A@aaaa00000000", stricter).notes[0]
    assert all(note in outline(page(found)).text and note in words.text(found) for note in found.notes)


def test_metrics_that_no_loaded_plugin_has_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for lineage in ("aaaa00000000", "aaaa00000001"):
        write_run(tmp_path, "A", lineage, "named")
    run = run_records("A", "aaaa00000001", tmp_path / "results")
    document = Metrics.read(run.metrics)
    more = {**document.metrics, "wordiness": document.metrics["leak_rate"]}
    document.model_copy(update={"metrics": more}).write(run.metrics)
    (note,) = told("A@aaaa00000000", "A@aaaa00000001").notes
    assert note.endswith("(fgod --plugin FILE.py compare …): wordiness.")


def test_a_verdict_of_other_records_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for lineage in ("aaaa00000000", "aaaa00000001"):
        write_run(tmp_path, "A", lineage, "named")
    run = run_records("A", "aaaa00000001", tmp_path / "results")
    Outcome.read(run.outcome).model_copy(update={"wall_s": 12.0}).write(run.outcome)
    found = told("A@aaaa00000000", "A@aaaa00000001")
    assert [side.decision for side in found.sides] == ["accepted", ""]


def test_what_cannot_be_compared_is_refused(here: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found 1 runs, expected from 2 to 26"):
        told("B-nudge")
    with pytest.raises(UsageError, match="release: D-settle dddd11112222, which are the same run"):
        told("D-settle", "release")
    lost = RunRecords(tmp_path / "results/runs/A/aaaa")
    write_run(tmp_path, "A", "aaaa", "named")
    lost.metrics.unlink()
    with pytest.raises(UsageError, match=r"metrics\.json: no such file: A aaaa was not probed yet"):
        told("B-nudge", str(lost.folder))
    write_run(tmp_path, "A", "aaaa", "named")
    write_probes(lost.probes, scored("good"))
    with pytest.raises(FgodError, match=r"probes\.tsv has changed since it was written"):
        told("B-nudge", str(lost.folder))


def test_the_page_is_one_offline_file_that_wraps_on_a_narrow_screen(here: Path) -> None:
    html = page(told("B-nudge", "B-nudge@bbbb00000000"))
    found = outline(html)
    assert found.urls == [] and set(found.links) <= {f"#{i}" for i in found.ids}
    assert "default-src 'none'" in html and "<script" not in html and "width=device-width" in html
    assert html.count('<table class="replies">') == html.count("<table") == 3, "whose rows are blocks below 42rem"
    assert ".replies td, .replies th { overflow-wrap: anywhere;" in html
    assert 'lang="zh-Hant" data-label="A"' in html


def test_the_command_prints_and_leaves_a_record_where_it_writes(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "compare.html"
    assert main(["compare", "B-nudge", "A-mixed"]) == 0
    assert capsys.readouterr().out.startswith("A  B-nudge bbbb11112222: accepted, 83 probes, results/runs/B-nudge/")
    Path("Snakefile").touch()
    assert main(["compare", "B-nudge", "A-mixed", "--json"]) == 0
    assert [side["letter"] for side in json.loads(capsys.readouterr().out)["sides"]] == ["A", "B"]
    assert not Path("results/manifest.d").exists()
    assert main(["compare", "B-nudge", "A-mixed", "--html", str(html)]) == 0
    (told,) = manifest.join(Path())
    assert [path["path"] for path in told["inputs"]] == [
        f"results/runs/{name}" for name in ("B-nudge/bbbb11112222", "A-mixed/aaaa11112222")
    ]
    assert told["outputs"][0]["path"] == str(html) and html.read_text().startswith("<!doctype html>")


def test_neither_torch_nor_pandas_nor_templates_nor_a_config_are_imported_for_the_text(here: Path) -> None:
    code = "import sys; from fgod.cli import main; main(['compare', 'B-nudge', 'A-mixed']); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert "fgod.compare.words" in loaded and not {"torch", "transformers", "pandas", "jinja2", "fgod.config"} & loaded
