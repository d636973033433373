"""Plugins: named in the config, handed to every command, and part of a lineage only where they can change weights."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgod import config as settings
from fgod import inputs
from fgod.call import Call
from fgod.chain import Chain
from fgod.cli import main, parse
from fgod.cli.training import Train
from fgod.cli.work.train import trainer_of
from fgod.errors import UsageError
from fgod.layout import Work
from fgod.plugins import load_plugins
from fgod.registry import ARCHITECTURES, AUDIT_CHECKS, EXPORTERS, MEAN_FORMATS, METRICS, OPTIMIZERS, ROW_FORMATS
from tests.mini import Mini

ROOT = Path(__file__).parents[1]
ADDS = """from fgod.evaluate.metric import SHARE, Metric, share
from fgod.registry import {0}
{0}.register('mine', Metric(name='mine', short='my own', unit=SHARE, better='lower', verdict='missed',
                            description='', compute=lambda replies: share([])))
"""
ADDS_OPTIMIZER = """from fgod.registry import OPTIMIZERS
from fgod.train.adamw import AdamW
OPTIMIZERS.register('mine', AdamW())
"""


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries of their own: what a test registers is gone after it."""
    monkeypatch.chdir(ROOT)
    for registry in (ARCHITECTURES, AUDIT_CHECKS, EXPORTERS, MEAN_FORMATS, METRICS, OPTIMIZERS, ROW_FORMATS):
        list(registry)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_files", dict(registry._files))


def made_of(plugins: list[Path]) -> tuple[str, str, str, str]:
    """Of the default config with these plugins: base_id, the first mix and lineage, what probes are made again by."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    config = settings.resolve({**copy.deepcopy(raw), "plugins": [str(p) for p in plugins]}, "config.yaml")
    gathered = inputs.gather(config)
    run = Chain(config, gathered).fit([]).runs[0]
    return gathered.base_id, run.mix_id, run.lineage, inputs.plugins_digest(config)


@pytest.mark.parametrize(
    ("registry", "changed"),
    [
        ("METRICS", [False, False, False, True]),
        ("EXPORTERS", [False, False, False, True]),  # the base is no folder, so none reads it
        ("MEAN_FORMATS", [False, False, True, True]),
        ("OPTIMIZERS", [False, False, True, True]),
        ("ROW_FORMATS", [False, True, True, True]),
        ("ARCHITECTURES", [True, True, True, True]),
    ],
)
def test_a_plugin_is_part_of_what_it_can_change(tmp_path: Path, registry: str, changed: list[bool]) -> None:
    plugin, adds = tmp_path / "mine.py", ADDS_OPTIMIZER if registry == "OPTIMIZERS" else ADDS.format(registry)
    plugin.write_text(adds)
    without, with_it = made_of([]), made_of([plugin])
    assert [a != b for a, b in zip(without, with_it, strict=True)] == changed
    plugin.write_text(adds + "# another version\n")
    assert [a != b for a, b in zip(with_it, made_of([plugin]), strict=True)] == changed


def test_a_plugin_is_loaded_before_the_config_is_checked(tmp_path: Path) -> None:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    raw["plugins"] = [str(tmp_path / "none.py")]
    with pytest.raises(UsageError, match=r"^config\.yaml: plugins: .*none\.py: no such file"):
        settings.resolve(raw, "config.yaml")


def test_a_plugin_that_a_command_is_given_is_loaded_before_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.yaml", "traindata"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)  # where nothing is on record
    for name, registry in (("one", "METRICS"), ("two", "ROW_FORMATS")):
        (tmp_path / f"{name}.py").write_text(ADDS.format(registry))
    assert main(["--plugin", f"{tmp_path}/one.py", "--plugin", f"{tmp_path}/two.py", "plan"]) == 0
    assert "mine" in METRICS and "mine" in ROW_FORMATS and "4 to train" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--plugin", f"{tmp_path}/three.py", "plan"])
    assert ended.value.code == 2 and "three.py: no such file" in capsys.readouterr().err


def test_the_child_of_a_command_loads_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("raise ValueError('the plugin was loaded')\n")
    asked = ["ask", "no-such-folder", "hi", "--child", str(tmp_path / "report.json")]
    with pytest.raises(SystemExit) as ended:
        main(["--plugin", str(plugin), *asked])
    assert ended.value.code == 2 and "the plugin was loaded" in capsys.readouterr().err


def test_the_trainer_loads_the_plugins_of_the_command_that_starts_it(tmp_path: Path) -> None:
    plugin, recipe = tmp_path / "mine.py", tmp_path / "recipe.json"
    plugin.write_text("raise SystemExit('the plugin was loaded')\n")
    recipe.write_text('{"train": {}}')
    words = "train --weights w --start s --rows r --audit a --outcome o --stamp s --limit-gb 1 --recipe"
    made = parse([*words.split(), str(recipe)])
    assert isinstance(made, Train)
    trainer = trainer_of(made, Call(plugins=[plugin]), Work(tmp_path), tmp_path)
    assert "the plugin was loaded" in subprocess.run(trainer.command(), capture_output=True, text=True).stderr


def test_rules_hand_plugins_to_every_command(tmp_path: Path) -> None:
    mini = Mini.create(tmp_path / "project")
    (mini.folder / "my metrics.py").write_text("")
    mini.config["plugins"] = ["my metrics.py"]
    said = mini.snakemake("-n", "-p")
    lines = [line.split(": ", 1)[1] for line in said.splitlines() if line.startswith("Shell command: ")]
    commands = [line for line in lines if line != "None"]  # a rule that only asks for files has none
    assert len(commands) > 10
    for command in commands:
        assert command.startswith("fgod --plugin 'my metrics.py' ") or command.startswith("fgod report "), command


def test_an_entry_is_of_the_file_whose_code_registered_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(ADDS.format("ROW_FORMATS"))
    second.write_text("import fgod.registry\n")
    load_plugins([first, second])
    assert ROW_FORMATS.adds(first) and not ROW_FORMATS.adds(second) and not METRICS.adds(first)


def test_a_check_of_a_plugin_is_run_and_accepted_by_the_real_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, plugin = tmp_path / "mine.tsv", str(ROOT / "tests/plugins/shouting.py")
    rows.write_text("談談幽浮\t幽浮是未確認飛行物。\nWHAT IS A UFO\tAn unidentified flying object.\n")
    raw: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    raw["data"]["sources"] = {"mine": {"path": str(rows), "audit": {"accept": ["shouting"]}}}
    with pytest.raises(UsageError, match=r"data\.sources\.mine\.audit\.accept: no such code 'shouting'"):
        inputs.gather(settings.resolve(copy.deepcopy(raw), "config.yaml"))

    command = ["--plugin", plugin, "data", "audit", str(rows), "--sources", "traindata"]
    assert main([*command, "--accept", "shouting"]) == 0
    said = capsys.readouterr().out
    assert f"{rows}:2: accepted: 1 row in capital letters [shouting]" in said and "0 errors" in said
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 100
    assert f"{rows}:2: error: 1 row in capital letters [shouting]" in capsys.readouterr().out
    inputs.gather(settings.resolve({**raw, "plugins": [plugin]}, "config.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("@check('mine', 'fatal')", r"severity: found \('fatal',\), expected of error, warning, note"),
        ("@check('mine', 'note', on=('files',))", r"on: found \('files',\), expected of file, mix"),
        ("@check('mismatch', 'note')", r"audit check 'mismatch': registered twice"),
    ],
)
def test_a_wrong_check_of_a_plugin_is_refused(tmp_path: Path, line: str, message: str) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(f"from fgod.data.audit.checks import check\n{line}\ndef mine(case):\n    return []\n")
    with pytest.raises(UsageError, match=rf"plugins: .*mine\.py: .*{message}"):
        load_plugins([plugin])
