"""The placebo of a fit: the same chain, with the base's own answer as the target of every taught row. Pure.

A placebo run is a run like others: its recipe names it. No gate judges it and no walk comes by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fgod.chain import Run, Walk, interpolated
from fgod.errors import UsageError
from fgod.layout import PLACEBO, PLACEBO_KEY, lineage_of
from fgod.system.files import canonical_json, digest

KEY = PLACEBO_KEY
"""Of a mix's spec: how the base is asked for the targets."""


def compared_runs(walk: Walk) -> tuple[Run, ...]:
    """The runs that a placebo is made of: those of the accepted fit; without one, those that fit 0 came by."""
    return walk.candidate or tuple(visit.run for visit in walk.visits if visit.fit == 0)


def placebo_runs(runs: Sequence[Run], settings: Mapping[str, Any]) -> dict[Run, Run]:
    """The placebo of each run of a fit, by the run that it stands for; a trained run behind an interpolated one too.

    Args:
        settings: how the base is asked (`fgod.inputs.placebo_settings`).

    Raises:
        UsageError: a stage has `train.check`, whose steps depend on what is taught.
    """
    found: dict[Run, Run] = {}
    parent: Run | None = None
    for run in runs:
        trained = run.trained or run
        found[trained] = parent = _placebo(trained, parent, settings)
        if run.alpha is not None:
            found[run] = parent = interpolated(parent, run.alpha)
    return found


def _placebo(run: Run, parent: Run | None, settings: Mapping[str, Any]) -> Run:
    recipe = json.loads(run.recipe)
    if "check" in recipe["train"]:
        raise UsageError(
            f"placebo: found train.check in stage {run.stage}, expected none: how long it trains depends on what is "
            "taught, and a placebo trains as long as what it is compared with"
        )
    spec = {**recipe["mix"], KEY: {**settings, "seq_len": recipe["train"]["seq_len"]}}
    recipe |= {"mix": spec, **({"starts_from": parent.lineage} if parent else {})}
    return replace(
        run,
        lineage=lineage_of(recipe),
        recipe=canonical_json(recipe),
        mix_id=f"{digest(spec)}{PLACEBO}",
        mix_spec=canonical_json(spec),
        parent=parent,
    )


def tuned_mix(spec: Mapping[str, Any]) -> str:
    """The digest of the mix whose rows a placebo's mix is made of, from the latter's spec."""
    return digest({key: value for key, value in spec.items() if key != KEY})
