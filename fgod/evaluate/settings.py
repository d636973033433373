"""How probes are asked. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from annotated_types import Interval
from pydantic.dataclasses import dataclass

from fgod.validation import KEYS, Count, Device, Keys, validate


@dataclass(frozen=True, config=KEYS)
class ProbeSettings(Keys):
    """How probes are asked, and when replies count as the same."""

    max_new_tokens: Count = 48
    """Longest reply that is judged."""
    batch: Count = 64
    """Prompts decoded at once; more: faster, more memory."""
    chrf: Annotated[float, Interval(ge=0, le=100)] | None = None
    """Replies count as the same from this chrF on; null: only if equal but for closing punctuation."""
    device: Device = "cpu"
    """cuda: models are asked on the GPU, the base for its rehearsal too: another device trains anew."""

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """From the config's key `probe`.

        Raises:
            UsageError: an unknown key, or a value out of range.
        """
        return validate(cls, table, "probe")
