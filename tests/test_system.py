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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_that_is_kept_comes_without_page_faults() -> None:
    found = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS_AGAIN, how], capture_output=True, check=True).stdout)
        for how in ("kept", "returned")
    }
    assert found["kept"] < found["returned"] / 2, found


KEPT = """
import ctypes, resource
from pathlib import Path
from fgod.system.allocator import keep_freed_memory

def pages():
    return int(Path("/proc/self/statm").read_text().split()[0])

keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = pages()
for _ in range(4):  # at first something may lie behind it, so that it is not the heap's end
    place = libc.malloc(3 * 2**30)
    libc.free(place)
print(place is not None, (pages() - before) * resource.getpagesize() >= 3 * 2**30)
"""
"""Prints whether 3 GiB of address space, which nothing touches, could be had, and whether they are left once freed."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_no_amount_of_freed_memory_is_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, check=True, text=True)
    had, kept = ran.stdout.split()
    if had == "False":
        pytest.skip("3 GiB of address space are not to be had")
    assert kept == "True"
