"""Nobody runs benchmarks after every change: what they import is there, and documents hold their figures."""

import ast
import importlib
import runpy
from pathlib import Path

import pytest
import yaml

from benchmarks import report_check, tour

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda script: script.name)
def test_what_a_benchmark_imports_of_the_project_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("fgod", "tests"):
            for alias in node.names:
                check(str(node.module), alias.name)


def check(module: str, name: str) -> None:
    """That `from module import name` works, but for what the project does not need to be installed."""
    try:
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in ("fgod", "tests"):
            raise
        pytest.skip(f"{module}.{name} needs {error.name}")


def test_tables_in_the_documents_are_what_was_measured() -> None:
    report = runpy.run_path(str(FOLDER / "masters_report.py"))
    tables = report["tables"](report["groups"](report["read_texts"](report["LINES"])))
    for name, table in tables.items():
        document = (report["DOCUMENTS"] / report["DOCUMENT"][name]).read_text(encoding="utf-8")
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in document, "run python benchmarks/masters_report.py"


# ------------------------------------------------------------------------------------------------------------ the tour


@pytest.mark.parametrize(("language", "page"), tour.PAGES.items())
def test_the_pages_of_the_tour_have_its_steps_and_commands(language: str, page: str) -> None:
    told = yaml.safe_load(tour.STEPS.read_text(encoding="utf-8"))
    text = (FOLDER.parent / "docs" / page).read_text(encoding="utf-8")
    for step in told["steps"]:
        for words in (step["title"], step["text"]):
            assert words[language].strip() in text, "record the tour again"
        for command in tour.every(step["commands"]):
            assert f"$ {command['run'].rstrip()}\n" in text, "record the tour again"


def test_the_tour_stops_where_a_command_ends_otherwise_than_it_says(tmp_path: Path) -> None:
    (shown,) = tour.record(tour.Command("echo one; echo two >&2; exit 3", code=3, says=("two",)), tmp_path)
    assert (shown.lines, shown.code) == (("one", "two"), 3)
    for command, words in (
        (tour.Command("echo out; exit 3"), "ended with 3, expected 0:\nout"),
        (tour.Command("echo out", says=("in",)), r"expected \['in'\] in its output, found:\nout"),
        (tour.Command("true", meanwhile=({"run": "fgod status"},)), "ended before a stage was seen to train"),
    ):
        with pytest.raises(tour.TourError, match=words):
            list(tour.record(command, tmp_path))


def test_lines_that_the_tour_leaves_out_are_counted() -> None:
    lines = ["1", "2", "3", "x" * (tour.WIDTH + 1), "5", "6"]
    cut = "x" * tour.WIDTH + "…"
    assert list(tour.shown(lines, {})) == [*lines[:3], cut, *lines[4:]]
    assert list(tour.shown(lines, {"head": 1, "match": ["^x"]})) == ["1", "[… 2 lines]", cut, "[… 2 lines]"]
    assert list(tour.shown(lines, {"tail": 2, "match": ["2"]})) == ["[… 1 line]", "2", "[… 2 lines]", "5", "6"]


# ------------------------------------------------------------------------------------------------------------- reports


def test_a_browser_finds_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    program = report_check.program_of(None)
    if program is None:
        pytest.skip(f"no browser: {', '.join(report_check.BROWSERS)}")
    switch = "<input type=radio name=language value=en checked><input type=radio name=language value=zh-Hant>"
    good, bad = tmp_path / "good.html", tmp_path / "bad.html"
    good.write_text(f"<html lang=en><meta charset=utf-8><link rel=icon href=data:,>{switch}<p>short</p>")
    bad.write_text(
        "<html lang=ja><meta charset=utf-8><img src=none.png><p style='width: 900px'>long</p>"
        "<script>console.warn('a warning'); missing()</script>"
    )
    with report_check.browser(program) as page:
        assert report_check.faults_of(page, good, 400, "en", tmp_path) == []
        said = "\n".join(report_check.faults_of(page, bad, 400, "en", None))
    for words in ("no switch of languages", "its language is 'ja'", "the window 400", "p. reaches 9", "none.png",
                  "console warning: a warning", "missing is not defined"):  # fmt: skip
        assert words in said
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".html", ".html", ".png", ".png"]
