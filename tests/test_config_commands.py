"""Configs and the commands that are given one: what is broken, of another, or needs another build of torch is said."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fgod.config import read_yaml, resolve
from fgod.errors import UsageError
from fgod.tables import made_by_another
from fgod.torch_build import Build, installed, pip_arguments
from tests.mini import ROOT, Mini

CPU, CUDA = Build("2.13.0", None), Build("2.13.0", "13.0")


@pytest.fixture
def mini(tmp_path: Path) -> Mini:
    return Mini.create(tmp_path)


def test_a_broken_config_is_named_with_its_line(mini: Mini) -> None:
    (mini.folder / "broken.yaml").write_text("seed: 1\nbase: {kind: [\n")
    mini.write()
    plan = mini.run("fgod", "plan", "--config", "broken.yaml")
    assert plan.returncode == 2 and "broken.yaml:3: not YAML" in plan.stderr
    (mini.folder / "config.yaml").write_text("seed: 1\nbase: {kind: [\n")
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1"]
    bare = subprocess.run(command, cwd=mini.folder, capture_output=True, text=True)
    assert bare.returncode == 2 and "config.yaml:3: not YAML" in bare.stderr


def test_a_config_that_writes_over_the_results_of_another_is_warned_of_once(mini: Mini) -> None:
    context = mini.folder / "results/tables/context.json"
    context.parent.mkdir(parents=True)
    context.write_text(json.dumps({"config": "other.yaml", "config_digest": "abc"}))
    words = "holds the tables, the report and the release of other.yaml (digest abc)"
    dry = mini.snakemake("-n")
    [recipe] = set(re.findall(r"results/runs/A/\w+/recipe\.json", dry))
    assert words not in dry
    assert mini.snakemake(recipe).count(words) == 1


def test_the_same_config_by_another_path_is_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert made_by_another(Path("results"), "a.yaml") == ""
    Path("results/tables").mkdir(parents=True)
    Path("results/tables/context.json").write_text(json.dumps({"config": "a.yaml", "config_digest": "abc"}))
    assert made_by_another(Path("results"), str(tmp_path / "a.yaml")) == ""
    assert made_by_another(Path("results"), "a.yaml, b.yaml").startswith("results holds the tables")


@pytest.mark.parametrize(
    ("stages", "probe", "found", "machine", "wanted"),
    [
        ("cpu", "cpu", CPU, "x86_64", []),
        ("cuda", "cpu", CUDA, "x86_64", []),
        ("cuda", "cpu", CPU, "x86_64", ["torch==2.13.0+cu130"]),
        ("cpu", "cuda", CPU, "aarch64", ["torch==2.13.0+cu130"]),
    ],
)
def test_a_build_for_cuda_is_installed_where_the_config_needs_it_and_it_is_not_there(
    stages: str, probe: str, found: Build, machine: str, wanted: list[str]
) -> None:
    config = {"probe": {"device": probe}, "stages": [{"train": {"device": "cpu"}}, {"train": {"device": stages}}]}
    arguments = pip_arguments(config, found, machine)
    index = ["--index-url", "https://download.pytorch.org/whl/cu130"]
    assert arguments == (["install", *wanted, *index] if wanted else [])


def test_a_machine_without_builds_for_cuda_is_named() -> None:
    config = {"probe": {"device": "cuda"}, "stages": []}
    with pytest.raises(UsageError, match="found a machine 'riscv64', expected one of x86_64, aarch64"):
        pip_arguments(config, CPU, "riscv64")


def test_the_build_that_is_installed_is_that_of_the_package() -> None:
    version, _, build = importlib.metadata.version("torch").partition("+")
    assert installed().version == version
    assert (installed().cuda is None) == (build == "cpu") or not build


def test_make_run_asks_for_the_build_and_hands_the_config_on(tmp_path: Path) -> None:
    command = ["make", "-n", "--no-print-directory", "run", "CONFIG=a.yaml"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-2:] == [
        ".venv/bin/python -m fgod.torch_build a.yaml",
        ".venv/bin/snakemake --configfile a.yaml",
    ]
    raw = read_yaml(ROOT / "config/qwen3-4b.yaml")
    raw["base"]["path"] = "."
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True))
    command = [sys.executable, "-m", "fgod.torch_build", str(tmp_path / "a.yaml"), "--dry-run"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ("+cu130 --index-url" in ended.stdout) == (installed().cuda is None)


def test_a_plugins_metric_may_have_a_limit_in_the_gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    raw = read_yaml(ROOT / "config.yaml")
    plugin = tmp_path / "wordy.py"
    plugin.write_text(
        "from fgod.evaluate.metric import Metric, Unit, mean, register\n"
        "register(Metric(name='wordiness', short='words', unit=Unit('words'), better='lower', verdict='damaged',\n"
        "                description='', compute=lambda replies: mean([]), limit=9))\n"
    )
    raw["gate"]["words"] = 5
    with pytest.raises(UsageError, match=r"c: gate: unknown key 'words'.*allowed: .*`plugins` adds others"):
        resolve(raw, "c")
    from fgod.registry import METRICS

    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    raw["plugins"] = [str(plugin)]
    assert resolve(raw, "c")["gate"]["words"] == 5.0
    del raw["gate"]["words"]
    assert resolve(raw, "c")["gate"]["words"] == 9, "its own limit, where the config has none"
    raw["gate"]["words"] = -1
    with pytest.raises(UsageError, match=r"c: gate\.words: found -1\.0, expected a number from 0"):
        resolve(raw, "c")
