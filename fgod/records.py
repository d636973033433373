"""What is on record about runs: verdicts, outcomes, pruned artifacts. Reads results/ and artifacts/ of the project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgod.chain import ACCEPTED, Run, Walk
from fgod.system.files import canonical_json, read_json, remove_folder

RESULTS = Path("results")
ARTIFACTS = Path("artifacts")
WORK = ARTIFACTS / "work"
"""Scratch of trainings by lineage: what a stopped one goes on from."""
RUNNING = Path(".snakemake/fgod/running")
"""Locked by the snakemake that is at work here, as long as it lives."""

KILLED = "killed"


def killed_outcome(reason: str) -> dict[str, Any]:
    """What is said of a training that needed more memory than the guard allows."""
    return {"status": KILLED, "reason": reason, "weights_sha256": "", "weights_files": {}}


def run_folder(run: Run) -> Path:
    """Where a run's records lie."""
    return RESULTS / "runs" / run.stage / run.lineage


def artifact_folder(run: Run) -> Path:
    """Where a run's weights lie."""
    return ARTIFACTS / run.stage / run.lineage


def decision(run: Run) -> str | None:
    """The recorded verdict of a run, None while there is none."""
    path = run_folder(run) / "verdict.json"
    return str(read_json(path)["decision"]) if path.exists() else None


def outcome_status(run: Run) -> str | None:
    """How a run's training ended: trained, killed or diverged; None while it has not."""
    path = run_folder(run) / "outcome.json"
    return str(read_json(path)["status"]) if path.exists() else None


def pruned(run: Run) -> bool:
    """A failed run whose weights are gone: its verdict stays, and it is neither trained nor probed again."""
    if decision(run) in (None, ACCEPTED):
        return False
    stamp = artifact_folder(run) / "exported.json"
    if not stamp.exists():
        return True
    return read_json(stamp)["status"] == "exported" and not (artifact_folder(run) / "nvfp4").exists()


def compute_dtype(run: Run) -> str:
    """The number format in which a run's weights are used: its export has the same."""
    return str(json.loads(run.recipe)["train"]["compute_dtype"])


def device(run: Run) -> str:
    """The device on which a run trains, by its name: of `auto` it is cuda where the memory row is a GPU's."""
    train = json.loads(run.recipe)["train"]
    if train["device"] == "auto":
        return "cpu" if train["memory"] == "cpu" else "cuda"
    return str(train["device"])


def threads(run: Run) -> int:
    """CPU threads of a run's training: part of its recipe, because other threads give other bits."""
    return int(json.loads(run.recipe)["train"]["threads"])


def seq_len(run: Run) -> int:
    """The most tokens that a row of a run's mix may have."""
    return int(json.loads(run.recipe)["train"]["seq_len"])


def requirements(config: Mapping[str, Any], stage: str) -> str:
    """What a stage requires of its metrics, in canonical JSON."""
    return canonical_json(next(s["require"] for s in config["stages"] if s["name"] == stage))


def walk_json(walk: Walk) -> str:
    """A walk in JSON, for walk.json (see `fgod.tables.WalkEntry`)."""
    visits = [
        {
            "fit": visit.fit,
            "stage": visit.run.stage,
            "lineage": visit.run.lineage,
            "starts_from": json.loads(visit.run.recipe)["starts_from"],
            "state": visit.decision or "pending",
        }
        for visit in walk.visits
    ]
    last = walk.fits[-1].adjustments if walk.fits else ()
    adjustments = [[str(a) for a in last if a.fit == fit.number] for fit in walk.fits]
    spent = walk.reason if walk.state == "spent" else ""
    return canonical_json({"visits": visits, "spent": spent, "adjustments": adjustments})


def forget(run: Run) -> list[Path]:
    """Remove a run's records and artifacts, so that it trains again; returns what was removed."""
    folders = [f for f in (run_folder(run), artifact_folder(run), WORK / run.lineage) if f.exists()]
    for folder in folders:
        remove_folder(folder)
    return folders
