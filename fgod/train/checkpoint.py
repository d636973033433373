"""Checkpoints: a run that was killed at any step goes on from the last one, and ends with the same bits.

    artifacts/work/{lineage}/checkpoint-00000120/{model*.safetensors, state.json}

The state is all that a step depends on besides the recipe: weights and the optimizer's states as they are stored, under
the names that the optimizer gives, and the number of steps done; rows and random bits follow from those. A checkpoint
appears whole, by rename, and the two newest are kept. It goes on only on a processor like the one that made it: steps
of two kinds would give bits that neither of them gives.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fgod import numerics_on
from fgod.checkpoints import PREFIX, folders
from fgod.data.rows import LATER_COLUMNS, ROW_COLUMNS, Row, record
from fgod.errors import FgodError, UsageError
from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, open_weights, write_weights
from fgod.system import files
from fgod.train.optimizer import TensorOptimizer
from fgod.train.recipe import TrainRecipe

KEPT = 2


@dataclass
class Schedule:
    """When a checkpoint is due. None of this changes any weight, so it is no part of a recipe."""

    secs: float = 0.0
    """Seconds between two; 0: none by time."""
    steps: int = 0
    """Steps between two; 0: none by count."""
    last: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """After `step` steps, which are not all; starts the clock anew when it says yes."""
        due = (self.steps > 0 and step % self.steps == 0) or (
            self.secs > 0 and time.monotonic() - self.last >= self.secs
        )
        if due:
            self.last = time.monotonic()
        return due


@dataclass(frozen=True)
class Identity:
    """Whose checkpoint it is. `run`: see `digest_of`; `processor`: what computed it, by `device.settings.processor`."""

    run: str
    processor: str


def digest_of(recipe: TrainRecipe, rows: Sequence[Row], seed: int, start: Path, more: Sequence[object] = ()) -> str:
    """Digest of what the weights of a run depend on; `start` by its files' names and sizes, `more` as it is."""
    begun = [(path.relative_to(start).as_posix(), path.stat().st_size) for path in files.folder_files(start)]
    numerics = numerics_on(recipe.device)
    return files.digest(numerics, recipe.to_dict(), [_content(row) for row in rows], seed, begun, *more)


def _content(row: Row) -> dict[str, str | bool]:
    """A row as its table has it, without what a plain one, or one of an older version, does not say."""
    first = set(ROW_COLUMNS) - set(LATER_COLUMNS)
    return {key: value for key, value in record(row).items() if key in first or value not in ("", "last", False)}


def save(work: Path, optimizer: TensorOptimizer, identity: Identity, more: Mapping[str, Any]) -> Path:
    """Write a checkpoint and forget all but the two newest; of several ranks the first one does, with all of them."""
    target, parts = work / f"{PREFIX}{optimizer.steps_done:08d}", optimizer.stored()
    if not parts.writes:
        parts.help_read()
        return target
    with files.atomic_folder(target) as folder:
        write_weights(
            folder,
            parts.names(),
            lambda n: {n: parts.like(n)},
            lambda n: {n: parts.whole(n)},
            DEVICE_SHARD_BYTES,
        )
        flags = {n: [t.got_gradient, t.changed] for n, t in optimizer.took_part.items()}
        written = files.file_digests(folder)
        state = {"steps_done": optimizer.steps_done, "tensors": flags, "more": more, "files": written}
        files.write_json(folder / "state.json", {**asdict(identity), **state})
    for old in folders(work)[:-KEPT]:
        files.remove_folder(old)
    return target


def restore(work: Path, optimizer: TensorOptimizer, identity: Identity) -> dict[str, Any] | None:
    """Bring an optimizer and its parameters to the newest checkpoint; returns its `more`, None without one.

    Raises:
        UsageError: the checkpoint is of another run or processor; names both.
        FgodError: a file of it has changed since it was written, or is missing; names it.
    """
    parts = optimizer.stored()
    if parts.writes:
        files.sweep(work)
    found = folders(work)
    if not found:
        return None
    state = files.read_json(found[-1] / "state.json")
    _check_identity(found[-1], state, identity)
    if parts.writes:
        _check_files(found[-1], state["files"])
    with open_weights(found[-1]) as stored:
        for name in parts.names():
            parts.put(name, stored.read(name))
    for name, (got_gradient, changed) in state["tensors"].items():
        optimizer.took_part[name].got_gradient, optimizer.took_part[name].changed = got_gradient, changed
    optimizer.steps_done = state["steps_done"]
    optimizer.measure()
    return dict(state["more"])


def _check_identity(folder: Path, state: Mapping[str, Any], identity: Identity) -> None:
    anew = f"delete {folder.parent} to train from the start"
    missing = [key for key in ("processor", "files") if key not in state]
    if missing:
        raise UsageError(
            f"{folder / 'state.json'}: the key {missing[0]!r} is missing: an older version wrote this checkpoint; "
            f"{anew}"
        )
    if state["run"] != identity.run:
        raise UsageError(
            f"{folder}: found a checkpoint of the run {state['run']}, expected {identity.run}: recipe, rows, seed or "
            f"starting weights differ; {anew}"
        )
    if state["processor"] != identity.processor:
        raise UsageError(
            f"{folder}: found a checkpoint that was computed with {state['processor']}; this machine computes with "
            f"{identity.processor}, whose bits may differ, and a run is of one kind: go on where it began, or {anew} "
            "here"
        )


def _check_files(folder: Path, recorded: Mapping[str, str]) -> None:
    there = [folder / name for name in recorded if (folder / name).is_file()]
    changed = files.differing(recorded, files.file_digests(folder, there))
    if changed:
        raise FgodError(
            f"{folder}: {', '.join(changed)} since this checkpoint was written (sha256); delete {folder} to go on from "
            "the checkpoint before it, or from the start where there is none"
        )
