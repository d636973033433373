"""The package of OS helpers knows nothing of the rest."""

from __future__ import annotations

import ast
import platform
import subprocess
import sys
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


FAULTS_AGAIN = """
import resource, sys
from fgod.system.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
faults()
print(faults())
"""
"""Prints the page faults of asking for 64 MiB once more."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc")
def test_freed_memory_that_is_kept_comes_without_page_faults() -> None:
    found = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS_AGAIN, how], capture_output=True, check=True).stdout)
        for how in ("kept", "returned")
    }
    assert found["kept"] < 16 < found["returned"], found
