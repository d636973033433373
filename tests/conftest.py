"""Without a GPU, Triton's kernels are interpreted: Triton looks for that when it is first imported.

The miniature project, which is made once a test session, and copies of it.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.mini import Mini
from tests.readme import commands

sys.path.append(str(Path(sys.prefix) / "kernels"))  # where `make test` puts triton (requirements-kernels.lock)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    """Those that need the miniature project go first, the longest (marked `long`) in front: one worker makes it while
    the other runs others, and at the end neither waits for a long one.
    """
    items.sort(key=lambda item: ("based" not in item.fixturenames, item.get_closest_marker("long") is None))


def pytest_collection_finish():
    """Spare the garbage collector the modules and tests, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def based(tmp_path_factory, worker_id):
    """A clone of the project in which the README's first command was run; one for all workers."""
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    folder = shared / "based"
    with FileLock(shared / "based.lock"):
        if not (folder / "done").exists():
            mini = Mini.create(folder)
            ended = mini.shell(commands((folder / "README.md").read_text())[0])
            assert ended.returncode == 0, (ended.stderr + ended.stdout)[-6000:]
            assert ended.stdout.strip().splitlines()[-1] == "Report: results/report.html"
            assert "Released F# 之神" in ended.stdout
            (folder / "done").touch()
    return folder


@pytest.fixture
def ran(based, tmp_path):
    """A copy of that project."""
    shutil.copytree(based, tmp_path / "project", symlinks=True)
    return Mini(tmp_path / "project")


@pytest.fixture
def mini(ran):
    """A copy of that project in which nothing but the base and its answers is there."""
    for path in (ran.folder / "results", *(ran.folder / "artifacts").iterdir()):
        if path.is_symlink():
            path.unlink()
        elif path.name not in ("base", "mixes"):
            shutil.rmtree(path)
    return ran
