"""Formats of the optimizer's states: one that a plugin adds is trained with, predicted, and refused by the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgod.errors import UsageError
from fgod.nvfp4 import kernels
from fgod.plugins import _LOADED_PLUGINS, load_plugins
from fgod.registry import MEAN_FORMATS
from fgod.system.files import read_json
from fgod.train.adamw import STATES
from fgod.train.fused import serves
from fgod.train.memory import explain, predict
from fgod.train.optimizer import TensorOptimizer
from fgod.train.recipe import TrainRecipe
from fgod.train.stage import Job, run
from tests.tiny_model import noise, tiny_folder, tiny_rows

PLUGIN = Path(__file__).parent.resolve() / "plugins" / "half.py"
KEYS = {"steps": 6, "lr": 1e-3, "batch": 4, "seq_len": 64}


@pytest.fixture(scope="module", autouse=True)
def half() -> Iterator[None]:
    """The plugin's format; it is taken away again after these tests."""
    with pytest.raises(UsageError, match=r"train\.m_dtype: found 'half'; allowed: null, fp32, bf16, int8, nvfp4"):
        TrainRecipe.from_dict({**KEYS, "m_dtype": "half"})
    load_plugins([PLUGIN])
    yield
    MEAN_FORMATS._entries.pop("half")
    _LOADED_PLUGINS.discard(PLUGIN)  # a worker may come to these tests in two goes


def test_a_run_trains_with_a_plugins_format_as_with_float32(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "start")
    trained = {}
    for name in ("fp32", "half"):
        recipe, out = TrainRecipe.from_dict({**KEYS, "m_dtype": name}), tmp_path / name
        outcome = run(Job(folder, tiny_rows(), recipe, 7, out / "work", out / "run", out / "master", "A", "abc"))
        assert outcome.status == "trained" and outcome.memory_predicted_mib["m"] > 0
        trained[name] = load_file(out / "master" / "model.safetensors")
    start = load_file(folder / "model.safetensors")
    exact, ours = (torch.cat([(t[n] - start[n]).flatten() for n in start]) for t in trained.values())
    assert not torch.equal(exact, ours) and torch.cosine_similarity(exact, ours, dim=0) > 0.999

    config = read_json(folder / "config.json")
    predicted, plain = (predict(config, replace(recipe, m_dtype=name), 32, 8) for name in ("half", "fp32"))
    assert 0.5 * plain.states["m"] < predicted.states["m"] < 0.6 * plain.states["m"]
    assert predicted.states["v"] == plain.states["v"]
    assert "master fp32, m half, v fp32; stepped after" in explain(folder, config, recipe, predicted)


def test_plain_torch_steps_by_a_format_that_the_kernel_does_not_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = TrainRecipe.from_dict({**KEYS, "m_dtype": "half", "step_in_backward": True})
    optimizer = TensorOptimizer({"w": torch.nn.Parameter(noise((4, 32), 1))}, recipe, {"w": 1.0})
    tensors = list(optimizer.tensors.values())
    assert {*optimizer.tensors["w"].states} == {*STATES} and not serves(tensors, recipe)
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    monkeypatch.setattr(kernels, "say_once", print)
    assert not serves(tensors, recipe)
    assert "train.m_dtype: half is not read by the fused optimizer kernel" in capsys.readouterr().out
    assert serves(tensors, replace(recipe, m_dtype="int8"))
