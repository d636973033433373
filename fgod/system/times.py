"""Moments as records have them: ISO 8601, UTC, to the millisecond, `2026-11-27T04:03:05.123Z`."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(moment: datetime) -> str:
    """A moment, of any time zone."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_iso() -> str:
    """This moment."""
    return iso(datetime.now(UTC))


def iso_of(seconds: float) -> str:
    """A moment in seconds since 1970."""
    return iso(datetime.fromtimestamp(seconds, UTC))


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a moment. Raises ValueError where the text is none."""
    return datetime.fromisoformat(text).timestamp()
