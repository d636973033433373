"""The chains of a config: its own, and those of its experiments, each from what it starts from.

    snakemake             the config's own chain
    snakemake campaign    the chains of all experiments; runs that two of them share are made once

All chains are judged by the same probes and limits, and taught the same persona. A run belongs to no chain: its path
says what it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fgod import inputs, records, runs
from fgod.chain import Chain, Decide, Inputs, Run, Start, Walk
from fgod.config import experiment_configs, missing_weights, resolve, with_files
from fgod.documents import Recipe
from fgod.errors import UsageError, did_you_mean
from fgod.keep.holds import read_pins
from fgod.layout import Releases, RunRecords, View, lineage_of, mix_of, view
from fgod.names import AT
from fgod.system.files import canonical_json

OWN = ""
"""The name of the config's own chain."""
BASE = "base"


@dataclass(frozen=True)
class Experiment:
    """A chain of runs. `name`: empty of the config's own; `starts_from`: as the config has it; `asked`: the config that
    decides which prompts the base is asked for rehearsal; `weights`: those of the user's that it starts from, as a key
    `base` has them, with their base_id."""

    name: str
    note: str
    starts_from: str
    config: Mapping[str, Any]
    inputs: Inputs
    chain: Chain
    asked: Mapping[str, Any]
    weights: Mapping[str, Any] | None = None
    weights_id: str = ""
    fault: str = ""
    """Why it cannot start: what it starts from is gone. The other chains go on."""

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

    Raises:
        UsageError: the config, or an experiment, is faulty, or starts from what never was; names it.
    """
    raw = with_files(raw, where)
    config = resolve(raw, where)
    gathered = inputs.gather(config)
    found = {OWN: Experiment(OWN, "", BASE, config, gathered, Chain(config, gathered), config)}
    told: Mapping[str, Mapping[str, Any]] = config.get("experiments", {})
    starts = {name: one["starts_from"] for name, one in told.items()}
    _check_circles(starts, where)
    configs = experiment_configs(raw, where)
    ids = {name: inputs.base_id(one, gathered.sources, inputs.readers_of(config)) for name, one in starts.items()
           if isinstance(one, Mapping) and not _missing(one, name, where)}  # fmt: skip
    origins = {gathered.base_id, *ids.values()}
    for name in sorted(configs, key=lambda name: _depth(name, starts)):
        own = configs[name]
        place = f"{where}: experiments.{name}"
        _check_dtype(config, own, place)
        start = starts[name]
        weights = start if isinstance(start, Mapping) else None
        asked = _asked(config, own)
        its = inputs.gather(own, asked)
        fault = _missing(weights, name, where) if weights else ""
        try:
            begins = _start(start, found, told, origins, ids.get(name, ""), place)
        except GoneError as error:
            fault = str(error)
        if fault:
            begins = partial(_never, fault)
        words = f"{weights['kind']} {weights['path']}" if weights else start
        note, chain = told[name].get("note", ""), Chain(own, its, begins)
        found[name] = Experiment(name, note, words, own, its, chain, asked, weights, ids.get(name, ""), fault)
    return found


def origin(chain: Experiment, chains: Mapping[str, Experiment]) -> Experiment:
    """The chain that one starts from in the end, by the names of experiments."""
    while (before := chains.get(chain.starts_from)) and before.name:
        chain = before
    return chain


class GoneError(UsageError):
    """What an experiment starts from was there, and is gone."""


def _missing(weights: Mapping[str, Any], name: str, where: str) -> str:
    """What is not there of weights of the user's, in words; empty where all is."""
    return "\n".join(missing_weights(weights, f"{where}: experiments.{name}.starts_from"))


def _never(why: str, decide: Decide) -> Start:
    return Start(why=why, never=True)


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


def _start(
    said: str | Mapping[str, Any],
    chains: Mapping[str, Experiment],
    told: Mapping[str, Any],
    origins: Collection[str],
    weights_id: str,
    where: str,
) -> Callable[[Decide], Start] | None:
    """What an experiment starts from; None: the base.

    Args:
        chains: those of the config by name; filled after this call.
        origins: base_ids of the config's base, and of weights that experiments start from.
        weights_id: the base_id of weights of the user's.
    """
    if isinstance(said, Mapping):
        return lambda decide: Start(weights_id)
    if said == BASE:
        return None
    pins = read_pins()
    if said in told:
        if said in pins:
            raise UsageError(f"{where}.starts_from: {said} is an experiment and a pin; rename one of them")
        return lambda decide: _end_of(said, chains[said].chain.walk(decide))
    run = _recorded_start(said, pins, told, origins, f"{where}.starts_from")
    return lambda decide: Start(run=run)


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


def _recorded_start(
    said: str, pins: Mapping[str, str], told: Mapping[str, Any], origins: Collection[str], where: str
) -> Run:
    """The run on record that an experiment starts from.

    Raises:
        UsageError: there is none of this name, or it is of another base.
        GoneError: its weights are gone.
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
        raise UsageError(f"{where}: {error}") from error
    weights = records.weights_of(run)
    for path in (weights.trained, weights.master):
        if not path.exists():
            back = f"; `fgod restore {run.stage}@{run.lineage}` brings them back" if records.in_trash(run) else ""
            raise GoneError(f"{where}: the weights of {run.stage}@{run.lineage} are gone: {path}{back}")
    if origin_of(run) not in origins:
        raise UsageError(
            f"{where}: {run.stage}@{run.lineage} comes from the base {origin_of(run)}, expected one of "
            f"{', '.join(sorted(origins))}, the config's and those that its experiments start from"
        )
    return run


def origin_of(run: Run) -> str:
    """The base_id of the weights that a run comes from in the end."""
    while run.parent:
        run = run.parent
    return str(Recipe.read(records.records_of(run).recipe).starts_from)


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
    mix = content["mix"]
    return Run(
        stage,
        lineage,
        canonical_json(content),
        mix_of(content).folder.name,
        canonical_json(mix),
        recorded(before) if before else None,
        recipe.alpha,
        recorded(of) if of else None,
        recorded=True,
    )
