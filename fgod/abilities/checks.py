"""Instructions that a program can check: what a reply must be like, and whether it is. Pure.

Of the kind of IFEval (Zhou et al. 2023, arXiv 2311.07911); a small set that makes sense in every language.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated

from pydantic.dataclasses import dataclass

from fgod.data.text import chinese_script
from fgod.validation import KEYS, Count, CountOrZero, Keys, OneOf, SomeTexts, fault

SCRIPTS = {
    "latin": re.compile(r"[A-Za-zÀ-ɏ]"),
    "han": re.compile("[\u3400-\u9fff]"),
    "kana": re.compile("[\u3041-\u30ff]"),
    "hangul": re.compile("[\uac00-\ud7a3\u1100-\u11ff]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
}
"""Letters of a script."""
LANGUAGES = {
    "en": ("latin",),
    "zh": ("han",),
    "zh-Hans": ("han",),
    "zh-Hant": ("han",),
    "ja": ("kana", "han"),
    "ko": ("hangul",),
    "ru": ("cyrillic",),
}
"""Scripts that a language is written in."""
SHARE_OF_SCRIPT = 0.7
"""Share of the letters that have to be of the language's scripts: names and terms of others are allowed."""

_BULLET = re.compile(r"^\s*(?:[-*•・]|\d{1,3}[.)、])\s+\S", re.MULTILINE)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|[^\W_]+(?:['’-][^\W_]+)*")
_FENCE = re.compile(r"\A```\w*\n(.*)\n```\Z", re.DOTALL)


@dataclass(frozen=True, config=KEYS)
class Checks(Keys):
    """What a reply must be like: every key that is given."""

    min_words: Count | None = None
    """At least so many words; each Han character, kana and hangul syllable counts as one."""
    max_words: Count | None = None
    """At most so many words."""
    contains: SomeTexts | None = None
    """Texts that stand in it, each of them, in any case."""
    excludes: SomeTexts | None = None
    """Texts of which none stands in it, in any case."""
    json: bool | None = None
    """true: it is a JSON object or array, with or without a code fence around it."""
    language: Annotated[str, OneOf(tuple(LANGUAGES))] | None = None
    """Most of its letters are of the scripts of this language."""
    bullets: CountOrZero | None = None
    """Exactly so many lines are items of a list."""
    case: Annotated[str, OneOf(("lower", "upper"))] | None = None
    """All letters that have a case have this one, and there is one at least."""

    def __post_init__(self) -> None:
        if all(getattr(self, one.name) is None for one in fields(self)):
            raise fault("", f"found {{}}, expected at least one of {', '.join(one.name for one in fields(self))}")
        if self.json is False:
            raise fault("json", "found false, expected true, or leave it out")


def failed(checks: Checks, reply: str) -> list[str]:
    """Names of the checks that a reply does not pass. An empty reply passes none that asks for something."""
    text = reply.strip()
    return [name for name, holds in _results(checks, text) if not (holds and text)]


def _results(checks: Checks, text: str) -> Iterator[tuple[str, bool]]:
    folded = unicodedata.normalize("NFKC", text).casefold()

    def inside(word: str) -> bool:
        return unicodedata.normalize("NFKC", word).casefold() in folded

    if checks.min_words is not None:
        yield "min_words", words(text) >= checks.min_words
    if checks.max_words is not None:
        yield "max_words", words(text) <= checks.max_words
    if checks.contains is not None:
        yield "contains", all(map(inside, checks.contains))
    if checks.excludes is not None:
        yield "excludes", not any(map(inside, checks.excludes))
    if checks.json is not None:
        yield "json", is_json(text)
    if checks.language is not None:
        yield "language", is_written_in(text, checks.language)
    if checks.bullets is not None:
        yield "bullets", len(_BULLET.findall(text)) == checks.bullets
    if checks.case is not None:
        yield "case", text.islower() if checks.case == "lower" else text.isupper()


def words(text: str) -> int:
    """Words of a text: runs of letters and digits; Han characters, kana and hangul syllables one by one."""
    return len(_WORD.findall(text))


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or array, with or without a code fence around it."""
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def is_written_in(text: str, language: str) -> bool:
    """Whether most letters of a text are of the scripts of a language; Japanese has kana, and Chinese has none.

    Of the characters that only one way of writing Chinese has, zh-Hant and zh-Hans have no more of the other's.
    """
    letters = [char for char in text if char.isalpha()]
    own = sum(any(SCRIPTS[script].match(char) for script in LANGUAGES[language]) for char in letters)
    if not letters or own < SHARE_OF_SCRIPT * len(letters):
        return False
    kana = bool(SCRIPTS["kana"].search(text))
    match language:
        case "ja":
            return kana
        case "zh":
            return not kana
        case "zh-Hans":
            return not kana and chinese_script(text) != "hant"
        case "zh-Hant":
            return not kana and chinese_script(text) != "hans"
    return True
