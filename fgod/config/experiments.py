"""The experiments of a config: each one's own config, which is the config with what the experiment replaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fgod.config.load import resolve, with_new_names
from fgod.errors import UsageError, did_you_mean
from fgod.validation import kind_words

REPLACED = ("sources", "self_asked")
"""Keys of `data` that an experiment replaces as a whole."""
BY_KEY = ("rehearse",)
"""Those of which it replaces single keys."""


def experiment_configs(raw: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The checked config of each experiment, by name.

    Args:
        raw: a config as it was read, with its experiments (`with_files`), which `fgod.config.resolve` accepts.
        where: the name of its file, for messages.

    Raises:
        UsageError: what an experiment replaces is no key that it may replace, or its config is faulty; names the
            experiment and the key.
    """
    experiments: Mapping[str, Mapping[str, Any]] = raw.get("experiments", {})
    named = with_new_names(raw, where)
    found = {}
    for name, own in experiments.items():
        place = f"{where}: experiments.{name}"
        found[name] = resolve(with_own(named, with_new_names(own, place), place), place)
    return found


def with_own(raw: Mapping[str, Any], own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config as it was read, with what an experiment replaces of it. Pure: it shares what it does not replace.

    Raises:
        UsageError: see `experiment_configs`; of several faults all.
    """
    faults: list[str] = []
    merged = {key: value for key, value in raw.items() if key != "experiments"}
    merged |= {key: own[key] for key in ("seed", "refits") if own.get(key) is not None}
    merged["data"] = _data(merged.get("data", {}), own.get("data", {}), faults)
    if own.get("stages") is not None:
        merged["stages"] = list(_stages(merged["stages"], own["stages"], faults))
    if own.get("control"):
        merged["stages"] = [{**stage, "train": {**stage["train"], "control": True}} for stage in merged["stages"]]
    if faults:
        raise UsageError("\n".join(f"{where}.{fault}" for fault in faults))
    return merged


def _data(data: Mapping[str, Any], own: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    for key in own:
        if key not in (*REPLACED, *BY_KEY):
            faults.append(
                f"data.{key}: found {own[key]!r}, expected only {', '.join((*REPLACED, *BY_KEY))}: the rest, by which "
                "runs are compared, is the same for all experiments"
            )
        elif key in BY_KEY and not isinstance(own[key], Mapping):
            faults.append(f"data.{key}: found {kind_words(own[key])}, expected a mapping of keys")
    replaced = {key: own[key] for key in REPLACED if key in own}
    changed = {key: {**data.get(key, {}), **own[key]} for key in BY_KEY if isinstance(own.get(key), Mapping)}
    return {**data, **replaced, **changed}


def _stages(stages: list[dict[str, Any]], own: list[Any], faults: list[str]) -> Iterator[dict[str, Any]]:
    known = {stage["name"]: stage for stage in stages}
    for i, entry in enumerate(own):
        stage = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = stage.get("name")
        if isinstance(entry, str) and entry not in known:
            faults.append(
                f"stages[{i}]: found {entry!r}{did_you_mean(entry, known)}, expected a stage of the config "
                f"({', '.join(known)}), or a whole stage"
            )
        elif name in known:
            yield _stage(known[name], stage, f"stages[{i} {name}]", faults)
        else:
            yield stage


def _stage(stage: Mapping[str, Any], own: Mapping[str, Any], where: str, faults: list[str]) -> dict[str, Any]:
    """A stage of the config with the keys of `mix` and `train`, and the `require`, that an experiment replaces."""
    merged = {**stage, **own}
    for key in ("mix", "train"):
        if key not in own:
            continue
        if not isinstance(own[key], Mapping):
            faults.append(f"{where}.{key}: found {kind_words(own[key])}, expected a mapping of keys")
        else:
            merged[key] = {**stage.get(key, {}), **own[key]}
    return merged
