"""Weights between the start and the end of a training."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fgod.documents import check_interpolation
from fgod.errors import FgodError, UsageError
from fgod.layout import lineage_of
from fgod.nvfp4.codec import device_global_scale, fake_quantise
from fgod.system.files import digest, write_json
from fgod.train.interpolate import PIECE, Line, interpolate

ALPHA = 0.3


def tensors(seed, dtype, rows=24, columns=32):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, columns, generator=generator)
    end = start + 0.01 * torch.randn(rows, columns, generator=generator)
    return start.to(dtype), end.to(dtype)


@given(alpha=st.floats(0.01, 0.99), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_float32_weights_are_those_of_torch_lerp_in_float64(alpha, seed):
    start, end = tensors(seed, torch.float32)
    made = Line(alpha, "fp32", 7).between("w", start, end)
    expected = torch.lerp(start.double(), end.double(), alpha)
    assert made.dtype == torch.float32
    assert (made.double() - expected).abs().max() <= 2**-24 * expected.abs().max(), "one rounding to float32"


@pytest.mark.parametrize("master", ["fp32", "bf16", "nvfp4", "bf16-rtn", "nvfp4-rtn"])
def test_pieces_of_any_size_give_the_same_bits(master, monkeypatch):
    start, end = tensors(1, torch.float32 if master == "fp32" else torch.bfloat16)
    whole = Line(ALPHA, master, 7).between("w", start, end)
    monkeypatch.setitem(PIECE, "cpu", 5 * start.shape[1])
    assert torch.equal(Line(ALPHA, master, 7).between("w", start, end), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("master", ["fp32", "bf16", "nvfp4"])
def test_a_gpu_gives_the_same_bits(master):
    start, end = tensors(1, torch.float32 if master == "fp32" else torch.bfloat16, 512, 512)
    made = Line(ALPHA, master, 7).between("w", start.cuda(), end.cuda())
    assert torch.equal(made.cpu(), Line(ALPHA, master, 7).between("w", start, end))


def test_bf16_weights_one_step_apart_keep_the_difference_in_expectation():
    """To nearest, all would stay at the start: α of one step of BF16 is below a half."""
    start = torch.full((512, 512), 1.0, dtype=torch.bfloat16)
    end = start + 2**-7
    made = Line(ALPHA, "bf16", 7).between("w", start, end)
    assert set(made.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert ((made == end).double().mean() - ALPHA).abs() < 5 * (ALPHA * (1 - ALPHA)) ** 0.5 / 512
    other = Line(ALPHA, "bf16", 8).between("w", start, end)
    assert not torch.equal(made, other), "another seed, other bits"


def test_nvfp4_weights_stay_on_the_grid_and_keep_the_difference_in_expectation():
    start, end = (fake_quantise(t, device_global_scale(t.abs().amax())) for t in tensors(2, torch.float32, 256, 256))
    made = Line(ALPHA, "nvfp4", 7).between("w", start.bfloat16(), end.bfloat16()).float()
    scale = device_global_scale(torch.maximum(start.abs().amax(), end.abs().amax()))
    assert torch.equal(fake_quantise(made, scale), made), "packing it changes nothing"
    wanted, moved = ALPHA * (end - start), made - start
    along = (moved * wanted).sum() / (wanted * wanted).sum()
    assert 0.7 < along < 1.3, "the update lands; its noise is that of rounding"


def test_vectors_are_kept_in_float32_in_every_format():
    start, end = torch.ones(32), torch.full((32,), 2.0)
    for master in ("bf16", "nvfp4"):
        made = Line(0.25, master, 7).between("norm", start, end)
        assert made.dtype == torch.float32 and torch.equal(made, torch.full((32,), 1.25))


@pytest.fixture
def folders(tmp_path):
    """Two folders of weights: the end has the tensors of a tied model, the start its head besides."""
    for number, name in enumerate(("start", "end")):
        folder = tmp_path / name
        folder.mkdir()
        held = {key: tensors(i, torch.float32)[number] for i, key in enumerate(("model.embed_tokens.weight", "a", "b"))}
        if name == "start":
            held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
        save_file(held, folder / "model.safetensors")
        config = {"architectures": ["X"], "tie_word_embeddings": True, "dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text(name)
    return tmp_path


def test_a_folder_lies_between_two(folders):
    beats = []
    line = Line(ALPHA, "fp32", 7)
    changed = interpolate(folders / "start", folders / "end", line, folders / "out", beat=lambda: beats.append(1))
    start, end, out = (load_file(folders / name / "model.safetensors") for name in ("start", "end", "out"))
    assert list(out) == list(end) == list(changed) and len(beats) == len(end)
    for name, value in out.items():
        torch.testing.assert_close(value.double(), torch.lerp(start[name].double(), end[name].double(), ALPHA))
    assert (folders / "out/tokenizer.json").read_text() == "end"
    assert (folders / "out/config.json").read_bytes() == (folders / "end/config.json").read_bytes()


def test_a_large_model_is_written_in_shards(folders, monkeypatch):
    whole = folders / "whole"
    interpolate(folders / "start", folders / "end", Line(ALPHA, "fp32", 7), whole)
    monkeypatch.setattr("fgod.train.interpolate.DEVICE_SHARD_BYTES", 4000)
    interpolate(folders / "start", folders / "end", Line(ALPHA, "fp32", 7), folders / "cut")
    shards = sorted((folders / "cut").glob("*.safetensors"))
    cut = {name: value for shard in shards for name, value in load_file(shard).items()}
    assert len(shards) == 3
    torch.testing.assert_close(cut, load_file(whole / "model.safetensors"), rtol=0, atol=0)


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"a": torch.zeros(24, 32)}, "found no tensor b, but"),
        ({"a": torch.zeros(24, 32), "b": torch.zeros(2, 32)}, r"b: found the shape \[2, 32\], expected \[24, 32\]"),
    ],
)
def test_a_start_of_another_model_is_refused_and_nothing_is_left(folders, broken, message):
    shutil.rmtree(folders / "start")
    shutil.copytree(folders / "end", folders / "start")
    embedding = load_file(folders / "end/model.safetensors")["model.embed_tokens.weight"]
    save_file({"model.embed_tokens.weight": embedding, **broken}, folders / "start/model.safetensors")
    with pytest.raises(UsageError, match=message):
        interpolate(folders / "start", folders / "end", Line(ALPHA, "fp32", 7), folders / "out")
    assert not (folders / "out").exists()


def test_a_recipe_is_that_of_its_lineage_and_of_the_training_that_it_names(tmp_path):
    train = {"numerics": 1, "stage": "A", "starts_from": "b", "seed": 1, "mix": {}, "train": {}}
    recipe = train | {"interpolate": 0.5, "of": "1" * 12}
    file, lineage = tmp_path / "recipe.json", lineage_of(recipe)
    assert lineage == f"{digest(recipe)}-0.5" and lineage_of(train) == digest(train)
    write_json(file, recipe)
    check_interpolation(file, lineage, "1" * 12)
    with pytest.raises(FgodError, match="it interpolates 111111111111; expected one that interpolates 222222222222"):
        check_interpolation(file, lineage, "2" * 12)
    write_json(file, recipe | {"interpolate": 0.25})
    with pytest.raises(FgodError, match="it is not the recipe of"):
        check_interpolation(file, lineage, "1" * 12)
    write_json(file, train)
    with pytest.raises(FgodError, match="it is the recipe of a training; expected"):
        check_interpolation(file, digest(train), "1" * 12)
