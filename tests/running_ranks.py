"""Trainings of a tiny model by two ranks, started as the guard starts them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fgod.checkpoints import saved_step
from fgod.data.rows import write_rows
from tests.mini import ROOT
from tests.tiny_model import tiny_rows


def start_ranks(folder: Path, weights: Path, train: dict[str, Any], *words: str) -> subprocess.Popen[str]:
    """A training of `train` from `weights`, once its first checkpoint is there.

    Args:
        folder: gets rows.tsv, recipe.json and work/.
        words: more options of the launcher.
    """
    write_rows(folder / "rows.tsv", tiny_rows())
    (folder / "recipe.json").write_text(json.dumps({"train": train, "seed": 1, "stage": "A"}))
    work = folder / "work"
    work.mkdir()
    paths = {
        "recipe": folder / "recipe.json", "weights": weights, "rows": folder / "rows.tsv", "work": work,
        "run": folder / "run", "phase-file": folder / "phase", "result": folder / "result.json",
    }  # fmt: skip
    named = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    command = [sys.executable, "-m", "fgod.train.ranks.launch", *named, "--gpus", "2", "--checkpoint-secs", "0.2"]
    process = subprocess.Popen([*command, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not saved_step(work):
        assert process.poll() is None and process.stderr is not None, process.communicate()[1]
        time.sleep(0.05)
    return process


def pids_of_ranks(work: Path) -> list[int]:
    """In their order."""
    return [int(path.read_text().split()[0]) for path in sorted((work / "ranks").glob("*.beat"))]
