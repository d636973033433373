"""Formats that weights are exported to: the project's own, and one that a plugin adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fgod import __version__
from fgod.documents import Metrics
from fgod.errors import UsageError
from fgod.exporters.exporter import Exporter, exporter_of
from fgod.exporters.nvfp4 import NVFP4
from fgod.exporters.read import dequantised
from fgod.importing.nvfp4 import decode_export
from fgod.inspected import text
from fgod.model import memory
from fgod.model.folder import check_folder
from fgod.model.load import load_model, read_config
from fgod.nvfp4 import NonFiniteError, dequantise, quantise
from fgod.nvfp4.folders import open_weights
from fgod.plugins import load_plugins
from fgod.registry import EXPORTERS
from fgod.system.files import read_json, write_json
from tests import vllm_rules
from tests.families import family_folder
from tests.mini import Mini
from tests.tiny_model import tiny_folder

PLUGIN = Path(__file__).parent / "plugins" / "fp8.py"
IDS = torch.tensor([[5, 6, 7, 9, 11, 2]])


@pytest.fixture(scope="session")  # a process imports a plugin once
def fp8() -> Exporter:
    """The plugin's format; other tests refuse it, so it is taken away again."""
    load_plugins([PLUGIN])
    return EXPORTERS["fp8"]


@pytest.fixture(autouse=True)
def registered(fp8: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    EXPORTERS._entries.pop("fp8", None)
    monkeypatch.setitem(EXPORTERS._entries, "fp8", fp8)


@pytest.mark.parametrize("name", ["nvfp4", "modelopt", "fp8"])
def test_what_a_format_wrote_is_recognised_counted_loaded_and_decoded(name: str, tmp_path: Path) -> None:
    exporter, beats = EXPORTERS[name], []
    master, out = tiny_folder(tmp_path / "master"), tmp_path / name
    exporter.write(master, out, "bfloat16", beat=lambda: beats.append(1))
    assert exporter_of(read_config(out)) is exporter and exporter_of(read_config(master)) is None and beats
    assert memory.stored(out).weights == memory.stored(master).weights

    decode_export(out, tmp_path / "decoded")
    exact = dict(dequantised(out, exporter=exporter))
    decoded = dict(load_model(tmp_path / "decoded", torch.float32).named_parameters())
    assert all(torch.equal(decoded[name], value) for name, value in exact.items()) and exact.keys() <= decoded.keys()


def test_an_engine_reads_the_plugins_format_as_this_package_does(fp8: Exporter, tmp_path: Path) -> None:
    master = tiny_folder(tmp_path / "master")
    fp8.write(master, tmp_path / "fp8", "bfloat16")
    ours = load_model(tmp_path / "fp8")(input_ids=IDS).logits
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8")(input_ids=IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=0.02, atol=0.02)
    exact = load_model(master, torch.float32)(input_ids=IDS).logits
    NVFP4.write(master, tmp_path / "nvfp4", "bfloat16")
    rougher = load_model(tmp_path / "nvfp4")(input_ids=IDS).logits
    assert (ours - exact).abs().mean() < (rougher - exact).abs().mean()


CASES = [(tied, dtype) for tied in (True, False) for dtype in ("float32", "bfloat16")]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval().requires_grad_(False)(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(("tied", "dtype"), CASES)
def test_modelopts_layout_has_the_same_bytes_by_other_names(tied: bool, dtype: str, tmp_path: Path) -> None:
    master = tiny_folder(tmp_path / "master", tied)
    for name in ("nvfp4", "modelopt"):
        EXPORTERS[name].write(master, tmp_path / name, dtype)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("nvfp4", "modelopt"))
    renamed = {
        name.replace("_packed", "").replace("_global_scale", "_scale_2"): 1 / value.squeeze()
        if name.endswith("_global_scale")
        else value
        for name, value in ours.items()
    }
    assert theirs.keys() == renamed.keys() and not any("input_scale" in name for name in theirs)
    for name, value in theirs.items():
        assert value.dtype == renamed[name].dtype and value.shape == renamed[name].shape, name
        assert torch.equal(value.float(), renamed[name].float()), name
    assert theirs["model.layers.0.mlp.up_proj.weight_scale_2"].shape == ()
    assert torch.equal(*(logits(load_model(tmp_path / name)) for name in ("nvfp4", "modelopt")))


def test_modelopts_configs_say_that_activations_are_not_quantised(tmp_path: Path) -> None:
    EXPORTERS["modelopt"].write(tiny_folder(tmp_path / "master"), tmp_path / "modelopt", "bfloat16")
    producer = {"name": "fgod", "version": __version__}
    assert read_json(tmp_path / "modelopt" / "hf_quant_config.json") == {
        "producer": producer,
        "quantization": {
            "quant_algo": "W4A16_NVFP4",
            "group_size": 16,
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head"],
        },
    }
    weights = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    assert read_json(tmp_path / "modelopt" / "config.json")["quantization_config"] == {
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
        "quant_algo": "W4A16_NVFP4",
        "producer": producer,
        "quant_method": "modelopt",
    }
    decode_export(tmp_path / "modelopt", tmp_path / "decoded")
    assert not (tmp_path / "decoded" / "hf_quant_config.json").exists(), "plain weights are not quantised"
    assert "24 tensors, 14 of them nvfp4, 0 with faults" in text(tmp_path / "modelopt")


def test_modelopt_itself_unpacks_the_same_weights_and_makes_the_same_config(tmp_path: Path) -> None:
    qtensor = pytest.importorskip(
        "modelopt.torch.quantization.qtensor.nvfp4_tensor", reason="nvidia-modelopt is needed"
    )
    converter = pytest.importorskip("modelopt.torch.export.convert_hf_config", reason="nvidia-modelopt is needed")
    folder, exporter = tmp_path / "modelopt", EXPORTERS["modelopt"]
    exporter.write(tiny_folder(tmp_path / "master"), folder, "bfloat16")
    converted = converter.convert_hf_quant_config_format(read_json(folder / "hf_quant_config.json"))
    assert converted == read_json(folder / "config.json")["quantization_config"]
    stored, ours = load_file(folder / "model.safetensors"), dict(dequantised(folder, exporter=exporter))
    packed = [name for name in ours if f"{name}_scale_2" in stored]
    assert len(packed) == 14
    for name in packed:
        scales = {"scale": stored[f"{name}_scale"], "double_scale": stored[f"{name}_scale_2"], "block_sizes": {-1: 16}}
        for dtype in (torch.float32, torch.bfloat16):
            tensor = qtensor.NVFP4QTensor(ours[name].shape, dtype, stored[name])
            assert torch.equal(tensor.dequantize(dtype=dtype, **scales), ours[name].to(dtype)), name


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_is_a_plain_folder_of_the_masters_that_transformers_loads(tied: bool, tmp_path: Path) -> None:
    master, out = tiny_folder(tmp_path / "master", tied), tmp_path / "bf16"
    EXPORTERS["bf16"].write(master, out, "float32")
    config = read_config(out)
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert config["tie_word_embeddings"] is tied and exporter_of(config) is None
    served = AutoModelForCausalLM.from_pretrained(out)
    rounded = AutoModelForCausalLM.from_pretrained(master).to(torch.bfloat16)
    assert served.dtype == torch.bfloat16
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.equal(value, dict(rounded.named_parameters())[name]), name
    assert torch.equal(logits(served), logits(load_model(out)))
    check_folder(out)

    spoilt = load_file(master / "model.safetensors")
    spoilt["model.norm.weight"][3] = 3.4e38  # finite, but in BF16
    save_file(spoilt, master / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight: a weight is not finite in bfloat16"):
        EXPORTERS["bf16"].write(master, tmp_path / "again", "bfloat16")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(("tied", "dtype"), CASES)
def test_a_quantised_head_loads_in_transformers_and_here_to_the_same_bits(
    tied: bool, dtype: str, tmp_path: Path
) -> None:
    master, out, exporter = tiny_folder(tmp_path / "master", tied), tmp_path / "head", EXPORTERS["nvfp4-head"]
    exporter.write(master, out, dtype)
    config = read_config(out)
    [group] = config["quantization_config"]["config_groups"].values()
    assert config["tie_word_embeddings"] is False and config["quantization_config"]["ignore"] == []
    assert group["targets"] == ["Linear", "re:.*lm_head$"]
    with open_weights(master) as weights:
        table = weights.read("model.embed_tokens.weight" if tied else "lm_head.weight")
    expected = dequantise(quantise(table))
    assert torch.equal(dict(dequantised(out, exporter=exporter))["lm_head.weight"], expected)
    assert memory.stored(out).weights == memory.stored(master).weights + (table.numel() if tied else 0)
    served, ours = AutoModelForCausalLM.from_pretrained(out), load_model(out)
    assert torch.equal(logits(served), logits(ours)) and logits(ours).std() > 0.01
    assert torch.equal(ours.lm_head.weight.float(), expected.to(ours.dtype).float())
    NVFP4.write(master, tmp_path / "nvfp4", dtype)
    assert not torch.equal(logits(ours), logits(load_model(tmp_path / "nvfp4"))), "training does not round the head"


def test_weights_of_an_unknown_format_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base")
    unknown = {"quant_method": "awq", "format": "gemm"}
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "quantization_config": unknown})
    words = r"quantization_config: found quant_method 'awq', format 'gemm', expected none or a format of .*nvfp4-"
    with pytest.raises(UsageError, match=rf"base/config\.json: {words}"):
        load_model(folder)


@pytest.mark.long
def test_the_real_commands_export_and_probe_in_a_plugins_format(ran: Mini) -> None:
    entries = {entry["argv"][1]: entry["argv"] for entry in ran.manifest() if "artifacts/A/" in " ".join(entry["argv"])}
    plugin = ("--plugin", str(PLUGIN))
    exported = next((ran.folder / "artifacts" / "A").iterdir()).relative_to(ran.folder)
    stamp, metrics = exported / "exported-fp8.json", Path("fp8") / "metrics.json"
    [_, *export], [_, *probe] = entries["export"], entries["probe"]
    refused = ran.run("fgod", *export, "--format", "fp8", "--out", str(stamp))
    assert refused.returncode == 2, refused.stderr
    [said] = [line for line in refused.stderr.splitlines() if "export format: found 'fp8'" in line]
    assert "nvfp4" in said.partition("expected one of ")[2].split(", ")
    assert not (ran.folder / stamp).exists()

    made = ran.run("fgod", *plugin, *export, "--format", "fp8", "--out", str(stamp))
    assert made.returncode == 0, made.stderr
    config = read_json(ran.folder / exported / "fp8" / "config.json")
    assert config["quantization_config"]["format"] == "float-quantized"
    probed = ran.run("fgod", *plugin, *probe, "--format", "fp8", "--export", str(stamp), "--out", str(metrics))
    assert probed.returncode == 0, probed.stderr
    [own] = map(Metrics.read, ran.folder.glob("results/runs/A/*/metrics.json"))
    found = Metrics.read(ran.folder / metrics)
    assert found.export and own.export and found.export.sha256 != own.export.sha256
    assert found.probes == own.probes and found.metrics["kl_reference"].value is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-head"])
def test_an_export_meets_the_rules_by_which_vllm_chooses_nvfp4(name: str, dtype: str, tmp_path: Path) -> None:
    EXPORTERS[name].write(family_folder("qwen2", tmp_path / "master"), tmp_path / name, dtype)
    assert vllm_rules.faults(tmp_path / name) == []


MUTATED = [
    ({"weights": {"group_size": 32}}, "weights.group_size 32"),
    ({"weights": {"strategy": "group"}}, "weights.strategy 'group'"),
    ({"weights": {"symmetric": False}}, "weights.symmetric False"),
    ({"weights": {"num_bits": 8}}, "weights.num_bits 8"),
    ({"weights": {"type": "int"}}, "weights.type 'int'"),
    ({"input_activations": {"num_bits": 8, "type": "float"}}, "input_activations"),
    ({"targets": ["Conv2d"]}, "no target is Linear"),
    ({"targets": ["Linear", "lm_head"], "ignore": []}, "the head is a target, and not quantised"),
]


@pytest.mark.parametrize(("change", "fault"), MUTATED, ids=[fault for _, fault in MUTATED])
def test_a_config_that_vllm_takes_for_something_else_breaks_a_rule(change: dict[str, Any], fault: str) -> None:
    config = NVFP4.quantization_config("bfloat16")
    group = config["config_groups"]["group_0"]
    assert [*vllm_rules.config_faults(config, head=False)] == []
    config["ignore"] = change.get("ignore", config["ignore"])
    weights = {**group["weights"], **change.get("weights", {})}
    config["config_groups"] = {"group_0": {**group, **change, "weights": weights}}
    assert fault in [*vllm_rules.config_faults(config, head=False)]


def test_fused_layers_with_other_global_scales_break_a_rule(tmp_path: Path) -> None:
    NVFP4.write(family_folder("qwen2", tmp_path / "master"), tmp_path / "nvfp4", "bfloat16")
    file = tmp_path / "nvfp4" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.k_proj.weight_global_scale"
    save_file({**tensors, name: tensors[name] * 2}, file, {"format": "pt"})
    assert vllm_rules.faults(tmp_path / "nvfp4") == [
        "model.layers.1.self_attn.q_proj.weight_global_scale is not that of k_proj, v_proj"
    ]
    save_file({**tensors, name: tensors[name].double()}, file, {"format": "pt"})
    assert vllm_rules.faults(tmp_path / "nvfp4") == [name]
