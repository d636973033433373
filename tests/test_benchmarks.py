"""Nobody runs benchmarks after every change: at least all that they import must be there."""

import ast
import importlib
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
