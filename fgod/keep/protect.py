"""Which runs must keep their weights, and why. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from fgod.decisions import ACCEPTED
from fgod.names import parts_of


@dataclass(frozen=True)
class Held:
    """What of a run decides whether its weights may leave.

    Args:
        name: `STAGE@LINEAGE`.
        made_of: lineages: of the run that it starts from; of an interpolated one also the training that it is from.
        weights: whether it has some, at their place.
        saved: the step of its training after which it would go on; 0: none is saved.
        pins: names of the pins that hold it.
        releases: folders of the releases whose chain it is part of.
        decision: the gate's; None while it is pending, and of a run that no gate judges.
    """

    name: str
    made_of: tuple[str, ...] = ()
    weights: bool = True
    saved: int = 0
    pins: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    decision: str | None = None

    @property
    def lineage(self) -> str:
        return parts_of(self.name)[1]


def refusals(runs: Mapping[str, Held], leaving: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Of the runs that are to leave, those that must not, by name, and why. A run that stays keeps what it starts from.

    Args:
        runs: all runs on record, by name.
        leaving: names of runs whose weights are to go.
    """
    refused: dict[str, tuple[str, ...]] = {}
    while True:
        staying = [run for name, run in runs.items() if name not in leaving or name in refused]
        found = {name: why for name in leaving if (why := tuple(_reasons(runs[name], staying)))}
        if found.keys() == refused.keys():
            return found
        refused = found


def _reasons(run: Held, staying: Collection[Held]) -> Iterator[str]:
    yield from (f"it is pinned as {pin}" for pin in run.pins)
    yield from (f"it is released: {folder}" for folder in run.releases)
    for other in staying:
        if run.lineage in other.made_of and other.weights:
            yield f"it is the start of {other.name}, whose weights are kept"
        elif run.lineage in other.made_of and other.saved:
            yield f"it is the start of {other.name}, whose training goes on from step {other.saved}"


WALK, NEWEST = "walk", "newest"
KEEP_RULES = {
    ACCEPTED: "runs whose gate accepted them",
    WALK: "runs that the walk of the config has come by so far",
    NEWEST: "the newest run of each stage",
}
"""What may be kept by rule."""


@dataclass(frozen=True)
class Pruning:
    """What a pruning does: names of the runs whose weights go, and why each other one that has weights keeps them."""

    leaving: tuple[str, ...]
    kept: Mapping[str, tuple[str, ...]]


def pruned(
    runs: Mapping[str, Held],
    rules: Collection[str],
    named: Collection[str],
    walk: Collection[str] = (),
    newest: Collection[str] = (),
) -> Pruning:
    """Which runs' weights go where only some are to be kept. What has no verdict is kept: its gate may be pending.

    Args:
        runs: all runs on record, by name.
        rules: of `KEEP_RULES`.
        named: names of runs that are to be kept besides.
        walk: lineages of the runs of the walk.
        newest: names of the newest run of each stage.
    """

    def chosen(run: Held) -> Iterator[str]:
        if run.decision is None:
            yield "it has no verdict"
        if run.name in named:
            yield "it is named"
        if ACCEPTED in rules and run.decision == ACCEPTED:
            yield "its gate accepted it"
        if WALK in rules and run.lineage in walk:
            yield "it is part of the walk"
        if NEWEST in rules and run.name in newest:
            yield "it is the newest of its stage"

    with_weights = {name: run for name, run in runs.items() if run.weights}
    kept = {name: why for name, run in with_weights.items() if (why := tuple(chosen(run)))}
    leaving = [name for name in with_weights if name not in kept]
    refused = refusals(runs, leaving)
    return Pruning(tuple(name for name in leaving if name not in refused), kept | refused)
