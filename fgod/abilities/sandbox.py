"""Run Python that a model wrote, never in this process.

Each program is a process of its own in a temporary folder: in a session of its own, under limits of CPU time, memory,
open files and file sizes, and unable to start another one; without network, and without a right to change files
elsewhere, where the OS lets a user arrange that (`jail`). It is killed when its time is over. `Walls` say what could be
arranged: that is part of every record. This guards against mistakes of a model, not against an attacker: the program
can read what the user can.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fgod.errors import FgodError
from fgod.system.process import ProcessTree

TIMEOUT_SECS = 10.0
MEMORY_MIB = 1024
"""Of a program's address space."""
_TAIL = 4096
"""Bytes at the end of its output that are looked at."""


@dataclass(frozen=True)
class Walls:
    """What holds a program in. `network`: none, or open; `files` that it may change: own folder, or open; `processes`:
    one, itself."""

    network: str
    files: str
    processes: str


@dataclass(frozen=True)
class Ran:
    """What became of a program. `how`: passed, timeout, or the last line of what it wrote."""

    passed: bool
    how: str
    walls: Walls


def run_program(source: str, timeout: float = TIMEOUT_SECS, memory_mib: int = MEMORY_MIB) -> Ran:
    """Run a program to its end or its timeout. It passes if it comes to its last line.

    Raises:
        FgodError: the sandbox did not start, or cannot hold a program in.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="fgod-code-") as name, tempfile.TemporaryFile() as output:
        folder = Path(name)
        program = folder / "program.py"
        program.write_text(f"{source}\n__import__('os').write(1, b'\\n{token}\\n')\n", encoding="utf-8")
        walls, ended = _run(folder, program, output, timeout, memory_mib)
        output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
        lines = output.read().decode(errors="replace").split("\n")
    if not ended:
        return Ran(False, "timeout", walls)
    said = next((line for line in reversed(lines) if line.strip()), "")
    return Ran(said == token, "passed" if said == token else said, walls)


def _run(folder: Path, program: Path, output: IO[bytes], timeout: float, memory_mib: int) -> tuple[Walls, bool]:
    """The walls of the program, and whether it ended by itself."""
    reader, writer = os.pipe()
    limits = [str(writer), str(memory_mib * 2**20), str(int(timeout) + 1), str(folder), str(program)]
    jail = Path(__file__).with_name("jail.py")
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(jail), *limits],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)},
            pass_fds=[writer],
            start_new_session=True,
        )
    finally:
        os.close(writer)
    tree = ProcessTree(child.pid)
    try:
        tree.members()
        child.wait(timeout)
        ended = True
    except subprocess.TimeoutExpired:
        ended = False
    finally:
        left = tree.kill()
        child.wait()
        with os.fdopen(reader, "rb") as pipe:
            status = pipe.read()
    if left:
        raise FgodError(f"programs of a model could not be killed: {', '.join(map(str, left))}; end them by hand")
    if not status:
        raise FgodError(f"the sandbox for code did not start ({jail}, exit code {child.returncode})")
    walls = Walls(**json.loads(status))
    if walls.processes != "one":
        raise FgodError(
            "evaluate.code: none was run: a program of a model could start others without end, as this is root, and "
            "the kernel or this machine's architecture offers no seccomp; expected an ordinary user"
        )
    return walls, ended


def run_all(sources: Sequence[str], timeout: float = TIMEOUT_SECS, workers: int | None = None) -> list[Ran]:
    """Run programs side by side, by default as many as there are cores; in their order."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda source: run_program(source, timeout), sources))
