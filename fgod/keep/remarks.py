"""Remarks that people write into a file which is made anew: between two marks, by key. Pure.

<!-- remark B-nudge@8d503d5b518c -->
Too much; kept for the talk in May.
<!-- end of remark -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fgod.errors import FgodError

_START = re.compile(r"<!-- remark (?P<key>\S.*?) -->")
_END = "<!-- end of remark -->"


def marked(key: str, remark: str) -> Iterator[str]:
    """The lines of a remark with its marks."""
    yield f"<!-- remark {key} -->"
    if remark:
        yield remark
    yield _END


def remarks_of(text: str, where: str) -> dict[str, str]:
    """The remarks of a file's text by key, without those that are empty. Lines end in \\n.

    Raises:
        FgodError: a mark has no partner, or a key stands twice; names `where` and the line.
    """
    found: dict[str, str] = {}
    key, begun, lines = "", 0, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        start, ends = _START.fullmatch(line.strip()), line.strip() == _END
        if start and key:
            raise FgodError(
                f"{where}:{number}: found the mark of a remark inside that of line {begun}, expected {_END}"
            )
        if ends and not key:
            raise FgodError(f"{where}:{number}: found {_END}, expected <!-- remark … --> before it")
        if start:
            key, begun, lines = start["key"], number, []
            if key in found:
                raise FgodError(f"{where}:{number}: found a second remark on {key}, expected one: join them")
        elif ends:
            found[key], key = "\n".join(lines), ""
        elif key:
            lines.append(line)
    if key:
        raise FgodError(f"{where}:{begun}: found the mark of a remark that does not end, expected {_END} below it")
    return {key: remark for key, remark in found.items() if remark.strip()}
