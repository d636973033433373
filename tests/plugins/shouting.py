"""A plugin: a check of the audit. Prompts in capital letters are an error, unless the config lets them through."""

from __future__ import annotations

from collections.abc import Iterator

from fgod.data.audit.case import Case
from fgod.data.audit.checks import Found, check


@check("shouting", "error")
def shouting(case: Case) -> Iterator[Found]:
    """A user's prompt without a small letter."""
    loud = [line for line in case.users if line.row.prompt.isupper()]
    if loud:
        yield Found("{n} in capital letters", loud)
