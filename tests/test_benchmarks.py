"""Nobody runs benchmarks after every change: what they import is there, and documents hold their figures."""

import ast
import importlib
import runpy
from pathlib import Path

import pytest

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
