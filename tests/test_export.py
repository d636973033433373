"""The export: what is stored, and that the reloaded model computes what was trained, bit for bit."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fgod.errors import UsageError
from fgod.exporters.read import dequantised, read_export
from fgod.exporters.write import export
from fgod.inspected import inspect_tensor, text
from fgod.model.load import load_model
from fgod.model.masters import load_masters
from fgod.nvfp4 import NonFiniteError, Quantised, codec, folders
from fgod.nvfp4.codec import BLOCK_SCALES, BadScaleError, fake_quantise, quantise, shared_global_scale
from fgod.nvfp4.folders import described, open_weights, plan_shards, write_weights
from fgod.system.files import sha256_folder
from fgod.system.procfs import forget_peak, peak_mib, resident_mib
from tests.tiny_model import noise, tiny_folder

CASES = [(tied, dtype) for tied in (True, False) for dtype in ("float32", "bfloat16")]
Masters = dict[bool, Path]
Exports = dict[tuple[bool, str], Path]
QKV = tuple(f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Masters:
    """Master folders, tied and untied."""
    root = tmp_path_factory.mktemp("masters")
    return {tied: tiny_folder(root / f"tied-{tied}", tied) for tied in (True, False)}


@pytest.fixture(scope="module")
def exports(masters: Masters, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    for tied, dtype in CASES:
        export(masters[tied], root / f"{tied}-{dtype}", dtype)
    return {(tied, dtype): root / f"{tied}-{dtype}" for tied, dtype in CASES}


@pytest.mark.parametrize(("tied", "dtype"), CASES)
def test_reloaded_logits_equal_the_training_forward_to_the_bit(
    masters: Masters, exports: Exports, tied: bool, dtype: str
) -> None:
    trained = load_masters(masters[tied], dtype).requires_grad_(False)
    served, probed = AutoModelForCausalLM.from_pretrained(exports[tied, dtype]), load_model(exports[tied, dtype])
    ids = torch.arange(2 * 17).reshape(2, 17) * 7 % 300
    with torch.no_grad():
        ours, theirs, own = (model(input_ids=ids).logits for model in (trained, served, probed))
    assert ours.dtype == theirs.dtype == own.dtype == getattr(torch, dtype)
    assert torch.equal(ours, theirs) and torch.equal(ours, own)
    assert ours.std() > 0.01


@pytest.mark.parametrize(("tied", "dtype"), CASES)
def test_greedy_generation_with_a_cache_is_the_same(masters: Masters, exports: Exports, tied: bool, dtype: str) -> None:
    prompt = {"input_ids": torch.tensor([[0, 0, 5, 80, 7], [9, 4, 33, 2, 1]])}
    prompt["attention_mask"] = (prompt["input_ids"] != 0).long()
    wanted = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    # torch multiplies a strided batch another way when the weight requires a gradient: compare like with like
    trained: Any = load_masters(masters[tied], dtype).requires_grad_(False)
    served: Any = AutoModelForCausalLM.from_pretrained(exports[tied, dtype]).eval().requires_grad_(False)
    ours, theirs = (model.generate(**prompt, **wanted) for model in (trained, served))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert len(ours.logits) > 1
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))


def test_an_export_that_lacks_a_tensor_or_has_another_is_named(exports: Exports, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for file in exports[True, "float32"].iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    stored = load_file(out / "model.safetensors")
    norm = "model.norm.weight"
    for wrong, words in (
        ({key: value for key, value in stored.items() if key != norm}, f"{norm} is missing from the weights"),
        ({**stored, "extra.weight": torch.ones(2)}, "extra.weight stands in the weights"),
        ({**stored, norm: torch.ones(5)}, f"{norm} has another shape"),
    ):
        save_file(wrong, out / "model.safetensors", {"format": "pt"})
        with pytest.raises(UsageError, match=f"out: the tensor {words}"):
            load_model(out)


def test_quantisation_changes_the_logits(masters: Masters) -> None:
    ids = torch.arange(9).unsqueeze(0)
    with torch.no_grad():
        plain = load_model(masters[True])(input_ids=ids).logits
        assert not torch.allclose(plain, load_masters(masters[True])(input_ids=ids).logits, atol=1e-3)


def test_what_is_stored(exports: Exports) -> None:
    stored = load_file(exports[True, "bfloat16"] / "model.safetensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    kinds = {key.removeprefix(name): (value.dtype, tuple(value.shape)) for key, value in stored.items() if name in key}
    assert kinds == {
        "_packed": (torch.uint8, (48, 16)),
        "_scale": (torch.float8_e4m3fn, (48, 2)),
        "_global_scale": (torch.float32, (1,)),
    }
    assert stored["model.embed_tokens.weight"].dtype == stored["model.norm.weight"].dtype == torch.bfloat16
    assert "lm_head.weight" not in stored
    assert "lm_head.weight" in load_file(exports[False, "float32"] / "model.safetensors")


def test_config_says_what_is_stored(exports: Exports) -> None:
    config = json.loads((exports[True, "bfloat16"] / "config.json").read_text())
    quantization = config["quantization_config"]
    assert config["dtype"] == "bfloat16"
    assert (quantization["quant_method"], quantization["format"]) == ("compressed-tensors", "nvfp4-pack-quantized")
    assert quantization["quantization_status"] == "compressed"
    assert quantization["ignore"] == ["lm_head"]
    group = quantization["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"]
    assert group["input_activations"] is None
    assert group["weights"]["scale_dtype"] == group["weights"]["zp_dtype"] == "torch.float8_e4m3fn"
    assert "dequantize" not in quantization, "only a float32 model needs it"


def test_tokenizer_and_generation_config_come_along(masters: Masters, exports: Exports) -> None:
    out = exports[True, "float32"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (masters[True] / name).read_bytes()
    assert AutoTokenizer.from_pretrained(out).decode([5, 6]) == AutoTokenizer.from_pretrained(masters[True]).decode(
        [5, 6]
    )


def test_the_weights_read_back_are_those_of_the_forward(masters: Masters, exports: Exports) -> None:
    read = dict(dequantised(exports[True, "bfloat16"]))
    with open_weights(masters[True]) as weights:
        assert set(read) == set(weights.names)
        shared = shared_global_scale([weights.read(n) for n in QKV], "qkv")
        for name in QKV:
            assert torch.equal(read[name], fake_quantise(weights.read(name), shared))
        embedding = weights.read("model.embed_tokens.weight")
    assert torch.equal(read["model.embed_tokens.weight"], embedding.bfloat16().float())


def test_qkv_and_gate_up_share_their_global_scale(exports: Exports) -> None:
    scales = {n: q.global_scale for n, q in read_export(exports[True, "float32"]) if isinstance(q, Quantised)}
    assert len({scales[n] for n in QKV}) == 1
    assert scales["model.layers.0.mlp.gate_proj.weight"] == scales["model.layers.0.mlp.up_proj.weight"]
    assert len(set(scales.values())) > 1


def test_shards_hold_the_same_tensors(masters: Masters, exports: Exports, tmp_path: Path) -> None:
    export(masters[False], tmp_path / "out", "float32", shard_bytes=8000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    whole, pieces = (dict(dequantised(f)) for f in (exports[False, "float32"], tmp_path / "out"))
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[n], pieces[n]) for n in whole)
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        served = [load_model(f)(input_ids=ids).logits for f in (exports[False, "float32"], tmp_path / "out")]
    assert torch.equal(*served)


def test_one_tensor_is_in_memory_while_shards_are_written(tmp_path: Path) -> None:
    alive, most = 0, 0

    def made(name: str) -> dict[str, torch.Tensor]:
        nonlocal alive, most
        value = torch.zeros(1000, dtype=torch.int8)
        alive += 1
        most = max(most, alive)
        weakref.finalize(value, gone)
        return {name: value}

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def planned(name: str) -> dict[str, torch.Tensor]:
        return {name: described((1000,), torch.int8)}

    write_weights(tmp_path, [str(n) for n in range(12)], planned, made, 3000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4 and most == 1 and alive == 0


def test_a_file_written_tensor_by_tensor_is_the_one_that_safetensors_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "PART_BYTES", 7)
    monkeypatch.setattr(folders, "UNSYNCED_BYTES", 20)
    dtypes = (torch.uint8, torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.int64, torch.float32, torch.bool)
    made = {f"b.{i}": noise((3, 5), i).to(dtype) for i, dtype in enumerate(dtypes)}
    made |= {"字": torch.tensor(2.5), "a": torch.zeros(0), "c": noise((4, 6), 9).T}
    expected = {name: value.contiguous() for name, value in made.items()}
    save_file(expected, tmp_path / "expected", {"format": "pt"})
    write_weights(tmp_path, list(made), lambda n: {n: described(made[n].shape, made[n].dtype)}, lambda n: {n: made[n]})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"w": torch.zeros(3)}, r"w: found torch\.float32 \[3\], expected torch\.float32 \[2\]"),
        ({"w": torch.zeros(2).half()}, r"w: found torch\.float16 \[2\], expected torch\.float32 \[2\]"),
        ({"v": torch.zeros(2)}, r"v: found torch\.float32 \[2\], expected one of \['w'\]"),
        ({}, r"model\.safetensors: 1 tensors were not made, as w"),
    ],
)
def test_tensors_other_than_planned_are_refused(made: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        write_weights(tmp_path, ["w"], lambda n: {n: described((2,), torch.float32)}, lambda n: made)


@pytest.mark.parametrize("rule", BLOCK_SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_of_rows_give_the_bits_of_the_whole(
    dtype: torch.dtype, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(codec.AT_ONCE, "cpu", 100)
    weight = (noise((37, 32), 5) * 0.1).to(dtype)
    whole = codec.quantise(weight.float(), 2.0**12, block_scales=rule)
    codes, scales = codec.quantise_chunks(weight, 2.0**12, lambda one: (one.codes, one.scales), block_scales=rule)
    chunks = codec.Quantised(codes, scales, 2.0**12)
    assert torch.equal(chunks.codes, whole.codes) and torch.equal(chunks.scales.float(), whole.scales.float())
    steps = (whole.scales.float() / 2.0**12).repeat_interleave(16, 1)
    assert torch.equal(codec.dequantise(chunks), codec.decode_e2m1(whole.codes) * steps)


def test_reading_shards_in_turn_holds_one_of_them(tmp_path: Path) -> None:
    size = 2**26
    made = {str(n): torch.full((size,), n, dtype=torch.int8) for n in range(4)}
    write_weights(tmp_path, list(made), lambda n: {n: described((size,), torch.int8)}, lambda n: {n: made[n]}, size)
    with open_weights(tmp_path) as weights:
        assert weights.names == ["0", "1", "2", "3"] and len(set(weights.files.values())) == 4
        made.clear()
        before = resident_mib()
        forget_peak()
        assert [int(weights.read(name).max()) for name in weights.names] == [0, 1, 2, 3]
        assert peak_mib() - before < 2.5 * size / 2**20
        assert weights.shape("0") == (size,) and int(weights.read("0")[0]) == 0
    assert resident_mib() - before < size / 2**20


def test_reading_one_file_in_turn_does_not_hold_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**25
    monkeypatch.setattr(folders, "MAPPED_BYTES", size)
    value = torch.ones(size, dtype=torch.int8)
    names = [str(n) for n in range(8)]
    write_weights(tmp_path, names, lambda n: {n: described((size,), torch.int8)}, lambda n: {n: value})
    with open_weights(tmp_path) as weights:
        before = resident_mib()
        forget_peak()
        assert all(int(weights.read(name).min()) == 1 for name in names)
        assert peak_mib() - before < 3.5 * size / 2**20


def test_shards_are_planned_in_order_within_the_limit() -> None:
    assert plan_shards([3, 3, 3, 20, 1], 6) == [[0, 1], [2], [3], [4]]
    assert plan_shards([], 6) == []


def test_a_bf16_model_is_exported_by_plain_rounding_of_its_float32_values(tmp_path: Path) -> None:
    master = tiny_folder(tmp_path / "master", dtype=torch.bfloat16)
    export(master, tmp_path / "out", "bfloat16")
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        logits = [
            load_masters(master, "bfloat16")(input_ids=ids).logits,
            load_model(tmp_path / "out")(input_ids=ids).logits,
        ]
    assert torch.equal(*logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_writes_the_same_bytes(masters: Masters, exports: Exports, tmp_path: Path) -> None:
    for tied, dtype in CASES:
        export(masters[tied], tmp_path / f"{tied}-{dtype}", dtype, device=torch.device("cuda"))
        assert sha256_folder(tmp_path / f"{tied}-{dtype}") == sha256_folder(exports[tied, dtype])
    export(masters[False], tmp_path / "shards", "float32", 8000, torch.device("cuda"))
    export(masters[False], tmp_path / "expected", "float32", 8000)
    assert sha256_folder(tmp_path / "shards") == sha256_folder(tmp_path / "expected")


def test_the_same_masters_give_the_same_bytes(masters: Masters, exports: Exports, tmp_path: Path) -> None:
    export(masters[True], tmp_path / "again", "float32")
    assert sha256_folder(tmp_path / "again") == sha256_folder(exports[True, "float32"])


def spoil(folder: Path, name: str, value: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[3] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    master = tiny_folder(tmp_path / "master")
    spoil(master, name, float("nan"))
    with pytest.raises(NonFiniteError, match=name.removesuffix(".weight")):
        export(master, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["master"]


def test_a_stored_zero_scale_is_refused_by_name(masters: Masters, tmp_path: Path) -> None:
    export(masters[True], tmp_path / "out")
    spoil(tmp_path / "out", "model.layers.0.mlp.up_proj.weight_scale", 0.0)
    with pytest.raises(BadScaleError, match=r"mlp\.up_proj\.weight: block scale"):
        list(dequantised(tmp_path / "out"))


def test_an_export_is_no_master(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantization_config; expected plain weights"):
        export(exports[True, "float32"], tmp_path / "out")


def test_missing_files_are_named(masters: Masters, tmp_path: Path) -> None:
    shutil.copyfile(masters[True] / "config.json", tmp_path / "config.json")
    with pytest.raises(UsageError, match=r"found no weights, expected model\.safetensors"):
        export(tmp_path, tmp_path / "out")


def test_inspect_says_what_a_folder_holds(masters: Masters, exports: Exports, tmp_path: Path) -> None:
    lines = text(exports[True, "bfloat16"]).splitlines()
    assert len(lines) == 26
    assert "24 tensors, 14 of them nvfp4, 0 with faults" in lines[-2]
    assert f"sha256 {sha256_folder(exports[True, 'bfloat16'])}, nothing on record" in lines[-1]
    [projection] = [line for line in lines if line.startswith("model.layers.0.mlp.up_proj.weight ")]
    assert "48×32  nvfp4" in projection
    assert "global scale" in projection and "· scales 2^" in projection and "· codes 0 " in projection
    broken = quantise(torch.ones(2, 32))
    broken.scales[0] = 0
    assert inspect_tensor("x", broken).faults == "2 zero scales"
    assert inspect_tensor("x", torch.tensor([1.0, torch.nan])).faults == "1 non-finite weights"
    assert "24 tensors, 0 of them nvfp4" in text(masters[True])
    with pytest.raises(UsageError, match="no such folder"):
        text(tmp_path / "nowhere")
