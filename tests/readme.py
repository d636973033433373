"""The commands that README.md tells people to run.

A command is a line of an indented block, or a span of inline code, that begins with `make ` or `.venv/bin/`. A comment
after it is left out. Words in capitals are places for the reader's own values.
"""

from __future__ import annotations

import re
import shlex

BLOCK_LINE = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)*)`")
COMMAND = re.compile(r"(?:make|\.venv/bin/\S+)\s+\S|\.venv/bin/\S+$")
UNREACHABLE = re.compile(r"(?:fgod|snakemake|python|pytest|pip)\s+\S")
"""What a shell finds only where the environment is activated."""
PLACE = re.compile(r"[A-Z]{2,}")


def code(text: str) -> list[str]:
    """Lines of indented blocks and spans of inline code, in their order, without comments."""
    found = [*BLOCK_LINE.finditer(text), *INLINE.finditer(BLOCK_LINE.sub(lambda m: " " * len(m[0]), text))]
    lines = (match[1] for match in sorted(found, key=lambda match: match.start()))
    return [re.sub(r"\s+", " ", re.sub(r"\s+# .*", "", line)) for line in lines]


def commands(text: str) -> list[str]:
    """Every command once, in the order of its first appearance."""
    return list(dict.fromkeys(line for line in code(text) if COMMAND.match(line)))


def unreachable(text: str) -> list[str]:
    """Commands that no shell finds unless the environment is activated."""
    return [line for line in code(text) if UNREACHABLE.match(line)]


def filled(command: str, values: dict[str, str]) -> str:
    """A command with values for its places.

    Raises:
        KeyError: a place has no value.
    """
    words = [values[word] if PLACE.fullmatch(word) else word for word in shlex.split(command)]
    return shlex.join(words)
