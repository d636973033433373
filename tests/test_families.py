"""Each family: the tensors that it is said to have, and a training forward that equals what is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fgod.errors import UsageError
from fgod.exporters.write import export
from fgod.model.chats import ChatFormat
from fgod.model.load import load_model
from fgod.model.masters import load_masters
from fgod.models.architecture import architecture_of, tensors_of
from fgod.plugins import load_plugins
from fgod.registry import ARCHITECTURES
from fgod.train.autograd import answer_loss
from fgod.train.batches import collate
from fgod.train.memory import layer_activations
from fgod.train.preflight import check_forward
from fgod.train.recipe import MEMORY, TrainRecipe
from fgod.train.stage import TRAINED, Job, run
from fgod.train.storage import MASTERS
from tests.families import FAMILIES, family_folder, family_model
from tests.tiny_model import tiny_rows, tiny_tokenizer

PLUGIN = Path(__file__).parent / "plugins" / "gemma.py"
CHATS = [[5, 6, 7], [9, 4, 33, 2, 1], [8]]
MODES = {
    "float32": ("fp32", "float32"),
    "BF16 masters": ("bf16", "bfloat16"),
    "float32 masters, BF16 compute": ("fp32", "bfloat16"),
}


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    load_plugins([PLUGIN])


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_folder(request.param, tmp_path_factory.mktemp(request.param) / "base")


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_a_family_names_its_tensors_in_the_order_of_transformers(folder: Path) -> None:
    model = load_model(folder)
    assert list(tensors_of(config_of(folder), "x").items()) == [
        (name, tuple(parameter.shape)) for name, parameter in model.named_parameters()
    ]


@pytest.mark.parametrize("mode", MODES)
def test_the_training_forward_equals_the_served_one(folder: Path, mode: str, tmp_path: Path) -> None:
    master_dtype, compute_dtype = MODES[mode]
    model = load_masters(folder, compute_dtype, master_dtype=master_dtype)
    check_forward(model, CHATS)
    if master_dtype == "fp32":
        export(folder, tmp_path / "nvfp4", compute_dtype)
        ids = torch.tensor([[5, 6, 7, 9, 11, 2]])
        served = load_model(tmp_path / "nvfp4")(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, served)


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_gets_a_gradient_of_the_masters_kind(folder: Path, mode: str) -> None:
    master_dtype, compute_dtype = MODES[mode]
    model = load_masters(folder, compute_dtype, master_dtype=master_dtype)
    answer_loss(model, collate(ChatFormat(tiny_tokenizer()).rows(tiny_rows(4), 64), 0)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("memory", MEMORY)
def test_a_family_trains_all_its_tensors_and_the_export_answers_as_it(
    folder: Path, memory: str, tmp_path: Path
) -> None:
    check_training(folder, tmp_path, memory=memory, compute_dtype="float32" if memory == "cpu" else "bfloat16")


@pytest.mark.parametrize("kind", [kind for kind in MASTERS if kind not in ("fp32", "bf16")])
def test_the_same_of_masters_that_no_row_of_the_memory_table_has(kind: str, tmp_path: Path) -> None:
    """Rounded to nearest, small steps are lost: not every tensor moves."""
    folder = family_folder("llama-biased", tmp_path / "base")
    check_training(folder, tmp_path, moved=not kind.endswith("-rtn"), master_dtype=kind, compute_dtype="bfloat16")


def check_training(folder: Path, out: Path, moved: bool = True, **keys: Any) -> None:
    """Train two steps; the trained masters and their export give the same logits, to the bit."""
    recipe = TrainRecipe(steps=2, lr=1e-2, batch=4, seq_len=64, **keys)
    outcome = run(Job(folder, tiny_rows(), recipe, 7, out / "work", out / "run", out / "master"))
    assert outcome.status == TRAINED and outcome.full_parameter is moved
    before, after = (load_file(path / "model.safetensors") for path in (folder, out / "master"))
    assert before.keys() == after.keys()
    assert not moved or not any(torch.equal(before[name], after[name].float()) for name in before)
    export(out / "master", out / "nvfp4", recipe.compute_dtype)
    ids = torch.tensor([[5, 6, 7, 9, 11, 2]])
    trained = load_masters(out / "master", recipe.compute_dtype)
    assert torch.equal(trained(input_ids=ids).logits, load_model(out / "nvfp4")(input_ids=ids).logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory", ["80gb", "24gb"])
def test_a_family_trains_on_a_gpu_as_on_a_cpu(folder: Path, memory: str, tmp_path: Path) -> None:
    """The same first step's loss; preflight compares the network with transformers' own model on the way."""
    losses = []
    for device in ("cpu", "cuda"):
        recipe = TrainRecipe(steps=3, lr=1e-3, batch=4, seq_len=64, memory=memory, device=device)
        out = tmp_path / device
        outcome = run(Job(folder, tiny_rows(), recipe, 7, out / "work", out / "run", out / "master"))
        assert outcome.status == TRAINED and outcome.full_parameter
        table = (out / "run" / "train.tsv").read_text().splitlines()
        losses.append([float(line.split("\t")[table[0].split("\t").index("loss")]) for line in table[1:]])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-3)


@pytest.mark.parametrize("item", [4, 2])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "mistral"])
def test_activations_of_a_layer_are_predicted(family: str, item: int, tmp_path: Path) -> None:
    """What autograd keeps of one layer, beside its parameters and quantised weights, counted by hooks."""
    folder = family_folder(family, tmp_path / "base")
    config = config_of(folder)
    dtype = {4: "float32", 2: "bfloat16"}[item]
    kept = []
    for layers in (1, 2):
        model = load_masters(folder, dtype, master_dtype="fp32" if item == 4 else "bf16")
        model.model.layers = model.model.layers[:layers]
        sizes: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes, weights: set[int] = weights) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and tensor.ndim > 2:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            hidden = model.model(input_ids=torch.arange(64)[None], use_cache=False).last_hidden_state
        kept.append(sum(sizes.values()))
        del hidden
    assert (kept[1] - kept[0]) / 64 == pytest.approx(layer_activations(config, item), rel=0.1)


def test_what_a_family_would_compute_wrongly_is_refused(tmp_path: Path) -> None:
    for name, changes, words in (
        ("qwen3", {"attention_bias": True}, "attention_bias: found True, expected false, as in every Qwen3ForCausalLM"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window: found True, expected null or false"),
        ("mistral", {"sliding_window": 64}, "sliding_window: found 64, expected null or false"),
        ("llama", {"mlp_bias": True}, "mlp_bias: found True, expected false"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
        ("llama", {"head_dim": None, "num_attention_heads": 3}, "num_attention_heads: found 3, expected a divisor"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers: found 0, expected a whole number of at least 1"),
    ):
        model = family_model(name)
        config = {**model.config.to_dict(), "architectures": [type(model).__name__], **changes}
        family = architecture_of(config, "config.json")
        with pytest.raises(UsageError, match=f"config.json: {words}"):
            family.check(config, "config.json")
            family.sizes(config, "config.json")
    with pytest.raises(UsageError, match=r"found None, expected one of .*LlamaForCausalLM, .*a plugin may add"):
        architecture_of({}, "config.json")


def test_projections_that_servers_fuse_share_a_scale() -> None:
    for name in ("Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"):
        group = ARCHITECTURES[name].scale_group
        assert len({group(f"model.layers.1.self_attn.{x}_proj.weight") for x in "qkv"}) == 1
        assert len({group(f"model.layers.1.mlp.{x}_proj.weight") for x in ("gate", "up")}) == 1
        for plain in ("model.layers.0.self_attn.q_proj.bias", "model.norm.weight", "model.embed_tokens.weight"):
            assert group(plain) is None
