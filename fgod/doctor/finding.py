"""What a check found, and how findings are shown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "fault"]
"""fault: something would go wrong at night. note: worth knowing, and nothing that the configs need."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what it is.
        found: in words.
        expected: what would have been right; empty where it is.
        todo: what to do about it; never empty of a fault.
    """

    name: str
    state: State
    found: str
    expected: str = ""
    todo: str = ""

    def __post_init__(self) -> None:
        if self.state == "fault" and not self.todo:
            raise ValueError(f"{self.name}: a fault without anything to do about it")


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Those that would go wrong."""
    return [one for one in findings if one.state == "fault"]


def lines(found: Finding) -> list[str]:
    """A finding for a terminal."""
    more = [("expected", found.expected), ("to do", found.todo)]
    return [
        f"{found.state:5}  {found.name}: {found.found}",
        *(f"       {title}: {text}" for title, text in more if text),
    ]


def closing(findings: Sequence[Finding]) -> str:
    """The last line."""
    wrong = faults(findings)
    if not wrong:
        notes = sum(one.state == "note" for one in findings)
        return f"Nothing is wrong ({notes} notes)." if notes else "Nothing is wrong."
    return f"{len(wrong)} would go wrong: {', '.join(one.name for one in wrong)}."


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    return {"ok": not faults(findings), "findings": [asdict(one) for one in findings]}
