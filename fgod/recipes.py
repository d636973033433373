"""Recipes as flat keys, and in what they differ. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOTHING = "nothing"
"""The value of a key that a recipe does not have."""

PLACEBO = "placebo"
"""Key of a mix's spec: how the base is asked for the targets of a placebo (`fgod.placebo`)."""

OWN = "starts_from"
"""The key that says what a run starts from: another run's name, no setting."""


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(item, Mapping):
            flat |= flatten(item, name)
        else:
            flat[name] = item
    return flat


def differing(*recipes: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The keys in which recipes differ, in order and in words, with the value of each recipe or `NOTHING`."""
    flat = [flatten(recipe) for recipe in recipes]
    for key in sorted({key for one in flat for key in one} - {OWN}):
        values = tuple(one.get(key, NOTHING) for one in flat)
        if any(value != values[0] for value in values):
            yield key_words(key), values


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The same of two recipes, as lines: `train.lr 0.0005 → 0.001`."""
    return [f"{key} {before} → {after}" for key, (before, after) in differing(old, new)]


def is_placebo(recipe: Mapping[str, Any]) -> bool:
    """Whether a run is a placebo, taught the base's own answers."""
    return PLACEBO in recipe.get("mix", {})


def key_words(key: str) -> str:
    """A recipe's key as the config has it, or in words where it is a digest."""
    words = {
        "mix.sources": "the written sources (digest)",
        "mix.rehearsal": "the base's rehearsal answers (digest)",
        "numerics": "version of the numerics",
    }
    return words.get(key, key.replace("mix.recipe.", "mix."))
