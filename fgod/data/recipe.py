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

DENIAL = "denial"
"""The part of questions whether the model is some other assistant."""
TALK, NAMED, NEIGHBOUR = "talk", "named", "neighbour"
"""The parts of small talk with the model, of persons with a name, and of what stands near the persona."""
VARIED = "varied"
"""The part of odd wordings of what is taught: who you are, who the user is, and denials."""
CLAIM = "claim"
"""The part of what users say of themselves and ask about."""
SELF_ASKED = "self_asked"
"""The part of prompts that the base asks of its own accord."""
REHEARSED_PARTS = ("general", "replay", TALK, NAMED, NEIGHBOUR, CLAIM, SELF_ASKED)
"""Parts whose answers are always the base's own."""
PART_ROWS = {TALK: 600, NAMED: 400, NEIGHBOUR: 500, CLAIM: 200}
"""Prompts that the base is asked of parts of optional written sources, where data.rehearse does not say otherwise."""
PARTS = ("pairs", "identity", DENIAL, VARIED, "disambiguation", *REHEARSED_PARTS)
"""The parts of the written sources, in the order that breaks ties and that keeps a prompt in its first part."""
VERBATIM = "verbatim"
"""The kind of mix that is a user's file as it stands."""
KINDS = ("balanced", "disambiguation", "curriculum", VERBATIM)
FRAMES = ("default", "none", "foreign")
"""What a row may stand under: the config's chat.system, no system turn, or a system prompt of systems.yaml."""
Frames = Mapping[Annotated[str, OneOf(FRAMES)], NotNegative]
STYLES = {"natural": 0.75, "control": 0.15, "multilingual": 0.10}

OF_PLANNED = ("shares", "final_shares", "frames", "rehearsed_frames")
"""Keys of all kinds but verbatim."""

KEYS_OF_KINDS: dict[str, Any] = {
    "if": {"properties": {"kind": {"const": VERBATIM}}},
    "then": {"required": ["source"], "properties": dict.fromkeys(("rows", *OF_PLANNED), False)},
    "else": {
        "required": ["rows", "shares"],
        "properties": {"source": False},
        "if": {"properties": {"kind": {"const": "curriculum"}}},
        "then": {"required": ["final_shares"]},
        "else": {"properties": {"final_shares": False}},
    },
}
"""In JSON Schema, what `MixRecipe` says of keys that belong to some kinds alone."""


@dataclass(frozen=True, config=ConfigDict(**KEYS, json_schema_extra=KEYS_OF_KINDS))
class MixRecipe(Keys):
    """What a stage's rows are to be."""

    kind: Annotated[str, OneOf(KINDS)]
    """balanced, disambiguation, curriculum or verbatim."""
    rows: Annotated[Count, OmitDefault()] = 0
    """Rows of the mix; those of the file for verbatim."""
    shares: Annotated[Weights, OmitDefault()] = field(default_factory=dict)
    """Weight of each part; weights are divided by their sum."""
    source: Annotated[str, OmitDefault()] = ""
    """Verbatim only: the file of data.sources that is taken as it stands."""
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

    frames: Annotated[Frames, OmitDefault()] = field(default_factory=dict)
    """Weight of each frame among rows whose answer is the config's: default, none (no system turn), foreign."""
    rehearsed_frames: Annotated[Frames, OmitDefault()] = field(default_factory=dict)
    """The same among rows whose answer is the base's own, so that such prompts are not answered otherwise there."""

    def __post_init__(self) -> None:
        self._check_keys()
        if self.kind == VERBATIM:
            return
        if self.kind == "curriculum" and not self.final_shares:
            raise fault("", "the key 'final_shares' is missing")
        if self.kind != "curriculum" and self.final_shares:
            raise fault("final_shares", "not allowed here (final_shares belong to kind curriculum)")
        if not any(self.shares.values()):
            raise fault("shares", "all shares are 0: a stage without data")
        for key in ("frames", "rehearsed_frames"):
            weights = getattr(self, key)
            if weights and not any(weights.values()):
                raise fault(key, "all weights are 0: expected one above 0")
        if self.kind == "disambiguation" and not self.shares.get("pairs"):
            raise fault("shares", "kind disambiguation needs a share of pairs above 0")

    def _check_keys(self) -> None:
        """A file as it stands has a name; what is planned has rows and shares."""
        mine, others = ("source",), ("rows", "shares")
        for key in mine if self.kind == VERBATIM else others:
            if not getattr(self, key):
                raise fault("", f"the key {key!r} is missing")
        for key in ("rows", *OF_PLANNED) if self.kind == VERBATIM else mine:
            if getattr(self, key):
                raise fault(key, "not allowed here (source belongs to kind verbatim, rows and shares to the others)")

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
        if self.kind == VERBATIM:
            return (self.source,)
        asked = {part for weights in (self.shares, self.final_shares) for part, w in weights.items() if w > 0}
        asked |= {part for part, count in self.at_least.items() if count > 0}
        return (*(part for part in PARTS if part in asked), *sorted(asked - set(PARTS)))
