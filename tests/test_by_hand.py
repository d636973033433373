"""An export in each written format, decoded by numpy alone from the format's description, is what is read here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fgod.dat.exporter import FILE as DAT_FILE
from fgod.exporters.read import dequantised
from fgod.gguf.exporter import FILE as GGUF_FILE
from fgod.nvfp4.folders import SINGLE
from fgod.registry import EXPORTERS
from tests import by_hand
from tests.by_hand import Floats
from tests.families import FAMILIES
from tests.gguf_files import LEAVES, permuted
from tests.test_gguf_export import WIDE, folder_of

Decoder = Callable[[Path], dict[str, Floats]]

COMPRESSED = ("_packed", "_scale", "_global_scale", True)
DECODERS: dict[str, Decoder] = {
    "nvfp4": lambda folder: by_hand.nvfp4(folder / SINGLE, *COMPRESSED),
    "nvfp4-head": lambda folder: by_hand.nvfp4(folder / SINGLE, *COMPRESSED),
    "modelopt": lambda folder: by_hand.nvfp4(folder / SINGLE, "", "_scale", "_scale_2", False),
    "bf16": lambda folder: by_hand.safetensors(folder / SINGLE),
    "dat": lambda folder: by_hand.dat(folder / DAT_FILE),
    "dat-float16": lambda folder: by_hand.dat(folder / DAT_FILE),
    "gguf": lambda folder: by_hand.gguf(folder / GGUF_FILE),
    "gguf-bf16": lambda folder: by_hand.gguf(folder / GGUF_FILE),
}
NAMES = ("qwen3", "llama-biased")
QUANTISED_HEAD = ("nvfp4-head", "dat", "dat-float16")


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied model and an untied one, whose q and k llama.cpp has in another order."""
    folder = tmp_path_factory.mktemp("masters")
    return {name: folder_of(name, folder / name) for name in NAMES}


def test_every_format_of_the_project_is_decoded_here() -> None:
    assert {name for name, one in EXPORTERS.items() if type(one).__module__.startswith("fgod.")} == DECODERS.keys()


def by_gguf(values: dict[str, Floats], name: str, key: str) -> Floats:
    """A tensor of transformers' name as it stands in the file of a family."""
    owner, _, kind = key.rpartition(".")
    number, leaf = owner.removeprefix("model.layers.").partition(".")[::2] if "layers" in owner else ("", owner)
    return values[f"{f'blk.{number}.' if number else ''}{LEAVES[leaf]}.{kind}"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format_", DECODERS)
def test_an_export_is_what_numpy_makes_of_its_bytes(
    format_: str, name: str, dtype: str, masters: dict[str, Path], tmp_path: Path
) -> None:
    exporter, out = EXPORTERS[format_], tmp_path / format_
    exporter.write(masters[name], out, dtype)
    expected, found = DECODERS[format_](out), dict(dequantised(out, exporter=exporter))
    tied = FAMILIES[name][1]["tie_word_embeddings"]
    assert ("lm_head.weight" in found) == (not tied or format_ in QUANTISED_HEAD)
    assert len(found) == len(expected) > 20
    for key, value in found.items():
        if "gguf" in format_:
            same = by_gguf(expected, name, key)
            if name.startswith("llama") and "self_attn" in key and key.split(".")[-2] in ("q_proj", "k_proj"):
                heads = WIDE["num_attention_heads" if "q_proj" in key else "num_key_value_heads"]
                value = torch.from_numpy(permuted(value.numpy(), heads))
        else:
            same = expected[key]
        assert same.shape == tuple(value.shape), key
        assert np.array_equal(same.astype(np.float32).view(np.uint32), value.numpy().view(np.uint32)), key
        assert np.array_equal(same, value.double().numpy()), f"{key}: float32 holds what the bytes stand for"
