"""What tables, report, model card and the last lines of a run say of a confirmation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fgod.confirm.words import HELD_BACK_NONE
from fgod.gather import gather
from fgod.plan import stopped
from fgod.promotion import WalkEntry, of_walk, promotion
from fgod.release import promote, summary_text
from fgod.report import write_report
from fgod.system.table import read_texts
from fgod.tables import TABLES
from tests.made_runs import STORY, confirmed_on, context, walk


@pytest.fixture
def entries(tmp_path: Path) -> list[WalkEntry]:
    return walk(tmp_path, STORY[1:])


def told(root: Path, entries: list[WalkEntry], fold: int | None) -> tuple[list[dict[str, str]], str]:
    """confirmation.tsv and the report."""
    results = root / "results"
    gather(entries, results, root / "artifacts", context(fold=fold))
    write_report(results / "tables", results / "report.html")
    page = " ".join((results / "report.html").read_text(encoding="utf-8").split())
    return read_texts(results / "tables" / "confirmation.tsv", TABLES["confirmation"]), page


def test_an_unconfirmed_candidate_is_told_metric_by_metric_with_what_leaked(
    tmp_path: Path, entries: list[WalkEntry]
) -> None:
    confirmed_on(tmp_path, entries, 1, "collapsed", (1, 2))
    rows, page = told(tmp_path, entries, 1)
    leak = next(row for row in rows if row["metric"] == "leak_rate")
    assert (leak["lineage"], leak["fold"], leak["op"], leak["limit"]) == ("dddd11112222", "1", "<=", "0.05")
    assert (leak["development"], leak["confirmation"], leak["difference"]) == ("0.0", "0.75", "0.75")
    assert leak["contains_zero"] == "false" and 0.5 < float(leak["low"]) < 0.75 < float(leak["high"]) < 0.9
    assert "<b>Nothing was released:</b> <b>D-settle</b> <code>dddd11112222</code> passed every gate, and" in page
    assert "<b>Unconfirmed</b> <b>D-settle</b> <code>dddd11112222</code> (fold 1, n 83)." in page
    assert "<li>leak 75 % &gt; 5 %: 說說茶0 → 我是 F# 之神。" in page and "Leaked replies: 50" in page
    assert "+75 % (+" not in page and 'data-label="difference" data-label-zh-Hant="差">+75 % (5' in page
    status = {row["stage"]: row["status"] for row in read_texts(tmp_path / "results/tables/artifacts.tsv")}
    assert set(status.values()) == {"accepted"}, "nothing is promoted"


def test_a_confirmed_release_says_on_what_and_one_on_a_used_fold_that_it_was_not_held_back(
    tmp_path: Path, entries: list[WalkEntry]
) -> None:
    confirmed_on(tmp_path, walk(tmp_path, [(*STORY[1][:3], ("D-settle", "dddd00000000", "good"))]), 1, "good", (1,))
    confirmed_on(tmp_path, entries, 1, "good", (1,))
    _, page = told(tmp_path, entries, 1)
    before = "fold 1, n 83, asked before of dddd00000000: no longer held back"
    assert f"<b>Confirmed</b> <b>D-settle</b> <code>dddd11112222</code> ({before})." in page
    assert "None: no reply names the persona where the reference" in page
    document = promote(entries, tmp_path / "results", tmp_path / "artifacts", context(fold=1))
    card = (tmp_path / "artifacts/release/README.md").read_text(encoding="utf-8")
    section = card.split("## Confirmed on held-back wordings")[1].split("## ")[0]
    assert "used up: the candidate was asked one that other weights were asked before" in section
    assert f"It holds the limits there, too ({before})." in section and section.rstrip().endswith("does not: None.")
    retention = "97.5 % (87.1–99.6 %, n 40)"
    assert f"| retention | {retention} | {retention} | 0 % (-10.6 to 10.6 %) | yes |" in section, section
    assert f"Confirmed on held-back wordings: {before}." in summary_text(document, Path("report.html"))


def test_where_nothing_was_held_back_everything_says_so(tmp_path: Path, entries: list[WalkEntry]) -> None:
    rows, page = told(tmp_path, entries, None)
    assert rows == [] and HELD_BACK_NONE in page
    document = promote(entries, tmp_path / "results", tmp_path / "artifacts", context())
    assert HELD_BACK_NONE in (tmp_path / "artifacts/release/README.md").read_text(encoding="utf-8")
    assert summary_text(document, Path("report.html")).splitlines()[-2] == HELD_BACK_NONE
    assert json.loads((tmp_path / "results/release.json").read_text())["confirmation"] is None


def test_a_run_that_ended_unconfirmed_or_before_it_was_asked_says_so(tmp_path: Path, entries: list[WalkEntry]) -> None:
    results = tmp_path / "results"
    decided = {"visits": [asdict(entry) for entry in entries], "spent": "", "adjustments": [[]], "fold": 1}
    said = stopped(decided, of_walk(decided, results))
    assert (
        said.startswith("Stopped before the end:")
        and "to do     D-settle dddd11112222: its confirmation on fold 1" in said
    )
    assert stopped(decided, of_walk(decided, results), experiment=True) == said, "its confirmation is to come"
    without = {**decided, "fold": None}
    assert stopped(without, of_walk(without, results)).startswith("Stopped before the end:"), "the release is to come"
    ended = stopped(without, of_walk(without, results), experiment=True).splitlines()
    assert ended[0] == "Decided:" and all("accepted" in line for line in ended[1:]) and len(ended) == 1 + len(entries)
    confirmed_on(tmp_path, entries, 1, "collapsed", (1,))
    said = stopped(decided, promotion(entries, 1, results))
    assert "D-settle dddd11112222 is not confirmed on held-back wordings (fold 1, n 83):\n  leak 75 % > 5 %" in said
