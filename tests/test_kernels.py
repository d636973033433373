"""Triton kernels against their plain-torch references: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fgod.errors import UsageError
from fgod.model.chats import ChatFormat
from fgod.model.load import read_config
from fgod.nvfp4 import codec
from fgod.nvfp4.layers import prepare
from fgod.train import distil
from fgod.train.device import elementwise
from fgod.train.device.network import Network
from fgod.train.device.ops import PLAIN, Ops
from fgod.train.device.optimizer import GroupGradients, device_optimizer
from fgod.train.device.trainer import DeviceStepper
from fgod.train.device.weights import Bank, Masters, stream_in
from fgod.train.optimizer import StepFacts, TensorOptimizer
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
    from fgod.nvfp4.kernels import adamw, product, top
    from fgod.nvfp4.kernels import codec as on_gpu
    from fgod.nvfp4.kernels import elementwise as fast
    from tests import kernel_twins as twins


def bits(tensor: Tensor) -> Tensor:
    """Bytes, on the CPU."""
    return tensor.cpu().contiguous().view(torch.uint8)


def matrices() -> dict[str, Tensor]:
    """float32 and BF16 of many sizes, all ties, next to nothing, and a shape that fills no tile."""
    rows = torch.exp2(torch.arange(32) % 13 - 8.0).unsqueeze(1)
    wide = noise((32, 256), 3) ** 3 * rows
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    every = torch.where(every.float().abs() <= 2.0**100, every, 0).view(-1, 64)
    return {
        "float32": wide,
        "bf16": wide.bfloat16(),
        "odd": noise((5, 48), 1),
        "ties": (noise((32, 64), 2) * 25).round().mul(0.25).bfloat16(),
        "neighbours of ties": torch.nextafter((noise((32, 64), 2) * 25).round().mul(0.25), torch.ones(())),
        "tiny": noise((3, 16), 2) * 1e-37,
        "every bf16": every,
    }


# ---- top tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_top_tokens_are_taken_and_put_as_their_twins_do(dtype: torch.dtype) -> None:
    """Chunks that hold all, some and none of them; labels with fewer than k; a chunk that is part of a wider matrix."""
    ids = torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(row))[:5] for row in range(7)]).int()
    ids[2, 1:], ids[4, 3:] = distil.FILL, distil.FILL
    for first, width in ((0, 200), (40, 60), (180, 20), (64, 1)):
        logits, values = noise((7, 256), first).to(dtype), noise((7, 5), 1)
        picked = torch.full((7, 5), -torch.inf)
        mine = [x.to(DEVICE, copy=True) for x in (logits, picked, ids, values)]
        distil.take(logits[:, :width], ids, first, picked)
        top.take(mine[0][:, :width], mine[2], first, mine[1])
        assert torch.equal(bits(mine[0]), bits(logits)) and torch.equal(bits(mine[1]), bits(picked))
        distil.put(logits[:, :width], ids, first, values)
        top.put(mine[0][:, :width], mine[2], first, mine[3])
        assert torch.equal(bits(mine[0]), bits(logits))


# ---- quantiser


@pytest.mark.parametrize("name", ["float32", "bf16", "odd", "ties", "neighbours of ties", "tiny", "every bf16"])
@pytest.mark.parametrize("rule", codec.BLOCK_SCALES)
def test_the_quantiser_gives_the_bits_of_its_reference(name: str, rule: str) -> None:
    weight = matrices()[name]
    on_device, wide = weight.to(DEVICE), weight.float()
    own = codec.shared_global_scale([wide], name)
    for scale in (own,) if name == "every bf16" else (own, own * 2.0**5, own * 2.0**-14):
        told = torch.tensor([scale], device=DEVICE)
        expected = codec.fake_quantise(wide, scale, block_scales=rule)
        assert torch.equal(bits(on_gpu.fake_quantise(on_device, told, torch.float32, rule)), bits(expected))
        assert torch.equal(bits(on_gpu.fake_quantise(on_device, told, torch.bfloat16, rule)), bits(expected.bfloat16()))
        quantised = codec.quantise(wide, scale, block_scales=rule)
        packed, scales = on_gpu.quantise(on_device, told, rule)
        assert torch.equal(packed.cpu(), codec.pack(quantised.codes))
        assert torch.equal(bits(scales), bits(quantised.scales))
        back = on_gpu.dequantise(packed, scales, told, torch.float32)
        assert torch.equal(bits(back), bits(codec.dequantise(quantised)))


def test_scales_are_the_powers_of_two_of_the_reference() -> None:
    for amax in (0.0, 9.9e-36, 1.0000001e-35, 1.3e-35, 1.3125, 1.3125001, 1343.9999, 1344.0, 1344.0001, 3e38):
        weights = [torch.full((1, 16), amax), torch.full((3, 32), amax / 2)]
        scale = on_gpu.global_scale([w.to(DEVICE) for w in weights])
        assert scale.item() == codec.shared_global_scale(weights, "w"), amax
    for amax in (math.nan, math.inf, -math.inf):
        poisoned = torch.ones(4, 64)
        poisoned[2, 3] = amax
        scale = on_gpu.global_scale([torch.ones(4, 64, device=DEVICE), poisoned.to(DEVICE)])
        assert math.isnan(scale.item())
        assert on_gpu.fake_quantise(torch.ones(4, 64, device=DEVICE), scale).isnan().all()
        assert on_gpu.fake_quantise(torch.ones(4, 64, device=DEVICE).bfloat16(), scale).isnan().all()


def test_what_the_quantiser_cannot_take_is_refused() -> None:
    scale = torch.ones(1, device=DEVICE)
    with pytest.raises(UsageError, match="divisible by 16"):
        on_gpu.fake_quantise(torch.ones(4, 24, device=DEVICE), scale)
    with pytest.raises(UsageError, match="contiguous"):
        on_gpu.quantise(torch.ones(32, 16, device=DEVICE).t(), scale)
    with pytest.raises(TypeError, match="float16"):
        on_gpu.fake_quantise(torch.ones(4, 16, device=DEVICE).half(), scale)


@pytest.mark.parametrize(
    "tokens, height, width",
    [(5, 48, 80), (33, 64, 96), *([(128, 192, 64), (1, 64, 256), (96, 2560, 4096)] if CUDA else [])],
)
@pytest.mark.parametrize("rule", codec.BLOCK_SCALES)
def test_products_quantise_what_they_multiply(tokens: int, height: int, width: int, rule: str) -> None:
    # the interpreter has no BF16 products
    for dtype, error in ((torch.float32, 1e-6), *(((torch.bfloat16, 3e-3),) if CUDA else ())):
        for weight in (noise((height, width), 1).to(dtype), noise((height, width), 2)):
            x, grad, residual = (noise(shape, 3).to(dtype) for shape in ((tokens, width), *[(tokens, height)] * 2))
            scale = codec.shared_global_scale([weight.float()], "w")
            quantised = codec.fake_quantise(weight.float(), scale, block_scales=rule).to(dtype).double()
            told = torch.tensor([scale], device=DEVICE)
            sent = [tensor.to(DEVICE) for tensor in (x, grad, residual, weight)]
            for tuning in (product.Tuning(32, 64), product.Tuning(64, 32, 8))[: 2 if CUDA else 1]:
                forward = product.forward(sent[0], sent[3], told, None, rule, tuning)
                added = product.forward(sent[0], sent[3], told, sent[2], rule, tuning)
                backward = product.backward(sent[1], sent[3], told, rule, tuning)
                expected = x.double() @ quantised.t()
                for ours, theirs in (
                    (forward, expected), (added, expected + residual.double()), (backward, grad.double() @ quantised)
                ):  # fmt: skip
                    assert ours.dtype == dtype
                    assert (ours.cpu().double() - theirs).norm() <= error * theirs.norm()


def factors(tokens: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Small whole numbers, whose product is exact in BF16 in any order; outputs are columns of a wider matrix."""
    generator = torch.Generator().manual_seed(tokens)
    outputs = torch.randint(-1, 2, (tokens, height + 32), generator=generator)[:, 16:-16]
    dtype = torch.bfloat16 if CUDA else torch.float32  # the interpreter has no BF16 products
    inputs = torch.randint(-1, 2, (tokens, width), generator=generator)
    return (outputs.to(dtype) / 64).to(DEVICE), (inputs.to(dtype) / 8).to(DEVICE)


@pytest.mark.parametrize(
    "tokens, height, width", [(5, 64, 192), *([(128, 192, 256), (96, 2560, 4096), (1, 1024, 2560)] if CUDA else [])]
)
def test_a_gradient_comes_with_its_squares(tokens: int, height: int, width: int) -> None:
    outputs, inputs = factors(tokens, height, width)
    squares = torch.full((512,), math.nan, device=DEVICE)
    expected = outputs.cpu().double().t() @ inputs.cpu().double()
    for tuning in (product.Tuning(32, 64, 4, programs=5), product.Tuning(64, 64, 4, programs=512)):
        made, partials = product.gradient(outputs, inputs, squares, tuning)
        assert made.dtype == inputs.dtype and torch.equal(made.cpu().double(), expected)
        assert partials.sum().item() == pytest.approx(expected.square().sum().item(), rel=1e-6)


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


# ---- elementwise parts


def alike(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], error: float) -> None:
    for mine, plain in zip(ours, theirs, strict=True):
        assert (mine is None) == (plain is None)
        if mine is not None and plain is not None:
            assert mine.shape == plain.shape and mine.dtype == plain.dtype
            assert (mine.cpu().double() - plain.double()).norm() <= error * plain.double().norm()


@pytest.mark.parametrize(
    "dtype, error", [(torch.float32, 1e-6), *([(torch.bfloat16, 4e-3)] if CUDA else [])], ids=str
)  # the interpreter cuts what GPUs round to BF16
def test_elementwise_kernels_are_their_twins(dtype: torch.dtype, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that fill no tile, more tokens than programs, heads that are no power of two."""
    monkeypatch.setattr(fast, "PROGRAMS", 1)

    def both(name: str, *args: Any) -> None:
        sent = [arg.to(DEVICE) if isinstance(arg, Tensor) else arg for arg in args]
        ours, theirs = getattr(fast, name)(*sent), getattr(elementwise, name)(*args)
        alike(*((found,) if isinstance(found, Tensor) else found for found in (ours, theirs)), error)

    for tokens in (2, 7):
        x, grad, residual = (noise((tokens, 48), seed).to(dtype) for seed in range(3))
        both("joined_norm_backward", x, noise((48,), 4), 1e-6, grad, residual)
        both("swiglu_backward", noise((tokens, 2 * 1040), 5).to(dtype), noise((tokens, 1040), 6).to(dtype))
        logits = noise((tokens, 2100), 7).to(dtype)[:, 20:]
        labels = torch.arange(tokens) * 70
        both("logit_slopes", logits, labels, 64, noise((tokens,), 8) + 9, noise((tokens,), 9))
    qkv, cos, sin = noise((2, 5, 10, 12), 1).to(dtype), noise((5, 12), 2), noise((5, 12), 3)
    to = [noise((2, 5, heads, 12), 4 + heads).to(dtype) for heads in (6, 2, 2)]
    for weights in ((noise((12,), 10), noise((12,), 11)), (None, None)):
        both("heads", qkv, *weights, cos, sin, 6, 2, 1e-6)
        both("heads_backward", qkv, *weights, cos, sin, 1e-6, *to)
    with pytest.raises(ValueError, match="expected both or none"):
        fast.heads(qkv.to(DEVICE), None, noise((12,), 1).to(DEVICE), cos.to(DEVICE), sin.to(DEVICE), 6, 2, 1e-6)


# ---- AdamW

MODES: list[dict[str, Any]] = [
    {},
    {"m": "nvfp4"},
    {"master": "fp32", "m": "fp32", "v": "fp32"},
    {"m": "bf16", "v": "bf16"},
    {"master": "fp32", "m": "nvfp4", "v": "nvfp4"},
    {"clip": 0.5, "decay": 0.1, "l2_sp": 2.0, "factor": 0.3},
    {"clip": 1e6},
]


def gradient(size: float = 1e-3, shape: tuple[int, int] = (6, 576)) -> Tensor:
    """BF16; a row of zeros in it."""
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * size
    grad[1] = 0
    return grad.bfloat16()


@pytest.mark.parametrize("modes", MODES, ids=str)
@pytest.mark.parametrize("exact", [True, False] if CUDA else [False])  # the interpreter rounds alike in both
def test_one_pass_of_adamw_is_its_twin(modes: dict[str, Any], exact: bool) -> None:
    case = twins.make_case((6, 576), **modes)
    tuning = adamw.Tuning(tile=512, warps=4, programs=3, exact=exact)
    found = twins.compare(case, gradient(0.2 if "clip" in modes else 1e-3), DEVICE, tuning)
    differ = {part: share for part, share in found.items() if part.endswith("differ")}
    if exact or not CUDA:
        assert not any(differ.values()), differ
        assert max(found[slot] for slot in adamw.SLOTS) < 1e-5
    else:
        assert all(found[part] <= 1 for part in found if part.endswith("apart")), found
        assert found["weight differ"] < (0.5 if modes.get("master") == "fp32" else 1e-2)
        assert max(found[slot] for slot in adamw.SLOTS) < 1e-2


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
    parts = Factors(*factors(5, 192, 128))
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
