"""The chains of a config: its own, and those of its experiments, each from what it starts from.

    snakemake             the config's own chain
    snakemake campaign    the chains of all experiments; runs that two of them share are made once

All chains are judged by the same probes and limits, and taught the same persona. A run belongs to no chain: its path
says what it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fgod import inputs, records, runs
from fgod.chain import Chain, Decide, Inputs, Run, Start, Walk
from fgod.config import experiment_configs, missing_weights, resolve, with_files
from fgod.documents import BaseStamp, Recipe
from fgod.errors import UsageError, did_you_mean
from fgod.keep.holds import read_pins
from fgod.layout import Releases, RunRecords, View, lineage_of, mix, mix_of, view
from fgod.layout import base as base_folder
from fgod.names import AT
from fgod.system.files import canonical_json

OWN = ""
"""The name of the config's own chain."""
BASE = "base"
USERS_OWN = ("folder", "gguf", "dat")
"""Kinds of weights that are the user's."""


@dataclass(frozen=True)
class Origin:
    """Weights that no run of fgod made: their base_id, and what they are, as the key `base` has it."""

    id: str
    base: Mapping[str, Any]


class GoneError(UsageError):
    """What an experiment starts from was there once, or is to be there, and is not. Only that experiment stops."""


@dataclass(frozen=True)
class Experiment:
    """A chain of runs. `name`: empty of the config's own; `starts_from`: as the config has it; `asked`: the config that
    decides which prompts the base is asked for rehearsal; `weights`: those of the user's that it starts from, as a key
    `base` has them, with their base_id; `origin`: the weights that it comes from in the end, with their id.

    `recorded`: the run that it starts from, where that is known by its record alone, and the runs which that was made
    from. `fault`: why it has no start, in words; it has no run then, and the other chains go on.
    """

    name: str
    note: str
    starts_from: str
    config: Mapping[str, Any]
    inputs: Inputs
    chain: Chain
    asked: Mapping[str, Any]
    origin: Origin
    weights: Mapping[str, Any] | None = None
    weights_id: str = ""
    recorded: tuple[Run, ...] = ()
    fault: str = ""

    @property
    def words(self) -> str:
        """Its name in a message."""
        return f"the experiment {self.name}" if self.name else "the config's own chain"

    @property
    def view(self) -> View:
        """Where its tables and its report lie."""
        return view(self.name)

    @property
    def releases(self) -> Releases:
        return Releases(experiment=self.name)


def experiments_of(raw: Mapping[str, Any], where: str) -> dict[str, Experiment]:
    """The chains of a config by name, its own first, and each after the one that it starts from.

    Args:
        raw: the config as it was read.
        where: the name of its file, for messages.

    What an experiment starts from may be gone: it has no run then, and says so (`Experiment.fault`).

    Raises:
        UsageError: the config, or an experiment, is faulty, or starts from what has no such name; names it.
    """
    raw = with_files(raw, where)
    config = resolve(raw, where)
    gathered = inputs.gather(config)
    own_base = Origin(gathered.base_id, config["base"])
    found = {OWN: Experiment(OWN, "", BASE, config, gathered, Chain(config, gathered), config, own_base)}
    told: Mapping[str, Mapping[str, Any]] = config.get("experiments", {})
    starts = {name: one["starts_from"] for name, one in told.items()}
    _check_circles(starts, where)
    configs = experiment_configs(raw, where)
    for name in sorted(configs, key=lambda name: _depth(name, starts)):
        own = configs[name]
        place = f"{where}: experiments.{name}"
        _check_dtype(config, own, place)
        asked = _asked(config, own)
        its = inputs.gather(own, asked)
        try:
            began = _beginning(starts[name], found, told, own, its, f"{place}.starts_from")
        except GoneError as error:
            began = _Beginning(_nothing(str(error)), own_base, fault=str(error))
        weights = starts[name] if isinstance(starts[name], Mapping) else None
        found[name] = Experiment(
            name,
            told[name].get("note", ""),
            f"{weights['kind']} {weights['path']}" if weights else starts[name],
            own,
            its,
            Chain(own, its, began.start),
            asked,
            began.origin,
            None if began.fault else weights,
            began.origin.id if weights and not began.fault else "",
            began.recorded,
            began.fault,
        )
    return found


@dataclass(frozen=True)
class _Beginning:
    """How an experiment starts; see `Experiment`. `start` is None for the base."""

    start: Callable[[Decide], Start] | None
    origin: Origin
    recorded: tuple[Run, ...] = ()
    fault: str = ""


def _nothing(why: str) -> Callable[[Decide], Start]:
    return lambda decide: Start(why=why, never=True)


def _weights_of(weights: Mapping[str, Any], config: Mapping[str, Any], gathered: Inputs, where: str) -> Origin:
    """Weights of the user's.

    Raises:
        GoneError: they are not there.
    """
    if faults := list(missing_weights(weights, where)):
        raise GoneError("\n".join(faults))
    return Origin(inputs.base_id(weights, gathered.sources, inputs.readers_of(config)), weights)


def _asked(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's config with the stages and refit rules of the config's own chain, too: stages that both have are
    the same runs only where the base was asked the same prompts, which are those that any stage needs."""
    rules = [*config["refits"]["rules"], *own["refits"]["rules"]]
    return {**own, "stages": [*config["stages"], *own["stages"]], "refits": {**own["refits"], "rules": rules}}


def _check_dtype(config: Mapping[str, Any], own: Mapping[str, Any], where: str) -> None:
    """The base is exported once, in the number format of the first stage."""
    expected, found = (one["stages"][0]["train"]["compute_dtype"] for one in (config, own))
    if expected != found:
        raise UsageError(
            f"{where}.stages[0 {own['stages'][0]['name']}].train.compute_dtype: found {found}, expected {expected} as "
            "of the config's first stage: all runs are compared with one export of the base"
        )


def _check_circles(starts: Mapping[str, Any], where: str) -> None:
    """Raises UsageError where experiments start from each other, or one has the name of the base."""
    if BASE in starts:
        raise UsageError(f"{where}: experiments.{BASE}: the name of what chains start from; choose another")
    for name in starts:
        seen, at = [name], starts[name]
        while isinstance(at, str) and at in starts:
            if at in seen:
                raise UsageError(
                    f"{where}: experiments.{name}.starts_from: found {' → '.join([*seen, at])}, a circle; expected one "
                    "that starts from something else"
                )
            seen.append(at)
            at = starts[at]


def _depth(name: str, starts: Mapping[str, Any]) -> int:
    """How many experiments there are before one."""
    start = starts[name]
    return 1 + _depth(start, starts) if isinstance(start, str) and start in starts else 0


def _beginning(
    said: str | Mapping[str, Any],
    chains: Mapping[str, Experiment],
    told: Mapping[str, Any],
    config: Mapping[str, Any],
    gathered: Inputs,
    where: str,
) -> _Beginning:
    """What an experiment starts from.

    Args:
        chains: those of the config by name, as far as they are known: the one that it starts from is.

    Raises:
        GoneError: that is not there.
        UsageError: nothing can have this name.
    """
    base = chains[OWN].origin
    if isinstance(said, Mapping):
        weights = _weights_of(said, config, gathered, where)
        return _Beginning(lambda decide: Start(weights.id), weights)
    if said == BASE:
        return _Beginning(None, base)
    pins = read_pins()
    if said in told:
        if said in pins:
            raise UsageError(f"{where}: {said} is an experiment and a pin; rename one of them")
        before = chains[said]
        fault = f"it starts from {said}: {before.fault}" if before.fault else ""
        return _Beginning(lambda decide: _end_of(said, before.chain.walk(decide)), before.origin, fault=fault)
    run = _recorded_start(said, pins, told, where)
    return _Beginning(lambda decide: Start(run=run), _origin(run, base, where), tuple(_made_from(run)))


def _end_of(name: str, walk: Walk) -> Start:
    """The last run of an experiment, accepted or not."""
    if walk.state == "pending":
        return Start(why=f"it starts from the end of {name}: {walk.reason}")
    if not walk.visits:
        return Start(why=f"it starts from the end of {name}, which has none: {walk.reason}", never=True)
    last = walk.visits[-1].run
    if records.outcome_status(last) not in (None, "trained"):
        return Start(why=f"it starts from the end of {name}, and {last.name} has no weights", never=True)
    return Start(run=last)


def _recorded_start(said: str, pins: Mapping[str, str], told: Mapping[str, Any], where: str) -> Run:
    """The run on record that an experiment starts from.

    Raises:
        GoneError: there is none of this name, or its weights or rows are gone.
        UsageError: it is no name of a run.
    """
    if said not in pins and AT not in said:
        known = [BASE, *told, *pins]
        raise UsageError(
            f"{where}: found {said!r}{did_you_mean(said, known)}, expected one of {', '.join(known)}, or "
            "STAGE@LINEAGE of a run on record"
        )
    try:
        run = recorded(runs.resolve(pins.get(said, said)))
    except UsageError as error:
        raise GoneError(f"{where}: {error}") from error
    weights = records.weights_of(run)
    for path in (weights.trained, weights.master):
        if not path.exists():
            back = f"; `fgod restore {run.stage}@{run.lineage}` brings them back" if records.in_trash(run) else ""
            raise GoneError(f"{where}: the weights of {run.stage}@{run.lineage} are gone: {path}{back}")
    for one in _made_from(run):
        if not (rows := mix(one.mix_id).rows).exists():
            raise GoneError(f"{where}: the rows that {one.stage}@{one.lineage} was taught are gone: {rows}")
    return run


def _made_from(run: Run) -> Iterator[Run]:
    """A run, those before it, and the trainings that they lie between the start and the end of."""
    yield run
    for one in (run.parent, run.trained):
        if one:
            yield from _made_from(one)


def _origin(run: Run, base: Origin, where: str) -> Origin:
    """The weights that a run on record comes from in the end.

    Raises:
        UsageError: they are neither the config's base nor weights of the user's.
    """
    first = run
    while first.parent:
        first = first.parent
    found = str(Recipe.read(records.records_of(first).recipe).starts_from)
    if found == base.id:
        return base
    stamp = base_folder(found).stamp
    if stamp.exists() and (weights := BaseStamp.read(stamp).base)["kind"] in USERS_OWN:
        return Origin(found, weights)
    raise UsageError(
        f"{where}: {run.stage}@{run.lineage} comes from the base {found}, expected {base.id}, "
        "the config's, or weights of yours: runs are compared with the config's base"
    )


def recorded(run: RunRecords) -> Run:
    """A run by its record, with those before it.

    Raises:
        FgodError: a recipe was edited; names the file.
    """
    recipe = Recipe.read(run.recipe)
    content, stage, lineage = recipe.content(), run.folder.parent.name, run.folder.name
    if lineage_of(content) != lineage:
        raise UsageError(f"{run.recipe}: it is not the recipe of {lineage}; expected it as fgod wrote it")
    before, of = (runs.of_lineage(str(key), run.folder.parents[2]) if key else None
                  for key in (recipe.starts_from, recipe.of))  # fmt: skip
    return Run(
        stage,
        lineage,
        canonical_json(content),
        mix_of(content).folder.name,
        canonical_json(content["mix"]),
        recorded(before) if before else None,
        recipe.alpha,
        recorded(of) if of else None,
        recorded=True,
    )
