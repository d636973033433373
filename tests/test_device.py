"""The path of GPUs, run on the CPU: against transformers' model under autograd, and against the trainer of the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgod.data.rows import Row
from fgod.documents import Outcome
from fgod.errors import UsageError
from fgod.model.chats import ChatFormat, Sample
from fgod.model.load import read_config
from fgod.model.random import model_config
from fgod.models.architecture import architecture_of
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.codec import device_global_scale, power_of_two_global_scale
from fgod.nvfp4.layers import prepare
from fgod.plugins import load_plugins
from fgod.train.autograd import answer_loss, autograd_stepper, soft_loss
from fgod.train.batches import Batch, collate, packed
from fgod.train.device import head
from fgod.train.device import ops as device_ops
from fgod.train.device.attention import PACKED, PackedRows, attention, kernel_serves
from fgod.train.device.module import ModuleNetwork
from fgod.train.device.network import Inputs, Network, SavePolicy
from fgod.train.device.optimizer import GroupGradients, device_optimizer
from fgod.train.device.plan import predict_on_device
from fgod.train.device.trainer import DeviceStepper, choose_network, padded
from fgod.train.device.weights import Masters, as_module, frequencies, split_rows, stream_in
from fgod.train.distil import Rehearsed, SoftLabels, places_of
from fgod.train.optimizer import TensorOptimizer
from fgod.train.preflight import PreflightError, check_network
from fgod.train.recipe import Kl, MemoryModes, Opening, TrainRecipe
from fgod.train.record import StepRow
from fgod.train.stage import _largest, _packs, prediction
from fgod.train.teacher import top_tokens
from fgod.train.update import Factors
from tests.families import FAMILIES, family_folder
from tests.tiny_model import noise, tiny_folder, tiny_rows, tiny_tokenizer

CPU = torch.device("cpu")
GEMMA = Path(__file__).parent / "plugins" / "gemma.py"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def masters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Masters:
    folder = tiny_folder(tmp_path_factory.mktemp("start") / "master", tied=request.param)
    return stream_in(folder, read_config(folder), "fp32", CPU)


def batch(count: int = 5) -> Batch:
    return collate(ChatFormat(tiny_tokenizer()).rows(tiny_rows(count), 64), 0)


def inputs(one: Batch, fill: int = 0) -> Inputs:
    """A batch with some labels that only fill up."""
    labels = len(one.labels)
    return Inputs(
        one.input_ids,
        F.pad(one.positions, (0, fill)),
        F.pad(one.labels, (0, fill)),
        F.pad(torch.full((labels,), 1 / labels), (0, fill)),
    )


def measured(network: Network) -> Network:
    """With the global scales of what the masters are now."""
    masters = network.masters
    amaxes = torch.stack([masters.groups[group].abs().amax() for group in network.scaled])
    network.measure_scales(amaxes.float(), torch.arange(len(amaxes))[:, None])
    return network


def gradients(
    masters: Masters,
    policy: SavePolicy,
    fill: int = 0,
    ops: device_ops.Ops = device_ops.PLAIN,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, dict[str, Tensor]]:
    network = measured(Network(masters, ops, dtype, "amax"))
    return gradients_of(network, [policy] * network.layers, fill)


def gradients_of(
    network: Network | ModuleNetwork, policies: list[SavePolicy], fill: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    return collected(network, inputs(batch(), fill), policies)


def collected(
    network: Network | ModuleNetwork, given: Inputs, policies: list[SavePolicy]
) -> tuple[Tensor, dict[str, Tensor]]:
    masters = network.masters
    found: dict[str, Tensor] = {}

    def on_grad(group: str, grad: Tensor | Factors) -> None:
        if isinstance(grad, Factors):
            grad = grad.product()
        if group in masters.groups:
            found.update({n: g.clone() for n, g in split_rows(grad, masters.members[group], masters)})
        elif group in masters.tensors:
            found[group] = grad.clone()
        else:
            found.update(zip(masters.banks[int(group)].names, grad.clone(), strict=True))

    return given.summed(network.label_losses(given, policies, on_grad)), found


POLICIES = [SavePolicy(attention, mlp) for attention in (False, True) for mlp in (False, True)]
DENSE = [name for name in FAMILIES if name != "gemma"]


def test_rotary_scaling_that_is_no_constant_is_refused(tmp_path: Path) -> None:
    config = read_config(family_folder("llama", tmp_path / "base"))
    dynamic = {**config, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    with pytest.raises(UsageError, match="rope_type: found 'dynamic', expected one of default, linear, llama3"):
        frequencies(dynamic)


@pytest.mark.parametrize("policy", POLICIES)
def test_loss_and_every_gradient_are_those_of_autograd(masters: Masters, policy: SavePolicy) -> None:
    check_gradients(masters, policy)


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[-1]])
def test_the_network_computes_every_dense_family(family: str, policy: SavePolicy, tmp_path: Path) -> None:
    folder = family_folder(family, tmp_path / "base")
    config = read_config(folder)
    assert architecture_of(config, "config.json").hand_written(config)
    check_gradients(stream_in(folder, config, "fp32", CPU), policy)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[-1]])
def test_the_module_of_transformers_serves_every_family(family: str, policy: SavePolicy, tmp_path: Path) -> None:
    load_plugins([GEMMA])
    folder = family_folder(family, tmp_path / "base")
    held = stream_in(folder, read_config(folder), "fp32", CPU)
    network = choose_network(held, replace(RECIPE, compute_dtype="float32"), device_ops.PLAIN)
    assert isinstance(network, ModuleNetwork) == (family == "gemma")
    network = ModuleNetwork(held, torch.float32, "amax")
    compare_with_autograd(held, *gradients_of(network, [policy] * held.config["num_hidden_layers"], fill=3))


def check_gradients(masters: Masters, policy: SavePolicy) -> None:
    compare_with_autograd(masters, *gradients(masters, policy, fill=3))


def compare_with_autograd(masters: Masters, loss: Tensor, found: dict[str, Tensor]) -> None:
    model = prepare(as_module(masters, "float32", "amax"))
    one = batch()
    expected = answer_loss(model, one) / len(one.labels)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    parameters = dict(model.named_parameters())
    assert found.keys() == parameters.keys()
    for name, grad in found.items():
        theirs = parameters[name].grad
        assert theirs is not None
        theirs = theirs.to_dense() if theirs.is_sparse else theirs
        assert (grad - theirs).norm() <= 2e-5 * theirs.norm(), name


def soft_samples(k: int, count: int) -> list[Sample]:
    """Every other row is rehearsed, by a teacher that is sure of nothing."""
    samples = [sample_of(row) for row in tiny_rows(count)]
    for number, sample in enumerate(samples[::2]):
        logits = noise((len(sample.learned), 304), number) * 8
        top = top_tokens(logits, k, 2.0)
        rehearsed = torch.ones(len(logits), dtype=torch.bool)
        soft = SoftLabels(top.ids, top.logprobs.exp(), top.rest, rehearsed, places_of(sample))
        samples[2 * number] = Rehearsed(sample.ids, sample.prompt_length, sample.earlier, soft=soft)
    return samples


def sample_of(row: Row) -> Sample:
    return ChatFormat(tiny_tokenizer()).row_ids(row)


@pytest.mark.parametrize("module", [False, True], ids=["network", "module"])
@pytest.mark.parametrize("chunk", [2**25, 2**12], ids=["all logits at once", "chunks"])
def test_kl_and_every_gradient_are_those_of_autograd(
    masters: Masters, module: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", chunk)
    one, kl = collate(soft_samples(6, 6), 0), Kl(weight=3.0, temperature=2.0, opening=Opening(weight=4.0, tokens=2))
    found_inputs = padded(one, 6, 0, kl)
    found_inputs.weights.div_(len(one.labels))
    assert found_inputs.soft is not None and len(found_inputs.labels) == 64 > len(one.labels)
    network: Network | ModuleNetwork = ModuleNetwork(masters, torch.float32, "amax")
    if not module:
        network = measured(Network(masters, device_ops.PLAIN, torch.float32, "amax"))
    parts, found = collected(network, found_inputs, [SavePolicy(True, True)] * 2)
    model = prepare(as_module(masters, "float32", "amax"))
    assert one.soft is not None
    expected = soft_loss(model, one, one.soft, kl) / len(one.labels)
    expected.sum().backward()
    assert parts.tolist() == pytest.approx(expected.tolist(), rel=1e-5) and min(parts.tolist()) > 0.1
    for name, parameter in model.named_parameters():
        theirs = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert (found[name] - theirs).norm() <= 2e-5 * theirs.norm(), name


@pytest.mark.parametrize("module", [False, True], ids=["network", "module"])
def test_the_heads_gradient_is_multiplied_apart_from_the_embeddings(masters: Masters, module: bool) -> None:
    """By comparison of 1, 3 and 5: what the factor acts on grows in proportion to it, the rest stays."""

    def found(factor: float) -> tuple[Tensor, dict[str, Tensor]]:
        if module:
            one = ModuleNetwork(masters, torch.float32, "amax", head_gradient=factor)
            return gradients_of(one, [POLICIES[-1]] * len(one.model.model.layers))
        network = measured(Network(masters, device_ops.PLAIN, torch.float32, "amax", factor))
        return gradients_of(network, [POLICIES[-1]] * network.layers)

    (loss, once), (again, three), (_, five) = found(1), found(3), found(5)
    table = EMBEDDING if TIED_HEAD not in masters.tensors else TIED_HEAD
    assert torch.equal(loss, again)
    assert {name for name in once if not torch.allclose(once[name], three[name], rtol=1e-4, atol=1e-7)} == {table}
    share = (three[table] - once[table]) / 2
    torch.testing.assert_close(five[table], once[table] + 4 * share, rtol=1e-3, atol=1e-6)
    if table == TIED_HEAD:
        torch.testing.assert_close(share, once[table], rtol=1e-3, atol=1e-6)
    else:  # a token that no prompt has gets nothing from the embedding
        unseen = sorted(set(range(len(once[table]))) - set(batch().input_ids.flatten().tolist()))
        torch.testing.assert_close(share[unseen], once[table][unseen], rtol=1e-3, atol=1e-6)
        seen = batch().input_ids[0, :3]
        assert not torch.allclose(share[seen], once[table][seen], rtol=1e-3, atol=1e-6)


def test_what_a_layer_saves_changes_no_gradient(masters: Masters) -> None:
    _, least = gradients(masters, SavePolicy(False, False))
    _, most = gradients(masters, SavePolicy(True, True))
    assert all(torch.equal(least[name], most[name]) for name in least)


class PlainProducts:
    """What the kernels of `fgod.nvfp4.kernels.product` compute, in steps."""

    MOST_TOKENS = 10_000

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor | None, block_scales: str) -> Tensor:
        self.calls += 1
        made = device_ops.quantise_rows(weight, scale, x.dtype, block_scales)
        return x @ made.t() if residual is None else torch.addmm(residual, x, made.t())

    def backward(self, grad: Tensor, weight: Tensor, scale: Tensor, block_scales: str) -> Tensor:
        self.calls += 1
        return grad @ device_ops.quantise_rows(weight, scale, grad.dtype, block_scales)


def test_products_that_quantise_serve_every_weight_of_the_layers(masters: Masters) -> None:
    products, policy = PlainProducts(), SavePolicy(True, True)
    loss, ours = gradients(masters, policy, 0, replace(device_ops.PLAIN, products=products), torch.bfloat16)
    expected, theirs = gradients(masters, policy, dtype=torch.bfloat16)
    assert products.calls == 4 * 2 * masters.config["num_hidden_layers"]
    assert torch.equal(loss, expected) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_logits_are_those_of_the_module_on_the_same_masters(masters: Masters) -> None:
    network = measured(Network(masters, device_ops.PLAIN, torch.float32, "amax"))
    ids = batch().input_ids
    with torch.no_grad():
        theirs = as_module(masters, "float32", "amax")(input_ids=ids, use_cache=False).logits
    assert torch.allclose(network.logits(ids), theirs, rtol=1e-4, atol=1e-4)


def test_preflight_compares_the_network_with_the_module(masters: Masters) -> None:
    network = measured(Network(masters, device_ops.PLAIN, torch.float32, "amax"))
    model, chats = as_module(masters, "float32", "amax"), [[5, 6, 7], [9, 4, 33, 2, 1]]
    right = [network.logits(torch.tensor([chat]))[0] for chat in chats]
    assert check_network(right, model, chats) < 1e-5
    with pytest.raises(PreflightError, match=r"preflight, network: .* by 0\.01"):
        check_network([right[0], right[1] * 1.01], model, chats)
    with pytest.raises(PreflightError, match=r"preflight, network: .* by nan"):
        check_network([right[0] * torch.nan, right[1]], model, chats)
    turned = right[1].clone()
    turned[1] *= -1  # one token of five, as rounding can turn it
    assert check_network([right[0], turned], model, chats) < 1e-5


@pytest.mark.parametrize("batching", ["shuffled", "packed"])
def test_preflight_lays_rows_out_as_steps_do(tmp_path: Path, batching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = tiny_folder(tmp_path / "start"), list[tuple[int, list[int]]]()
    recipe = replace(RECIPE, batching=batching, length_bucket=4)
    stepper = device_stepper(folder, recipe)
    chats = [[5, 6, 7], [9, 4, 33, 2, 1], [8]]
    logits = Network.logits

    def spied(network: Network, ids: Tensor, packed: PackedRows | None = None) -> Tensor:
        asked.append((ids.shape[1], [] if packed is None else packed.starts.tolist()))
        return logits(network, ids, packed)

    monkeypatch.setattr(Network, "logits", spied)
    assert stepper.preflight(chats) > 0
    two, one = [0, 3, 8, PACKED], [0, 1, PACKED]
    assert asked == {"shuffled": [(4, []), (8, []), (4, [])], "packed": [(PACKED, two), (PACKED, one)]}[batching]

    def leaking(network: Network, ids: Tensor, packed: PackedRows | None = None) -> Tensor:
        """Rows that see those before them."""
        return logits(network, ids)

    if batching == "packed":
        monkeypatch.setattr(Network, "logits", leaking)
        with pytest.raises(PreflightError, match="preflight, network"):
            stepper.preflight(chats)


def test_global_scales_are_those_of_the_host() -> None:
    amaxes = torch.cat((torch.logspace(-36, 30, 4001), 1344 / 2.0 ** torch.arange(-20, 60), torch.zeros(1)))
    near = torch.cat((amaxes, torch.nextafter(amaxes, torch.tensor(torch.inf)), torch.nextafter(amaxes, -amaxes)))
    ours = device_global_scale(near)
    assert ours.tolist() == [power_of_two_global_scale(amax) for amax in near.tolist()]


def test_cross_entropy_in_chunks_is_that_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from fgod.train.device import head

    hidden, table = noise((9, 32), 1), noise((700, 32), 2)
    labels, weights = torch.arange(9) * 77, torch.tensor([0.25] * 4 + [0.0] + [0.5] * 4)
    leaves = hidden.clone().requires_grad_(), table.clone().requires_grad_()
    expected = (F.cross_entropy(leaves[0] @ leaves[1].t(), labels, reduction="none") * weights).sum()
    expected.backward()
    for size in (2**25, 9 * 256):
        monkeypatch.setattr(head, "CHUNK_LOGITS", size)
        to_table = torch.full_like(table, torch.nan)
        each, to_hidden = head.head_loss(device_ops.PLAIN, hidden, table, labels, weights, to_table)
        assert each.sum().item() == pytest.approx(expected.item(), rel=1e-6) and each[4] == 0
        for ours, leaf in ((to_hidden, leaves[0]), (to_table, leaves[1])):
            assert leaf.grad is not None and torch.allclose(ours, leaf.grad, rtol=1e-4, atol=1e-6)


# ---- packed rows


def parts_of(lengths: Sequence[int], heads: int, kv_heads: int) -> list[Tensor]:
    """Queries, keys and values of rows one after another, that want gradients."""
    total = sum(lengths)
    return [
        noise((1, total, count, 16), seed).requires_grad_() for seed, count in enumerate((heads, kv_heads, kv_heads))
    ]


def test_nothing_in_a_packed_row_looks_into_another_row() -> None:
    """Rows of different lengths, an empty one among them: outputs and gradients are those of each row by itself."""
    lengths = [5, 1, 0, 9]
    rows = PackedRows(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), 16)
    assert rows.numbers(15).tolist() == [0] * 5 + [1] + [3] * 9
    assert rows.places(15).tolist() == [*range(5), 0, *range(9)]
    together, alone = parts_of(lengths, 4, 2), parts_of(lengths, 4, 2)
    out = attention(*together, rows)
    rows_alone = zip(*(part.split(lengths, 1) for part in alone), strict=True)
    each = torch.cat([attention(*parts) for parts in rows_alone if parts[0].numel()], 1)
    torch.testing.assert_close(out, each)
    slopes = noise(tuple(out.shape), 9)
    for ours, theirs in zip(
        torch.autograd.grad(out, together, slopes), torch.autograd.grad(each, alone, slopes), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_packed_rows_are_filled_up_by_a_row_that_nothing_is_learned_of() -> None:
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(3), 64)
    one, plain = packed(samples), collate(samples, 0)
    found = padded(one, 4, 7, longest=64)
    lengths = [len(sample.ids) - 1 for sample in samples]
    assert found.packed is not None and found.ids.shape == (1, PACKED) and len(found.labels) == PACKED
    assert found.packed.starts.tolist() == [0, *accumulate(lengths), sum(lengths), PACKED]
    assert found.packed.longest == PACKED, "also what fills up"
    assert found.ids[0, : sum(lengths)].tolist() == [token for sample in samples for token in sample.ids[:-1]]
    assert set(found.ids[0, sum(lengths) :].tolist()) == {7}
    assert found.weights.sum() == len(one.labels) == len(plain.labels)
    assert one.tokens == plain.tokens and torch.equal(one.labels, plain.labels)
    asked, padded_asked = one.input_ids.flatten()[one.positions], plain.input_ids.flatten()[plain.positions]
    assert torch.equal(asked, padded_asked), "labels follow the same tokens"


def test_the_prediction_counts_what_fills_packed_rows_up(tmp_path: Path) -> None:
    config, cuda = read_config(tiny_folder(tmp_path / "start")), torch.device("cuda")
    recipe = replace(RECIPE, batch=3, memory="80gb", compute_dtype="bfloat16", device="cuda")
    packed_one = prediction(config, replace(recipe, batching="packed"), cuda, 3, 20, 30, 0)
    assert packed_one == prediction(config, recipe, cuda, 3, -(-PACKED // 3), PACKED, 0)
    assert packed_one.total > prediction(config, recipe, cuda, 3, 20, 30, 0).total


def test_rows_are_packed_on_a_gpu_where_the_kernel_serves(tmp_path: Path) -> None:
    served = [kernel_serves(dtype, size) for dtype in (torch.bfloat16, torch.float32) for size in (64, 128, 100, 512)]
    assert served == [True, True, False, False, False, False, False, False]
    config, cuda = read_config(tiny_folder(tmp_path / "start")), torch.device("cuda")
    recipe = replace(RECIPE, batch=3, memory="80gb", device="cuda", batching="packed", compute_dtype="bfloat16")
    assert _packs(config, recipe, cuda) and not _packs(config, recipe, CPU)
    plain = replace(recipe, compute_dtype="float32")
    assert not _packs(config, plain, cuda) and not _packs(config, replace(recipe, batching="shuffled"), cuda)
    padded_plain = prediction(config, replace(plain, batching="shuffled"), cuda, 3, 20, 30, 0)
    assert prediction(config, plain, cuda, 3, 20, 30, 0) == padded_plain


def test_the_largest_packed_batch_has_the_longest_rows_and_no_padding() -> None:
    samples = [Sample(tuple(range(length + 1)), length) for length in (50, 10, 20)]
    recipe = replace(RECIPE, batch=2, length_bucket=32)
    assert _largest(recipe, samples, packs=True) == (2, 35, 2)
    assert _largest(recipe, samples, packs=False) == (2, 64, 2)
    assert _largest(replace(recipe, batch=4), samples, packs=True) == (4, 33, 4), "few rows meet themselves"


def test_transformers_model_says_that_it_pads_rows(tmp_path: Path) -> None:
    folder, said = tiny_folder(tmp_path / "start"), list[str]()
    held = stream_in(folder, read_config(folder), "fp32", CPU)
    recipe = replace(RECIPE, batching="packed")
    optimizer = device_optimizer(held, recipe, dict.fromkeys(held.tensors, 1.0), 7, device_ops.PLAIN)
    stepper = DeviceStepper(ModuleNetwork(held, torch.float32, "amax"), optimizer, recipe, 0, said.append)
    assert len(said) == 1 and said[0].startswith("train.batching: packed: rows are padded; ")
    stepper.launch(0, ChatFormat(tiny_tokenizer()).rows(tiny_rows(4), 64))
    assert {key[0] for key in stepper.shapes} == {4}


# ---- steps

RECIPE = TrainRecipe(steps=6, lr=1e-3, batch=4, seq_len=64, warmup=2, weight_decay=0.01, l2_sp=2.0, length_bucket=8)
UNSET = dict.fromkeys(asdict(MemoryModes()))


def device_stepper(folder: Path, recipe: TrainRecipe) -> DeviceStepper:
    held = stream_in(folder, read_config(folder), recipe.master_dtype, CPU)
    network = Network(held, device_ops.PLAIN, torch.float32, recipe.block_scales)
    optimizer = device_optimizer(held, recipe, dict.fromkeys(held.tensors, 1.0), 7, device_ops.PLAIN)
    return DeviceStepper(network, optimizer, recipe, 0, print)


def check_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> None:
    """Two trainers' weights agree. In float32: they moved alike.

    Rounded stochastically, after one step from the same weights: both draw the same random words, so an element differs
    only where its word falls between the two wanted values. The gradients of such masters are BF16 in one trainer and
    float32 in the other; that moves a wanted value by at most 2⁻⁷ of the learning rate, under 3 % of BF16's spacing.
    """
    for name, tensor in ours.items():
        other = theirs[name].detach()
        if other.dtype == torch.float32:
            moved = other - begun[name]
            assert (tensor - other).norm() <= 1e-3 * moved.norm(), name
        else:
            assert (tensor != other).float().mean() <= 0.1, name


@pytest.mark.parametrize(
    "modes",
    [
        {},
        {"micro_batch": 2},
        {"batching": "packed"},
        {"batching": "packed", "micro_batch": 2},
        {"step_in_backward": True, "activation_checkpointing": True},
        {"memory": "80gb"},
        {"memory": "24gb"},
        {"master_dtype": "nvfp4", "m_dtype": "bf16", "v_dtype": "bf16", "step_in_backward": True},
    ],
)
def test_steps_are_those_of_the_trainer_of_the_cpu(tmp_path: Path, modes: dict[str, Any]) -> None:
    unset = dict.fromkeys(("master_dtype", "m_dtype", "v_dtype", "step_in_backward", "activation_checkpointing"))
    recipe = replace(RECIPE, **{**unset, **modes}, compute_dtype="float32", eps=1e-3)  # steps smooth in the gradient
    folder = tiny_folder(tmp_path / "start")
    ours, theirs = device_stepper(folder, recipe), autograd_stepper(folder, recipe, 7, 0, lambda _: None)
    begun = {name: tensor.float().clone() for name, tensor in ours.network.masters.tensors.items()}
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(12), 64)
    for step in range(3):
        chosen = samples[4 * step : 4 * step + 4]
        ours.launch(step, chosen)
        [(row, facts)] = ours.completed(wait=True)
        expected, their_facts = theirs.step(step, chosen)
        assert row.loss == pytest.approx(expected.loss, rel=2e-3 if modes.get("master_dtype") else 2e-4)
        assert row.tokens == expected.tokens
        assert losses_of_rows(row) == pytest.approx(losses_of_rows(expected), rel=2e-2)
        assert row.grad_norm == pytest.approx(expected.grad_norm, rel=0.02)
        assert facts.whole.elements == their_facts.whole.elements
        assert row.update_efficiency == pytest.approx(expected.update_efficiency, abs=0.02)
        if step == 0 or recipe.master_dtype == "fp32":
            check_weights(ours.network.masters.tensors, dict(theirs.model.named_parameters()), begun)


def losses_of_rows(row: StepRow) -> list[float]:
    return [float(loss) for loss in row.row_losses.split()]


@pytest.mark.parametrize("batching", ["shuffled", "packed"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_steps_by_kl_are_those_of_the_trainer_of_the_cpu(
    micro_batch: int | None, batching: str, tmp_path: Path
) -> None:
    """Some pieces of a batch have no rehearsed row."""
    modes: dict[str, Any] = {"micro_batch": micro_batch, "batching": batching}
    recipe = replace(
        RECIPE,
        compute_dtype="float32",
        eps=1e-3,
        kl=Kl(weight=2.0, top_k=6, opening=Opening(weight=4.0, tokens=2)),
        **modes,
    )
    folder = tiny_folder(tmp_path / "start")
    ours, theirs = device_stepper(folder, recipe), autograd_stepper(folder, recipe, 7, 0, lambda _: None)
    for step, samples in enumerate((soft_samples(6, 4), soft_samples(6, 12)[8:], soft_samples(6, 12)[1:2])):
        ours.launch(step, samples)
        [(row, _)] = ours.completed(wait=True)
        expected, _ = theirs.step(step, samples)
        for name in ("loss", "ce", "kl", "grad_norm"):
            if name == "kl" and step == 2:  # no row of this batch is rehearsed
                assert row.kl is None and expected.kl is None
            else:
                assert getattr(row, name) == pytest.approx(getattr(expected, name), rel=1e-3), name
        assert losses_of_rows(row) == pytest.approx(losses_of_rows(expected), rel=2e-3)
        assert len(losses_of_rows(row)) == len(samples)


@pytest.mark.parametrize("in_backward", [True, False])
@pytest.mark.parametrize(
    ("master", "m", "v"),
    [("fp32", "fp32", "fp32"), ("bf16", "int8", "uint8"), ("bf16", "nvfp4", "uint8"), ("nvfp4", "nvfp4", "nvfp4")],
)
def test_groups_and_banks_are_stepped_as_their_tensors_are(
    tmp_path: Path, master: str, m: str, v: str, in_backward: bool
) -> None:
    """The same arithmetic on views: the same bits, but for a norm that is summed in another order."""
    recipe = replace(RECIPE, master_dtype=master, m_dtype=m, v_dtype=v, grad_clip=0.05, step_in_backward=in_backward)
    folder = tiny_folder(tmp_path / "start")
    held = stream_in(folder, read_config(folder), master, CPU)
    copies = {name: tensor.clone() for name, tensor in held.tensors.items()}
    factors = {name: 0.5 if "norm" in name else 1.0 for name in copies}
    ours, theirs = (
        device_optimizer(held, recipe, factors, 7, device_ops.PLAIN),
        TensorOptimizer(copies, recipe, factors, 7),
    )
    groups = GroupGradients(ours, held)
    for step in range(3):
        grads = {n: noise(tuple(p.shape), 100 * step + i).to(p.dtype) for i, (n, p) in enumerate(copies.items())}
        for optimizer in (ours, theirs):
            optimizer.begin(1e-3)
        for group, names in held.members.items():
            groups.on_grad(group, torch.cat([grads[name] for name in names]))
        for width, bank in held.banks.items():
            groups.on_grad(str(width), torch.stack([grads[name] for name in bank.names]))
        groups.finish_step()
        if in_backward:
            for name, grad in grads.items():
                theirs.on_grad(name, grad)
        else:
            theirs.step_together(grads)
        expected, facts = theirs.finish(), ours.facts(ours.step_stats)
        assert facts.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)
        assert facts.grad_norm == pytest.approx(
            torch.cat([g.flatten().float() for g in grads.values()]).norm().item(), rel=1e-5
        )
        for key in ("realised", "intended", "moved", "largest"):
            assert getattr(facts.whole, key) == pytest.approx(getattr(expected.whole, key), rel=0.02), key
        for name, tensor in held.tensors.items():
            assert (tensor == copies[name]).float().mean() > 0.98, name
            assert ours.amaxes[ours.names.index(name)] == tensor.abs().amax()


def test_a_run_on_a_device_trains_resumes_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run by the path of GPUs, on the CPU: as if that were the device."""
    from fgod.train import choose, stage
    from fgod.train.device import trainer

    folder = tiny_folder(tmp_path / "start")
    recipe = replace(RECIPE, memory="80gb", compute_dtype="float32", steps=6, **UNSET)
    monkeypatch.setattr(choose, "autograd_stepper", lambda *args: trainer.device_stepper(CPU, *args, print))
    arguments = (folder, tiny_rows(), recipe, 7)

    def trained(name: str, schedule: stage.Schedule | None = None) -> Outcome:
        out = tmp_path / name
        job = stage.Job(*arguments, out / "work", out / "run", out / "master", "A", "abc")
        return stage.run(job if schedule is None else replace(job, schedule=schedule))

    outcome = trained("whole")
    assert outcome.status == "trained" and outcome.steps_done == 6
    losses = [line.split("\t")[3] for line in (tmp_path / "whole" / "run" / "train.tsv").read_text().splitlines()[1:]]
    assert len(losses) == 6 and float(losses[-1]) < float(losses[0])

    class Stopped(Exception):
        pass

    real = stage.checkpoint.save

    def save_and_fall(*args: Any) -> None:
        real(*args)
        raise Stopped

    monkeypatch.setattr(stage.checkpoint, "save", save_and_fall)
    with pytest.raises(Stopped):
        trained("cut", stage.Schedule(steps=3))
    monkeypatch.setattr(stage.checkpoint, "save", real)
    again = trained("cut")
    assert again.resumed_at == (3,)
    assert again.weights_sha256 == outcome.weights_sha256


def test_moments_on_the_host_are_no_part_of_what_the_device_needs() -> None:
    config = model_config("tiny")
    kept = TrainRecipe(steps=1, lr=1e-3, batch=2, memory="24gb", device="cuda")
    here, there = (predict_on_device(config, replace(kept, offload_moments=on), 2, 32, 20) for on in (False, True))
    assert set(there.states.values()) == {0} and there.pinned == sum(here.states.values()) > 0
    assert there.total < here.total and here.pinned == 0
    assert "pinned" in there.text() and "pinned" not in here.text()
