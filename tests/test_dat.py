"""TorchSharp files as exports and as bases: decoded by numpy alone from the format's description, imported, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from fgod import config as settings_of
from fgod.cli import main, parse
from fgod.cli.work import talk as work
from fgod.cli.work.worker import Worker
from fgod.config.load import base_words
from fgod.dat.codec import LEAST, SCALES, TORCH, Packed, dequantise, quantise
from fgod.dat.exporter import DAT, DAT_FLOAT16, FILE, Dat
from fgod.dat.file import DatFile, Element, read_dat, write_dat
from fgod.dat.weights import packed_of, stored_weights
from fgod.documents import BaseStamp, Stamp
from fgod.errors import FgodError, UsageError
from fgod.exporters.nvfp4 import NVFP4
from fgod.exporters.read import dequantised
from fgod.importing import RECORD
from fgod.importing.dat import import_dat
from fgod.importing.nvfp4 import decode_export
from fgod.inputs import base_id, own_weights
from fgod.inspected import text
from fgod.model import memory
from fgod.model.load import load_model, read_config
from fgod.nvfp4.codec import BLOCK_SCALES, NonFiniteError, largest_magnitude
from fgod.nvfp4.codec import dequantise as dequantise_nvfp4
from fgod.nvfp4.codec import quantise as quantise_nvfp4
from fgod.nvfp4.folders import BLOCK_SCALES_KEY, SINGLE
from fgod.stamps import digests_of
from fgod.system.files import read_json, sha256_file, sha256_folder, write_json
from tests.by_hand import dat as by_hand
from tests.families import family_folder
from tests.mini import ROOT
from tests.tiny_model import noise, tiny_folder

IDS = torch.tensor([[5, 6, 7, 9, 11, 2]])
UP = "model.layers.0.mlp.up_proj.weight"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
FORMATS = {"dat": DAT, "dat-float16": DAT_FLOAT16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masters of a tied and an untied model, and their exports in both formats: NAME, NAME-dat, NAME-dat-float16."""
    folder = tmp_path_factory.mktemp("dat")
    for name, tied in (("tied", True), ("untied", False)):
        master = tiny_folder(folder / name, tied)
        for exporter in FORMATS.values():
            exporter.write(master, folder / f"{name}-{exporter.name}", "bfloat16")
    return folder


@pytest.mark.parametrize("exporter", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_an_export_is_what_numpy_makes_of_its_bytes(name: str, exporter: Dat, folders: Path) -> None:
    out = folders / f"{name}-{exporter.name}"
    expected, found = by_hand(out / FILE), dict(dequantised(out, exporter=exporter))
    assert list(found) == list(expected)
    assert all(np.array_equal(found[key].numpy(), value) for key, value in expected.items())
    stored = stored_weights(read_dat(out / FILE))
    quantised = [key for key, one in stored.items() if one.scale]
    assert len(quantised) == 7 * 2 + 1 and quantised[-1] == HEAD
    assert {one.data.element for one in stored.values() if not one.scale} == {Element.FLOAT16}
    assert {one.scale.element for one in stored.values() if one.scale} == {exporter.scales}
    config = read_config(out)
    assert config["tie_word_embeddings"] is False and config["quantization_config"]["scale_type"] == exporter.scales


@pytest.mark.parametrize("exporter", FORMATS.values(), ids=FORMATS)
def test_written_codes_and_scales_are_read_to_the_bit(exporter: Dat, folders: Path) -> None:
    file, master = read_dat(folders / f"tied-{exporter.name}" / FILE), load_file(folders / "tied" / SINGLE)
    group = [master[f"model.layers.0.mlp.{one}_proj.weight"] for one in ("gate", "up")]
    for name, weight, amax in (
        (UP, master[UP], max(map(largest_magnitude, group))),
        (HEAD, master[TABLE], largest_magnitude(master[TABLE])),
    ):
        made, found = (
            quantise(weight, exporter.scales, amax, "amax", name != HEAD),
            packed_of(file, stored_weights(file)[name]),
        )
        assert torch.equal(found.codes, made.codes) and found.scales.dtype == TORCH[exporter.scales]
        assert torch.equal(found.scales.view(torch.uint8), made.scales.view(torch.uint8))
    assert np.array_equal(file.read(TABLE), master[TABLE].half().numpy())


@pytest.mark.parametrize("rule", BLOCK_SCALES)
def test_float16_scales_hold_the_weights_of_the_nvfp4_export(rule: str, tmp_path: Path) -> None:
    master = tiny_folder(tmp_path / "master", tied=False)
    write_json(master / "config.json", {**read_json(master / "config.json"), BLOCK_SCALES_KEY: rule})
    for exporter in (NVFP4, DAT_FLOAT16):
        exporter.write(master, tmp_path / exporter.name, "bfloat16")
    trained = dict(dequantised(tmp_path / "nvfp4"))
    found = dict(dequantised(tmp_path / "dat-float16", exporter=DAT_FLOAT16))
    projections = [name for name in trained if name.endswith("_proj.weight")]
    assert len(projections) == 14 and all(torch.equal(found[name], trained[name]) for name in projections)


@given(st.integers(0, 2**16), st.sampled_from(SCALES), st.integers(-24, 8), st.sampled_from(BLOCK_SCALES))
@settings(deadline=None, max_examples=60)
def test_codes_are_the_nearest_under_their_scales(seed: int, element: Element, exponent: int, rule: str) -> None:
    weight = noise((5, 48), seed) * 2.0**exponent
    weight[0, :16] = 0
    packed = quantise(weight, element, largest_magnitude(weight), rule, rounded=False)
    scales = packed.scales.float()
    assert (scales >= LEAST[element]).all() and not (packed.codes[0, :8] & 0x77).any()
    error = (dequantise(packed).double() - weight).abs().unflatten(1, (-1, 16))
    grid = torch.tensor([sign * value for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]).double()
    every = grid * scales.double()[..., None, None]  # what the 16 codes stand for, block by block
    least = (weight.double().unflatten(1, (-1, 16)).unsqueeze(-1) - every).abs().amin(-1)
    slack = 1e-6 * scales.double().unsqueeze(-1)  # a weight halfway between two, as float32 divides it
    assert (error <= least + slack).all()


def test_bf16_holds_what_e4m3_scales_stand_for() -> None:
    codes = torch.arange(256, dtype=torch.uint8).expand(126, 256).contiguous()
    every = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = every.unsqueeze(1).expand(126, 32).contiguous()
    packed = Packed(codes, scales)
    assert torch.equal(dequantise(packed, torch.bfloat16).float(), dequantise(packed))


def relative_error(made: torch.Tensor, weight: torch.Tensor) -> float:
    return float((made - weight).double().square().sum() / weight.double().square().sum())


def test_what_scales_cost_at_the_size_of_real_weights() -> None:
    """docs/formats.md has the numbers of more weights (benchmarks/scale_errors.py)."""
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(1)) * 0.02
    amax, nvfp4 = largest_magnitude(weight), dequantise_nvfp4(quantise_nvfp4(weight))
    assert torch.equal(dequantise(quantise(weight, Element.FLOAT16, amax)), nvfp4)
    trained = dequantise(quantise(weight, Element.FP8_E4M3, amax))
    nearest = dequantise(quantise(weight, Element.FP8_E4M3, amax, rounded=False))
    assert relative_error(nvfp4, weight) == pytest.approx(0.0090, rel=0.03)
    assert relative_error(nearest, weight) < 0.0084  # 0.0106 with amax/6 alone
    assert relative_error(trained, nvfp4) < 0.0050  # 0.0151 with amax/6 of the weights themselves


def test_a_folder_of_a_file_is_counted_loaded_decoded_and_inspected(folders: Path, tmp_path: Path) -> None:
    out = folders / "tied-dat"
    counts = memory.stored(folders / "tied").weights + 304 * 32
    assert memory.stored(out).weights == counts and memory.stored(out).file == (out / FILE).stat().st_size
    facts = decode_export(out, tmp_path / "decoded")
    assert facts.dtypes == ("F32",) and not facts.tied and not (tmp_path / "decoded" / FILE).exists()
    found, exact = load_file(tmp_path / "decoded" / SINGLE), dict(dequantised(out, exporter=DAT))
    assert found.keys() == exact.keys() and all(torch.equal(found[n], exact[n]) for n in exact)
    assert torch.isfinite(load_model(out)(input_ids=IDS).logits).all()
    for place, last in ((out, "nothing on record"), (out / FILE, f"sha256 {sha256_file(out / FILE)}")):
        lines = text(place).splitlines()
        assert "25 tensors, 15 of them dat, 0 with faults" in lines[-2] and last in lines[-1]
        [projection] = [line for line in lines if line.startswith(f"{UP} ")]
        assert "48×32  dat" in projection and "float8_e4m3fn scales 2^" in projection and "global" not in projection


@pytest.mark.parametrize("name", ["qwen2", "llama-biased", "mistral"])
def test_other_families_come_back(name: str, tmp_path: Path) -> None:
    master = family_folder(name, tmp_path / "master")
    DAT_FLOAT16.write(master, tmp_path / "dat", "float32")
    import_dat(tmp_path / "dat" / FILE, tmp_path / "out", master)
    found, exact = load_file(tmp_path / "out" / SINGLE), dict(dequantised(tmp_path / "dat", exporter=DAT_FLOAT16))
    assert found.keys() == exact.keys() and all(torch.equal(found[n], exact[n]) for n in exact)
    logits = load_model(tmp_path / "out")(input_ids=IDS).logits
    assert torch.equal(logits, load_model(tmp_path / "dat")(input_ids=IDS).logits)


def test_the_command_exports_what_was_trained(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Stamp(status="trained", **digests_of(folders / "tied")).write(tmp_path / "trained.json")
    words = ["--weights", str(folders / "tied"), "--stamp", "trained.json", "--dtype", "bfloat16", "--limit-gb", "4"]
    assert main(["export", *words, "--format", "dat", "--out", "run/exported-dat.json"]) == 0
    assert (tmp_path / "run" / "dat" / FILE).read_bytes() == (folders / "tied-dat" / FILE).read_bytes()
    assert Stamp.read(tmp_path / "run" / "exported-dat.json").weights_sha256 == sha256_folder(tmp_path / "run" / "dat")

    with pytest.raises(SystemExit) as left:
        main(["export", *words, "--format", "dat", "--out", "run/exported.json"])
    assert left.value.code == 2
    said = (
        "--out: found run/exported.json, the stamp of the format nvfp4; expected exported-dat.json for the format dat"
    )
    assert said in capsys.readouterr().err and not (tmp_path / "run" / "exported.json").exists()


def test_a_folder_of_ones_own_is_exported_without_a_stamp(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = str(folders / "tied")
    assert main(["export", own, "--format", "dat", "--out", "made/mine"]) == 0
    assert (tmp_path / "made/mine" / FILE).read_bytes() == (folders / "tied-dat" / FILE).read_bytes()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mine"], "nothing is recorded outside a project"
    Path("trained.json").touch()
    run = ["--weights", own, "--stamp", "trained.json"]
    for words, said in (
        ([own, "--out", "made/mine"], "made/mine: this folder exists"),
        (["--out", "x"], "found nothing, expected FOLDER, or --weights and --stamp of a run"),
        ([own, *run, "--out", "x"], "expected FOLDER, or"),
        ([*run[:2], "--out", "x"], "expected FOLDER, or"),
        ([*run, "--format", "dat", "--out", "dat"], "--out: found dat, which is the folder that is made; expected"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["export", *words])
        assert left.value.code == 2 and said in capsys.readouterr().err


# Weights that cannot be written


def spoiled(tmp_path: Path, name: str, value: float) -> Path:
    master = tiny_folder(tmp_path / "master")
    tensors = load_file(master / SINGLE)
    tensors[name].view(-1)[3] = value
    save_file(tensors, master / SINGLE, metadata={"format": "pt"})
    return master


@pytest.mark.parametrize(
    ("exporter", "name", "value", "words"),
    [
        (DAT, UP, 2700.0, rf"{UP}: the largest magnitude is 2700, expected at most 2688: 6 times .* FP8_E4M3 block"),
        (DAT_FLOAT16, UP, 4e5, rf"{UP}: the largest magnitude is 400000, expected at most 393024"),
        (DAT, "model.norm.weight", 65520.0, r"model\.norm\.weight: the largest magnitude is 65520, .* at most 65504"),
        (DAT_FLOAT16, "model.norm.weight", -1e6, r"model\.norm\.weight: the largest magnitude is 1e\+06"),
    ],
)
def test_weights_beyond_their_type_are_refused(
    exporter: Dat, name: str, value: float, words: str, tmp_path: Path
) -> None:
    master = spoiled(tmp_path, name, value)
    with pytest.raises(UsageError, match=rf"master: {words}"):
        exporter.write(master, tmp_path / "out", "bfloat16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [UP, "model.norm.weight"])
def test_weights_that_are_no_numbers_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=rf"{name}: a weight is not finite"):
        DAT.write(spoiled(tmp_path, name, float("nan")), tmp_path / "out", "bfloat16")


def test_a_tensor_that_config_does_not_ask_for_is_not_left_out_in_silence(tmp_path: Path) -> None:
    master = tiny_folder(tmp_path / "master")
    tensors = load_file(master / SINGLE)
    save_file({**tensors, "extra": torch.ones(2)}, master / SINGLE)
    with pytest.raises(UsageError, match=r"master: found the tensor extra, expected those of config\.json"):
        DAT.write(master, tmp_path / "out", "bfloat16")
    save_file({name: value for name, value in tensors.items() if name != UP}, master / SINGLE)
    with pytest.raises(UsageError, match=rf"master: found no tensor {UP}"):
        DAT.write(master, tmp_path / "out", "bfloat16")


# Imports


Rows = dict[str, tuple[Element, NDArray[Any]]]


def rows_of(path: Path) -> Rows:
    file: DatFile = read_dat(path)
    return {key: (entry.element, file.read(key)) for key, entry in file.entries.items()}


def write_rows(path: Path, rows: Rows) -> Path:
    write_dat(path, len(rows), [(key, element, data) for key, (element, data) in rows.items()])
    return path


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_file_is_imported_with_the_config_and_tokenizer_of_a_folder(name: str, folders: Path, tmp_path: Path) -> None:
    file, like = folders / f"{name}-dat" / FILE, folders / name
    assert main(["import", str(file), str(tmp_path / "out"), "--like", str(like)]) == 0
    found, exact = load_file(tmp_path / "out" / SINGLE), dict(dequantised(file.parent, exporter=DAT))
    assert found.keys() == exact.keys() and all(torch.equal(found[n], exact[n]) for n in exact)
    config = read_config(tmp_path / "out")
    assert config["tie_word_embeddings"] is False and config["dtype"] == "float32"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (like / "tokenizer.json").read_bytes()
    record = read_json(tmp_path / "out" / RECORD)
    assert record["sha256"] == sha256_file(file) and record["types"] == {"FLOAT16": 10, "FP8_E4M3": 15, "UINT8": 15}
    import_dat(file, tmp_path / "own")  # its own folder has config and tokenizer
    assert (tmp_path / "own" / SINGLE).read_bytes() == (tmp_path / "out" / SINGLE).read_bytes()
    import_dat(file, tmp_path / "half", dtype="bfloat16")
    assert load_file(tmp_path / "half" / SINGLE)[UP].dtype == torch.bfloat16


def test_names_without_weight_and_any_order_and_scales_of_both_types_are_read(folders: Path, tmp_path: Path) -> None:
    rows, other = rows_of(folders / "untied-dat" / FILE), rows_of(folders / "untied-dat-float16" / FILE)
    mixed = {**rows, f"{UP}.qdata": other[f"{UP}.qdata"], f"{UP}.scale": other[f"{UP}.scale"]}
    short = {key.replace(".weight.qdata", ".qdata").replace(".weight.scale", ".scale"): mixed[key] for key in mixed}
    assert f"{UP.removesuffix('.weight')}.qdata" in short
    file = write_rows(tmp_path / "x.dat", dict(reversed(short.items())))
    import_dat(file, tmp_path / "out", folders / "untied")
    found, exact = load_file(tmp_path / "out" / SINGLE), dict(dequantised(folders / "untied-dat", exporter=DAT))
    exact[UP] = dict(dequantised(folders / "untied-dat-float16", exporter=DAT_FLOAT16))[UP]
    assert found.keys() == exact.keys() and all(torch.equal(found[n], exact[n]) for n in exact)


def test_a_head_that_is_the_embedding_leaves_the_model_tied(folders: Path, tmp_path: Path) -> None:
    rows = rows_of(folders / "tied-dat" / FILE)
    rows = {key: value for key, value in rows.items() if not key.startswith("lm_head")}
    for name, made in (("none", rows), ("same", {**rows, HEAD: rows[TABLE]})):
        file = write_rows(tmp_path / f"{name}.dat", made)
        facts = import_dat(file, tmp_path / name, folders / "tied")
        assert facts.tied and HEAD not in load_file(tmp_path / name / SINGLE)
        assert read_config(tmp_path / name)["tie_word_embeddings"] is True
    with pytest.raises(
        UsageError, match=rf"none\.dat: the tensor {HEAD} is missing, expected by .*untied/config\.json"
    ):
        import_dat(tmp_path / "none.dat", tmp_path / "out", folders / "untied")


def without(key: str) -> Callable[[Rows], Rows]:
    return lambda rows: {name: value for name, value in rows.items() if name != key}


def with_one(key: str, element: Element, data: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Rows], Rows]:
    """The rows, of which one has another type or other data."""
    return lambda rows: {**rows, key: (element, data(rows[key][1] if key in rows else np.zeros(0)))}


def scale_of(value: int) -> Callable[[Rows], Rows]:
    def made(data: NDArray[Any]) -> NDArray[Any]:
        data[1, 1] = value
        return data

    return with_one(f"{UP}.scale", Element.FP8_E4M3, made)


NORM = "model.norm.weight"
AT = r"x\.dat: byte \d+: "
SPOILED: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "no tensors": (lambda rows: {}, r"x\.dat: found no tensors, expected the weights of a model"),
    "a missing tensor": (without(NORM), rf"x\.dat: the tensor {NORM} is missing, expected by .*untied/config\.json"),
    "no scales": (without(f"{UP}.scale"), rf"{AT}{UP}\.qdata: found codes without scales, expected {UP}\.scale too"),
    "no codes": (without(f"{UP}.qdata"), rf"{AT}{UP}\.scale: found scales without codes, expected {UP}\.qdata too"),
    "a tensor too many": (
        with_one("model.extra", Element.FLOAT16, lambda _: np.zeros(2, np.float16)),
        rf"{AT}found the tensor model\.extra, expected none of this name by .*config\.json",
    ),
    "another shape": (
        with_one(NORM, Element.FLOAT16, lambda _: np.ones(31, np.float16)),
        rf"{AT}shape of {NORM}: found \[31\], expected \[32\] by .*config\.json",
    ),
    "quantised in another shape": (
        lambda rows: {
            **rows,
            f"{UP}.qdata": (Element.UINT8, rows[f"{UP}.qdata"][1][:32]),
            f"{UP}.scale": (Element.FP8_E4M3, rows[f"{UP}.scale"][1][:32]),
        },
        rf"{AT}shape of {UP}: found \[32, 32\], expected \[48, 32\]",
    ),
    "whole numbers": (
        with_one(NORM, Element.INT32, lambda _: np.ones(32, np.int32)),
        rf"{AT}type of {NORM}: found INT32, expected 5 FLOAT16 or 15 BFLOAT16 or 6 FLOAT32",
    ),
    "codes of another type": (
        with_one(f"{UP}.qdata", Element.INT8, lambda data: data.view(np.int8)),
        rf"{AT}type of {UP}\.qdata: found INT8, expected 0 UINT8",
    ),
    "codes of another width": (
        with_one(f"{UP}.qdata", Element.UINT8, lambda data: data[:, :12].copy()),
        rf"{AT}shape of {UP}\.qdata: found \[48, 12\], expected \[rows, columns / 2\] with a multiple of 16 columns",
    ),
    "scales that are bytes": (
        with_one(f"{UP}.scale", Element.UINT8, lambda data: data),
        rf"{AT}type of {UP}\.scale: found UINT8, expected 101 FP8_E4M3 or 5 FLOAT16",
    ),
    "scales of another shape": (
        with_one(f"{UP}.scale", Element.FP8_E4M3, lambda data: data.reshape(2, 48)),
        rf"{AT}shape of {UP}\.scale: found \[2, 48\], expected \[48, 2\], as {UP}\.qdata is \[48, 16\]",
    ),
    "a negative scale": (scale_of(0xB8), rf"{AT}{UP}\.scale: scale \[1, 1\]: found -1, expected a finite number of at"),
    "a scale of -0": (scale_of(0x80), rf"{AT}{UP}\.scale: scale \[1, 1\]: found -0, expected a finite number of at"),
    "a scale that is no number": (scale_of(0x7F), rf"{AT}{UP}\.scale: scale \[1, 1\]: found nan, expected"),
    "a weight that is no number": (
        with_one(NORM, Element.FLOAT16, lambda data: data * np.float16("inf")),
        rf"{AT}{NORM}: a weight is not finite",
    ),
    "a tensor twice": (
        lambda rows: {**rows, UP: (Element.FLOAT16, np.zeros((48, 32), np.float16))},
        rf"{AT}{UP}: found the tensor {UP} again, which byte \d+ has as {UP}\.qdata",
    ),
    "a tensor by both names": (
        lambda rows: {
            **rows,
            **{UP.replace(".weight", end): rows[f"{UP}{end}"] for end in (".qdata", ".scale")},
        },
        rf"{AT}.*up_proj\.qdata: found the tensor {UP} again",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_not_as_described_is_refused_and_nothing_is_written(name: str, folders: Path, tmp_path: Path) -> None:
    spoil, words = SPOILED[name]
    file = write_rows(tmp_path / "x.dat", spoil(rows_of(folders / "untied-dat" / FILE)))
    with pytest.raises(FgodError, match=words):
        import_dat(file, tmp_path / "out", folders / "untied")
    assert [path.name for path in tmp_path.iterdir()] == ["x.dat"]


def test_the_byte_of_a_bad_scale_is_named(folders: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "x.dat", scale_of(0xB8)(rows_of(folders / "untied-dat" / FILE)))
    start = read_dat(file).entries[f"{UP}.scale"].start
    with pytest.raises(FgodError, match=rf"x\.dat: byte {start + 3}: "):
        import_dat(file, tmp_path / "out", folders / "untied")
    assert file.read_bytes()[start + 3] == 0xB8


@pytest.mark.parametrize("exporter", FORMATS.values(), ids=FORMATS)
def test_a_scale_of_0_makes_its_block_zeros_whatever_its_codes_are(
    exporter: Dat, folders: Path, tmp_path: Path
) -> None:
    whole = rows_of(folders / f"untied-{exporter.name}" / FILE)
    scales = whole[f"{UP}.scale"][1].copy()
    scales[1, 1], scales[2] = 0, 0
    file = write_rows(tmp_path / "x.dat", {**whole, f"{UP}.scale": (exporter.scales, scales)})
    codes = whole[f"{UP}.qdata"][1]
    assert (codes[1, 8:] & 0x77).any() and (codes[1, 8:] & 0x88).any(), "codes that are not 0, some of them negative"
    import_dat(file, tmp_path / "out", folders / "untied")
    found = load_file(tmp_path / "out" / SINGLE)[UP]
    kept = dict(dequantised(folders / f"untied-{exporter.name}", exporter=exporter))[UP]
    expected = kept.clone()
    expected[1, 16:], expected[2] = 0, 0
    assert torch.equal(found, expected) and not torch.equal(found, kept)
    exporter.write(tmp_path / "out", tmp_path / "again", "bfloat16")
    assert "0 with faults" in text(file) and "scales 0 3%" in text(file)


def test_a_folder_of_a_file_without_tensors_is_refused_wherever_it_is_read(folders: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders / "tied-dat", tmp_path / "folder"))
    write_rows(folder / FILE, {})
    for read in (memory.stored, text, lambda place: text(place / FILE)):
        with pytest.raises(UsageError, match=r"weights\.dat: found no tensors, expected the weights of a model"):
            read(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "weights"])
def test_only_files_with_a_suffix_of_models_are_inspected(name: str, folders: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(folders / "tied-dat" / FILE, tmp_path / name))
    with pytest.raises(UsageError, match=rf"{name}: found a file, expected a model folder, a \.gguf or a \.dat file"):
        text(file)
    assert "25 tensors" in text(Path(shutil.copy(file, tmp_path / "X.DAT")))


def test_a_folder_that_no_file_needs_is_refused(folders: Path, tmp_path: Path) -> None:
    like = ["--like", str(folders / "tied")]
    for words in (["ask", "x.gguf", "hi"], ["parity", str(folders / "tied"), "x.gguf"]):
        args: Any = parse([*words, *like])
        run = work.ask if words[0] == "ask" else work.parity
        with pytest.raises(
            UsageError, match=r"--like: found .*tied with .*x\.gguf; expected a \.dat file, or no --like"
        ):
            run(args, Worker(tmp_path / "report.json", args.guard.limit_gb, False))
    work.check_like([folders / "tied", tmp_path / "X.DAT"], folders / "tied")
    work.check_like([folders / "tied"], None)


def test_the_weights_of_the_folder_that_a_file_is_like_are_no_input(folders: Path) -> None:
    file, like = folders / "tied-dat" / FILE, folders / "tied"
    beside = {path for path in like.iterdir() if path.name != SINGLE}
    assert like / "config.json" in beside and like / "tokenizer.json" in beside
    base = json.dumps({"kind": "dat", "path": str(file), "like": str(like)})
    made = parse(["base", "--base", base, "--sources", "s", "--out", "b/base.json", "--limit-gb", "1"])
    assert {*made.inputs()} == {Path("s"), file, *beside}
    words = ["--like", str(like)]
    assert {*parse(["import", str(file), "out", *words]).inputs()} == {file, *beside}
    assert {*parse(["evaluate", str(file), "b", "--items", "i.jsonl", "--out", "o", *words]).inputs()} == {
        file, Path("b"), Path("i.jsonl"), *beside,
    }  # fmt: skip
    assert parse(["import", str(file), "out", "--like", "none"]).inputs() == [file, Path("none/config.json")]


def test_a_file_without_a_config_asks_for_one(folders: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(folders / "tied-dat" / FILE, tmp_path / "x.dat"))
    with pytest.raises(
        UsageError, match=r"found no config\.json; .*x\.dat holds weights alone: expected --like FOLDER"
    ):
        import_dat(file, tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "x.gguf"), str(tmp_path / "out"), "--like", str(folders / "tied")])


def test_a_file_is_a_base(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, like = folders / "tied-dat" / FILE, Path(shutil.copytree(folders / "tied", tmp_path / "like"))
    base = {"kind": "dat", "path": str(file), "like": str(like), "closed_answers": False}
    out = tmp_path / "base" / "base.json"
    command = ["base", "--base", json.dumps(base), "--sources", str(ROOT / "traindata"), "--out", str(out)]
    assert main([*command, "--limit-gb", "4"]) == 0
    stamp = BaseStamp.read(out)
    assert stamp.facts["architecture"] == "Qwen3ForCausalLM" and stamp.facts["path"] == str(file)
    assert not stamp.facts["tied"] and own_weights(base) is None

    first = base_id(base, "")
    (like / SINGLE).write_bytes(b"other weights")
    assert base_id(base, "") == first
    write_json(like / "generation_config.json", {"eos_token_id": 3})
    second = base_id(base, "")
    assert second != first != base_id({**base, "path": str(folders / "untied-dat" / FILE)}, "")


def resolved(base: dict[str, Any]) -> Any:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    return settings_of.resolve({**raw, "base": base}, "config.yaml")


def test_a_config_names_file_and_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = folders / "tied-dat" / FILE
    whole = {"kind": "dat", "path": str(file), "like": str(folders / "tied"), "closed_answers": True}
    found = resolved(whole)
    assert found["base"] == {**whole, "require": 0.9} and base_words(found["base"]) == f"the model in {file}"
    with pytest.raises(UsageError, match=r"base\.like: found .*, expected a folder with a config\.json"):
        resolved({"kind": "dat", "path": str(file), "like": str(folders)})
    with pytest.raises(UsageError, match=r"base\.path: found 'none\.dat', expected a file that exists"):
        resolved({"kind": "dat", "path": "none.dat", "like": str(folders / "tied")})
    with pytest.raises(UsageError, match=r"base.*like"):
        resolved({"kind": "dat", "path": str(file)})


def test_a_file_is_asked_as_what_is_imported_of_it(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(folders / "untied-dat" / FILE, tmp_path / "x.dat"))
    import_dat(file, tmp_path / "imported", folders / "untied", "bfloat16")
    for words in ([str(file), "hi", "--like", str(folders / "untied")], [str(tmp_path / "imported"), "hi"]):
        args: Any = parse(["ask", *words, "--max-tokens", "5", "--json"])
        work.ask(args, Worker(tmp_path / "report.json", args.guard.limit_gb, False))
    ours, theirs = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ours["token_ids"] == theirs["token_ids"] and ours["model"] == str(file)
