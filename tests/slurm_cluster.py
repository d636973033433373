"""The pipeline on a real cluster of Slurm: munged, slurmctld and two slurmd ("nodes") on this machine.

    make test-slurm          # sets it up, runs these tests, takes it down; about 11 minutes on two cores

As root, with Debian's packages slurmctld, slurmd and munge, and the extra fgod[slurm]. All of the cluster lies in a
folder of its own: keys, sockets, ports and logs of another cluster on the machine are not touched.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mini import Mini, job_counts, stage

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
CORES, NODE_MIB = 2, 8000

CONFIG = """
ClusterName=fgod
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
KillWait=10
MinJobAge=600
MpiDefault=none
JobRequeue=1
NodeName=n1 NodeHostname={host} Port={n1} CPUs={cores} RealMemory={mib} State=UNKNOWN
NodeName=n2 NodeHostname={host} Port={n2} CPUs={cores} RealMemory={mib} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """Its daemons live while this is entered."""

    folder: Path

    def start(self) -> None:
        ports = dict(zip(("port", "n1", "n2"), free_ports(3), strict=True))
        text = CONFIG.format(host=socket.gethostname(), folder=self.folder, cores=CORES, mib=NODE_MIB, **ports)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        (self.folder / "bin").mkdir()
        srun = self.folder / "bin" / "srun"  # the plugin's job steps lose SLURM_CONF
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = [f"--{name}={self.folder}/munge.{end}" for name, end in (
            ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"),
        )]  # fmt: skip
        self.call("munged", "--force", *files)
        self.call("slurmctld")
        self.call("slurmd", "-N", "n1")
        self.call("slurmd", "-N", "n2")
        until(lambda: self.call("sinfo", "-h", "-o", "%t %D") == "idle 2", 30, "both nodes idle")

    def stop(self) -> None:
        """End the jobs, then the daemons by their own numbers."""
        self.call("scancel", "-f", "--user", "root")
        until(lambda: not self.call("squeue", "-h"), 60, "an empty queue")
        for name in ("slurmd.n1", "slurmd.n2", "slurmctld", "munge"):
            number = int((self.folder / f"{name}.pid").read_text())
            os.kill(number, 15)
            until(lambda number=number: not Path(f"/proc/{number}").exists(), 30, f"the end of {name}")  # type: ignore[misc]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *words: str) -> str:
        """What a command says."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def jobs(self, *options: str) -> list[list[str]]:
        """Number, state, node, time limit and comment of the jobs, those that ended too."""
        said = self.call("squeue", "-h", "--states=all", "-S", "i", "-o", "%i|%T|%N|%l|%k|%m", *options)
        return [line.split("|") for line in said.splitlines()]

    def running(self, what: str) -> list[str]:
        """The job that runs now whose comment names this."""
        found = [job for job in self.jobs() if job[1] == "RUNNING" and what in job[4]]
        assert len(found) == 1, self.jobs()
        return found[0]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"expected {what} within {seconds:g} s"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    assert not missing, f"not installed: {', '.join(missing)}; apt-get install slurmctld slurmd slurm-client munge"
    assert os.geteuid() == 0, "the daemons are started as root"
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def on_cluster(mini: Mini, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Mini:
    """A project whose base and answers are there, with no other job in the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
    monkeypatch.setenv("PATH", str(cluster.folder / "bin"), prepend=os.pathsep)
    until(lambda: not cluster.call("squeue", "-h"), 60, "an empty queue")
    cluster.call("scontrol", "update", "NodeName=n1,n2", "State=RESUME") if drained(cluster) else None
    return mini


def drained(cluster: Cluster) -> bool:
    return any(word in cluster.call("sinfo", "-h", "-o", "%t") for word in ("drain", "drng", "down"))


SLURM = (
    "--profile", "profiles/slurm", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2",
    "--seconds-between-status-checks", "2", "--latency-wait", "10", "--max-threads", str(CORES), "--slurm-no-account",
)  # fmt: skip


class Snakemake:
    """One snakemake that hands its jobs to the cluster."""

    def __init__(self, mini: Mini, *options: str) -> None:
        mini.write()
        self.mini, self.log = mini, mini.folder / "slurm.out"
        words = [str(Path(os.sys.executable).parent / "snakemake"), *SLURM, *options]  # type: ignore[attr-defined]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                words, cwd=mini.folder, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def ended(self, code: int = 0, seconds: float = 400) -> str:
        """Wait for its end; what it said."""
        try:
            found = self.process.wait(seconds)
        finally:
            self.process.kill()
        said = self.log.read_text()
        assert found == code, said[-6000:]
        return said


def checkpointed(mini: Mini, snakemake: Snakemake, steps: int) -> None:
    """Wait until a training has a checkpoint after so many steps."""

    def saved() -> bool:
        assert snakemake.process.poll() is None, snakemake.log.read_text()[-6000:]
        found = [int(path.name.rpartition("-")[2]) for path in mini.folder.glob("artifacts/work/*/checkpoint-*")]
        return max(found, default=0) >= steps

    until(saved, 120, f"a checkpoint after step {steps}")


def outcomes(mini: Mini) -> list[dict[str, object]]:
    files = sorted(mini.folder.glob("results/runs/*/*/outcome.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in files]


def long_stage(mini: Mini, steps: int) -> None:
    mini.config["stages"] = [stage("A", steps=steps, lr=1e-4)]
    mini.config["checkpoint"] = {"steps": 5 if steps < 100 else 100}


def test_a_dry_run_says_the_same_as_here_and_a_collapse_is_answered_by_a_refit(
    on_cluster: Mini, cluster: Cluster
) -> None:
    mini = on_cluster
    mini.config["gate"]["kl"] = 1.5
    mini.config["stages"] = [stage("A", lr=2e-1), stage("B")]
    rule = {"when": ["collapsed"], "stage": "failed", "set": {"train.lr": "*0.001"}}
    mini.config["refits"] = {"max": 2, "rules": [rule]}
    here, there = (mini.snakemake("-n", "--quiet", "host", *options) for options in ((), SLURM))
    assert job_counts(here) == job_counts(there) and job_counts(here)["train"] == 2

    Snakemake(mini).ended()
    assert mini.trained() == ["A", "A", "B"]
    assert [(run["fit"], run["stage"], run["decision"]) for run in mini.stages()] == [
        ("0", "A", "collapsed"), ("1", "A", "accepted"), ("1", "B", "accepted"),
    ]  # fmt: skip
    assert mini.release()["promoted"][-1]["stage"] == "B"
    assert mini.would_run() == {} and job_counts(mini.snakemake("-n", "--quiet", "host", *SLURM)) == {}
    ours = [job for job in cluster.jobs() if "train" in job[4]]
    assert len(ours) == 3, "train, export and probe of a run are one job"
    assert all("export_probe_train" in job[4] for job in ours)


def test_a_job_that_is_cancelled_goes_on_from_its_checkpoint(on_cluster: Mini, cluster: Cluster) -> None:
    mini = on_cluster
    long_stage(mini, 60)
    snakemake = Snakemake(mini)
    checkpointed(mini, snakemake, 10)
    number, *_ = cluster.running("train")
    cluster.call("scancel", number)
    said = snakemake.ended()
    (outcome,) = outcomes(mini)
    assert outcome["status"] == "trained" and outcome["resumed_at"] == [10], said[-3000:]
    assert mini.trained() == ["A", "A"] and mini.verdicts() == ["accepted"]


def test_a_node_that_is_drained_ends_its_job_and_one_that_goes_down_loses_it_to_another(
    on_cluster: Mini, cluster: Cluster
) -> None:
    mini = on_cluster
    long_stage(mini, 60)
    snakemake = Snakemake(mini)
    checkpointed(mini, snakemake, 5)
    number, _, node, *_ = cluster.running("train")
    cluster.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    checkpointed(mini, snakemake, 15)
    assert cluster.running("train")[0] == number, "it works to its end"
    cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    until(lambda: "PENDING" in [job[1] for job in cluster.jobs()], 30, "the job in the queue again")
    cluster.call("scontrol", "update", f"JobId={number}", "StartTime=now")  # else Slurm waits two minutes
    said = snakemake.ended()
    (outcome,) = outcomes(mini)
    assert outcome["status"] == "trained" and len(outcome["resumed_at"]) == 1, said[-3000:]
    cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")


def test_a_job_over_its_time_limit_goes_on_with_more_time(on_cluster: Mini, cluster: Cluster) -> None:
    mini = on_cluster
    long_stage(mini, 4500)
    before = len(cluster.jobs())
    minutes = ("train:runtime=2 * attempt - 1", "export:runtime=0", "probe:runtime=0")
    snakemake = Snakemake(mini, "--set-resources", *minutes)
    checkpointed(mini, snakemake, 100)
    assert cluster.running("train")[3] == "1:00", cluster.jobs()
    said = snakemake.ended()
    ours = [job for job in cluster.jobs()[before:] if "train" in job[4]]
    assert [(job[1], job[3]) for job in ours] == [("TIMEOUT", "1:00"), ("COMPLETED", "3:00")], said[-3000:]
    (outcome,) = outcomes(mini)
    assert outcome["status"] == "trained" and len(outcome["resumed_at"]) == 1, said[-3000:]


HELD_BACK = """
scored: reference
families:
  - {name: whence, split: confirmation, fold: 1, kind: topic, cores: {zh-Hant: [煩請細說一回麵包的由來始末]}}
  - {name: asked, split: confirmation, fold: 2, kind: topic, cores: {en: [pray tell what there is to bread]}}
"""


def test_candidates_that_are_due_at_once_are_asked_a_fold_each(on_cluster: Mini, cluster: Cluster) -> None:
    mini = on_cluster
    (mini.folder / "held_back.yaml").write_text(HELD_BACK)
    mini.config["data"]["probes"] = ["probes.tsv", "held_back.yaml"]
    mini.config["refits"] = {"max": 0, "rules": []}
    mini.config["experiments"] = {"one": {"stages": [stage("A")]}, "two": {"stages": [stage("A", lr=2e-3)]}}
    Snakemake(mini, "campaign", "--until", "gate", "--retries", "0").ended()
    assert mini.verdicts() == ["accepted", "accepted"]
    planned = mini.run("fgod", "plan").stdout
    assert "it is asked fold 1 of" in planned and "it is asked fold 2 of" in planned
    assert not (mini.folder / "results/confirmations/folds.json").exists(), "nobody was asked yet"

    said = Snakemake(mini, "campaign", "--retries", "0").ended()
    given = json.loads((mini.folder / "results/confirmations/folds.json").read_text())["given"]
    assert sorted(entry["fold"] for entry in given) == [1, 2], said[-3000:]
    assert json.loads((mini.folder / "results/confirmations/reserved.json").read_text())["given"] == []
    asked = [job for job in cluster.jobs() if "fold_probe" in job[4]]
    assert [job[1] for job in asked] == ["COMPLETED", "COMPLETED"], asked
    assert len([entry for entry in mini.commands("probe") if "--fold" in entry["argv"]]) == 2
    assert mini.would_run("campaign") == {}
