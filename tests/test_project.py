"""`fgod init`, and the wheel that it is installed from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fgod import inputs, project
from fgod.chain import Chain
from fgod.cli import main
from fgod.config import load
from fgod.decisions import ACCEPTED
from fgod.errors import UsageError
from fgod.project import SNAKEFILES, config_files, lay_out, next_commands, project_files, shipped
from tests.mini import ROOT, job_counts

FILES = {"config.yaml": "seed: 1\n", "traindata/topics.yaml": "a: 1\n", "Snakefile": "rule a:\n"}


def texts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_project_has_its_own_config_and_sources_and_includes_the_workflow(tmp_path, capsys):
    assert main(["init", str(tmp_path / "new")]) == 0
    found = texts(tmp_path / "new")
    assert found.keys() == {*listed("traindata", "profiles"), "config.yaml", *SNAKEFILES}
    assert all(found[name] == (ROOT / name).read_text() for name in found if name.startswith(("traindata", "profiles")))
    first, _, rest = found["config.yaml"].partition("\n")
    assert rest == (ROOT / "config.yaml").read_text().partition("\n")[2]
    assert first == f"# yaml-language-server: $schema={(ROOT / 'fgod/config/config.schema.json').as_uri()}"
    assert capsys.readouterr().out.endswith(f"Next:\n    cd {tmp_path / 'new'}\n    snakemake\n")


def test_a_shipped_config_by_name_says_which_model_to_fetch(tmp_path, monkeypatch):
    assert set(config_files()) == {"default", *(file.stem for file in (ROOT / "config").glob("*.yaml"))}
    lay_out(tmp_path, project_files("qwen2.5-0.5b"))
    assert "models/qwen2.5-coder-0.5b" in (tmp_path / "config.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    model, command = next_commands(Path())
    assert "models/qwen2.5-coder-0.5b" in model and command == "snakemake"
    Path("models/qwen2.5-coder-0.5b").mkdir(parents=True)
    assert next_commands(Path()) == ["snakemake"]


def test_an_unknown_config_is_refused():
    with pytest.raises(UsageError, match=r"--config: found 'qwen2.5', expected one of default, .*did you mean qwen"):
        project_files("qwen2.5")


@pytest.mark.parametrize(
    ("path", "make", "named"),
    [
        ("Snakefile", lambda path: path.write_text("mine\n"), "Snakefile"),
        ("config.yaml", lambda path: path.mkdir(), "config.yaml"),
        ("Snakefile", lambda path: path.symlink_to("nowhere"), "Snakefile"),
        ("traindata", lambda path: path.write_text("mine\n"), "traindata"),
        (".", lambda path: (path.rmdir(), path.write_text("mine\n")), ""),
    ],
)
def test_what_would_be_overwritten_is_named_and_nothing_is_written(tmp_path, path, make, named):
    folder = tmp_path / "there"
    folder.mkdir()
    make(folder / path)
    before = texts(tmp_path)
    with pytest.raises(UsageError, match=rf"^{re.escape(str(folder / named))}[: ].*Nothing was written"):
        lay_out(folder, FILES)
    assert texts(tmp_path) == before


def test_a_file_above_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=rf"^{re.escape(str(tmp_path / 'file'))}: found"):
        lay_out(tmp_path / "file" / "new", FILES)


def test_a_folder_with_other_files_is_taken_and_they_stay(tmp_path):
    (tmp_path / "traindata").mkdir()
    (tmp_path / "traindata/mine.tsv").write_text("a\tb\n")
    lay_out(tmp_path, FILES)
    lay_out(tmp_path, FILES)
    assert texts(tmp_path) == {**FILES, "traindata/mine.tsv": "a\tb\n"}


@pytest.mark.parametrize("count", range(len(FILES)))
def test_after_a_stop_the_files_are_whole_nothing_can_run_yet_and_the_same_call_goes_on(tmp_path, monkeypatch, count):
    written = []

    def stopped(path: Path, text: str) -> None:
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    with monkeypatch.context() as patched:
        patched.setattr(project, "write_text", stopped)
        with pytest.raises(KeyboardInterrupt):
            lay_out(tmp_path, FILES)
    assert texts(tmp_path).items() <= FILES.items() and not (tmp_path / "Snakefile").exists()
    lay_out(tmp_path, FILES)
    assert texts(tmp_path) == FILES


def test_what_runs_is_written_last():
    assert list(project_files("default"))[-len(SNAKEFILES) :] == list(SNAKEFILES)


def test_a_package_that_is_not_whole_says_so():
    with pytest.raises(project.FgodError, match=r"shipped/rules/none.smk: no such file; .*install fgod again"):
        shipped("rules/none.smk")


def listed(*places: str) -> list[str]:
    """Files of the repository as git lists them, new ones too."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", *places]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which the wheel is installed, built of the project as it stands."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in listed("fgod", "setup.py", "pyproject.toml", "README.md", "LICENSE", *SHIPPED):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    offline = ["--no-index", "--no-deps"]
    run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", "dist", "./source"], folder)
    [wheel] = (folder / "dist").glob("*.whl")
    run([*pip, "install", *offline, "--no-compile", "--target", "site", str(wheel)], folder)
    return folder / "site"


SHIPPED = ("Snakefile", "config.yaml", "config/*.yaml", "profiles", "rules", "traindata", "workflow")


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What a command says, run with nothing of this environment activated."""
    path = os.pathsep.join(f for f in os.environ["PATH"].split(os.pathsep) if Path(f) != Path(sys.executable).parent)
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stderr + ended.stdout


def test_the_wheel_holds_the_package_and_what_comes_with_it(site):
    for name in listed("fgod"):
        assert (site / name).read_bytes() == (ROOT / name).read_bytes()
    comes = listed(*SHIPPED, ":!config/*/**")
    assert {"rules/train.smk", "workflow/report.smk", "traindata/suites/talk.yaml", "config/smollm2.yaml"} <= set(comes)
    assert {name: (ROOT / name).read_text() for name in comes} == texts(site / "fgod/shipped")


def test_a_project_of_the_wheel_would_run_what_the_repository_would(site, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load(Path("config.yaml"))
    runs = Chain(config, inputs.gather(config)).walk(lambda run: ACCEPTED).runs
    python = [sys.executable, "-P", "-m"]
    run([*python, "fgod", "init", "new"], tmp_path, PYTHONPATH=str(site))
    planned = run([*python, "fgod", "plan"], tmp_path / "new", PYTHONPATH=str(site))
    assert re.findall(r"train +(\S+) ([0-9a-f]{12})  ", planned) == [(run.stage, run.lineage) for run in runs]
    said = run([*python, "snakemake", "-n", "--quiet", "host"], tmp_path / "new", PYTHONPATH=str(site))
    assert {f"results/runs/{run.stage}/{run.lineage}" for run in runs} == set(
        re.findall(r"results/runs/[^/]+/[0-9a-f]{12}", said)
    )
    assert job_counts(said)["train"] == len(runs)
    assert (site / "fgod/config/config.schema.json").as_uri() in (tmp_path / "new/config.yaml").read_text()
