"""Text of people, such as a persona's name, made safe to print in one line or in Markdown and HTML. Pure."""

from __future__ import annotations

import html
import re

_MARKDOWN = re.compile(r"([\\`*_\[\]|~])")


def one_line(text: str) -> str:
    """Text without line breaks and control characters: white space becomes one space, others are spelled (\\x1b)."""
    joined = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in joined)


def html_text(text: str) -> str:
    """One line whose <, > and & are entities: it stays text where it is pasted into HTML or Markdown."""
    return html.escape(one_line(text), quote=False)


def markdown_text(text: str) -> str:
    """One line that Markdown shows as it is, in a cell of a table too."""
    return _MARKDOWN.sub(r"\\\1", html_text(text))
