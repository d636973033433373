"""Triton kernels against their plain-torch references: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fgod.errors import UsageError
from fgod.model.chats import ChatFormat
from fgod.model.load import read_config
from fgod.nvfp4.layers import prepare
from fgod.selftest.case import Case, bits
from fgod.train.device.network import Network
from fgod.train.device.ops import PLAIN, Ops
from fgod.train.device.optimizer import GroupGradients, device_optimizer
from fgod.train.device.trainer import DeviceStepper
from fgod.train.device.weights import Bank, Masters, stream_in
from fgod.train.optimizer import StepFacts, TensorOptimizer
from fgod.train.ranks.packed import packed
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import master_kind
from fgod.train.update import Factors
from tests.tiny_model import noise, tiny_folder, tiny_model, tiny_rows, tiny_tokenizer

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def _missing() -> str:
    """Why kernels cannot run here, in words; empty if they can."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        if sys.platform == "linux":  # a skip would hide that no kernel was tested
            raise RuntimeError("triton is not installed; expected .venv/kernels, which make test fills") from None
        return "there is no triton for this system: kernels are not tested here"
    if not CUDA and tuple(map(int, found.split(".")[:2])) < (3, 7):
        return f"triton {found}: its interpreter fails on loops with numpy 2.4; kernels are tested from 3.7 on"
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_missing()), reason=_missing() or "-")]

if not _missing():
    from fgod.nvfp4 import kernels
    from fgod.nvfp4.kernels import adamw, product
    from fgod.nvfp4.kernels import codec as on_gpu
    from fgod.nvfp4.kernels import elementwise as fast
    from fgod.selftest import adamw as twins
    from fgod.selftest.kernels import factors, gradient, kernel_cases


CASES: list[Case] = [] if _missing() else kernel_cases(CUDA)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kernel_computes_what_its_reference_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "PROGRAMS", 1)  # more tokens than programs
    wrong = [str(one) for one in case.run(torch.device(DEVICE)) if not one.ok]
    assert not wrong


def test_what_the_quantiser_cannot_take_is_refused() -> None:
    scale = torch.ones(1, device=DEVICE)
    with pytest.raises(UsageError, match="divisible by 16"):
        on_gpu.fake_quantise(torch.ones(4, 24, device=DEVICE), scale)
    with pytest.raises(UsageError, match="contiguous"):
        on_gpu.quantise(torch.ones(32, 16, device=DEVICE).t(), scale)
    with pytest.raises(TypeError, match="float16"):
        on_gpu.fake_quantise(torch.ones(4, 16, device=DEVICE).half(), scale)


def test_products_refuse_what_they_would_read_wrongly() -> None:
    scale, weight = torch.ones(1, device=DEVICE), torch.ones(32, 64, device=DEVICE)
    with pytest.raises(ValueError, match="contiguous"):
        product.forward(torch.ones(64, 4, device=DEVICE).t(), weight, scale)
    with pytest.raises(ValueError, match="at most 128 tokens"):
        product.backward(torch.ones(129, 32, device=DEVICE), weight, scale)
    squares, ones, many = torch.zeros(512, device=DEVICE), torch.ones(4, 128, device=DEVICE), torch.ones(129, 128)
    for outputs, inputs in (
        (ones.t(), ones), (ones, ones.t()), (ones[:3], ones), (ones, ones.repeat(1, 2)[:, ::2]), (ones[:, 1:], ones),
        (ones, ones[:, 16:]), (many.to(DEVICE), many.to(DEVICE)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="as many tokens in both, at most 128"):
            product.gradient(outputs, inputs, squares)


def test_a_norm_of_queries_alone_is_refused() -> None:
    qkv, cos, gain = (noise(shape, 1).to(DEVICE) for shape in ((2, 5, 10, 12), (5, 12), (12,)))
    with pytest.raises(ValueError, match="expected both or none"):
        fast.heads(qkv, None, gain, cos, cos, 6, 2, 1e-6)


# ---- AdamW


def test_programs_and_tiles_change_no_bit() -> None:
    grad = gradient(shape=(6, 1024))
    results = []
    for tile, programs in ((512, 1), (512, 5), (1024, 100)):
        case = twins.make_case((6, 1024))
        tensors = case.tensors(DEVICE)
        sums = torch.zeros(8, min(programs, 6 * 1024 // tile), device=DEVICE)
        told = twins.numbers(1e-3, 2, 4.0, case.settings).to(DEVICE)
        adamw.step(tensors, grad.to(DEVICE), case.modes, case.settings, told, sums, sums, adamw.Tuning(tile, 4))
        results.append([bits(t) for t in (tensors.weight, *tensors.m, *tensors.v)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_of_a_tensor_step_as_in_the_whole() -> None:
    """Random words go by the place in the tensor of which these are some rows."""
    grad = gradient(shape=(6, 512))
    found = []
    for low, high in ((0, 6), (0, 2), (2, 6)):
        case = twins.make_case((6, 512))
        whole = case.tensors(DEVICE)
        parts = adamw.Tensors(
            whole.weight[low:high], tuple(t[low:high] for t in whole.m), tuple(t[low:high] for t in whole.v), None
        )
        settings = replace(case.settings, l2_sp=0.0, element=low * 512)
        sums = torch.zeros(8, 1, device=DEVICE)
        told = twins.numbers(1e-3, 2, 4.0, case.settings).to(DEVICE)
        adamw.step(parts, grad[low:high].to(DEVICE), case.modes, settings, told, sums, sums, adamw.Tuning(512, 4))
        found.append(bits(parts.weight))
    assert torch.equal(found[0], torch.cat(found[1:]))


def test_parts_of_a_weight_are_unpacked_below_each_other() -> None:
    weight, scale = noise((6, 48), 3).to(DEVICE), torch.full((1,), 64.0, device=DEVICE)
    sent = []
    for part in weight.split(2):
        codes, scales = on_gpu.quantise(part, scale)
        sent.append(torch.cat((codes.flatten(), scales.view(torch.uint8).flatten())))
        assert torch.equal(sent[-1].cpu(), packed(part.cpu(), scale.cpu(), "amax")), "as a CPU sends it"
    found = on_gpu.dequantise_parts(torch.stack(sent), 2, 48, scale, torch.bfloat16)
    assert torch.equal(found, on_gpu.fake_quantise(weight, scale, torch.bfloat16))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_steps_nothing(bad: float) -> None:
    case = twins.make_case((6, 576), clip=1.0)
    grad = gradient()
    grad[3, 7] = bad
    found = twins.compare(case, grad, DEVICE, adamw.Tuning(512, 4), steps=1)
    assert not any(share for part, share in found.items() if part.endswith("differ"))
    assert found["squares"] == found["elements"] == 0, "infinite and none, as the twin says"


# ---- in the optimizer and the layers


def steps(recipe: TrainRecipe, device: str) -> tuple[Masters, list[StepFacts], TensorOptimizer]:
    """Three steps of two matrices and a vector."""
    shapes = {"mlp.a": (6, 192), "mlp.b": (4, 48)}
    kind = master_kind(recipe.master_dtype, (6, 192)).dtype
    groups = {name: (noise(shape, seed) * 0.05).to(device, kind) for seed, (name, shape) in enumerate(shapes.items())}
    vector = Bank(("norm",), (noise((1, 40), 2) * 0.05).to(device))
    tensors = groups | {"norm": vector.rows[0]}
    masters = Masters({}, tensors, groups, {name: (name,) for name in groups}, {40: vector})
    optimizer = device_optimizer(masters, recipe, {"mlp.a": 1.0, "mlp.b": 0.5, "norm": 2.0}, 3, PLAIN)
    gradients, facts = GroupGradients(optimizer, masters), []
    for step in range(3):
        optimizer.begin(1e-3)
        for seed, (group, shape) in enumerate((shapes | {"40": (1, 40)}).items()):
            gradients.on_grad(group, noise(shape, 10 * step + seed).to(device) ** 3)
        gradients.finish_step()
        facts.append(optimizer.facts(optimizer.step_stats.cpu()))
    return masters, facts, optimizer


@pytest.mark.parametrize("modes", [("fp32", "fp32", "fp32"), ("bf16", "int8", "uint8"), ("bf16", "nvfp4", "nvfp4")])
def test_the_optimizer_steps_alike_with_kernels_and_without(
    modes: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainRecipe(
        3, 1e-3, grad_clip=0.5, weight_decay=0.1, l2_sp=1.0, master_dtype=modes[0], m_dtype=modes[1], v_dtype=modes[2],
        step_in_backward=True,
    )  # fmt: skip
    expected, plain, without = steps(recipe, "cpu")
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    found, fused, optimizer = steps(recipe, DEVICE)
    assert without.kernels is None and optimizer.kernels is not None
    assert not optimizer.unchanged() and all(optimizer.got_gradient().values())
    for name, weight in expected.tensors.items():
        apart = (found.tensors[name].float().cpu() - weight.float()).abs().max()
        assert apart < (1e-6 if weight.dtype == torch.float32 else 2.0**-8 * weight.abs().max())
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
        assert ours.groups.keys() == theirs.groups.keys()
        assert (ours.whole.elements, ours.whole.clamped) == (theirs.whole.elements, theirs.whole.clamped)
        for name in ("realised", "intended", "moved", "largest"):
            assert getattr(ours.whole, name) == pytest.approx(getattr(theirs.whole, name), rel=2e-2)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: the interpreter has no BF16 products")
def test_factors_step_as_their_product() -> None:
    """A group of two matrices, by the kernel that makes a gradient with its squares, and by torch's product."""
    recipe = TrainRecipe(
        3, 1e-3, grad_clip=1e6, master_dtype="bf16", m_dtype="int8", v_dtype="uint8", step_in_backward=True
    )
    parts = Factors(*factors(True, 5, 192, 128, torch.device(DEVICE)))
    results = []
    for whole in (True, False):
        group = (noise((192, 128), 1) * 0.05).to(DEVICE, torch.bfloat16)
        tensors = {"mlp.a": group[:64], "mlp.b": group[64:]}
        masters = Masters({}, tensors, {"mlp": group}, {"mlp": tuple(tensors)}, {})
        optimizer = device_optimizer(masters, recipe, dict.fromkeys(tensors, 1.0), 3, PLAIN)
        gradients = GroupGradients(optimizer, masters)
        assert optimizer.takes_factors("mlp.b", parts.split((64, 128))[1])
        optimizer.begin(1e-3)
        gradients.on_grad("mlp", parts.product() if whole else parts)
        gradients.finish_step()
        facts = optimizer.facts(optimizer.step_stats.cpu())
        assert not optimizer.unchanged()
        results.append((bits(group), facts.grad_norm))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


def test_formats_without_a_kernel_are_named_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    kernels.say_once.cache_clear()
    for _ in range(2):
        _, _, optimizer = steps(TrainRecipe(3, 1e-3, master_dtype="nvfp4", step_in_backward=True), DEVICE)
        assert optimizer.kernels is None
    assert capsys.readouterr().err.count("train.master_dtype: nvfp4 has no fused optimizer kernel") == 1


def test_layers_give_the_same_bits_with_kernels_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """One projection of each kind; its product on the same device, so that only the quantiser differs."""
    model = prepare(tiny_model(), keep_quantised=False).to(DEVICE)
    hidden = noise((2, 5, 32), 8).to(DEVICE)

    def outputs() -> list[Tensor]:
        attention = model.model.layers[0].self_attn
        found = []
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, model.model.layers[1].mlp.gate_proj):
            x = hidden.clone().requires_grad_()
            out = layer(x)
            found += [out.detach(), *torch.autograd.grad(out.square().sum(), (x, layer.weight))]
        return found

    with_and_without = []
    for served in (False, True):
        monkeypatch.setattr(kernels, "run_on", lambda device, served=served: served)
        with_and_without.append(outputs())
    assert all(torch.equal(a, b) for a, b in zip(*with_and_without, strict=True))


def test_a_group_asks_for_its_scale_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = prepare(tiny_model()).to(DEVICE).model.layers[0].self_attn
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    group = attention.q_proj.group
    first = [group.scale_for(member) for member in group.members]
    assert first[0] is first[1] is first[2]
    with torch.no_grad():
        attention.k_proj.weight.mul_(64)
    again = [group.scale_for(member) for member in group.members]
    assert again[0] is again[2] and again[0].item() < first[0].item()
    assert again[0].item() == group.global_scale()


# ---- in the trainer of a device


def trainer_on(folder: Path, recipe: TrainRecipe, ops: Ops = PLAIN, graphs: bool = False) -> DeviceStepper:
    held = stream_in(folder, read_config(folder), recipe.master_dtype, torch.device(DEVICE))
    optimizer = device_optimizer(held, recipe, dict.fromkeys(held.tensors, 1.0), 7, ops)
    network = Network(held, ops, torch.float32, recipe.block_scales)
    return DeviceStepper(network, optimizer, recipe, 0, print, graphs)


@pytest.mark.parametrize("memory", ["80gb", "24gb"] if CUDA else ["80gb"])
def test_the_trainer_of_a_device_steps_alike_with_kernels_and_without(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainRecipe(steps=4, lr=1e-3, batch=4, seq_len=64, memory=memory, compute_dtype="float32")
    folder = tiny_folder(tmp_path / "start")
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(8), 64)
    trainers = []
    for on in (False, True):
        monkeypatch.setattr(kernels, "run_on", lambda device, on=on: on)
        trainers.append(trainer_on(folder, recipe))
        assert (trainers[-1].optimizer.kernels is not None) == on
    for step in range(2 if CUDA else 1):
        rows = []
        for trainer in trainers:
            trainer.launch(step, samples[4 * step : 4 * step + 4])
            rows += trainer.completed(wait=True)
        (plain, theirs), (row, facts) = rows
        assert row.loss == pytest.approx(plain.loss, rel=1e-3)
        assert row.grad_norm == pytest.approx(plain.grad_norm, rel=1e-3)
        assert row.update_efficiency == pytest.approx(plain.update_efficiency, abs=0.02)
        assert facts.whole.elements == theirs.whole.elements
        assert facts.whole.largest == pytest.approx(theirs.whole.largest, rel=1e-2)
    assert all(trainer.optimizer.unchanged() == [] for trainer in trainers)
    amaxes = [torch.stack([t.float().abs().amax() for t in x.network.masters.tensors.values()]) for x in trainers]
    order = [list(x.network.masters.tensors).index(name) for x in trainers[:1] for name in x.optimizer.names]
    for trainer, found in zip(trainers, amaxes, strict=True):
        assert torch.equal(trainer.optimizer.amaxes, found[order])


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_steps_replayed_as_a_graph_or_with_moments_on_the_host_have_the_same_bits(tmp_path: Path) -> None:
    recipe = TrainRecipe(steps=5, lr=1e-3, batch=4, seq_len=64, memory="80gb", compute_dtype="float32", grad_clip=0.5)
    folder = tiny_folder(tmp_path / "start")
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(4), 64)
    results = []
    for graphs, offload in ((False, False), (True, False), (True, True)):
        of_it = replace(recipe, offload_moments=offload)
        trainer = trainer_on(folder, of_it, replace(PLAIN, quantise=on_gpu.fake_quantise), graphs)
        moments = [t.states["m"].tensors[0] for t in trainer.optimizer.tensors.values() if t.parameter.ndim > 1]
        assert {moment.is_cuda for moment in moments} == {not offload}
        for step in range(5):
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")  # the second step captures
            try:
                trainer.launch(step, samples)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert [shape.graph is not None for shape in trainer.shapes.values()] == [graphs]
        facts = [(row.loss, row.grad_norm, facts.whole.realised) for row, facts in trainer.completed(wait=True)]
        results.append((facts, {name: bits(t) for name, t in trainer.network.masters.tensors.items()}))
    for facts, weights in results[1:]:
        assert facts == results[0][0]
        assert all(torch.equal(weight, weights[name]) for name, weight in results[0][1].items())
