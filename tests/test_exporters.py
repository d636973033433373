"""Formats that weights are exported to: the project's own, and one that a plugin adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fgod.documents import Metrics
from fgod.errors import UsageError
from fgod.exporters.exporter import Exporter, exporter_of
from fgod.exporters.nvfp4 import NVFP4
from fgod.importing.nvfp4 import decode_export
from fgod.model import memory
from fgod.model.load import load_model, read_config
from fgod.nvfp4.reader import dequantised
from fgod.registry import EXPORTERS, load_plugins
from fgod.system.files import read_json, write_json
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


@pytest.mark.parametrize("name", ["nvfp4", "fp8"])
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


def test_weights_of_an_unknown_format_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base")
    unknown = {"quant_method": "awq", "format": "gemm"}
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "quantization_config": unknown})
    words = r"quantization_config: found quant_method 'awq', format 'gemm', expected none or a format of .*nvfp4-"
    with pytest.raises(UsageError, match=rf"base/config\.json: {words}"):
        load_model(folder)


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
