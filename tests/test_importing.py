"""Bases that are made of something else: an NVFP4 export is decoded, a GGUF file imported, anything else refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgod.cli import main
from fgod.cli.base import Base
from fgod.cli.work.worker import Worker, run
from fgod.documents import BaseStamp
from fgod.errors import UsageError
from fgod.exporters.read import dequantised
from fgod.exporters.write import export
from fgod.guard import Limits
from fgod.importing import RECORD
from fgod.importing.nvfp4 import decode_export
from fgod.inputs import base_id, own_weights
from fgod.model.folder import check_folder
from fgod.model.load import load_model
from fgod.nvfp4.folders import SINGLE
from fgod.system.files import read_json, sha256_file, sha256_folder, write_json
from tests.families import family_folder, family_model
from tests.gguf_files import write_gguf
from tests.mini import ROOT

SOURCES = str(ROOT / "traindata")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of a tied model and of an untied one with biases, side by side."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("qwen3", "llama-biased"):
        export(family_folder(name, folder / f"{name}-master"), folder / name, "bfloat16")
    return folder


@pytest.mark.parametrize("name", ["qwen3", "llama-biased"])
def test_an_export_is_decoded_to_what_its_codes_stand_for(name: str, exported: Path, tmp_path: Path) -> None:
    facts = decode_export(exported / name, tmp_path / "master")
    assert facts.dtypes == ("F32",)
    found, expected = load_file(tmp_path / "master" / SINGLE), dict(dequantised(exported / name))
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
    record = read_json(tmp_path / "master" / RECORD)
    assert record["source"] == name and record["sha256"] == sha256_folder(exported / name)


@pytest.mark.parametrize("name", ["qwen3", "llama-biased"])
def test_a_decoded_export_is_exported_to_what_it_was(name: str, exported: Path, tmp_path: Path) -> None:
    """The same codes; scales are computed anew of values that were rounded once, and differ in the last digit."""
    decode_export(exported / name, tmp_path / "master")
    export(tmp_path / "master", tmp_path / "again", "bfloat16")
    ids = torch.tensor([[5, 6, 7, 9, 11, 2]])
    before, again = (load_model(f, torch.float32)(input_ids=ids).logits for f in (exported / name, tmp_path / "again"))
    torch.testing.assert_close(again, before, rtol=1e-4, atol=1e-4)


def test_a_broken_export_is_refused_and_nothing_is_written(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported / "qwen3", tmp_path / "export"))
    tensors = load_file(folder / SINGLE)
    save_file({n: t for n, t in tensors.items() if n != "model.layers.0.mlp.up_proj.weight_scale"}, folder / SINGLE)
    with pytest.raises(UsageError, match=r"export: model\.layers\.0\.mlp\.up_proj\.weight_scale is missing"):
        decode_export(folder, tmp_path / "master")
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, folder / SINGLE)
    with pytest.raises(UsageError, match=r"export: the tensor model\.norm\.weight is in none of the weight files"):
        decode_export(folder, tmp_path / "master")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


@pytest.mark.parametrize(
    "quantised",
    [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ],
)
def test_other_quantised_weights_are_refused(quantised: dict[str, Any], tmp_path: Path) -> None:
    folder = family_folder("qwen2", tmp_path / "base")
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "quantization_config": quantised})
    words = (
        f"config.json: quantization_config: found '{quantised['quant_method']}', expected none: .*in BF16, or a GGUF"
    )
    for refuse in (check_folder, lambda path: decode_export(path, tmp_path / "out")):
        with pytest.raises(UsageError, match=words):
            refuse(folder)


def test_a_gguf_file_is_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_gguf(tmp_path / "model.gguf", family_model("llama"))
    base = {"kind": "gguf", "path": str(file), "closed_answers": False}
    out = tmp_path / "base" / "base.json"
    assert main(["base", "--base", json.dumps(base), "--sources", SOURCES, "--out", str(out), "--limit-gb", "4"]) == 0
    stamp = BaseStamp.read(out)
    assert stamp.facts["architecture"] == "LlamaForCausalLM" and stamp.facts["path"] == str(file)
    assert stamp.weights_sha256 == sha256_folder(tmp_path / "base" / "master")
    assert read_json(tmp_path / "base" / "master" / RECORD)["sha256"] == sha256_file(file)
    assert own_weights(base) is None


def test_an_export_is_a_base(exported: Path, tmp_path: Path) -> None:
    base = {"kind": "folder", "path": str(exported / "qwen3"), "closed_answers": False}
    made = Base(base=base, out=tmp_path / "base" / "base.json", sources=Path(SOURCES), guard=Limits(4))
    assert run(made.work(), Worker(tmp_path / "report.json", 4, False)) == 0
    assert read_json(tmp_path / "report.json")["facts"]["path"] == base["path"]
    assert check_folder(tmp_path / "base" / "master").dtypes == ("F32",)
    assert own_weights(base) is None
    assert own_weights({**base, "path": str(exported / "qwen3-master")}) == exported / "qwen3-master"


def test_the_id_of_a_gguf_base_is_by_the_content_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("a.gguf", b"one"), ("b.gguf", b"one"), ("c.gguf", b"two")):
        Path(name).write_bytes(content)
    first, same, other = (base_id({"kind": "gguf", "path": f"{n}.gguf", "closed_answers": False}, "") for n in "abc")
    assert first == same != other
