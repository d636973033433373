"""What reports say besides the runs' own records, of a checked config: the workflow writes it, the plan compares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgod.config import base_words, config_digest, engine_pairs
from fgod.data.probes import probe_files, scored_suites, suites_of
from fgod.experiments import Origin


def context_of(config: Mapping[str, Any], files: str, origin: Origin, experiment: str = "") -> dict[str, Any]:
    """What of `fgod.tables.Context` is no matter of the walk, as JSON values.

    Args:
        files: the names of the config's files.
        origin: the weights that the chain comes from.
        experiment: whose chain it is; empty: the config's own.

    Raises:
        UsageError: a file of probes is missing or wrong.
    """
    engines = [list(pair) for pair in engine_pairs(config)]
    compared = base_words(config["base"])
    base = base_words(origin.base)
    return {
        **({"reference": compared} if base != compared else {}),
        **({"engines": engines} if engines else {}),
        **({"experiment": experiment} if experiment else {}),
        **({"language": config["language"]} if "language" in config else {}),
        "persona": config["persona"]["name"],
        "stages": [stage["name"] for stage in config["stages"]],
        "suites": list(scored_suites(suites_of(probe_files(config), Path(config["data"]["folder"])))),
        "gate": config["gate"],
        "base_id": origin.id,
        "base": base,
        "config": files,
        "config_digest": config_digest(config),
    }
