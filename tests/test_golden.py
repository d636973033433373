"""Fixed recipes give the recorded numbers, within what CPUs differ by. `python -m tests.test_golden` records anew.

torch and MKL choose kernels by the CPU (docs/training.md), so that bits differ between machines. `eps` is as large as
the roots of v, so that a step is a smooth function of the gradient and changes of eps, clip and bias correction show.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fgod
from fgod.system.table import read_texts
from fgod.train.optimizer import TensorOptimizer
from fgod.train.recipe import MASTER_DTYPES, TrainRecipe
from fgod.train.stage import Job, run
from fgod.train.storage import master_kind
from tests.tiny_model import noise, tiny_folder, tiny_rows

FOLDER = Path(__file__).parent / "golden"
TRAINING, STEPS = FOLDER / "training.json", FOLDER / "steps.safetensors"

ADVICE = (
    "fixed recipes give other numbers. If that is meant, raise fgod.NUMERICS_VERSION (every lineage is then trained "
    "anew) and record them: python -m tests.test_golden"
)


def same_version(recorded: object) -> None:
    assert recorded == fgod.NUMERICS_VERSION, "record again: python -m tests.test_golden"


# ---- short trainings

RECIPE = TrainRecipe(
    steps=8, lr=2e-3, batch=4, seq_len=64, warmup=2, eps=1e-3, weight_decay=1.0, l2_sp=2.0, grad_clip=0.5,
    lr_scale={"*norm*": 0.5},
)  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16 int8 uint8, in the backward pass": {
        "master_dtype": "bf16", "m_dtype": "int8", "v_dtype": "uint8", "step_in_backward": True, "step_chunk_rows": 16,
        "activation_checkpointing": True,
    },
    "nvfp4 bf16 bf16": {"master_dtype": "nvfp4", "m_dtype": "bf16", "v_dtype": "bf16"},
}  # fmt: skip

PROJECTIONS = 16

FIRST_LOSS, FIRST_NORM, LOSSES = 2e-6, 4e-6, 2.4e-3
"""Largest relative deviations of the first step's loss and gradient norm, which no optimizer has touched, and of any
loss. Between CPU settings the first two differ by 9e-8 and 4e-7. Rounding one weight the other way changes a loss by up
to 5e-4 (NVFP4 masters); a learning rate that is a step late by 5e-3 and more."""

MOVED = {"fp32": 4e-3, "bf16 int8 uint8, in the backward pass": 8e-2}
"""Of each tensor's movement. Between CPU settings the float32 one differs by 1e-5, or by 5e-4 where one weight is
quantised the other way; a clip of .99 moves it by 2e-2. The BF16 one differs by 1e-2; a wrong step by .5. With NVFP4
masters one rounding is a large part of a tensor's movement: losses are compared alone."""


def sketch(moved: Tensor) -> list[float]:
    """Projections on fixed random directions: the mean square of differences is that of the tensors' elements."""
    flat = moved.flatten().double()
    directions = noise((PROJECTIONS, len(flat)), 9).double() * 12**0.5
    return [flat.dot(direction).item() for direction in directions]


def training(folder: Path, recipe: TrainRecipe) -> dict[str, Any]:
    """Of a recipe on the tiny model: losses, the first gradient's norm, norm and sketch of each tensor's movement."""
    start = tiny_folder(folder / "start")
    run(Job(start, tiny_rows(), recipe, 7, folder / "work", folder / "run", folder / "master"))
    before, after = (load_file(path / "model.safetensors") for path in (start, folder / "master"))
    rows = read_texts(folder / "run" / "train.tsv")
    moved = {name: after[name].float() - before[name] for name in sorted(after)}
    return {
        "losses": [float(row["loss"]) for row in rows],
        "grad_norm": float(rows[0]["grad_norm"]),
        "moved": {name: [m.norm().item(), *sketch(m)] for name, m in moved.items()},
    }


def apart(golden: dict[str, list[float]], now: dict[str, list[float]]) -> float:
    """The largest ‖difference‖ / ‖movement‖ of all tensors, estimated from their sketches."""
    found = []
    for name, (norm, *theirs) in golden.items():
        difference = torch.tensor(now[name][1:], dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
        found.append(difference.square().mean().sqrt().item() / norm)
    return max(found)


@pytest.mark.parametrize("name", RUNS)
def test_fixed_recipes_train_to_the_golden_numbers(name: str, tmp_path: Path) -> None:
    document = json.loads(TRAINING.read_text())
    same_version(document["numerics_version"])
    golden, now = document["runs"][name], training(tmp_path, replace(RECIPE, **RUNS[name]))
    assert now["losses"][0] == pytest.approx(golden["losses"][0], rel=FIRST_LOSS), ADVICE
    assert now["grad_norm"] == pytest.approx(golden["grad_norm"], rel=FIRST_NORM), ADVICE
    assert now["losses"] == pytest.approx(golden["losses"], rel=LOSSES), ADVICE
    assert apart(golden["moved"], now["moved"]) <= MOVED.get(name, math.inf), ADVICE


@pytest.mark.parametrize("changes", [{"grad_clip": 0.495}, {"eps": 1.05e-3}, {"lr": 2.04e-3}, {"weight_decay": 0.95}])
def test_a_recipe_that_is_changed_a_little_trains_to_other_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    golden = json.loads(TRAINING.read_text())["runs"]["fp32"]
    assert apart(golden["moved"], training(tmp_path, replace(RECIPE, **changes))["moved"]) > 3 * MOVED["fp32"]


# ---- the optimizer on fixed gradients

SHAPE = (6, 64)
VECTOR = 40
MOMENTS = (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "uint8"), ("nvfp4", "uint8"), ("nvfp4", "nvfp4"))
RATES = (1e-3, 2e-3, 2e-3, 1e-3)

ELEMENT, SHARE = 1e-5, 0.01
"""An element differs if it is further off than `ELEMENT` of the root mean square (of weights: of their movement); at
most this share of elements may. Between CPU settings none differs; each mutant of a step moves all or most (docs)."""

SUMS = 1e-2
"""Largest relative deviation of the sums that say what became of an update: one of 384 roundings changes them less."""


def gradient(step: int, shape: tuple[int, ...]) -> Tensor:
    """Rows of very different sizes, some about `eps` once the clip has bound, the first all zeros."""
    sizes = torch.logspace(-2, 1, shape[0]).view(-1, *[1] * (len(shape) - 1))
    sizes[0] = 0
    return noise(shape, 10 + step) ** 3 * sizes


def fixed_steps(master: str, m: str, v: str, **changes: Any) -> dict[str, Tensor]:
    """Weights, moments and sums after steps of a matrix and a vector by fixed gradients."""
    recipe = replace(RECIPE, master_dtype=master, m_dtype=m, v_dtype=v, **changes)
    parameters = {}
    for seed, (name, shape) in enumerate({"matrix": SHAPE, "vector": (VECTOR,)}.items()):
        begun = (noise(shape, seed) * 0.05).to(master_kind(master, shape).dtype)
        parameters[name] = nn.Parameter(begun)
        parameters[name].grad_dtype = torch.float32
    optimizer = TensorOptimizer(parameters, recipe, {"matrix": 1.0, "vector": 0.5}, seed=3)
    out: dict[str, Tensor] = {}
    for number, rate in enumerate(RATES):
        for parameter in parameters.values():
            parameter.grad = gradient(number, tuple(parameter.shape))
        whole = optimizer.step(rate).whole
        sums = whole.realised, whole.intended, whole.moved, whole.largest, float(whole.clamped)
        out[f"sums {number}"] = torch.tensor(sums)
    for name, tensor in optimizer.tensors.items():
        out[name] = tensor.parameter.detach().float()
        out |= {f"{name} {key}": state.values.clone() for key, state in tensor.states.items()}
    return out


def differing(golden: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, float]:
    """By name, the share of elements that differ; of the sums the largest relative deviation."""
    found = {}
    for name, theirs in golden.items():
        off = (now[name] - theirs).abs()
        if name.startswith("sums"):
            relative = (off / theirs.abs().clamp_min(1e-30)).max().item()
            found["sums"] = max(found.get("sums", 0.0), relative)
        else:
            begun = noise(tuple(theirs.shape), ("matrix", "vector").index(name)) * 0.05 if name[-2] != " " else 0
            found[name] = (off > ELEMENT * (theirs - begun).square().mean().sqrt()).float().mean().item()
    return found


def golden_steps(mode: str) -> dict[str, Tensor]:
    with safe_open(STEPS, "pt") as stored:
        same_version(int(stored.metadata()["numerics_version"]))
        names = [name for name in stored.keys() if name.startswith(f"{mode} | ")]  # noqa: SIM118
        return {name.removeprefix(f"{mode} | "): stored.get_tensor(name) for name in names}


@pytest.mark.parametrize(("m", "v"), MOMENTS)
@pytest.mark.parametrize("master", MASTER_DTYPES)
def test_fixed_gradients_step_to_the_golden_numbers(master: str, m: str, v: str) -> None:
    found = differing(golden_steps(f"{master} {m} {v}"), fixed_steps(master, m, v))
    sums = found.pop("sums")
    assert len(found) == 6 and max(found.values()) <= SHARE, (found, ADVICE)
    assert sums <= SUMS, ADVICE


def record(folder: Path) -> None:
    """Write both files."""
    runs = {}
    for number, (name, changes) in enumerate(RUNS.items()):
        runs[name] = training(folder / str(number), replace(RECIPE, **changes))
    document = {"numerics_version": fgod.NUMERICS_VERSION, "runs": runs}
    TRAINING.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    stepped = {
        f"{master} {m} {v} | {name}": tensor.contiguous()
        for master, (m, v) in product(MASTER_DTYPES, MOMENTS)
        for name, tensor in fixed_steps(master, m, v).items()
    }
    save_file(stepped, STEPS, {"numerics_version": str(fgod.NUMERICS_VERSION)})


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        record(Path(scratch))
