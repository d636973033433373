"""Nobody runs benchmarks after every change: at least all that they import must be there."""

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda script: script.name)
def test_what_a_benchmark_imports_of_the_project_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("fgod", "tests")):
            continue
        try:
            module = importlib.import_module(str(node.module))
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in ("fgod", "tests"):
                pytest.skip(f"{node.module} needs {error.name}")
            raise
        for name in (alias.name for alias in node.names):
            if not hasattr(module, name):
                importlib.import_module(f"{node.module}.{name}")
