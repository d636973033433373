"""What differs between two replies: by word, and by character in Chinese, Japanese and Korean. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import NamedTuple

from markupsafe import Markup, escape

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
PIECE = re.compile(rf"[{CJK}]|\s+|[^\W{CJK}]+|[^\w\s]")
LEAST = 0.4
"""Replies that are less alike (`difflib`'s ratio) are marked as a whole: marks of single pieces would say nothing."""


class Marked(NamedTuple):
    """Two replies as HTML: what is gone in <del>, what is new in <ins>."""

    before: Markup
    after: Markup


def pieces(text: str) -> list[str]:
    """Words, single CJK characters, spaces and signs; together they are the text."""
    return PIECE.findall(text)


@cache
def marked(before: str, after: str) -> Marked:
    """Both replies with their differences marked."""
    old, new = pieces(before), pieces(after)
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    steps = matcher.get_opcodes()
    if before != after and matcher.ratio() < LEAST:
        steps = [("replace", 0, len(old), 0, len(new))]
    return Marked(
        Markup("").join(_tagged("del", tag, old[a:b]) for tag, a, b, _, _ in steps),
        Markup("").join(_tagged("ins", tag, new[a:b]) for tag, _, _, a, b in steps),
    )


def _tagged(name: str, tag: str, found: Sequence[str]) -> Markup:
    text = escape("".join(found))
    return text if tag == "equal" or not text else Markup("<{0}>{1}</{0}>").format(name, text)
