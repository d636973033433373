"""What a stage's rows are to be: the keys of its `mix`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Self

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from fgod.validation import (
    KEYS,
    Count,
    CountOrZero,
    Keys,
    NotNegative,
    OmitDefault,
    OneOf,
    Weights,
    fault,
    plain,
    validate,
)

PARTS = ("pairs", "identity", "disambiguation", "general", "replay")
"""The parts of the written sources, in the order that breaks ties and that keeps a prompt in its first part."""
KINDS = ("balanced", "disambiguation", "curriculum")
STYLES = {"natural": 0.75, "control": 0.15, "multilingual": 0.10}

CURRICULUM_ALONE: dict[str, Any] = {
    "if": {"properties": {"kind": {"const": "curriculum"}}},
    "then": {"required": ["final_shares"]},
    "else": {"properties": {"final_shares": False}},
}
"""In JSON Schema, what `MixRecipe` says of final_shares."""


@dataclass(frozen=True, config=ConfigDict(**KEYS, json_schema_extra=CURRICULUM_ALONE))
class MixRecipe(Keys):
    """What a stage's rows are to be."""

    kind: Annotated[str, OneOf(KINDS)]
    """balanced, disambiguation or curriculum."""
    rows: Count
    """Rows of the mix."""
    shares: Weights
    """Weight of each part; weights are divided by their sum."""
    final_shares: Annotated[Weights, OmitDefault()] = field(default_factory=dict)
    """Curriculum only: the weights at the last row."""
    at_least: Mapping[str, CountOrZero] = field(default_factory=dict)
    """The fewest rows of a part."""
    at_most: Mapping[str, CountOrZero] = field(default_factory=dict)
    """The most rows of a part."""
    max_repeats: Count = 4
    """How often one prompt may stand in the mix."""
    styles: Mapping[Annotated[str, OneOf(tuple(STYLES))], NotNegative] = field(default_factory=lambda: dict(STYLES))
    """Weight of each style among identity rows."""
    kinds: Mapping[str, NotNegative] = field(default_factory=lambda: {"who_am_i": 1.0})
    """Weight of each kind of question among disambiguation rows."""

    def __post_init__(self) -> None:
        if self.kind == "curriculum" and not self.final_shares:
            raise fault("", "the key 'final_shares' is missing")
        if self.kind != "curriculum" and self.final_shares:
            raise fault("final_shares", "not allowed here (final_shares belong to kind curriculum)")
        if not any(self.shares.values()):
            raise fault("shares", "all shares are 0: a stage without data")
        if self.kind == "disambiguation" and not self.shares.get("pairs"):
            raise fault("shares", "kind disambiguation needs a share of pairs above 0")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The recipe of the config key `mix`.

        Raises:
            UsageError: a key, type or range is wrong; names the key, what was found and what is expected.
        """
        return validate(cls, value, "mix")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; `from_dict` reads it back."""
        return dict(plain(self))

    def parts(self) -> tuple[str, ...]:
        """Parts with rows to get, in the order that breaks ties: `PARTS`, then a user's own by name."""
        asked = {part for weights in (self.shares, self.final_shares) for part, w in weights.items() if w > 0}
        asked |= {part for part, count in self.at_least.items() if count > 0}
        return (*(part for part in PARTS if part in asked), *sorted(asked - set(PARTS)))
