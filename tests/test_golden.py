"""A fixed recipe gives the recorded numbers, within what CPUs differ by. `python -m tests.test_golden` records anew.

torch and MKL choose kernels by the CPU (docs/training.md), so that bits differ between machines. `eps` is as large as
the roots of v, so that a step is a smooth function of the gradient and changes of eps, clip and bias correction show.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fgod
from fgod.train.loop import run
from fgod.train.recipe import TrainRecipe
from tests.tiny_model import noise, tiny_folder, tiny_rows

GOLDEN = Path(__file__).parent / "golden" / "training.json"
RECIPE = TrainRecipe(
    steps=8, lr=2e-3, batch=4, seq_len=64, warmup=2, eps=1e-3, weight_decay=1.0, l2_sp=2.0, grad_clip=0.5,
    lr_scale={"*norm*": 0.5},
)  # fmt: skip
PROJECTIONS = 16

ADVICE = (
    "a fixed recipe gives other numbers. If that is meant, raise fgod.NUMERICS_VERSION (every lineage is then trained "
    "anew) and record them: python -m tests.test_golden"
)

FIRST_LOSS, FIRST_NORM, MOVED = 2e-6, 4e-6, 4e-3
"""Largest relative deviations: of the first step's loss and gradient norm, which no optimizer has touched; of each
tensor's movement in eight steps. Between CPU settings the first two differ by 9e-8 and 4e-7, the last by 1e-5, or by
5e-4 where one weight is quantised the other way; a gradient clip of .99 instead of 1 moves it by 2e-2 (docs)."""


def sketch(moved: Tensor) -> list[float]:
    """Projections on fixed random directions: the mean square of differences is that of the tensors' elements."""
    flat = moved.flatten().double()
    directions = (noise((PROJECTIONS, len(flat)), 9).double() * 12**0.5).unbind()
    return [flat.dot(direction).item() for direction in directions]


def golden_run(folder: Path) -> dict[str, Any]:
    """Of a fixed recipe: loss and gradient norm of the first step; norm and sketch of each tensor's movement."""
    start = tiny_folder(folder / "start")
    run(start, tiny_rows(), RECIPE, 7, folder / "work", folder / "run", folder / "master")
    before, after = (load_file(path / "model.safetensors") for path in (start, folder / "master"))
    with (folder / "run" / "train.tsv").open(encoding="utf-8", newline="") as stream:
        first = next(csv.DictReader(stream, delimiter="\t"))
    moved = {name: after[name] - before[name] for name in sorted(after)}
    return {
        "loss": float(first["loss"]),
        "grad_norm": float(first["grad_norm"]),
        "moved": {name: [m.norm().item(), *sketch(m)] for name, m in moved.items()},
    }


def apart(golden: list[float], now: list[float]) -> float:
    """‖difference‖ / ‖movement‖ of a tensor, estimated from its sketches."""
    (norm, *theirs), (_, *ours) = golden, now
    return (torch.tensor(ours) - torch.tensor(theirs)).square().mean().sqrt().item() / norm


def test_a_fixed_recipe_gives_the_golden_numbers(tmp_path: Path) -> None:
    golden, now = json.loads(GOLDEN.read_text()), golden_run(tmp_path)
    assert golden["numerics_version"] == fgod.NUMERICS_VERSION, "record again: python -m tests.test_golden"
    assert now["loss"] == pytest.approx(golden["loss"], rel=FIRST_LOSS), ADVICE
    assert now["grad_norm"] == pytest.approx(golden["grad_norm"], rel=FIRST_NORM), ADVICE
    differ = {name: apart(movement, now["moved"][name]) for name, movement in golden["moved"].items()}
    assert max(differ.values()) <= MOVED, f"{max(differ, key=lambda name: differ[name])}: {ADVICE}"


@pytest.mark.parametrize("changes", [{"grad_clip": 0.495}, {"eps": 1.05e-3}, {"lr": 2.04e-3}, {"weight_decay": 0.95}])
def test_a_recipe_changed_a_little_gives_other_numbers(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "RECIPE", replace(RECIPE, **changes))
    golden, now = json.loads(GOLDEN.read_text()), golden_run(tmp_path)
    assert max(apart(movement, now["moved"][name]) for name, movement in golden["moved"].items()) > 3 * MOVED


def record(folder: Path) -> None:
    golden = {"numerics_version": fgod.NUMERICS_VERSION, **golden_run(folder)}
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        record(Path(scratch))
