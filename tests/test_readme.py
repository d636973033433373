"""Every command of README.md runs in a shell without the environment activated."""

import copy
import shutil

import pytest

from fgod.exporters.write import export
from tests.families import family_model
from tests.gguf_files import write_gguf
from tests.mini import ROOT, Mini, stage
from tests.readme import code, commands, filled, unreachable
from tests.tiny_model import tiny_folder

README = (ROOT / "README.md").read_text()
UNTESTED = {"make test": "it runs this test", ".venv/bin/fgod fetch OWNER/NAME": "it needs the network"}
VALUES = {
    "FILE": "rows.tsv", "FOLDER": "artifacts/releases/1", "OTHER": "artifacts/releases/1", "STAGE": "A", "CMD": "true",
    "SCRIPT": "script.yaml", "NAME": "best", "RUN": "A@ffff", "OUT": "imported", "MASTER": "master", "EXPORT": "nvfp4",
    "EARLIER": "earlier", "STEP": "1",
}  # fmt: skip
"""What stands for the reader's own values."""


def leave_a_killed_run(mini: Mini) -> None:
    """One that used more memory than it was allowed."""
    mini.config["guard"] = {"limit_gb": 0.2, "poll_secs": 0.05, "too_large_ok": True}
    mini.config["stages"] = [stage("A", steps=2, lr=5e-4)]
    mini.snakemake(code=1)
    assert mini.verdicts()[-1] == "killed"


def leave_another_run(mini: Mini) -> None:
    """A copy of the one that was released, which nothing holds."""
    for place in ("results/runs/A", "artifacts/A"):
        [run] = (mini.folder / place).iterdir()
        shutil.copytree(run, run.with_name("f" * 12))


@pytest.mark.long
def test_the_commands_of_the_readme_run_where_the_environment_is_not_activated(ran):
    rows = "".join(f"第{i}號機器人叫什麼\t第{i}號叫阿{i}。\n" for i in range(10, 30))
    (ran.folder / "rows.tsv").write_text(rows)
    shutil.copy(ran.folder / "config.yaml", ran.folder / "other.yaml")
    (ran.folder / "script.yaml").write_text("- user: 你是誰\n")
    shutil.copytree(ran.folder / "results", ran.folder / "earlier/results")
    write_gguf(ran.folder / "FILE.gguf", family_model("qwen3"))
    export(tiny_folder(ran.folder / "master"), ran.folder / "nvfp4")
    for command in commands(README):
        if command in UNTESTED:
            continue
        config = copy.deepcopy(ran.config)
        if "retry" in command:
            leave_a_killed_run(ran)
        if " why-step " in command:
            leave_another_run(ran)
        if " trash RUN" in command:
            assert ran.shell(".venv/bin/fgod pin best --remove").returncode == 0
        if " verify" in command:
            shutil.rmtree(ran.folder / "results/runs/A" / ("f" * 12))  # its recipe is that of another lineage
        ended = ran.shell(filled(command, VALUES))
        assert ended.returncode == 0, f"{command}\n{(ended.stdout + ended.stderr)[-4000:]}"
        ran.config = config


def test_every_command_of_the_readme_is_one_that_such_a_shell_finds():
    assert unreachable(README) == []
    assert {"make run", "make test", ".venv/bin/snakemake -n", ".venv/bin/fgod inspect FOLDER"} <= set(commands(README))


def test_commands_are_found_wherever_they_stand():
    text = """Do `make run`, then:

    .venv/bin/fgod plan   # why
    fit 0 · B · step 1

or `.venv/bin/snakemake
data`, `fgod` and not `fgod plan --config x`."""
    assert commands(text) == ["make run", ".venv/bin/fgod plan", ".venv/bin/snakemake data"]
    assert unreachable(text) == ["fgod plan --config x"]
    assert "fit 0 · B · step 1" in code(text)
    assert filled("fgod guard -- CMD", {"CMD": "a b"}) == "fgod guard -- 'a b'"
    with pytest.raises(KeyError):
        filled("fgod inspect PLACE", {})
