"""What holds the weights of the runs on record: pins, releases, runs that start from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fgod import layout
from fgod.checkpoints import saved_step
from fgod.documents import Pins, Recipe, Release, verdict_of
from fgod.errors import UsageError
from fgod.keep.protect import Held, refusals
from fgod.keep.trash import in_trash, only_in_trash, weights_named, weights_of, weights_there
from fgod.layout import ARTIFACTS, PINS, RESULTS, RunRecords, all_release_records
from fgod.names import run_name
from fgod.runs import all_runs, name_of

PIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_pins(results: Path = RESULTS) -> dict[str, str]:
    """The run that each pin holds, `STAGE@LINEAGE`, by the pin's name.

    Raises:
        FgodError: the file was edited; names it.
    """
    file = results / PINS.name
    return dict(Pins.read(file).pins) if file.exists() else {}


def pin(name: str, run: RunRecords, results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> None:
    """Let a pin hold a run's weights.

    Raises:
        UsageError: the name is none, or holds another run, or not all weights of the run are at their place.
    """
    if not PIN_NAME.fullmatch(name):
        raise UsageError(f"{name!r}: found this name of a pin, expected letters, digits, dots, dashes, underscores")
    pins = read_pins(results)
    if pins.get(name, name_of(run)) != name_of(run):
        raise UsageError(
            f"{name}: this pin holds {pins[name]}, expected a new name; `fgod pin {name} --remove` lets go of that run"
        )
    weights = weights_of(run, artifacts)
    if away := only_in_trash(weights):
        names = ", ".join(folder.name for folder in away)
        raise UsageError(f"{name_of(run)}: {names} lie in the trash: `fgod restore {name_of(run)}` first")
    if not weights_there(weights):
        raise UsageError(f"{name_of(run)}: no weights in {weights.folder}; there is nothing to keep")
    Pins(pins={**pins, name: name_of(run)}).write(results / PINS.name)


def unpin(name: str, results: Path = RESULTS) -> str:
    """Take a pin away; returns the run that it held.

    Raises:
        UsageError: there is no pin of this name; names those that there are.
    """
    pins = read_pins(results)
    if name not in pins:
        raise UsageError(f"{name}: no such pin; found {', '.join(sorted(pins)) or 'none at all'}")
    run = pins.pop(name)
    Pins(pins=pins).write(results / PINS.name)
    return run


def released_in(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> dict[str, list[str]]:
    """Folders of the releases whose chain a run is part of, by the run's name.

    Raises:
        FgodError: the record of a release was edited; names it.
    """
    found: dict[str, list[str]] = {}
    for record in all_release_records(results, artifacts):
        for run in Release.read(record).promoted:
            found.setdefault(run_name(run.stage, run.lineage), []).append(record.parent.as_posix())
    return found


def held_runs(results: Path = RESULTS, artifacts: Path = ARTIFACTS) -> dict[str, Held]:
    """What holds the weights of each run on record, by its name.

    Raises:
        FgodError: a record was edited; names it.
    """
    pins, released = read_pins(results), released_in(results, artifacts)
    found = {}
    for run in all_runs(results):
        name, recipe = name_of(run), Recipe.read(run.recipe)
        found[name] = Held(
            name,
            made_of=tuple(filter(None, (recipe.starts_from, recipe.of))),
            weights=weights_there(weights_of(run, artifacts)),
            saved=saved_step(layout.work(run.folder.name, artifacts).folder),
            pins=tuple(pin for pin, held in pins.items() if held == name),
            releases=tuple(released.get(name, ())),
            decision=verdict.decision if (verdict := verdict_of(run)) else None,
        )
    return found


def needed_from_trash(runs: Mapping[str, Held], artifacts: Path = ARTIFACTS) -> dict[str, tuple[str, ...]]:
    """The runs in the trash whose weights must not be deleted, and why: what holds them may be newer than their move.

    Args:
        runs: all runs on record, by name.
    """
    there = [name for name in in_trash(artifacts) if name in runs]
    kept = {name: replace(runs[name], weights=True) for name in there if only_in_trash(weights_named(name, artifacts))}
    whole = [name for name in kept if not runs[name].weights]  # of the others a part would stay, and they with it
    return refusals({**runs, **kept}, kept) | refusals({**runs, **kept}, whole)
