"""The runs that the rules of the workflow can make: those that the walks of its chains have come by so far.

A path says of a run what it is made of, and not which chain it belongs to; what rules need besides, they ask here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgod import inputs
from fgod.chain import Decide, Run, Walk
from fgod.errors import UsageError
from fgod.experiments import OWN, Experiment
from fgod.system.files import digest


@dataclass
class Known:
    """Runs, mixes and teachers that rules know.

    Args:
        where: the name of the config's file, for messages.
        chains: those of the config by name, its own first.
        mixes: what the rows of a mix depend on, by the mix.
        mix_chains: a chain that has the sources of a mix.
        teachers: how the base is asked for its distributions over rehearsed rows, by the digest of that.
    """

    where: str
    chains: Mapping[str, Experiment]
    runs: dict[tuple[str, str], Run] = field(default_factory=dict)
    mixes: dict[str, str] = field(default_factory=dict)
    mix_chains: dict[str, Experiment] = field(default_factory=dict)
    teachers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _first: dict[tuple[str, str], Experiment] = field(default_factory=dict)

    def chain_of(self, run: Run) -> Experiment:
        """The chain that first came by a run."""
        return self._first[run.stage, run.lineage]

    def meet(self, run: Run, chain: Experiment) -> None:
        """Make a run that the walk of a chain comes by known.

        Raises:
            UsageError: a chain before has it and requires other things of it: its path does not say what.
        """
        key = run.stage, run.lineage
        first, same = self._first.setdefault(key, chain), self.runs.setdefault(key, run)
        if same.require != run.require:
            raise UsageError(
                f"{self.where}: {first.words} and {chain.words} have the run {run.stage}@{run.lineage}, and require "
                f"other things of it: {same.require}, {run.require}; expected the same, as a run has one verdict"
            )
        self.mixes[run.mix_id] = run.mix_spec
        self.mix_chains.setdefault(run.mix_id, chain)
        self.teacher_of(run)

    def teacher_of(self, run: Run) -> str | None:
        """The digest of how the base is asked for its distributions over a run's rehearsed rows; None where it is
        not."""
        own = self.chains[OWN]
        asked = inputs.teacher_settings(own.config, own.inputs.base_id, json.loads(run.recipe))
        if asked is None:
            return None
        name = digest(asked)
        self.teachers[name] = asked
        return name

    def met(self, chain: Experiment, decide: Decide) -> Decide:
        """A walk's `decide`, by which the runs that it comes by become known."""

        def decision(run: Run) -> str | None:
            self.meet(run, chain)
            return decide(run)

        return decision

    def walk(self, chain: Experiment, decide: Decide) -> Walk:
        """The walk of a chain as far as its runs are decided. Runs of later fits are met here for the first time: those
        of the experiment that it starts from as that one's."""
        if before := self.chains.get(chain.starts_from):
            self.walk(before, decide)
        return chain.chain.walk(self.met(chain, decide))


def walked(chains: Mapping[str, Experiment], targets: Iterable[str], campaign: str) -> list[Experiment]:
    """The chains that a snakemake with these targets walks: all with the target `campaign`, but not the config's own if
    that is the only target; without it the config's own alone."""
    asked = set(targets)
    return [chain for name, chain in chains.items() if (campaign in asked if name != OWN else asked != {campaign})]


def none_of_mixes(rows: Iterable[Path]) -> str:
    """What a regular expression has before the wildcard `mix`, so that it matches none of these files of rows that are
    there."""
    stand = [re.escape(f"{file.parent.name}/{file.name}") for file in rows if file.exists()]
    return f"(?!(?:{'|'.join(stand)})$)" if stand else ""
