"""Packages of fgod import each other in one direction only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fgod"


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of modules that a module imports, those for types and inside functions too, and what it takes of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "expected absolute imports"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def packages(root: Path) -> dict[str, set[str]]:
    """By package or module directly below `root`: the others of these that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(root.rglob("*.py")):
        own = path.relative_to(root).with_suffix("").parts[0]
        names = (name.split(".") for name in imported(ast.parse(path.read_text("utf-8"))))
        others = {name[1] for name in names if name[0] == root.name and len(name) > 1}
        found.setdefault(own, set()).update(others - {own})
    return {own: {name for name in others if name in found} for own, others in found.items() if own != "__init__"}


def circle(imports: Mapping[str, set[str]]) -> str:
    """A circle of imports; empty if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return " ← ".join(error.args[1])
    return ""


def test_no_packages_import_each_other_in_a_circle() -> None:
    imports = packages(PACKAGE)
    assert {"cli", "data", "layout", "train"} <= set(imports) and "data" in imports["cli"]
    assert circle(imports) == "", "move what both need to the lower one, or below both"


@pytest.mark.parametrize(
    "back", ["import fgod.b", "def f():\n    from fgod import b", "if TYPE_CHECKING:\n    from fgod.b.c import D"]
)
def test_a_circle_is_found_wherever_the_import_stands(back: str, tmp_path: Path) -> None:
    root = tmp_path / "fgod"
    (root / "b").mkdir(parents=True)
    (root / "b/c.py").write_text("from fgod import a\n")
    (root / "a.py").write_text("")
    assert circle(packages(root)) == ""
    (root / "a.py").write_text(back)
    assert circle(packages(root)) in ("a ← b ← a", "b ← a ← b")


def test_only_what_makes_tables_reports_and_model_cards_imports_pandas() -> None:
    """All others read and write tables by `fgod.system.table`, which imports nothing slow."""
    found = {
        path.relative_to(PACKAGE).with_suffix("").parts[0]
        for path in PACKAGE.rglob("*.py")
        for name in imported(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] == "pandas" or name.startswith("fgod.dataframes")
    }
    assert found == {"dataframes", "gather", "campaign", "comparison", "report", "release"}
