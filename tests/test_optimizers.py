"""Optimizers by name: one that a plugin adds steps as its paper says, trains, resumes, is predicted, refuses keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fgod.documents import Outcome
from fgod.errors import UsageError
from fgod.guard.predict import TooLargeError
from fgod.nvfp4 import kernels
from fgod.nvfp4.folders import open_weights
from fgod.plugins import _LOADED_PLUGINS, load_plugins
from fgod.registry import MEAN_FORMATS, OPTIMIZERS
from fgod.system.files import read_json
from fgod.train import checkpoint, choose
from fgod.train.autograd import autograd_stepper
from fgod.train.checkpoint import Schedule
from fgod.train.device import trainer
from fgod.train.device.plan import CUDA_WORKSPACE, predict_on_device
from fgod.train.memory import Prediction, check_fits, explain, predict
from fgod.train.optimizer import TensorOptimizer
from fgod.train.recipe import TrainRecipe
from fgod.train.stage import Job, run
from fgod.train.storage import StateKind
from fgod.train.update import CHUNK, PARTS, Optimizer
from tests.tiny_model import noise, tiny_folder, tiny_rows

PLUGIN = Path(__file__).parent.resolve() / "plugins" / "lion.py"
KEYS = {"steps": 6, "lr": 1e-3, "batch": 4, "seq_len": 64, "optimizer": "lion", "betas": [0.9, 0.99]}
SHAPES = {"matrix": (6, 32), "vector": (40,)}


@pytest.fixture(scope="module", autouse=True)
def lion() -> Iterator[None]:
    """The plugin's optimizer; it is taken away again after these tests."""
    with pytest.raises(UsageError, match=r"train\.optimizer: found 'lion'; allowed: adamw"):
        TrainRecipe.from_dict(KEYS)
    load_plugins([PLUGIN])
    yield
    OPTIMIZERS._entries.pop("lion")
    _LOADED_PLUGINS.discard(PLUGIN)  # a worker may come to these tests in two goes


def reference(weight: Tensor, grads: list[Tensor], lr: float, decay: float) -> tuple[Tensor, Tensor]:
    """Algorithm 2 of Chen et al. 2023 in float64, β (.9, .99): weights and momentum after a step by each gradient."""
    weight, momentum = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for grad in grads:
        update = torch.sign(0.9 * momentum + 0.1 * grad.double())
        weight = weight - lr * (update + decay * weight)
        momentum = 0.99 * momentum + 0.01 * grad.double()
    return weight, momentum


@pytest.mark.parametrize("in_backward", [True, False])
def test_steps_are_those_of_the_paper(in_backward: bool) -> None:
    """Vectors do not decay; a gradient of zero beside a momentum of zero steps nothing."""
    recipe = TrainRecipe.from_dict({**KEYS, "grad_clip": None, "weight_decay": 0.5, "step_in_backward": in_backward})
    begun = {name: noise(shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    grads = {name: [noise(shape, 10 + step) ** 3 for step in range(5)] for name, shape in SHAPES.items()}
    for each in grads["matrix"]:
        each[0] = 0
    weights = {name: nn.Parameter(tensor.clone()) for name, tensor in begun.items()}
    optimizer = TensorOptimizer(weights, recipe, {"matrix": 1.0, "vector": 0.5})
    for step in range(5):
        optimizer.begin(1e-2)
        now = {name: each[step] for name, each in grads.items()}
        if in_backward:
            for name, grad in now.items():
                optimizer.on_grad(name, grad)
        else:
            optimizer.step_together(now)
        facts = optimizer.finish()
        assert facts.whole.largest == 1 and facts.whole.clamped == 0
        assert facts.update_efficiency == pytest.approx(1, abs=1e-3)
    for name, lr, decay in (("matrix", 1e-2, 0.5), ("vector", 5e-3, 0.0)):
        weight, momentum = reference(begun[name], grads[name], lr, decay)
        assert torch.allclose(weights[name].double(), weight, rtol=0, atol=1e-6), name
        [state] = optimizer.tensors[name].states.values()
        assert torch.allclose(state.values.view(momentum.shape).double(), momentum, rtol=0, atol=1e-7), name


def trained(start: Path, out: Path, recipe: TrainRecipe, work: Path | None = None) -> Outcome:
    """A run with a checkpoint after every second step."""
    job = Job(start, tiny_rows(), recipe, 7, work or out / "work", out / "run", out / "master", "A", "abc")
    return run(replace(job, schedule=Schedule(steps=2)))


@pytest.mark.parametrize("modes", [{}, {"memory": "80gb", "step_chunk_rows": 7}])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_run_trains_and_goes_on_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_device: bool, modes: dict[str, object]
) -> None:
    """By either path; that of GPUs on the CPU, as if that were the device."""
    if on_device:
        here = torch.device("cpu")
        monkeypatch.setattr(choose, "autograd_stepper", lambda *args: trainer.device_stepper(here, *args, print))
    start, recipe = tiny_folder(tmp_path / "start"), TrainRecipe.from_dict({**KEYS, **modes})
    whole = trained(start, tmp_path / "whole", recipe)
    assert whole.status == "trained" and whole.full_parameter
    assert "m" in whole.memory_predicted_mib and "v" not in whole.memory_predicted_mib
    with open_weights(checkpoint.folders(tmp_path / "whole" / "work")[-1]) as stored:
        assert {name.rpartition("|")[2].rstrip("01") for name in stored.names} == {"w", "m"}

    again = trained(start, tmp_path / "again", recipe, tmp_path / "whole" / "work")
    assert again.resumed_at == (4,) and again.weights_sha256 == whole.weights_sha256
    plain = trained(start, tmp_path / "adamw", replace(recipe, optimizer="adamw"))
    assert plain.weights_sha256 != whole.weights_sha256


def test_its_states_are_predicted_exactly(tmp_path: Path) -> None:
    start = tiny_folder(tmp_path / "start")
    config = read_json(start / "config.json")
    for modes in ({}, {"memory": "80gb"}):
        recipe = TrainRecipe.from_dict({**KEYS, **modes})
        predicted, other = (predict(config, one, 32, 8) for one in (recipe, replace(recipe, optimizer="adamw")))
        tensors = autograd_stepper(start, recipe, 7, 0, lambda _: None).optimizer.tensors.values()
        assert predicted.states == {"m": sum(tensor.states["m"].nbytes for tensor in tensors)}
        assert other.total - predicted.total == other.states["v"] > 0
        said = explain(start, config, recipe, predicted)
        assert f"master {recipe.master_dtype}, m {recipe.m_dtype}; stepped" in said
        assert "running mean of gradients" in said and "running mean of squares" not in said
        assert said.endswith("bytes a parameter for weights and m")


class Plain(Optimizer):
    """Steps against the gradient, and keeps nothing."""

    states: Mapping[str, StateKind] = {}

    def direction(
        self, grad: Tensor, states: Sequence[Tensor], numbers: Sequence[Tensor], recipe: TrainRecipe
    ) -> Tensor:
        return grad


def test_one_that_keeps_nothing_is_explained_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS._entries, "plain", Plain())
    start = tiny_folder(tmp_path / "start")
    config, recipe = read_json(start / "config.json"), TrainRecipe(2, 1e-2, batch=4, seq_len=64, optimizer="plain")
    predicted = predict(config, recipe, 32, 8)
    said = explain(start, config, recipe, predicted)
    assert predicted.states == {} and "master fp32; stepped after" in said
    assert said.endswith("4.000 bytes a parameter for weights")
    assert trained(start, tmp_path / "plain", recipe).status == "trained"


def test_a_state_is_no_other_part_of_a_prediction() -> None:
    own = {field.name for field in fields(Prediction)} - {"optimizer", "states"}
    assert {*PARTS} == own | {"total"}
    for name in PARTS:
        method = Plain()
        method.states = {name: StateKind("m_dtype", MEAN_FORMATS, "running mean")}
        with pytest.raises(UsageError, match=rf"train\.optimizer 'mine': found a state '{name}', which names another"):
            OPTIMIZERS.register("mine", method)
    assert "mine" not in OPTIMIZERS


def test_copies_of_a_step_without_kernels_are_predicted_on_a_gpu(tmp_path: Path) -> None:
    config = {**read_json(tiny_folder(tmp_path / "start") / "config.json"), "vocab_size": 2**18}

    def stepping(**changes: object) -> int:
        """In float32 numbers a weight of the largest chunk, of which the embedding has two."""
        recipe = TrainRecipe(1, 1e-3, device="cuda", **{"step_in_backward": True, **changes})  # type: ignore[arg-type]
        predicted = predict_on_device(config, recipe, 1, 8, 1)
        waited = 0 if recipe.step_in_backward else predicted.activations + predicted.logits
        copies, rest = divmod(predicted.workspace + waited - CUDA_WORKSPACE, 4 * CHUNK["cuda"])
        assert rest == 0
        return copies

    assert stepping() == stepping(m_dtype="int8", master_dtype="bf16") == 1, "by AdamW's kernel"
    assert stepping(optimizer="lion") == stepping(step_in_backward=False) == 4
    assert stepping(optimizer="lion", m_dtype="int8") == stepping(master_dtype="nvfp4") == 10


def test_a_gpu_without_triton_is_predicted_to_need_more(tmp_path: Path) -> None:
    config = {**read_json(tiny_folder(tmp_path / "start") / "config.json"), "vocab_size": 2**18}
    kept = TrainRecipe(1, 1e-3, device="cuda", step_in_backward=True, m_dtype="int8", master_dtype="bf16")

    def workspace(tokens: int, labels: int, **how: bool) -> int:
        return predict_on_device(config, kept, 1, tokens, labels, **how).workspace - CUDA_WORKSPACE  # type: ignore[arg-type]

    assert workspace(8, 1) == 4 * CHUNK["cuda"], "AdamW's kernel steps"
    copies, rest = divmod(workspace(8, 1, kernels=False), 4 * CHUNK["cuda"])
    assert (copies, rest) == (10, 0), "plain torch steps packed states"
    mlp = config["intermediate_size"]
    assert workspace(2**20, 1, kernels=False) == 10 * 4 * 2**20 * mlp, "and has the MLP's backward pass in float32"


def test_a_gradient_that_is_cast_is_there_twice(tmp_path: Path) -> None:
    config = read_json(tiny_folder(tmp_path / "start") / "config.json")
    largest = config["vocab_size"] * config["hidden_size"]

    def gradients(**changes: object) -> int:
        return predict(config, TrainRecipe(1, 1e-3, **changes), 8, 1).gradients  # type: ignore[arg-type]

    inside = {"step_in_backward": True}
    assert gradients(**inside) == 4 * largest
    assert gradients(**inside, master_dtype="bf16") == gradients(**inside, compute_dtype="bfloat16") == 6 * largest
    assert gradients(**inside, master_dtype="bf16", compute_dtype="bfloat16") == 2 * largest


def test_a_key_that_it_does_not_use_is_refused_by_name(tmp_path: Path) -> None:
    for key, value in (("eps", 1e-6), ("v_dtype", "bf16"), ("offload_moments", True)):
        words = rf"^train\.{key}: found {value!r} with optimizer: lion, which does not use it; expected it left out"
        with pytest.raises(UsageError, match=words):
            TrainRecipe.from_dict({**KEYS, "step_in_backward": True, key: value})
    packed = TrainRecipe.from_dict({**KEYS, "memory": "80gb", "device": "cuda"})
    assert TrainRecipe.from_dict(packed.to_dict()) == packed, "the memory table gave it a v_dtype"

    config = read_json(tiny_folder(tmp_path / "start") / "config.json")
    with pytest.raises(TooLargeError) as refused:
        check_fits(packed, lambda one: predict_on_device(config, one, one.batch, 32, 8), 1)
    assert "offload_moments" not in str(refused.value)


def test_plain_torch_steps_it_where_kernels_run_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = TrainRecipe.from_dict({**KEYS, "step_in_backward": True})
    kernels.say_once.cache_clear()
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    for seed in range(2):
        assert TensorOptimizer({"w": noise((4, 32), 1)}, recipe, {"w": 1.0}, seed).kernels is None
    assert capsys.readouterr().err.count("train.optimizer: lion has no fused kernel; plain torch steps on the GPU") == 1


def test_the_default_is_in_no_recipe() -> None:
    recipe = TrainRecipe(6, 1e-3)
    assert "optimizer" not in recipe.to_dict() and recipe == TrainRecipe.from_dict({**recipe.to_dict()})
    assert TrainRecipe.from_dict(KEYS).to_dict()["optimizer"] == "lion"
