"""The package of OS helpers knows nothing of the rest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fgod.system

MODULES = sorted(Path(fgod.system.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_os_helpers_import_nothing_of_the_package_but_errors(module: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    ours = {name for name in imported if name.split(".")[0] == "fgod"}
    assert all(name == "fgod.errors" or name.startswith("fgod.system") for name in ours), ours
