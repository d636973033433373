"""The report from tables alone: what it says, that it is one safe offline file, and how broken tables are named."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from fgod.campaign import BEFORE
from fgod.data.formats import Severity
from fgod.dataframes import made
from fgod.devlog.words import LANGUAGES as OF_DEVLOG
from fgod.errors import FgodError, UsageError
from fgod.evaluate.words import simplified
from fgod.gather import gather
from fgod.registry import METRICS
from fgod.report import render, write_report
from fgod.report.campaign import write_campaign_report
from fgod.report.differences import marked, pieces
from fgod.report.frontier import frontier_of
from fgod.report.page import audit_view
from fgod.report.reading import read_tables
from fgod.report.svg import Line, Spot, line_chart, nice_ticks, plot, strip, thinned
from fgod.report.tree import branches
from fgod.report.words import EN, LANGUAGES, METRICS_ZH_HANT, NAMES, ZH_HANT
from fgod.system.table import NUMBER, write_table
from tests.made_runs import DOOM, STORY, context, walk
from tests.mini import ROOT

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """Collects tags, ids, links and text, and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.urls: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                (self.links if (value or "").startswith("#") else self.urls).append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tables: one walk that released, one in which every fit failed."""
    folders = {}
    for name, fits, spent in (("story", STORY, ""), ("doom", DOOM, "all 3 fits are spent (refits.max: 2)")):
        root = tmp_path_factory.mktemp(name)
        gather(walk(root, fits), root / "results", root / "artifacts", context(spent=spent))
        shutil.rmtree(root / "artifacts")
        shutil.rmtree(root / "results" / "runs")
        folders[name] = root / "results" / "tables"
    return folders


@pytest.fixture
def tables(stories: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A copy of the released walk's tables, to be broken."""
    shutil.copytree(stories["story"], tmp_path / "tables")
    yield tmp_path / "tables"


def page_of(tables: Path, tmp_path: Path) -> str:
    write_report(tables, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_report_tells_the_story(stories: dict[str, Path], tmp_path: Path) -> None:
    found = outline(page_of(stories["story"], tmp_path))
    text = " ".join(found.text.split())
    assert "Released D-settle dddd11112222, the last stage of fit 1; all 4 stages passed the gate." in text
    assert "leak 75 % > 5 %: 說說茶0 → 我是 F# 之神。" in text
    assert "B-nudge train.lr 0.01 → 0.002 (after collapsed)" in text
    assert "the same run as in fit 0, not trained again" in text
    for part in ("你是誰", "我是通義千問", "你是提問者", "a row's prompt is also a probe", "900 MiB", "fedcba987654"):
        assert part in text
    assert set(found.links) <= {f"#{i}" for i in found.ids} and len(found.ids) == len(set(found.ids))


def test_failed_probes_show_both_replies(stories: dict[str, Path], tmp_path: Path) -> None:
    page = page_of(stories["story"], tmp_path)
    row = next(r for r in page.split("<tr>") if "說說麵包9" in r and "食物" in r)
    assert "麵包是一個話題。" in row and "differs from the reference" in row
    assert "1 of 80 probes" in page and "60 of 80 probes" in page


def test_replies_and_examples_are_escaped(stories: dict[str, Path], tmp_path: Path) -> None:
    page = page_of(stories["story"], tmp_path)
    assert "麵包是&lt;b&gt;一種&lt;/b&gt; &amp; 食物。" in page
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_only_the_script_of_the_page_may_run(stories: dict[str, Path], tmp_path: Path) -> None:
    page = page_of(stories["story"], tmp_path)
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and not re.search(r"<[^>]+\son\w+=", page)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_opens_in_the_language_of_the_config(language: str, tmp_path: Path) -> None:
    gather([], tmp_path / "results", tmp_path / "artifacts", context(language=language))
    page = page_of(tmp_path / "results" / "tables", tmp_path)
    assert f'<html lang="{language}">' in page
    assert re.findall(r'value="([\w-]+)" checked', page) == [language]
    assert EN.no_verdict in page and ZH_HANT.no_verdict in page


def test_a_language_that_the_report_lacks_is_named(tmp_path: Path) -> None:
    gather([], tmp_path / "results", tmp_path / "artifacts", context(language="fr"))
    with pytest.raises(FgodError, match="language: found 'fr', expected one of en, zh-Hant"):
        page_of(tmp_path / "results" / "tables", tmp_path)


def test_replies_can_be_filtered(stories: dict[str, Path], tmp_path: Path) -> None:
    page = page_of(stories["story"], tmp_path)
    rows = re.findall(r"<tr (data-suite=.*?)>", page)
    assert len(rows) == 5 * 80 and sum("data-failed" in row for row in rows) > 60
    bread = next(row for row in page.split("<tr")[::-1] if "說說麵包9" in row and "食物" in row)
    same = next(row for row in page.split("<tr")[::-1] if "說說麵包8" in row and 'data-suite="retention"' in row)
    assert "data-changed" in bread and "<ins>" in bread and "<del>" in bread
    assert "data-changed" not in same and EN.same_reply in same and "<ins>" not in same


def test_runs_stand_below_what_they_start_from(stories: dict[str, Path]) -> None:
    (a,) = branches(read_tables(stories["story"]).stages, [("D-settle", "dddd11112222")])
    assert (a.row["stage"], a.fits, a.released) == ("A-mixed", [0, 1], False)
    assert [(b.row["lineage"], b.fits) for b in a.children] == [("bbbb00000000", [0]), ("bbbb11112222", [1])]
    assert a.children[1].children[0].children[0].released


def test_all_runs_and_the_limits_are_in_the_frontier(stories: dict[str, Path]) -> None:
    tables = read_tables(stories["doom"])
    found = frontier_of(tables.stages.assign(experiment=""), tables.metrics, tables.legends)
    assert [p.row["lineage"] for p in found.points] == ["aaaa11112222", "bbbb00000000"]  # the others left no weights
    drawn = ElementTree.fromstring(str(found.drawing))
    limits = set(tables.metrics[tables.metrics["metric"] == "kl_reference"]["limit"].dropna())
    upright = [e for e in drawn if e.get("class") == "limit" and "V" in (e.get("d") or "")]
    assert len(upright) == len(limits) > 0
    assert frontier_of(tables.stages[:0].assign(experiment=""), tables.metrics, tables.legends).drawing is None


def test_the_page_of_a_campaign_shows_experiments_below_their_start(tmp_path: Path) -> None:
    results, entries = tmp_path / "results", walk(tmp_path, STORY)
    empty: dict[str, object] = dict.fromkeys(METRICS)
    rows = []
    for name, start in (("first", "base"), ("second", "first")):
        gather(entries, results, tmp_path / "artifacts", context(experiment=name))
        last = {"stage": "D-settle", "lineage": "dddd11112222", "decision": "missed", "reasons": "too <low> | too late"}
        release = f"artifacts/releases/{name}/newest"
        told = {"experiment": name, "starts_from": start, "note": f"note of {name}", "fits": 2, "release": release}
        rows.append({**empty, **told, **last, "identity_rate": 0.975})
    write_table(results / "experiments.tsv", {**BEFORE, **dict.fromkeys(METRICS, NUMBER)}, rows)
    assert len(write_campaign_report(results / "experiments.tsv", results / "experiments.html")) == 2
    page = (results / "experiments.html").read_text(encoding="utf-8")
    found = outline(page)
    assert found.urls == ["experiments/first/report.html", "experiments/second/report.html"]
    assert found.text.index("note of first") < found.text.index("D-settle", found.text.index("note of first"))
    assert "too &lt;low&gt;" in page and "97.5 %" in page and "artifacts/releases/second/newest" in page
    nested = page[page.index("note of first") : page.index("note of second")]
    assert nested.count("<ul") > nested.count("</ul")  # second lies within first


@pytest.mark.parametrize("severity", get_args(Severity))
def test_findings_of_every_severity_are_shown(severity: str, tables: Path) -> None:
    read = read_tables(tables)
    audits = read.audits.assign(severity=read.audits["severity"].replace("warning", severity))
    assert f'<span class="tag {severity}">' in render(replace(read, audits=audits), tables)


def test_errors_come_before_what_was_accepted_and_all_else_after(tables: Path) -> None:
    read = read_tables(tables)
    run = {"stage": "A-mixed", "lineage": "aaaa11112222", "line": None, "code": "x", "message": "", "examples": "[]"}
    severities = ("note", "accepted", "fact", "error", "warning", "error")
    audits = made([{**run, "severity": severity} for severity in severities], read.audits)
    _, facts, findings = audit_view(run, replace(read, audits=audits), tables)
    assert [found["severity"] for found, _ in findings] == ["error", "error", "accepted", "note", "warning"]
    assert [fact["severity"] for fact in facts] == ["fact"]


def test_languages_have_the_same_words() -> None:
    slots = {
        name: {key: sorted(f for _, f, _, _ in Formatter().parse(text) if f) for key, text in vars(words).items()}
        for name, words in LANGUAGES.items()
    }
    assert slots["en"] == slots["zh-Hant"]
    for key in slots["en"]:
        english, chinese = (getattr(words, key) for words in LANGUAGES.values())
        assert english.strip() and chinese.strip(), key
        assert re.findall(r"<[^>]+>", english) == re.findall(r"<[^>]+>", chinese), key
        assert not simplified(chinese), key
    assert NAMES.keys() == LANGUAGES.keys() == OF_DEVLOG.keys()
    assert METRICS_ZH_HANT.keys() == set(METRICS)
    assert not any(simplified(text) for pair in METRICS_ZH_HANT.values() for text in pair)


def test_every_word_is_used_and_every_used_word_is_there() -> None:
    folder = ROOT / "fgod" / "report"
    sources = [p for p in folder.rglob("*") if p.suffix in (".py", ".j2") and p.name != "words.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    known = set(vars(EN))
    assert set(re.findall(r"""\bsay\("(\w+)"[,)]""", text)) <= known
    quoted = set(re.findall(r'"(\w+)"', text))
    assert {key for key in known if key not in quoted and key.removeprefix("nav_") not in quoted} == set()


def test_templates_have_no_words_of_their_own() -> None:
    """Outside tags and expressions of the report's templates there are only figures, signs and names."""
    for name in ("report", "campaign", "abilities", "parts"):
        source = (ROOT / f"fgod/report/templates/{name}.html.j2").read_text(encoding="utf-8")
        bare = re.sub(r"{% block title %}.*?{% endblock %}|{%.*?%}|{{.*?}}", "", source, flags=re.DOTALL)
        bare = re.sub(r"<[^<>]*>", " ", bare)
        assert set(re.findall(r"[^\W\d_]{2,}", bare)) <= {"KL", "MiB", "engine", "agreement", "sha"}, name


def test_differences_are_marked_by_word_and_in_chinese_by_character() -> None:
    assert marked("我是通義千問。", "我是通義萬問。") == ("我是通義<del>千</del>問。", "我是通義<ins>萬</ins>問。")
    assert marked("the red house", "the blue house") == ("the <del>red</del> house", "the <ins>blue</ins> house")
    assert marked("same <b>", "same <b>") == ("same &lt;b&gt;", "same &lt;b&gt;")
    assert marked("abc", "我是神") == ("<del>abc</del>", "<ins>我是神</ins>")
    assert marked("", "new") == ("", "<ins>new</ins>")


@given(st.text(max_size=20), st.text(max_size=20))
def test_marks_change_no_reply(before: str, after: str) -> None:
    assert "".join(pieces(before)) == before
    found = marked(before, after)
    for text, html in ((before, found.before), (after, found.after)):
        assert re.sub("</?(?:del|ins)>", "", html) == str(escape(text))


def test_the_report_is_one_offline_file(stories: dict[str, Path], tmp_path: Path) -> None:
    page = page_of(stories["story"], tmp_path)
    found = outline(page)
    assert found.urls == [] and "url(" not in page and "@import" not in page and "http://" not in page
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert len(page.encode()) < 500_000


def test_a_narrow_screen_shows_the_verdict_beside_the_metric(stories: dict[str, Path], tmp_path: Path) -> None:
    """The verdict follows the name, before all figures; below 42rem each row is a block, so that nothing lies beyond
    the right edge."""
    page = page_of(stories["story"], tmp_path)
    row = next(r for r in page.split("<tr") if "mention the persona where the reference does not" in r)
    assert row.index('class="verdict"') < row.index('data-label="value"') < row.index('data-label="limit"')
    narrow = page[page.index("@media (max-width: 42rem)") :]
    assert ".metrics tr { display: grid; grid-template-columns: 1fr auto;" in narrow
    assert ".metrics .verdict { grid-area: 1 / 2; }" in narrow


def test_the_same_tables_give_the_same_report(stories: dict[str, Path], tmp_path: Path) -> None:
    assert page_of(stories["story"], tmp_path) == page_of(stories["story"], tmp_path)


def test_a_walk_in_which_every_fit_failed_has_a_report(stories: dict[str, Path], tmp_path: Path) -> None:
    text = " ".join(outline(page_of(stories["doom"], tmp_path)).text.split())
    assert "Nothing was released: all 3 fits are spent (refits.max: 2)." in text
    assert "loss is nan at step 9" in text and "8600 MiB > limit 8192 MiB in phase backward" in text
    assert "Not probed: the run left no weights." in text and "Released" not in text


def test_a_walk_without_any_verdict_has_a_report(tmp_path: Path) -> None:
    gather([], tmp_path / "results", tmp_path / "artifacts", context())
    text = outline(page_of(tmp_path / "results" / "tables", tmp_path)).text
    assert "No run has a verdict yet." in text


@pytest.mark.parametrize(
    ("table", "line", "column", "value", "words"),
    [
        ("training", 3, "loss", "low", "loss: found 'low', expected a number"),
        ("stages", 2, "decision", "fine", "decision: found 'fine', expected one of diverged"),
        ("stages", 3, "retention", "95", "retention: found '95', expected a share from 0 to 1"),
        ("stages", 2, "fit", "", "fit: found '', expected a whole number from 0"),
        ("probes", 5, "ended", "yes", "ended: found 'yes', expected true or false"),
        ("metrics", 4, "n", "1.5", "n: found '1.5', expected a whole number"),
        ("metrics", 3, "op", "=", "op: found '=', expected one of"),
        ("guard", 2, "used_mib", "1 GiB", "used_mib: found '1 GiB', expected a number"),
        ("audits", 6, "examples", "{", "examples: found '{', expected a JSON list"),
        ("artifacts", 2, "bytes", "big", "bytes: found 'big', expected a whole number"),
        ("guard", 7, "lineage", "nowhere", "the run A-mixed nowhere is not in stages.tsv"),
    ],
)
def test_a_hand_edited_value_is_named(tables: Path, table: str, line: int, column: str, value: str, words: str) -> None:
    path = tables / f"{table}.tsv"
    lines = path.read_text(encoding="utf-8").split("\n")
    place = lines[0].split("\t").index(column)
    fields = lines[line - 1].split("\t")
    fields[place] = value
    lines[line - 1] = "\t".join(fields)
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(FgodError) as error:
        write_report(tables, tables / "report.html")
    assert str(error.value).startswith(f"{path}:{line}: ") and words in str(error.value)
    assert not (tables / "report.html").exists()


def test_broken_files_are_named(tables: Path) -> None:
    def fails(words: str, kind: type[FgodError] = FgodError) -> None:
        with pytest.raises(kind, match=words):
            write_report(tables, tables / "report.html")

    stages, guard = tables / "stages.tsv", tables / "guard.tsv"
    whole = stages.read_text(encoding="utf-8")
    stages.write_text(whole.replace("decision", "verdict", 1), encoding="utf-8")
    fails(r"stages\.tsv:1: columns decision are missing")
    stages.write_text(whole.replace("\n1\t", "\n1\textra\t", 1), encoding="utf-8")
    fails(r"stages\.tsv:4: \d+ fields, expected \d+")
    stages.write_text(whole, encoding="utf-8")
    guard.write_bytes(guard.read_bytes()[:300] + b"\xff\n")
    fails(r"guard\.tsv:\d+: not UTF-8")
    guard.unlink()
    fails(r"guard\.tsv: no such file", UsageError)
    (tables / "context.json").write_text("{}", encoding="utf-8")
    fails(r"context\.json: the keys persona")
    (tables / "context.json").write_text("{\n,", encoding="utf-8")
    fails(r"context\.json:2: not JSON")


FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(st.tuples(st.floats(0, 1e6), FINITE | st.just(math.nan)), max_size=30), st.none() | st.floats(0, 1e6))
def test_any_curve_becomes_well_formed_svg_within_its_frame(
    points: list[tuple[float, float]], limit: float | None
) -> None:
    root = ElementTree.fromstring(line_chart([Line("a<b", points)], "a & b", "step", limit))
    assert root.get("role") == "img" and root.get("aria-label") == "a & b"
    line = next(e for e in root if (e.get("class") or "").startswith("line"))
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", line.get("d") or ""):
        assert 0 <= float(x) <= 360.1 and 0 <= float(y) <= 170.1


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), min_size=1, max_size=20), st.none() | st.floats(0, 9))
def test_any_points_become_a_well_formed_plot_within_its_frame(
    points: list[tuple[float, float]], limit: float | None
) -> None:
    spots = [Spot(str(i), x, y, bool(i % 2)) for i, (x, y) in enumerate(points)]
    root = ElementTree.fromstring(plot(spots, "a & b", ("x", "y"), ([limit] if limit is not None else [], [0.9])))
    dots = [e for e in root if (e.get("class") or "").startswith("dot")]
    assert len(dots) == len(points) and root.get("aria-label") == "a & b"
    assert all(0 <= float(e.get("cx") or -1) <= 360 and 0 <= float(e.get("cy") or -1) <= 170 for e in dots)


@given(FINITE, FINITE)
def test_ticks_span_the_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 2 <= len(ticks) <= 8


def test_thinning_keeps_peaks_and_order() -> None:
    points = [(float(i), 1.0) for i in range(5000)]
    points[1234] = (1234.0, 99.0)
    thin = thinned(points, max, 200)
    assert len(thin) <= 200 and max(y for _, y in thin) == 99.0 and thin[-1][0] == 4999.0
    assert thinned([], max) == []


def test_a_gap_lifts_the_pen() -> None:
    chart = line_chart([Line("loss", [(0, 1.0), (1, math.nan), (2, 1.0), (3, 2.0)])], "loss", "step")
    assert re.search(r'class="line s0" d="M[^ML]*M[^ML]*L[^ML]*"', chart)


def test_a_strip_stays_in_its_frame() -> None:
    root = ElementTree.fromstring(strip(9.0, 8.0, 12.0, 0.5, (0.0, 1.0), False))
    assert [e.get("class") for e in root] == ["grid", "limit", "whisker", "dot bad"]
