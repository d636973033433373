"""The walk: config and verdicts so far decide which runs exist, what they start from, and which fit comes next.

Pure: no file is read or written here. A run's lineage is a digest of everything that determines its weights, known
before anything is built, so equal prefixes of two fits are one run, an edit makes new paths, and going back finds the
old results. Rules and commands only ask this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fgod import NUMERICS_VERSION, numerics_on
from fgod.data.optional import files_used
from fgod.data.recipe import DENIAL, NEIGHBOUR, VARIED, VERBATIM, MixRecipe
from fgod.decisions import ACCEPTED
from fgod.errors import FgodError, UsageError
from fgod.failures import Adjustment, Answers
from fgod.layout import at_alpha, lineage_of
from fgod.system.files import canonical_json, digest
from fgod.train.recipe import TrainRecipe


@dataclass(frozen=True)
class Inputs:
    """Digests of what recipes depend on besides the config itself.

    `rehearsal_id` names the base's answers to the rehearsal prompts, `self_asked_id` the prompts that it asked itself
    (part of the former; empty without any), `sources` the written data, `user_files` the
    content of each of the user's own data files by name, `user_settings` how they are read where that is not as by
    default, `row_formats` the plugins that read them, `state_formats` those that say how the optimizer's states are
    kept, `optimizers` those that add one, `optional` the content of written sources that some mixes use,
    `check_probes` the probes of the split check by suite, with the rules that judge them.
    """

    base_id: str
    rehearsal_id: str
    sources: str
    user_files: Mapping[str, str]
    row_formats: Mapping[str, str] = field(default_factory=dict)
    state_formats: Mapping[str, str] = field(default_factory=dict)
    optimizers: Mapping[str, str] = field(default_factory=dict)
    user_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    check_probes: Mapping[str, str] = field(default_factory=dict)
    self_asked_id: str = ""


@dataclass(frozen=True)
class Run:
    """One (stage, lineage). `recipe` is canonical JSON of all that its weights depend on.

    An interpolated run is not trained: its weights lie at `alpha` between what `trained` started from and its end.
    `recorded`: it is known by its record alone, as the start of an experiment; no config says how it is made.
    `require` is canonical JSON of what it must reach to be accepted, which no weight depends on.
    """

    stage: str
    lineage: str
    recipe: str
    mix_id: str
    mix_spec: str
    parent: Run | None
    alpha: float | None = None
    trained: Run | None = None
    recorded: bool = field(default=False, compare=False)
    require: str = field(default="{}", compare=False)

    @property
    def requirements(self) -> Mapping[str, str]:
        """What its stage requires of its metrics."""
        found: Mapping[str, str] = json.loads(self.require)
        return found

    @property
    def name(self) -> str:
        """`B`, or `B at α 0.5`."""
        return at_alpha(self.stage, self.alpha)


Decide = Callable[[Run], str | None]
"""A run's verdict, None while it is pending; what it raises passes through."""


@dataclass(frozen=True)
class Start:
    """What a chain starts from: a base, or a run. Without either it is not known yet, or never will be: `why` says it.

    `never`: no verdict that is still to come will give one.
    """

    base_id: str = ""
    run: Run | None = None
    why: str = ""
    never: bool = False

    @property
    def id(self) -> str:
        """The lineage of the run, or the base's id."""
        return self.run.lineage if self.run else self.base_id


@dataclass(frozen=True)
class Fit:
    """One pass along the chain from base. `refits` of the failures before it were answered by training again."""

    number: int
    runs: tuple[Run, ...]
    adjustments: tuple[Adjustment, ...]
    refits: int = 0


@dataclass(frozen=True)
class Visit:
    """A run that the walk came by, in a fit; `decision` is None while its gate is pending."""

    fit: int
    run: Run
    decision: str | None


@dataclass(frozen=True)
class Walk:
    """All visits in order. `candidate` are the runs of an accepted fit, else `reason` says why there are none."""

    visits: tuple[Visit, ...]
    fits: tuple[Fit, ...]
    state: Literal["accepted", "pending", "spent"]
    reason: str

    @property
    def candidate(self) -> tuple[Run, ...]:
        return self.fits[-1].runs if self.state == "accepted" else ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The distinct runs visited, in order of the first visit."""
        return tuple(dict.fromkeys(visit.run for visit in self.visits))


def interpolated(trained: Run, alpha: float) -> Run:
    """The run whose weights lie at α between the start and the end of a trained one."""
    recipe = {**json.loads(trained.recipe), "interpolate": alpha, "of": trained.lineage}
    return replace(trained, lineage=lineage_of(recipe), recipe=canonical_json(recipe), alpha=alpha, trained=trained)


class Chain:
    """The configured stages and refit rules over given inputs.

    Args:
        start: what it starts from, by the verdicts so far; by default the base.
    """

    def __init__(self, config: Mapping[str, Any], inputs: Inputs, start: Callable[[Decide], Start] | None = None):
        self.config, self.inputs = config, inputs
        self._base = Start(inputs.base_id)
        self._fits: dict[tuple[Start, tuple[tuple[str, str], ...]], Fit] = {}
        self.start = start or (lambda decide: self._base)

    def fit(self, failures: Sequence[tuple[str, str]], start: Start | None = None) -> Fit:
        """The fit that answers these failures [(stage, decision), …] of the fits before it.

        Args:
            start: what its first stage starts from; by default the base.

        Raises:
            FgodError: no refit rule answers a failure, or one that was applied before leaves what is allowed.
        """
        start, failed = start or self._base, tuple(failures)
        if (start, failed) not in self._fits:  # the walk is asked for by every rule that needs a part of it
            answers = Answers(self.config)
            for stage, decision in failed:
                answers.answer(stage, decision)
            runs = tuple(self._runs(answers, start))
            self._fits[start, failed] = Fit(len(failed), runs, tuple(answers.adjustments), answers.refits)
        return self._fits[start, failed]

    def _runs(self, answers: Answers, start: Start) -> Iterator[Run]:
        for stage in answers.stages:
            run = self._run(stage, start)
            if between := answers.between.get(stage["name"]):
                run = interpolated(run, between.alpha)
            start = Start(run=run)
            yield run

    def _run(self, stage: Mapping[str, Any], start: Start) -> Run:
        spec, train = self.mix_spec(stage["mix"]), TrainRecipe.from_dict(stage["train"])
        recipe = {
            "numerics": numerics_on(train.device),
            "stage": stage["name"],
            "starts_from": start.id,
            "seed": self.config["seed"],
            "mix": spec,
            "train": train.to_dict(),
        }
        if "check" in recipe["train"]:
            recipe["check_probes"] = self._check_probes(recipe["train"]["check"]["until"])
        if self.config["chat"]:  # what is not as by default
            recipe["chat"] = self.config["chat"]
        if self.inputs.state_formats:
            recipe["state_formats"] = self.inputs.state_formats
        if self.inputs.optimizers:
            recipe["optimizers"] = self.inputs.optimizers
        return Run(
            stage["name"],
            lineage_of(recipe),
            canonical_json(recipe),
            digest(spec),
            canonical_json(spec),
            start.run,
            require=canonical_json(stage["require"]),
        )

    def _check_probes(self, suites: Iterable[str]) -> dict[str, str]:
        known = self.inputs.check_probes
        if unknown := [suite for suite in suites if suite not in known]:
            raise UsageError(f"train.check.until: no suite {unknown[0]!r} has probes of the split check")
        return {suite: known[suite] for suite in suites}

    def mix_spec(self, mix: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the rows of a mix depend on."""
        if mix["kind"] == VERBATIM:
            recipe = {key: mix[key] for key in ("kind", "source")}
            return {"numerics": NUMERICS_VERSION, "recipe": recipe, **self._user_files({mix["source"]})}
        planned = MixRecipe.from_dict(mix)
        optional = {name: self.inputs.optional[name] for name in files_used(planned)}
        denials = self.config["persona"].get("denials")
        denied = {"denials": denials} if denials and {DENIAL, VARIED} & set(planned.parts()) else {}
        names = self.config["persona"].get("replaces")
        replaced = {"replaces": names} if names else {}
        near = self.config["persona"].get("neighbours")
        neighbours = {"neighbours": near} if near and NEIGHBOUR in planned.parts() else {}
        parts = {part for table in ("shares", "final_shares", "at_least") for part in mix.get(table, {})}
        kinds = self.config["disambiguation"]
        closed = {} if self.config["base"]["closed_answers"] else {"closed_answers": False}
        framed = {"rehearsed_framed": "by row"} if planned.rehearsed_frames else {}  # it was by prompt once
        return {
            **self._user_files(parts),
            **closed,
            **framed,
            **({"optional": optional} if optional else {}),
            **denied,
            **replaced,
            **neighbours,
            "numerics": NUMERICS_VERSION,
            "recipe": mix,
            "seed": self.config["seed"],
            "rehearsal": self.inputs.rehearsal_id,
            "rehearse": self.config["data"]["rehearse"],
            "sources": self.inputs.sources,
            "held_out_topics": sorted(self.config["data"]["held_out_topics"]),
            "replies": self.config["persona"]["replies"],
            "disambiguation": {name: kind["replies"] for name, kind in sorted(kinds.items())},
        }

    def _user_files(self, parts: set[str]) -> dict[str, Any]:
        """What rows of the user's files depend on."""
        files = {name: sha256 for name, sha256 in sorted(self.inputs.user_files.items()) if name in parts}
        settings = {name: dict(value) for name, value in self.inputs.user_settings.items() if name in parts}
        formats = self.inputs.row_formats
        return {
            "user_files": files,
            **({"user_settings": settings} if settings else {}),
            **({"row_formats": formats} if formats else {}),
        }

    def walk(self, decide: Decide) -> Walk:
        """Walk the fits. Where it is not known what the chain starts from, nothing is walked."""
        start = self.start(decide)
        if start.why:
            return Walk((), (), "spent" if start.never else "pending", start.why)
        visits: list[Visit] = []
        fits: list[Fit] = []
        failures: list[tuple[str, str]] = []
        while True:
            try:
                fit = self.fit(failures, start)
            except FgodError as error:
                never = failures and self.config["refits"]["max"] == 0
                reason = f"{' '.join(failures[-1])}, and refits.max is 0: there is one fit" if never else str(error)
                return Walk(tuple(visits), tuple(fits), "spent", reason)
            if fit.refits > self.config["refits"]["max"]:
                reason = f"all {len(fits)} fits are spent (refits.max: {self.config['refits']['max']})"
                return Walk(tuple(visits), tuple(fits), "spent", reason)
            if any(fit.runs == earlier.runs for earlier in fits):
                reason = f"the refit rules changed nothing after {' '.join(failures[-1])}"
                return Walk(tuple(visits), tuple(fits), "spent", reason)
            fits.append(fit)
            for run in fit.runs:
                decision = decide(run)
                visits.append(Visit(fit.number, run, decision))
                if decision is None:
                    return Walk(tuple(visits), tuple(fits), "pending", f"the gate of {run.stage} is pending")
                if decision != ACCEPTED:
                    failures.append((run.stage, decision))
                    break
            else:
                return Walk(tuple(visits), tuple(fits), "accepted", "")
