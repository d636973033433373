"""`fgod plan`: what `snakemake` would train, and why: which recipe key changed, what follows, what is reused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fgod import layout, records
from fgod.chain import Chain, Run, Visit, Walk
from fgod.checkpoints import saved_step
from fgod.config import engine_pairs, further_formats
from fgod.confirm.folds import Reservations
from fgod.decisions import ACCEPTED
from fgod.documents import Limit, Release, confirmation_of
from fgod.evaluate.requirements import Check
from fgod.layout import View
from fgod.names import run_name
from fgod.promotion import Promotion
from fgod.recipes import changes, flatten, is_placebo
from fgod.records import Standing, standing
from fgod.system.digests import CACHE
from fgod.system.files import read_json
from fgod.train.recipe import TrainRecipe


@dataclass(frozen=True)
class Step:
    """What happens to one run: `action` is reuse, train, interpolate, (the gate alone) judge, shared (another chain's
    plan has it) or, after them, confirm (`why` in words)."""

    fit: int
    run: Run
    action: str
    why: tuple[str, ...]
    standing: Standing

    @property
    def makes(self) -> bool:
        """Whether it makes weights."""
        return self.action == _making(self.run)


def _making(run: Run) -> str:
    return "interpolate" if run.trained else "train"


def plan(
    chain: Chain,
    folds: Sequence[int] | Reservations = (),
    context: Mapping[str, Any] | None = None,
    told: View | None = None,
    base: Mapping[str, Any] | None = None,
    stands: Callable[[Run], Standing] | None = None,
) -> tuple[list[Step], str]:
    """The steps of the walk as far as it is known, and a closing sentence.

    Runs whose records are whole count by the verdict that the gate will give them; other pending gates as accepted.

    Args:
        folds: of the wordings that are held back for a confirmation; of several chains their reservations.
        context: what walk.json is to say besides the walk (`fgod.context.context_of`): where it says other things, it
            is written anew, and what follows it is made again, the promotion too; None: not looked at.
        told: where it lies; by default that of the config's own chain.
        base: the weights that a first run starts from, as a key `base` has them; by default the config's.
        stands: how a run stands by its records (`fgod.records.standing`), where others need it too.
    """
    told = told or layout.view()
    stands = stands or cache(partial(standing, chain.config))
    known, hopeful = chain.walk(lambda run: stands(run).decision), expected(chain, stands)
    own = records.candidates([hopeful])
    reserved = folds if isinstance(folds, Reservations) else Reservations(layout.RESULTS, folds, own)
    steps = list(_steps(hopeful.visits, stands, base or chain.config["base"]))
    if not hopeful.visits:
        return [], f"{'Nothing yet' if hopeful.state == 'pending' else 'No run'}: {hopeful.reason}."
    last = [visit.run for visit in hopeful.visits if visit.fit == hopeful.visits[-1].fit]
    changed = _changed_keys(known, reserved, context, told.walk)
    formats, engines = further_formats(chain.config), engine_pairs(chain.config)
    to_release = (known.state == "accepted" and not records.is_control(last[-1])) and (
        bool(changed) or not _released(layout.Releases(experiment=told.experiment), last, formats, engines)
    )
    steps = _with_lost_weights(steps, set(last) if to_release else set())
    closing = _closing(known, any(step.action == "judge" for step in steps), chain.config["refits"]["max"] > 0)
    if changed:
        keys = ", ".join(changed)
        closing += f" {told.walk} is written anew ({keys}): tables, report and promotion are made again."
    if to_release and not records.will_refuse(chain.config, last[-1]):
        closing += f" Then {', '.join(_to_release(last[-1], formats, engines))}."
    return [*steps, *_confirmation(hopeful, reserved, steps, chain.config)], closing


def expected(chain: Chain, stands: Callable[[Run], Standing]) -> Walk:
    """The walk of a chain where pending gates accept."""
    return chain.walk(lambda run: stands(run).decision or ACCEPTED)


def _changed_keys(walk: Walk, folds: Reservations, context: Mapping[str, Any] | None, file: Path) -> list[str]:
    """The keys in which walk.json differs from what it is to be, of a walk that is decided; `missing` without one."""
    if context is None or walk.state == "pending":
        return []
    if not file.exists():
        return ["missing"]
    from fgod.tables import same_files

    old, new = read_json(file), json.loads(records.walk_json(walk, records.fold_of(walk, folds)))
    same = same_files(old["context"].get("config", ""), context["config"])
    current = {**context, "config": old["context"]["config"]} if same else context
    keys = [
        f"context.{key}"
        for key in sorted(old["context"].keys() | current.keys())
        if old["context"].get(key) != current.get(key)
    ]
    return [*keys, *(["walk"] if old["walk"] != new else [])]


def _confirmation(walk: Walk, folds: Reservations, steps: Sequence[Step], config: Mapping[str, Any]) -> Iterator[Step]:
    """What happens to the candidate after its gates; nothing where no wordings are held back."""
    fold = records.fold_of(walk, folds)
    if fold is None:
        return
    run = walk.candidate[-1]
    own = next(step for step in steps if step.run == run)
    found = confirmation_of(records.confirmation_of(run), records.records_of(run))
    if own.action == "train" or found is None or found.fold != fold:
        before = folds.of(run.stage, run.lineage).asked_before
        used = f"; it was asked before of {', '.join(before)}: no longer held back" if before else ""
        action, why = "confirm", f"it is asked fold {fold} of the held-back wordings{used}"
    elif _limits(found.limits) != _limits(records.checks_now(config, run, found)):
        action, why = "confirm", f"other limits: it is judged again on fold {fold}, and not asked anew"
    else:
        action, why = "reuse", f"its confirmation is on record: {found.decision} ({found.words})"
    yield Step(walk.fits[-1].number, run, action, (why,), own.standing)


def _limits(checks: Iterable[Check | Limit]) -> set[tuple[str, str, float]]:
    """What is compared of the checks of a confirmation."""
    return {(check.metric, check.op, check.limit) for check in checks}


def _closing(known: Walk, judged: bool, refits: bool) -> str:
    if known.state == "spent":
        return f"No fit {'will be' if judged else 'was'} accepted: {known.reason}."
    if known.state == "pending" and not refits:
        return "There is one fit (refits.max: 0): a run that fails ends it."
    if known.state == "pending":
        return "Later fits are decided by the gates: a run that fails starts the next fit from the base."
    if judged:
        return "The gates that judge again read records alone: their verdicts will be those shown."
    return "Everything is decided: only what is missing is made again."


def _steps(visits: Iterable[Visit], stands: Callable[[Run], Standing], base: Mapping[str, Any]) -> Iterator[Step]:
    """One step for each distinct run, in order of the first visit."""
    done: set[Run] = set()
    training: set[Run] = set()
    for visit in visits:
        if visit.run in done:
            continue
        step = _step(visit.fit, visit.run, stands(visit.run), training, base)
        done.add(visit.run)
        if step.makes:
            training.add(visit.run)
        yield step


def _released(
    places: layout.Releases, runs: list[Run], formats: Sequence[str], engines: Sequence[tuple[str, str]]
) -> bool:
    """Whether the release is that of these runs, in these further formats, as these engines were asked, and was loaded
    by transformers."""
    if not places.record.exists():
        return False
    from fgod.release import release_faults  # a plan of what is not released needs none of it

    if release_faults(places, CACHE):
        return False
    found = Release.read(places.record)
    same_runs = [run.lineage for run in found.promoted] == [run.lineage for run in runs]
    asked = {(one.engine, one.format) for one in found.engines}
    same = {*found.formats, *found.left_out} == {*formats} and asked == {*engines}
    return same_runs and same and found.served is not None


def _to_release(run: Run, formats: Sequence[str], engines: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What is done after the gates for a release of a run, in words."""
    weights, of_run = records.weights_of(run), records.records_of(run)
    if missing := [name for name in formats if not weights.stamp_of(name).exists()]:
        yield f"it is exported as {', '.join(missing)}"
    if not of_run.served.exists():
        yield "transformers loads its export"
    yield from (f"{engine} is asked the probes with {name}" for engine, name in engines
                if name in missing or not of_run.engine(engine, name).exists())  # fmt: skip
    yield "it is released"


def _with_lost_weights(steps: list[Step], promoted: set[Run]) -> list[Step]:
    """Runs on record whose weights are gone train again where a later stage, their probe or the release needs them; and
    so does the stage after each: for snakemake it starts from weights that are new."""
    needed: set[Run] = set()
    found: list[Step] = []
    for step in reversed(steps):
        weights = records.weights_of(step.run)
        exported = step.run in promoted or bool(step.standing.missing)
        wanted = step.run in needed or (exported and not weights.stamp.exists())
        if not step.makes and wanted and _lost(step.run):
            step = _trained_again(step, f"its weights are gone: {weights.trained}")
        if step.makes:
            needed |= {run for run in (step.run.parent, step.run.trained) if run}
        found.append(step)
    out: list[Step] = []
    training: set[Run] = set()
    for step in found[::-1]:
        parent = step.run.parent
        if not step.makes and parent in training and _lost(parent):
            step = _trained_again(step, f"it follows {parent.stage} {parent.lineage}, whose weights are made again")
        if step.makes:
            training.add(step.run)
        out.append(step)
    return out


def _lost(run: Run) -> bool:
    return not records.weights_of(run).trained.exists()


def _trained_again(step: Step, why: str) -> Step:
    return replace(step, action=_making(step.run), why=(why, *step.why))


def _step(fit: int, run: Run, now: Standing, training: set[Run], base: Mapping[str, Any]) -> Step:
    if now.on_record:
        return Step(fit, run, "reuse", (f"its verdict is on record: {now.decision}",), now)
    if now.status is not None:
        return Step(fit, run, "judge", tuple(_judged_why(now)), now)
    nearest = None if run.trained else _nearest(run)
    if run.trained:
        why: tuple[str, ...] = (f"between its start and {run.trained.lineage}: nothing is trained",)
    elif run.parent in training:
        why = f"it follows {run.parent.stage} {run.parent.lineage}", *_reasons(nearest)
    else:
        why = (*_base_reasons(run, base, nearest), *_reasons(nearest)) or ("it never ran",)
    return Step(fit, run, _making(run), (*why, *_starts_in_trash(run)), now)


def _starts_in_trash(run: Run) -> Iterator[str]:
    """What has to come back from the trash before a run can be made."""
    for start in (run.parent, run.trained):
        if start and records.in_trash(start):
            yield f"its start is in the trash: `fgod restore {run_name(start.stage, start.lineage)}` first"


def _judged_why(now: Standing) -> Iterator[str]:
    """Why the gate judges a run, and what it will say."""
    if now.recorded and now.fresh:
        same = now.recorded.decision == now.fresh.decision
        verdicts = f"{now.fresh.decision}, as before" if same else f"{now.recorded.decision} → {now.fresh.decision}"
        yield f"other checks than its verdict's: {verdicts}"
        yield from now.changed_checks()
    elif now.fresh and now.stale:
        yield f"its verdict is of other records ({', '.join(now.stale)} since), and will be: {now.decision}"
    elif now.decision:
        yield f"it is {now.status}; its gate is pending and will say: {now.decision}"
    else:
        why = now.unknown or f"{' and '.join(now.missing)} missing"
        yield f"it is {now.status}; its gate is pending, and counts as accepted here: {why}"
    if now.fresh and not (now.recorded and now.recorded.decision == now.decision):
        yield from now.fresh.reasons


@dataclass(frozen=True)
class _Recorded:
    """A run's recipe on record, and in what another one differs from it, in words: `train.lr 0.0005 → 0.001`."""

    lineage: str
    recipe: Mapping[str, Any]
    differences: tuple[str, ...]


def _nearest(run: Run) -> _Recorded | None:
    """The recorded recipe of the stage with the fewest differences, the newest of several: where refits have changed
    a stage since, that is still the one which was configured."""
    recipe, found = json.loads(run.recipe), []
    for path in layout.recipes(run.stage):
        if path.parent.name != run.lineage and not is_placebo(old := read_json(path)):
            one = _Recorded(path.parent.name, old, tuple(changes(old, recipe)))
            found.append((len(one.differences), -path.stat().st_mtime_ns, one))
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def _reasons(nearest: _Recorded | None) -> Iterator[str]:
    """How its recipe differs from the recorded one of the same stage that is most like it."""
    if nearest:
        yield from (f"{line} (against {nearest.lineage})" for line in nearest.differences)


def _base_reasons(run: Run, base: Mapping[str, Any], nearest: _Recorded | None) -> Iterator[str]:
    """How the base differs from that of the nearest recorded run, where the run starts from the base."""
    if run.parent or not nearest:
        return
    old_id, new_id = nearest.recipe["starts_from"], json.loads(run.recipe)["starts_from"]
    stamp = layout.base(str(old_id)).stamp
    if old_id == new_id:
        return
    if not stamp.exists():
        yield f"it starts from the base {new_id}; {nearest.lineage} from {old_id}"
        return
    old, new = flatten({"base": read_json(stamp)["base"]}), flatten({"base": base})
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    yield from (f"{key} {old.get(key, 'nothing')} → {new.get(key, 'nothing')}" for key in keys)


def to_train(steps: Iterable[Step]) -> list[tuple[str, TrainRecipe]]:
    """Stage and recipe of each run that is to be trained."""
    runs = [step.run for step in steps if step.action == "train"]
    return [(run.stage, TrainRecipe.from_dict(json.loads(run.recipe)["train"])) for run in runs]


def without_shared(steps: Iterable[Step], planned: dict[Run, str], words: str) -> Iterator[Step]:
    """The steps of a chain, of which those that another chain's plan makes too are no work of this one.

    Args:
        planned: the runs that the chains before it make, and which of them in words; this one's are added.
        words: this chain, in words.
    """
    for step in steps:
        if step.makes and planned.setdefault(step.run, words) != words:
            yield replace(step, action="shared", why=(f"it is made for {planned[step.run]}",))
        else:
            yield step


def text(steps: list[Step], closing: str) -> str:
    """The plan for a terminal."""
    lines, width = [], max([6, *(len(step.action) for step in steps)])
    for step in steps:
        lines.append(f"fit {step.fit}  {step.action:{width}} {step.run.name} {step.run.lineage}  {step.why[0]}")
        lines += [f"{'':{width + 8}} {reason}" for reason in step.why[1:]]
    trains, between = (sum(step.action == action for step in steps) for action in ("train", "interpolate"))
    also = f", {between} to interpolate" if between else ""
    return "\n".join([*lines, "", f"{trains} to train{also}. {closing}"])


def stopped(walk: Mapping[str, Any], found: Promotion, experiment: bool = False) -> str:
    """How far a run came that was stopped: what is finished, what is saved, what goes on.

    Args:
        walk: as `records.walk_json` gives it: the visits up to the first whose gate is pending.
        found: what became of its candidate.
        experiment: it is an experiment's walk, which may have come to its end while another was stopped.
    """
    done = [v for v in walk["visits"] if v["state"] != "pending"]
    lines = [f"  finished  {_named(v)}: {v['state']}" for v in done]
    lines += [f"  {_under_way(v)}" for v in walk["visits"] if v["state"] == "pending"]
    head = "Decided:" if experiment else "Stopped:"
    if walk["spent"]:
        return "\n".join([head, *lines, f"No fit was accepted: {walk['spent']}."])
    if found.unconfirmed and found.confirmation:
        last, said = found.candidate[-1], found.confirmation
        end = f"{last.stage} {last.lineage} is not confirmed on held-back wordings ({said.words}):"
        return "\n".join([head, *lines, end, *(f"  {reason}" for reason in said.reasons)])
    if experiment and not found.pending and all(visit["state"] != "pending" for visit in walk["visits"]):
        return "\n".join([head, *lines])
    if found.pending:
        last = found.candidate[-1]
        lines.append(f"  to do     {last.stage} {last.lineage}: its confirmation on fold {found.fold}")
    end = "What is finished is not made again: after a stop, or once the error above is mended, run snakemake again."
    return "\n".join(["Stopped before the end:", *lines, end])


def _named(visit: Mapping[str, Any]) -> str:
    return f"fit {visit['fit']} {layout.at_alpha(visit['stage'], visit.get('alpha'))} {visit['lineage']}"


def _under_way(visit: Mapping[str, Any]) -> str:
    named = _named(visit)
    if layout.run_records(visit["stage"], visit["lineage"]).outcome.exists():
        return f"finished  {named}: trained; its gate is pending"
    step = saved_step(layout.work(visit["lineage"]).folder)
    if step:
        return f"saved     {named}: step {step} of its training; it goes on from there"
    return f"to do     {named}: nothing of its training is saved"
