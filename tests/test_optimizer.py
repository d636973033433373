"""Masters, moments and the ways to step: agreement with torch, chunks, backward, memory, checkpoints, preflight."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fgod.cli import main
from fgod.documents import Outcome
from fgod.errors import UsageError
from fgod.exporters.read import dequantised
from fgod.exporters.write import export
from fgod.guard.predict import TooLargeError
from fgod.model.chats import ChatFormat
from fgod.model.load import read_config
from fgod.model.masters import load_masters, master_torch_dtype
from fgod.model.tokenizer import CHAT_TEMPLATE
from fgod.models.architecture import tensors_of
from fgod.nvfp4 import kernels
from fgod.nvfp4.codec import BLOCK_SCALES, fake_quantise, quantise
from fgod.nvfp4.layers import prepare
from fgod.registry import MEAN_FORMATS, OPTIMIZERS, SQUARE_FORMATS
from fgod.train import checkpoint
from fgod.train.autograd import autograd_stepper
from fgod.train.batches import micro_batches
from fgod.train.checkpoint import Schedule
from fgod.train.device import settings
from fgod.train.device.plan import predict_on_device
from fgod.train.efficiency import WORTH_JUDGING, LostUpdatesError, Projection, Watch, group_of
from fgod.train.fused import KNOWN
from fgod.train.memory import Prediction, check_fits, predict
from fgod.train.optimizer import TensorOptimizer
from fgod.train.preflight import PreflightError, check_chat, check_forward
from fgod.train.recipe import (
    M_DTYPES,
    MASTER_DTYPES,
    MEMORY,
    OPTIMIZER_KEYS,
    OWN_OPTIMIZERS,
    V_DTYPES,
    MemoryModes,
    TrainRecipe,
)
from fgod.train.stage import TRAINED, Job, run
from fgod.train.storage import MASTERS, master_kind
from tests.mini import ROOT
from tests.tiny_model import noise, tiny_folder, tiny_model, tiny_rows, tiny_tokenizer

RECIPE = TrainRecipe(steps=6, lr=1e-3, batch=4, seq_len=64, warmup=2, weight_decay=0.01, l2_sp=2.0)
PACKED: dict[str, Any] = {"master_dtype": "bf16", "m_dtype": "int8", "v_dtype": "uint8"}
UNSET: dict[str, Any] = dict.fromkeys(asdict(MemoryModes()))
SHAPE = (24, 48)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("start") / "master")


def train(start: Path, out: Path, recipe: TrainRecipe = RECIPE, **more: Any) -> Outcome:
    return run(Job(start, tiny_rows(), recipe, 7, out / "work", out / "run", out / "master", "A", "abc", **more))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "master" / "model.safetensors")


def stepped(steps: int = 4, lr: float = 1e-3, **changes: Any) -> tuple[TensorOptimizer, list[Projection]]:
    """Steps of one matrix by fixed gradients of very different sizes."""
    recipe = replace(TrainRecipe(steps, lr, grad_clip=None, schedule="constant"), **changes)
    kind = master_kind(recipe.master_dtype, SHAPE)
    parameter = nn.Parameter((noise(SHAPE, 1) * 0.05).to(kind.dtype))
    parameter.grad_dtype = torch.float32
    optimizer = TensorOptimizer({"w": parameter}, recipe, {"w": 1.0}, seed=3)
    told = []
    for step in range(steps):
        parameter.grad = noise(SHAPE, 10 + step) ** 3 * torch.logspace(-6, 0, SHAPE[0]).unsqueeze(1)
        told.append(optimizer.step(lr).whole)
    return optimizer, told


def state(optimizer: TensorOptimizer) -> list[Tensor]:
    tensor = optimizer.tensors["w"]
    return [tensor.weight, *(part for state in tensor.states.values() for part in state.tensors)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


# ---- arithmetic


def test_names_of_modes_are_those_of_the_recipe() -> None:
    assert (tuple(MASTERS), tuple(MEAN_FORMATS), tuple(SQUARE_FORMATS)) == (MASTER_DTYPES, M_DTYPES, V_DTYPES)
    assert KNOWN == {"m": M_DTYPES, "v": V_DTYPES}
    assert tuple(OPTIMIZERS) == OWN_OPTIMIZERS and OPTIMIZERS[TrainRecipe.optimizer].used_keys == {*OPTIMIZER_KEYS}
    for name in MASTER_DTYPES:
        for shape in ((4, 16), (16,)):
            assert master_kind(name, shape).dtype == master_torch_dtype(name, len(shape))


def spacing(values: Tensor) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, torch.inf)) - values


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_float32_steps_are_those_of_torch_within_an_ulp_of_the_weight_and_two_of_the_update(decay: float) -> None:
    optimizer, _ = stepped(1, weight_decay=decay)
    theirs = nn.Parameter(noise(SHAPE, 1) * 0.05)
    reference = torch.optim.AdamW([theirs], lr=1e-3, betas=(0.9, 0.95), weight_decay=decay)
    theirs.grad = noise(SHAPE, 10) ** 3 * torch.logspace(-6, 0, SHAPE[0]).unsqueeze(1)
    reference.step()
    ours = optimizer.tensors["w"].parameter.detach()
    largest = torch.maximum(ours.abs(), (noise(SHAPE, 1) * 0.05).abs())
    assert ((ours - theirs.detach()).abs() <= spacing(largest) + 2 * spacing(torch.tensor(1e-3))).all()
    assert (ours == theirs).float().mean() > 0.6
    m, v = (state.tensors[0] for state in optimizer.tensors["w"].states.values())
    assert torch.equal(m, reference.state[theirs]["exp_avg"])
    assert torch.equal(v, reference.state[theirs]["exp_avg_sq"])


@pytest.mark.parametrize("master", MASTER_DTYPES)
@pytest.mark.parametrize(("m", "v"), [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "uint8"), ("nvfp4", "nvfp4")])
def test_chunks_of_any_size_give_the_same_bits(master: str, m: str, v: str) -> None:
    modes = {"master_dtype": master, "m_dtype": m, "v_dtype": v, "l2_sp": 1.0, "weight_decay": 0.1}
    whole, _ = stepped(**modes)
    for rows in (1, 7, 24, 100):
        cut, _ = stepped(step_chunk_rows=rows, **modes)
        assert same(state(whole), state(cut)), rows


@pytest.mark.parametrize(("m", "v"), [("bf16", "bf16"), ("int8", "uint8"), ("nvfp4", "uint8"), ("nvfp4", "nvfp4")])
def test_packed_moments_steer_as_float32_ones_do_and_never_explode(m: str, v: str) -> None:
    exact, _ = stepped(12)
    packed, told = stepped(12, m_dtype=m, v_dtype=v)
    begun = noise(SHAPE, 1) * 0.05
    a, b = ((o.tensors["w"].parameter.detach() - begun).flatten() for o in (exact, packed))
    assert torch.cosine_similarity(a, b, dim=0) > (0.9 if "nvfp4" in (m, v) else 0.99)
    assert max(t.largest for t in told) < 8
    assert b.abs().max() <= 12 * 4 * 1e-3


def test_the_clip_bounds_the_update_and_counts_what_it_cut() -> None:
    free, told = stepped(update_clip=None)
    assert max(t.largest for t in told) < 1.2, "β (.9, .95) bounds m̂/√v̂ by itself: the default of 4 changes nothing"
    assert same(state(free), state(stepped()[0]))
    clipped, told = stepped(update_clip=0.5)
    assert told[-1].clamped_share() > 0.1
    assert (clipped.tensors["w"].parameter.detach() - noise(SHAPE, 1) * 0.05).abs().max() <= 4 * 0.5e-3 * 1.001


def test_updates_land_with_stochastic_rounding_and_vanish_without() -> None:
    """Gaussian weights of .02 as in Qwen3-4B, lr 1e-5."""
    told = {}
    for master in ("fp32", "bf16", "bf16-rtn"):
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(512, 512, generator=generator) * 0.02
        parameter = nn.Parameter(weight.to(master_kind(master, weight.shape).dtype))
        parameter.grad_dtype = torch.float32
        optimizer = TensorOptimizer({"w": parameter}, TrainRecipe(1, 1e-5, master_dtype=master), {"w": 1.0})
        for _ in range(12):
            parameter.grad = torch.randn(512, 512, generator=generator)
            told[master] = optimizer.step(1e-5).whole
    assert told["fp32"].ratio() == pytest.approx(1, abs=1e-3)
    assert told["bf16"].ratio() == pytest.approx(1, abs=0.05)
    lost, noise_beside = told["bf16-rtn"].ratio() or 0, told["bf16-rtn"].noise() or 0
    assert lost < 0.3
    assert noise_beside > 2 * lost, "a ratio of norms would hide it"


def test_a_run_whose_updates_vanish_stops_and_says_why(start: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=20, lr=1e-5, warmup=0, l2_sp=0.0, master_dtype="bf16-rtn")
    with pytest.raises(LostUpdatesError, match=r"\d+% of the update is lost to rounding in bf16") as e:
        train(start, tmp_path, recipe)
    assert "use stochastic rounding (master_dtype: bf16)" in str(e.value) and "or lr ≥" in str(e.value)
    assert len((tmp_path / "run" / "train.tsv").read_text().splitlines()) == 11
    outcome = train(start, tmp_path / "shown", replace(recipe, steps=11, min_update_efficiency=None))
    assert (outcome.full_parameter, outcome.partial) == (False, ("master_dtype: bf16-rtn",))


def test_the_end_of_a_schedule_is_not_judged() -> None:
    lost = Projection()
    lost.realised, lost.intended = 0.1, 1.0
    assert Watch(0.5, 1.0, 2).add(Projection(), 1.0) is None, "nothing was intended"
    watch = Watch(0.5, 1.0, 2)
    assert [watch.add(lost, lr) for lr in (1.0, 0.009, 0.009)] == [None, None, None], "too small to matter"
    assert watch.add(lost, 0.5) == pytest.approx(0.1), "two steps that are judged"
    watch = Watch(0.5, 1.0, 2)
    assert [watch.add(lost, 0.01) for _ in range(2)] == [None, pytest.approx(0.1)], "one hundredth is judged"


def test_steps_that_are_not_judged_move_the_weights_by_less_than_a_thousandth() -> None:
    for schedule in ("cosine", "linear"):
        recipe = replace(RECIPE, steps=5000, warmup=0, schedule=schedule)
        rates = [recipe.lr_at(step) for step in range(recipe.steps)]
        assert sum(rate for rate in rates if rate < WORTH_JUDGING * recipe.lr) < sum(rates) / 1000


def test_groups() -> None:
    names = [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.q_norm.weight",
    ]
    names += ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    assert [group_of(n) for n in names] == ["embedding", "head", "norms", "norms", "attention", "mlp"]


class NoReadback(TorchDispatchMode):
    """Fails where a number of a tensor is asked for: a GPU would be waited for, and no CUDA graph could hold it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        assert func not in asked, f"a step asks the device: {func}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("in_backward", [True, False])
@pytest.mark.parametrize("master", MASTER_DTYPES)
@pytest.mark.parametrize(("m", "v"), [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "uint8"), ("nvfp4", "nvfp4")])
def test_a_step_asks_the_device_for_nothing(master: str, m: str, v: str, in_backward: bool) -> None:
    modes = {"master_dtype": master, "m_dtype": m, "v_dtype": v, "step_in_backward": in_backward}
    recipe = TrainRecipe(2, 1e-3, l2_sp=1.0, weight_decay=0.1, step_chunk_rows=7, **modes)
    weights = {"w": (noise(SHAPE, 1) * 0.05).to(master_kind(master, SHAPE).dtype), "b": noise((8,), 2)}
    optimizer = TensorOptimizer(weights, recipe, {"w": 1.0, "b": 1.0})
    for step in range(2):
        grads = {name: noise(tuple(weight.shape), 10 + step) for name, weight in weights.items()}
        for target, numbers in zip(optimizer.on_device, optimizer.host_numbers(1e-3), strict=True):
            target.copy_(numbers)
        with NoReadback():
            optimizer.begin_step()
            if in_backward:
                for name, grad in grads.items():
                    optimizer.on_grad(name, grad)
            else:
                optimizer.step_together(grads)
            optimizer.finish_step()
    assert optimizer.facts(optimizer.step_stats).whole.finite()
    assert not optimizer.unchanged() and all(optimizer.got_gradient().values())
    with pytest.raises(AssertionError, match="asks the device"), NoReadback():
        optimizer.step_stats.sum().item()


# ---- in the backward pass


def test_stepping_in_the_backward_pass_changes_no_bit(start: Path, tmp_path: Path) -> None:
    """Against stepping after it: with one gradient clip that never binds, the two are the same arithmetic."""
    recipe = replace(RECIPE, grad_clip=None, lr=4e-3)
    for name, changes in (("after", {}), ("in", {"step_in_backward": True}),
                          ("again", {"step_in_backward": True, "activation_checkpointing": True})):  # fmt: skip
        train(start, tmp_path / name, replace(recipe, **changes))
    after = weights(tmp_path / "after")
    for name in ("in", "again"):
        assert same(list(after.values()), list(weights(tmp_path / name).values())), name


def test_a_sibling_stepped_earlier_in_the_backward_pass_changes_nothing() -> None:
    """Scales of q, k and v are powers of two: another one changes a weight only at the ends of E4M3's range. And a
    backward pass that quantises again does so under the scale of its forward pass, so that not even those change."""
    weight = noise((32, 64), 5) * torch.logspace(-7, 0, 32).unsqueeze(1)
    near, far = (fake_quantise(weight, scale) for scale in (1024.0, 1024.0 / 256))
    moved = (near != far).any(1)
    scales = quantise(weight, 4.0).scales.float()
    assert moved.any() and not moved[(scales > 2.0**-6).all(1)].any()

    def gradient(grown: float) -> tuple[Tensor, Tensor]:
        """Of k's input, where q became larger between the passes; and k as it would be quantised now."""
        attention = prepare(tiny_model(), keep_quantised=False).model.layers[0].self_attn
        with torch.no_grad():
            attention.k_proj.weight.mul_(torch.logspace(-6, 0, len(attention.k_proj.weight)).unsqueeze(1))
        hidden = noise((2, 5, 32), 8).requires_grad_()
        out = attention.k_proj(hidden).square().sum()
        attention.q_proj.weight.data.mul_(grown)
        [grad] = torch.autograd.grad(out, hidden)
        return grad, fake_quantise(attention.k_proj.weight.detach(), attention.k_proj.group.global_scale())

    (before, weight_before), (after, weight_after) = gradient(1.0), gradient(4096.0)
    assert torch.equal(before, after)
    assert not torch.equal(weight_before, weight_after)


def test_gradients_are_freed_as_they_are_used(start: Path) -> None:
    recipe = replace(RECIPE, **PACKED, step_in_backward=True)
    trainer = autograd_stepper(start, recipe, 7, 0, lambda _: None)
    alive: list[int] = []
    for parameter in trainer.model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in trainer.model.parameters()))
        )
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(4), 64)
    row, _ = trainer.step(0, samples)
    assert alive == [0] * 24, "the tied embedding fires once"
    assert row.grad_norm > 0
    assert not trainer.optimizer.unchanged()


def test_accumulation_with_steps_in_the_backward_pass_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.micro_batch: found 2 below batch \(4\) with step_in_backward"):
        replace(RECIPE, micro_batch=2, step_in_backward=True)
    assert replace(RECIPE, micro_batch=4, step_in_backward=True).step_in_backward


# ---- recipes


def test_the_memory_table_resolves_to_modes_and_is_overridden_key_by_key() -> None:
    """A change of this table changes what recipes mean: raise NUMERICS_VERSION."""
    assert MEMORY["cpu"] == MemoryModes("fp32", "fp32", "fp32", False, False, None)
    assert MEMORY["80gb"] == MemoryModes("bf16", "int8", "uint8", True, True, 4096)
    assert MEMORY["24gb"] == MemoryModes("bf16", "nvfp4", "uint8", True, True, 1024)
    assert MEMORY["128gb-unified"] == MemoryModes("bf16", "int8", "uint8", True, True, 2048)
    recipe = TrainRecipe(1, 1e-3, memory="24gb", m_dtype="int8", step_in_backward=False)
    assert (recipe.master_dtype, recipe.m_dtype, recipe.v_dtype) == ("bf16", "int8", "uint8")
    assert (recipe.step_in_backward, recipe.activation_checkpointing) == (False, True)
    with pytest.raises(UsageError, match="offload_moments: found true with step_in_backward false"):
        replace(recipe, offload_moments=True)
    for key, value in (("memory", "12gb"), ("m_dtype", "uint8"), ("v_dtype", "int8"), ("update_clip", 0)):
        with pytest.raises(UsageError, match=rf"train\.{key}: found"):
            TrainRecipe.from_dict({"steps": 1, "lr": 1e-3, key: value})


@pytest.mark.parametrize(
    "modes",
    [
        PACKED,
        {"memory": "24gb"},
        {"master_dtype": "nvfp4", "m_dtype": "nvfp4", "v_dtype": "nvfp4", "lr": 4e-3},
        {**PACKED, "compute_dtype": "bfloat16", "micro_batch": 2},
        {"block_scales": "four-over-six", "length_bucket": 16},
    ],
)
def test_every_mode_trains_every_tensor_and_exports_what_it_trained(
    start: Path, tmp_path: Path, modes: dict[str, Any]
) -> None:
    recipe = replace(
        RECIPE,
        **{
            "lr": 2e-3,
            **dict.fromkeys(("master_dtype", "m_dtype", "v_dtype", "step_in_backward", "activation_checkpointing")),
            **modes,
        },
    )
    outcome = train(start, tmp_path, recipe)
    assert outcome.status == TRAINED and outcome.full_parameter
    export(tmp_path / "master", tmp_path / "nvfp4", recipe.compute_dtype)
    model = load_masters(tmp_path / "master", recipe.compute_dtype)
    for name, value in dequantised(tmp_path / "nvfp4"):
        module = model.get_submodule(name.removesuffix(".weight"))
        if hasattr(module, "group"):
            mine = fake_quantise(
                module.weight.detach().float(), module.group.global_scale(), block_scales=recipe.block_scales
            )
            assert torch.equal(mine, value), name
    again = train(start, tmp_path / "again", recipe)
    assert again.weights_sha256 == outcome.weights_sha256


def test_four_over_six_has_the_smaller_error_and_repacks_to_the_same() -> None:
    weight = noise((64, 128), 4) ** 3
    errors = []
    for rule in BLOCK_SCALES:
        values = fake_quantise(weight, 64.0, block_scales=rule)
        errors.append((values - weight).square().sum().item())
        assert torch.equal(fake_quantise(values, 64.0, block_scales=rule), values)
    assert errors[1] < 0.95 * errors[0]


def test_debugging_modes_mark_their_run(start: Path, tmp_path: Path) -> None:
    outcome = train(start, tmp_path / "last", replace(RECIPE, train_last_layers=1))
    assert (outcome.status, outcome.full_parameter, outcome.partial) == (TRAINED, False, ("train_last_layers: 1",))
    before, after = load_file(start / "model.safetensors"), weights(tmp_path / "last")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if n.startswith("model.layers.1.") or n == "model.norm.weight"}
    scalar = train(start, tmp_path / "scalar", replace(RECIPE, loss="scalar", train_last_layers=2))
    assert scalar.partial == ("train_last_layers: 2", "loss: scalar")
    with pytest.raises(UsageError, match=r"train\.train_last_layers: found 3, expected at most 2"):
        train(start, tmp_path, replace(RECIPE, train_last_layers=3))


def test_micro_batches_hold_rows_of_similar_lengths() -> None:
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(8), 64)
    pieces = micro_batches(samples, 4, 0, 8)
    assert pieces[0].input_ids.shape[1] <= pieces[1].input_ids.shape[1]
    assert all(piece.input_ids.shape[1] % 8 == 0 for piece in pieces)


# ---- memory


def test_shapes_and_states_are_predicted_exactly(start: Path) -> None:
    config = json.loads((start / "config.json").read_text())
    model = tiny_model()
    assert tensors_of(config, "x") == {n: tuple(p.shape) for n, p in model.named_parameters()}
    for modes in (PACKED, {"memory": "24gb"}, {}):
        recipe = replace(
            RECIPE, **{**dict.fromkeys(("master_dtype", "m_dtype", "v_dtype", "step_in_backward")), **modes}
        )
        optimizer = autograd_stepper(start, recipe, 7, 0, lambda _: None).optimizer
        predicted = predict(config, recipe, 32, 8)
        for name, size in predicted.states.items():
            assert size == sum(t.states[name].nbytes for t in optimizer.tensors.values()) > 0
        assert predicted.weights == sum(t.parameter.nbytes for t in optimizer.tensors.values())
    for recipe, key in (
        (replace(RECIPE, batch=4), "micro_batch"),
        (replace(RECIPE, batch=4, step_in_backward=True), "batch"),
    ):

        def predicted(one: TrainRecipe) -> Prediction:
            return predict(config, one, 32, 8 * (one.micro_batch or one.batch))

        most, least = predicted(recipe), predicted(replace(recipe, **{key: 2}))
        check_fits(recipe, predicted, most.total)
        with pytest.raises(TooLargeError, match=rf"Nothing was loaded\. Set train\.{key} to 2 \(saves "):
            check_fits(recipe, predicted, least.total)
    with pytest.raises(UsageError, match=r"x: architectures: found None, expected one of .*Qwen3ForCausalLM"):
        tensors_of({}, "x")


def test_a_run_that_does_not_fit_is_refused_and_one_that_does_is_trained(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TooLargeError, match=r"this run needs about 0\.\d+ GiB \(process .*Nothing was loaded"):
        train(start, tmp_path, limit_gb=0.01)
    outcome = train(start, tmp_path, limit_gb=8)
    assert train(start, tmp_path / "anyway", limit_gb=0.01, too_large_ok=True).weights_sha256 == outcome.weights_sha256
    assert "It is tried all the same (guard.too_large_ok)." in capsys.readouterr().err


MEASURED = """
import json, sys
from pathlib import Path
from transformers import Qwen3ForCausalLM
from fgod.model.load import quiet
from fgod.train.stage import Job, run
from fgod.train.recipe import TrainRecipe
from tests.tiny_model import tiny_model, tiny_rows, tiny_tokenizer

folder, config = Path(sys.argv[1]), tiny_model().config
config.update(
    {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
)
config.num_hidden_layers, config.layer_types = 4, config.layer_types * 2
with quiet():
    Qwen3ForCausalLM(config).save_pretrained(folder / "middle")
    tiny_tokenizer().save_pretrained(folder / "middle")
recipe = TrainRecipe(steps=3, lr=1e-3, batch=4, seq_len=64)
out = folder / "out"
outcome = run(Job(folder / "middle", tiny_rows(), recipe, 7, out / "work", out / "run", None, "A", "abc"))
print(json.dumps([outcome.memory_predicted_mib, outcome.memory_measured_mib]))
"""
"""Prints what a run of 12 million parameters was predicted to take by part, and what it took: MiB."""


def test_a_runs_memory_is_as_predicted(tmp_path: Path) -> None:
    """In a process of its own: what others have freed in this one would be taken again. The libraries that a first step
    loads take more or less by CPU (`FIRST_STEP` stands for them), so the whole is held to 10 %, the rest to 20 %."""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], cwd=ROOT, capture_output=True, check=True, text=True
    )
    predicted, measured = json.loads(ran.stdout.splitlines()[-1])
    process = predicted["process"]
    assert measured == pytest.approx(predicted["total"], rel=0.1)
    assert measured - process == pytest.approx(predicted["total"] - process, rel=0.2)


def test_memory_is_explained_before_anything_is_loaded(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((start / "config.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps({"train": {"steps": 1, "lr": 1e-3, "memory": "24gb"}}))
    for arguments, code in ((["--weights", str(tmp_path)], 0), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            main(["train", "--recipe", str(tmp_path / "recipe.json"), *arguments, "--explain-memory"])
        assert ended.value.code == code
    said = capsys.readouterr().out
    assert "master bf16, m nvfp4, v uint8; stepped in the backward pass" in said
    assert "bytes a parameter for weights, m and v" in said


def test_memory_is_explained_for_the_device_that_would_train(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainRecipe(steps=1, lr=1e-3, batch=4, seq_len=64, memory="80gb", compute_dtype="bfloat16")
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(recipe)))
    monkeypatch.setattr(settings, "choose_device", lambda *_: torch.device("cuda"))
    with pytest.raises(SystemExit):
        main(["train", "--recipe", str(tmp_path / "recipe.json"), "--weights", str(start), "--explain-memory"])
    monkeypatch.setattr(kernels, "run_on", lambda device: device.type == "cuda")
    on_device = predict_on_device(read_config(start), recipe, 4, 64, 128)
    assert on_device.text() in capsys.readouterr().out
    assert on_device.text() != predict(read_config(start), recipe, 64, 128).text()


# ---- preflight


def test_preflight_shows_a_row_and_names_what_is_wrong_with_the_chat_template() -> None:
    row = tiny_rows(1)[0]
    whole = f"<|im_start|>user\n{row.prompt}<|im_end|>\n<|im_start|>assistant\n{row.target}<|im_end|>"
    assert check_chat(ChatFormat(tiny_tokenizer()), 304, row) == whole
    for change, words in (
        ({"eos_token": "<|endoftext|>"}, "ends an answer with '<|im_end|>', expected one of '<|endoftext|>'"),
        ({"chat_template": "{{ messages[0].content[:2] }}"}, "expected each once, in order"),
        ({"chat_template": "{{ messages[0].content }}"}, "expected each once, in order"),
        ({"chat_template": "{{ messages[0].content.lower() }}"}, "expected each once, in order"),
        ({"chat_template": CHAT_TEMPLATE.replace("+ '<|im_end|>", "| replace('是', '') + '<|im_end|>")}, "loses or"),
    ):
        broken = tiny_tokenizer.__wrapped__()
        for name, value in change.items():
            setattr(broken, name, value)
        with pytest.raises(PreflightError, match=f"preflight, chat template: .*{words}".replace("|", r"\|")):
            check_chat(ChatFormat(broken), 304, row)
    with pytest.raises(PreflightError, match="pad token: id"):
        check_chat(ChatFormat(tiny_tokenizer()), 0, row)


def test_preflight_finds_a_training_path_of_its_own(start: Path) -> None:
    model = load_masters(start)
    assert 0 < check_forward(model, [[5, 6, 7]]) < 6
    layer = model.model.layers[1].mlp.up_proj
    layer.block_scales = "four-over-six"
    check_forward(model, [[5, 6, 7]])
    original = type(layer).forward
    try:
        type(layer).forward = lambda self, x: original(self, x) * 1.0001
        with pytest.raises(PreflightError, match=r"preflight, forward: .* differ by up to"):
            check_forward(model, [[5, 6, 7]])
    finally:
        type(layer).forward = original


def test_preflight_asks_all_prompts_at_once(start: Path) -> None:
    model, chats = load_masters(start), [[5, 6, 7], [9, 4, 33, 2, 1], [8]]
    each = [check_forward(model, [chat]) for chat in chats]
    assert math.isclose(check_forward(model, chats), sum(each) / 3, rel_tol=1e-4) and len(set(each)) == 3


# ---- checkpoints


def checkpointed(start: Path, out: Path, recipe: TrainRecipe) -> list[str]:
    """The command of a run with a checkpoint after every step."""
    out.mkdir(parents=True, exist_ok=True)
    from fgod.data.rows import write_rows

    write_rows(out / "rows.tsv", tiny_rows())
    (out / "recipe.json").write_text(json.dumps({"train": asdict(recipe), "seed": 7, "stage": "A"}))
    paths = {"recipe": "recipe.json", "rows": "rows.tsv", "work": "work", "run": "run", "master": "master",
             "phase-file": "phase", "result": "outcome.json"}  # fmt: skip
    command = [sys.executable, "-m", "fgod.train", "--weights", str(start), "--checkpoint-steps", "1"]
    return command + [part for name, path in paths.items() for part in (f"--{name}", str(out / path))]


def test_a_run_killed_at_a_random_step_ends_with_the_same_bits(start: Path, tmp_path: Path) -> None:
    """benchmarks/resume.py does this over and over."""
    recipe = replace(RECIPE, steps=60, **PACKED, step_in_backward=True)
    whole = train(start, tmp_path / "whole", recipe)
    command = checkpointed(start, tmp_path / "cut", recipe)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    work, last = tmp_path / "cut" / "work", random.randrange(3, 50)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(int(f.name[-8:]) >= last for f in checkpoint.folders(work)):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(checkpoint.folders(work)) <= 3, "two, and the third in the instant before the oldest goes"
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    outcome = json.loads((tmp_path / "cut" / "outcome.json").read_text())
    assert outcome["weights_sha256"] == whole.weights_sha256
    assert len(outcome["resumed_at"]) == 1 and outcome["steps_done"] == 60
    tables = [(tmp_path / n / "run" / "train.tsv").read_text().splitlines() for n in ("whole", "cut")]
    losses = [[(*line.split("\t")[2:6], *line.split("\t")[-2:]) for line in lines[1:]] for lines in tables]
    assert losses[0] == losses[1], "and the rows of each step with theirs"
    assert checkpoint.folders(work), "they stay until the outcome is noted"


def test_a_checkpoint_of_another_recipe_or_processor_is_refused(start: Path, tmp_path: Path) -> None:
    optimizer = autograd_stepper(start, RECIPE, 7, 0, lambda _: None).optimizer
    optimizer.steps_done = 3
    here = settings.processor(torch.device("cpu"))
    folder = checkpoint.save(tmp_path / "work", optimizer, checkpoint.Identity("another", here), {"resumed_at": []})
    with pytest.raises(UsageError, match=r"checkpoint-00000003: found a checkpoint of the run another, expected"):
        train(start, tmp_path)
    assert folder.is_dir()
    run = checkpoint.digest_of(RECIPE, tiny_rows(), 7, start)
    assert run != checkpoint.digest_of(replace(RECIPE, lr=2e-3), tiny_rows(), 7, start)

    elsewhere = checkpoint.Identity(run, "AVX1024 Elsewhere")
    checkpoint.save(tmp_path / "work", optimizer, elsewhere, {"resumed_at": []})
    with pytest.raises(UsageError, match=rf"with AVX1024 Elsewhere; this machine computes with {here}.*delete"):
        train(start, tmp_path)
    assert folder.is_dir() and checkpoint.restore(tmp_path / "work", optimizer, elsewhere) == {"resumed_at": []}


def test_a_schedule_says_when() -> None:
    assert [Schedule(0, 3).due(step) for step in range(1, 7)] == [False, False, True, False, False, True]
    assert not Schedule(100).due(1)
    hasty = Schedule(1e-9)
    assert hasty.due(1) and hasty.due(2)
    assert not Schedule().due(1)
