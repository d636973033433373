"""Every config of the folder config/ is one: with its base in place it is read, and gives a walk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgod.config import read_yaml, resolve
from fgod.model.spec import SHAPES
from fgod.models.architecture import architecture_of
from fgod.train.recipe import TrainRecipe
from tests.mini import ROOT

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_shipped_config_is_one(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    raw = read_yaml(file)
    config = resolve({**raw, "base": in_place(raw["base"], tmp_path)}, str(file))
    assert raw["base"]["path"].startswith("models/") and not config["base"]["closed_answers"]
    for stage in config["stages"]:
        TrainRecipe.from_dict(stage["train"])


def in_place(base: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The base at a place that exists."""
    path = folder / "base"
    if base["kind"] == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"GGUF")
    return {**base, "path": str(path)}


@pytest.mark.parametrize(
    ("shape", "millions"), [("qwen3-4b", 4022), ("qwen2.5-0.5b", 494), ("llama3-8b", 8030), ("tiny", 0)]
)
def test_random_shapes_have_the_size_of_the_models(shape: str, millions: int) -> None:
    config = SHAPES[shape]
    family = architecture_of(config, shape)
    family.check(config, shape)
    shapes = family.tensors(config, shape).values()
    assert sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes) // 10**6 == millions
