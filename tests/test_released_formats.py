"""What a release holds beside the export that was probed, and that transformers loads it as it was probed."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fgod import config as settings
from fgod.cli.base import Export
from fgod.cli.work.weights import export
from fgod.cli.work.worker import Worker
from fgod.dat.exporter import Dat
from fgod.documents import Release, Served
from fgod.errors import FgodError, UsageError
from fgod.exporters.nvfp4 import NVFP4
from fgod.guard.limits import WholeMachine
from fgod.layout import Releases
from fgod.model import load
from fgod.model.chats import ChatFormat
from fgod.probe import served
from fgod.registry import EXPORTERS
from fgod.release import promote, release_faults, summary_text
from fgod.system import files
from tests.families import FAMILIES, family_folder
from tests.made_runs import STORY, context, walk, write_format
from tests.tiny_model import tiny_folder

ROOT = Path(__file__).parents[1]
PROMPTS = ["你是誰", "Who are you?"]


@pytest.fixture(autouse=True)
def of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that a plugin registered."""
    monkeypatch.setitem(EXPORTERS._entries, "own", Dat("own", EXPORTERS["dat"].scales))  # type: ignore[attr-defined]


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    return found


def resolved(raw: dict[str, Any], *formats: str) -> dict[str, Any]:
    return settings.resolve({**copy.deepcopy(raw), "release": {"formats": [*formats]}}, "config.yaml")


def test_a_config_names_formats_that_are_registered_and_the_default_changes_no_digest(raw: dict[str, Any]) -> None:
    plain = settings.resolve(copy.deepcopy(raw), "config.yaml")
    assert "release" not in plain and settings.further_formats(plain) == []
    assert resolved(raw, "nvfp4") == plain
    found = resolved(raw, "bf16", "nvfp4", "own")
    assert settings.further_formats(found) == ["bf16", "own"]
    assert {key: found[key] for key in plain} == plain
    with pytest.raises(UsageError, match=r"found 'modelop' \(did you mean modelopt\?\), expected some of .*, own"):
        resolved(raw, "nvfp4", "modelop")
    with pytest.raises(UsageError, match=r"release\.formats: found bf16, expected nvfp4 among them"):
        resolved(raw, "bf16")


FORMATS = ("modelopt", "own")


def released(root: Path, *formats: str) -> Releases:
    """A release of the story in further formats, on disk."""
    places, entries = Releases(root / "results", root / "artifacts"), walk(root, STORY)
    for name in formats:
        write_format(entries[-1].weights(places.artifacts), name)
    promote(entries, places.results, places.artifacts, context(), formats)
    return places


def test_a_release_holds_further_formats_in_folders_with_digests_and_sizes(tmp_path: Path) -> None:
    places = released(tmp_path, *FORMATS)
    document = Release.read(places.record)
    assert (places.link / "model.safetensors").read_text() == "packed"
    assert (places.link / "formats/modelopt/model.safetensors").read_text() == "in modelopt"
    assert [*document.formats] == [*FORMATS] and document.formats["own"].bytes == len("in own")
    assert document.formats["own"].sha256 == files.sha256_folder(places.link / "formats/own")
    assert document.files["formats/own/model.safetensors"] == files.sha256_file(
        places.link / "formats/own/model.safetensors"
    )
    card = (places.link / "README.md").read_text(encoding="utf-8")
    assert "| `.` | nvfp4 | compressed-tensors `nvfp4-pack-quantized` | 8 | transformers, vLLM |" in card
    assert "| `formats/modelopt` | modelopt | modelopt `W4A16_NVFP4` | 11 | TensorRT-LLM, vLLM |" in card
    assert "transformers 5.23.0 gives the logits that fgod computes from these files, to the bit, on 4 prompts" in card
    assert document.served == Served.read(places.results / "runs/D-settle/dddd11112222/served.json")
    assert release_faults(places) == []
    assert "\nFurther formats: formats/modelopt, formats/own\n" in summary_text(document, tmp_path / "report.html")
    released(tmp_path)
    assert places.link.readlink() == Path("releases/2") and not (places.link / "formats").exists()
    assert "formats/" not in (places.link / "README.md").read_text(encoding="utf-8")


def test_damage_in_a_further_format_is_noticed_and_made_good(tmp_path: Path) -> None:
    places = released(tmp_path, *FORMATS)
    whole = files.file_digests(places.link)
    for damage, words in (
        (
            lambda p: (p / "formats/own/model.safetensors").write_text("other"),
            "formats/own/model.safetensors has changed",
        ),
        (lambda p: (p / "formats/own/model.safetensors").unlink(), "formats/own/model.safetensors is gone"),
        (lambda p: (p / "formats/own/release.json").write_text("{}"), "formats/own/release.json is new"),
    ):
        damage(places.link)
        assert release_faults(places) == [f"{places.link}: {words}"] == release_faults(places, tmp_path / "cache.json")
        released(tmp_path, *FORMATS)
        assert release_faults(places) == [] and files.file_digests(places.link) == whole
    assert places.link.readlink() == Path("releases/1")


def test_an_export_that_is_missing_or_changed_or_was_not_compared_is_not_released(tmp_path: Path) -> None:
    places, entries = released(tmp_path), walk(tmp_path, STORY)
    weights, run = entries[-1].weights(places.artifacts), entries[-1].records(places.results)
    before = files.file_digests(places.artifacts / "releases")

    def refused(words: str, *formats: str) -> None:
        with pytest.raises(FgodError, match=words):
            promote(entries, places.results, places.artifacts, context(), formats)
        assert files.file_digests(places.artifacts / "releases") == before and release_faults(places) == []

    refused(r"exported-own\.json: no such file", "own")
    write_format(weights, "own")
    (weights.of("own") / "model.safetensors").write_text("other")
    refused(
        r"own: model\.safetensors has changed since .*delete \S*exported-own\.json .*release\.formats has own", "own"
    )
    other = Served.read(run.served).model_copy(update={"export_sha256": "00"})
    other.write(run.served)
    refused(r"served\.json: it is of other weights than those that were probed; delete \S*served\.json and run")
    run.served.unlink()
    refused(r"served\.json: no such file")


def test_a_format_that_cannot_hold_a_model_is_named_with_the_reason(tmp_path: Path) -> None:
    master = tiny_folder(tmp_path / "master")
    stored = load_file(master / "model.safetensors")
    stored["model.norm.weight"][0] = 1e6
    save_file(stored, master / "model.safetensors", {"format": "pt"})
    args = Export(folder=master, out=tmp_path / "own", format="own", guard=WholeMachine())
    with pytest.raises(UsageError, match=r"there is no export as own: .*master: model\.norm\.weight.*float16"):
        export(args, Worker(tmp_path / "report.json", 8.0, False))
    assert not args.exported.exists()


@pytest.fixture
def chats(tmp_path: Path) -> list[list[int]]:
    return ChatFormat.of_folder(tiny_folder(tmp_path / "master")).prompts(PROMPTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_computes_what_was_probed(dtype: str, chats: list[list[int]], tmp_path: Path) -> None:
    NVFP4.write(tmp_path / "master", tmp_path / "nvfp4", dtype)
    beats: list[str] = []
    found = Served(export_sha256="", **served.compare_served(tmp_path / "nvfp4", chats, lambda *_: beats.append("")))
    assert (found.dtype, found.prompts, found.tokens, found.cast) == (dtype, 2, sum(map(len, chats)), False)
    assert len(beats) == 6, "each model is loaded, and reads each prompt"


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma"])
def test_it_does_in_every_family(name: str, tmp_path: Path) -> None:
    master = family_folder(name, tmp_path / "master")
    NVFP4.write(master, tmp_path / "nvfp4", "bfloat16")
    assert not served.compare_served(tmp_path / "nvfp4", ChatFormat.of_folder(master).prompts(PROMPTS))["cast"]


def test_a_version_that_unpacks_a_float32_export_to_bf16_is_compared_after_a_cast(
    chats: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NVFP4.write(tmp_path / "master", tmp_path / "nvfp4", "float32")
    whole = load._load_plain

    def unpacked_to_bf16(folder: Path, dtype: object) -> Any:
        model = whole(folder, dtype)
        for layer in model.model.layers:
            layer.mlp.to(torch.bfloat16)
        return model

    monkeypatch.setattr(load, "_load_plain", unpacked_to_bf16)
    found = Served(export_sha256="", **served.compare_served(tmp_path / "nvfp4", chats))
    assert found.cast and re.search("after its weights were cast to float32, which it needs", found.words)


def test_other_logits_are_not_released(chats: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NVFP4.write(tmp_path / "master", tmp_path / "nvfp4", "bfloat16")
    whole = load._load_plain

    def other(folder: Path, dtype: object) -> Any:
        model = whole(folder, dtype)
        model.model.norm.weight.data[3] *= 1.01
        return model

    monkeypatch.setattr(load, "_load_plain", other)
    words = (
        r"nvfp4: transformers [\d.]+ computes other logits .*: up to [\d.e-]+ apart on 2 prompts\. Nothing is released"
    )
    with pytest.raises(FgodError, match=words):
        served.compare_served(tmp_path / "nvfp4", chats)
