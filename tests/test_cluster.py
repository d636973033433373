"""What jobs ask of a cluster, and what holds where several machines share a file system. Nothing is submitted:
tests/slurm_cluster.py does that (`make test-slurm`)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from snakemake.profiles import ProfileConfigFileParser

from fgod import cluster, layout, outlook
from fgod.cli import main
from fgod.cli.training import Recipe
from fgod.cluster import AROUND_MB, UNKNOWN_MINUTES, Needs
from fgod.errors import StorageError
from fgod.outlook import Time
from fgod.system import clear, digests, files, lock
from fgod.train.recipe import TrainRecipe

ROOT = Path(__file__).parents[1]
TRAIN = TrainRecipe.from_dict({"steps": 60, "lr": 1e-4, "batch": 8, "seq_len": 64}).to_dict()
QWEN = {"kind": "random", "shape": "qwen2.5-0.5b"}


def needs(base: dict[str, Any] = QWEN, limit_gb: float = 64) -> Needs:
    return Needs({"guard": {"limit_gb": limit_gb}, "base": base})


def test_memory_is_that_of_the_weights_and_never_more_than_the_guard_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "predicted_mib", lambda base, recipe: 4000.0)
    weights = cluster.base_sizes(QWEN).parameters * 4 / 2**20
    assert needs().asking_mb("cpu") >= 3 * weights and needs().asking_mb("cuda") >= 2 * weights
    assert needs().training_mb(TRAIN, 1) == 5000 + AROUND_MB
    assert needs().training_mb(TRAIN, 2) == 1.5 * needs().training_mb(TRAIN, 1)
    assert needs().training_mb({**TRAIN, "device": "cuda"}, 1) == needs().asking_mb("cuda")
    small = needs(limit_gb=2)
    assert small.asking_mb("cpu") == small.training_mb(TRAIN, 1) == 2 * 1024 + AROUND_MB
    away = needs({"kind": "folder", "path": "nowhere"})
    assert away.asking_mb("cuda") == away.training_mb(TRAIN, 1) == 64 * 1024 + AROUND_MB


def test_a_training_is_predicted_by_its_recipe() -> None:
    base = cluster.base_sizes(QWEN)
    small, large = (cluster.predicted_mib(base, TrainRecipe.from_dict({**TRAIN, "batch": n})) for n in (8, 64))
    assert base.parameters * 4 / 2**20 < small < large


def test_time_is_that_of_the_newest_training_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster._seconds_a_step.cache_clear()
    monkeypatch.setattr(
        outlook, "recorded", lambda stage, recipe: Time(10.0 * recipe.steps, "") if stage == "A" else None
    )
    assert needs().training_minutes("A", TRAIN, 1) == 15 + 10
    assert needs().training_minutes("A", {**TRAIN, "steps": 600}, 1) == 150 + 10
    assert needs().training_minutes("A", TRAIN, 3) == 3 * (15 + 10)
    assert needs().training_minutes("B", TRAIN, 1) == UNKNOWN_MINUTES
    cluster._seconds_a_step.cache_clear()


def test_both_profiles_rerun_for_the_same_reasons() -> None:
    here, there = (
        ProfileConfigFileParser().parse((ROOT / f"profiles/{name}/config.yaml").open()) for name in ("default", "slurm")
    )
    same = ("rerun-triggers", "rerun-incomplete", "scheduler", "show-failed-logs")
    assert {key: here[key] for key in same} == {key: there[key] for key in same}
    assert there["executor"] == "slurm" and there["set-resource-scopes"] == ["gpu=local"]


# Locks of a shared file system


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """flock(2) as a client of NFS emulates it: a file is locked for one alone only where it is open for writing."""
    real = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        alone = operation & fcntl.LOCK_EX and stat.S_ISREG(os.fstat(number).st_mode)
        if alone and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(number, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_writes_locks_and_sweeps_work_as_nfs_locks(tmp_path: Path, nfs: None) -> None:
    files.write_text(tmp_path / "a", "text")
    with files.atomic_folder(tmp_path / "b") as folder:
        (folder / "file").write_text("text")
        assert files.sweep(tmp_path) == []
    with files.atomic_file(tmp_path / "c") as temporary:
        temporary.write_text("half")
        assert files.sweep(tmp_path) == [], "it is being written"
    left = tmp_path / ".d.abcdefgh.tmp"
    left.write_text("half")
    assert files.sweep(tmp_path) == [f"removed {left}, left by a killed process"]
    with lock.held(tmp_path / "lock"), pytest.raises(lock.LockHeldError), lock.held(tmp_path / "lock"):
        pass
    with lock.shared(tmp_path / "shared"), lock.shared(tmp_path / "shared"):
        pass
    assert digests.cached_sha256(tmp_path / "a", tmp_path / "cache.json")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=r"lock: this file system has no locks"), lock.held(tmp_path / "lock"):
        pass


def test_nothing_is_cleared_up_while_a_command_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on another node outlives the snakemake that began it, where that is killed."""
    monkeypatch.setattr(clear, "ENDING_SECS", 0.1)
    left, at_work = tmp_path / ".d.abcdefgh.tmp", tmp_path / "at-work"
    left.write_text("half")
    with lock.shared(at_work):
        (said,) = clear.cleared(at_work, tmp_path)
        assert "at work" in said and left.exists()
    assert clear.cleared(at_work, tmp_path) == [f"removed {left}, left by a killed process"]


def test_commands_of_the_workflow_are_at_work_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def look(self: Recipe, call: object) -> None:
        with lock.held_if_free(layout.AT_WORK) as alone:
            seen.append(alone)

    monkeypatch.setattr(Recipe, "run", look)
    assert main(["recipe", "--json", "{}", "--out", "recipe.json"]) == 0
    assert seen == [None]
    with lock.held_if_free(layout.AT_WORK) as alone:
        assert alone is not None
