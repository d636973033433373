"""Miniature projects: the real Snakefile, rules and commands, on a base that is trained once a test session."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from fgod.data.sources import source_languages
from fgod.system.table import read_texts

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LANGUAGES = source_languages(ROOT / "traindata")
PROBES_A_LANGUAGE = {"identity": 3, "disambiguation": 4, "retention": 6, "questions": 1}


class Mini:
    """A project folder of its own with a config that tests edit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
        self.config.update(base={"kind": "embedded", "steps": 750, "require": 0.2}, stages=[stage("A")])
        self.config["data"].update(probes="probes.tsv", held_out_topics=[])
        self.config["data"]["rehearse"] = {"general_rows": 120, "replay_rows": 20, "max_new_tokens": 24}
        self.config["probe"] = {"max_new_tokens": 24}
        self.config["gate"] = {"leak": 1, "retention": 0, "kl": 1000, "repetition": 1, "confusion": 1}
        self.config["refits"] = {"max": 1, "rules": []}

    @classmethod
    def create(cls, folder: Path) -> Mini:
        """A clone of the project as it stands, uncommitted changes too, with few probes."""
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        lines = (ROOT / "traindata" / "probes.tsv").read_text().splitlines(keepends=True)
        (folder / "probes.tsv").write_text("".join(few_probes(lines)))
        return cls(folder)

    def write(self) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config, allow_unicode=True, sort_keys=False))

    def run(self, *command: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """A command of this project, after writing the config."""
        return self._run(command, f"{BIN}:{os.environ['PATH']}", **kwargs)

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """A command line as a new user types it: no environment is activated, and `.venv` holds all that is needed."""
        self._provide_environment()
        others = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != BIN]
        return self._run(("sh", "-c", command), os.pathsep.join(others), stdin=subprocess.DEVNULL)

    def _run(self, command: tuple[str, ...], path: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        self.write()
        mine = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VIRTUAL_ENV")
        outer = {key: value for key, value in os.environ.items() if key not in mine}
        environment = {**outer, "PATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=500, **kwargs
        )

    def _provide_environment(self) -> None:
        """`.venv` as `make` leaves it: here of links to the environment that this test runs in."""
        folder = self.folder / ".venv"
        if folder.exists():
            return
        folder.mkdir()
        for entry in BIN.parent.iterdir():
            (folder / entry.name).symlink_to(entry)
        for name in ("ready", "ready-dev"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).touch()  # newer than the lock files: nothing is to be installed

    def snakemake(self, *arguments: str, code: int = 0) -> str:
        """Run snakemake and check its exit code; returns what it said: its log, then the output of commands."""
        ended = self.run("snakemake", "--cores", "1", *arguments)
        said = ended.stderr + ended.stdout
        assert ended.returncode == code, said[-6000:]
        return said

    def would_run(self, *targets: str) -> dict[str, int]:
        """Jobs of a dry-run by rule."""
        return job_counts(self.snakemake(*targets, "-n", "--quiet", "host"))

    def manifest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "results/manifest.jsonl").read_text().splitlines()]

    def trained(self) -> list[str]:
        """Stages in the order in which they were trained, one entry for each start of a training."""
        return [entry["stage"] for entry in self.commands("train")]

    def commands(self, name: str) -> list[dict[str, Any]]:
        """The entries of all commands of a name."""
        return [entry for entry in self.manifest() if entry["argv"][:2] == ["fgod", name]]

    def verdicts(self) -> list[str]:
        """Decisions of all runs on record, in the order of judgement."""
        files = sorted(self.folder.glob("results/runs/*/*/verdict.json"), key=lambda p: p.stat().st_mtime_ns)
        return [json.loads(f.read_text())["decision"] for f in files]

    def stages(self) -> list[dict[str, str]]:
        return read_texts(self.folder / "results/tables/stages.tsv")

    def release(self) -> dict[str, Any]:
        return json.loads((self.folder / "results/release.json").read_text())


def stage(name: str, steps: int = 12, lr: float = 1e-3, **more: Any) -> dict[str, Any]:
    """A stage of few steps and rows."""
    mix = {"kind": "balanced", "rows": 64, "shares": {"identity": 0.5, "general": 0.5}}
    return {"name": name, "mix": mix, "train": {"steps": steps, "lr": lr, "batch": 8}, **more}


def few_probes(lines: list[str]) -> list[str]:
    """The header and a few probes of each suite of `PROBES_A_LANGUAGE` and language."""
    taken: dict[tuple[str, str], int] = {}
    out = [lines[0]]
    for line in lines[1:]:
        suite, _, language, *_ = line.split("\t")
        assert language in LANGUAGES
        key = (suite, language)
        if taken.get(key, 0) < PROBES_A_LANGUAGE.get(suite, 0) or suite == "questions":
            taken[key] = taken.get(key, 0) + 1
            out.append(line)
    return out


def job_counts(said: str) -> dict[str, int]:
    """The table `Job stats` of snakemake's output; empty if there is nothing to do."""
    if "Job stats:" not in said:
        return {}
    counts = {}
    for line in said.split("Job stats:")[1].splitlines()[3:]:
        fields = line.split()
        if len(fields) != 2 or fields[0] == "total":
            break
        counts[fields[0]] = int(fields[1])
    return counts
