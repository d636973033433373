"""What is on record about runs: verdicts, outcomes, pruned artifacts. Reads results/ and artifacts/ of the project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgod.chain import ACCEPTED, Run, Walk
from fgod.documents import Outcome, Stamp, verdict_of
from fgod.layout import RunRecords, RunWeights, run_records, run_weights, work
from fgod.system.files import canonical_json, remove_folder

KILLED = "killed"


def records_of(run: Run) -> RunRecords:
    """The records of a run."""
    return run_records(run.stage, run.lineage)


def weights_of(run: Run) -> RunWeights:
    """The weights of a run."""
    return run_weights(run.stage, run.lineage)


def decision(run: Run) -> str | None:
    """The verdict on a run; None while it is pending (see `fgod.documents.verdict_of`).

    Raises:
        FgodError: the verdict, or a record that it was made of, was edited; names the file.
    """
    verdict = verdict_of(records_of(run))
    return verdict.decision if verdict else None


def outcome_status(run: Run) -> str | None:
    """How a run's training ended: trained, killed or diverged; None while it has not."""
    path = records_of(run).outcome
    return Outcome.read(path).status if path.exists() else None


def pruned(run: Run) -> bool:
    """A failed run whose weights are gone: its verdict stays, and it is neither trained nor probed again."""
    if decision(run) in (None, ACCEPTED):
        return False
    weights = weights_of(run)
    if not weights.stamp.exists():
        return True
    return Stamp.read(weights.stamp).status == "exported" and not weights.nvfp4.exists()


def compute_dtype(run: Run) -> str:
    """The number format in which a run's weights are used: its export has the same."""
    return str(json.loads(run.recipe)["train"]["compute_dtype"])


def device(run: Run) -> str:
    """The device on which a run trains: cpu or cuda."""
    return str(json.loads(run.recipe)["train"]["device"])


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
    everything = records_of(run).folder, weights_of(run).folder, work(run.lineage).folder
    folders = [folder for folder in everything if folder.exists()]
    for folder in folders:
        remove_folder(folder)
    return folders
