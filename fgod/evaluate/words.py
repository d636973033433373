"""Words and characters by which replies are judged, whatever the persona is. Pure but for `load_reply_words`.

replies.yaml of the written sources has the words, by language:

    affirmations: {en: ["yes,", correct]}    # a reply that begins with one of these says yes
    refusals: {en: [I cannot help with]}     # a reply that has one of these refuses
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fgod.data.probes import Probe
from fgod.data.sources import load_yaml, source_languages
from fgod.errors import UsageError
from fgod.persona import fold, has_any, lookup

REPLIES_FILE = "replies.yaml"
NEEDED_BY = {"denial": "affirmations", "refusal": "refusals"}
"""Scorings that words are needed for."""

WordsByLanguage = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ReplyWords:
    """Words of replies by language, compared as those of a rule are (`fgod.persona.fold`)."""

    affirmations: WordsByLanguage = field(default_factory=dict)
    refusals: WordsByLanguage = field(default_factory=dict)

    def says_yes(self, reply: str, language: str) -> bool:
        """Whether a reply begins with a yes."""
        return fold(reply).startswith(tuple(map(fold, _of(self.affirmations, language, "affirmations"))))

    def refuses(self, reply: str, language: str) -> bool:
        """Whether a reply has the words of a refusal."""
        return has_any(reply, _of(self.refusals, language, "refusals"))


def _of(table: WordsByLanguage, language: str, key: str) -> tuple[str, ...]:
    try:
        return lookup(table, language)
    except KeyError:
        raise UsageError(f"{REPLIES_FILE}: {key}: no words for {language}, the language of a probe") from None


def load_reply_words(folder: Path, probes: Iterable[Probe]) -> ReplyWords:
    """The words that the scorings of some probes need, from replies.yaml of the written sources; none where none does.

    Raises:
        UsageError: the file is missing or wrong; names file and key.
    """
    if not {probe.scored_by for probe in probes} & NEEDED_BY.keys():
        return ReplyWords()
    languages = source_languages(folder)
    root = load_yaml(folder / REPLIES_FILE).table(("affirmations", "refusals"))
    return ReplyWords(**{key: node.by_language(languages, lambda one: one.texts()) for key, node in root.items()})


def simplified(text: str) -> bool:
    """Whether a text has a Han character that Simplified Chinese alone writes: one of GB 2312, the standard of
    Simplified text (6,763 characters), that Big5, that of Traditional text (13,060), has not."""
    return any(_is_han(char) and _in(char, "gb2312") and not _in(char, "big5") for char in text)


def _is_han(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fff"


def _in(char: str, codec: str) -> bool:
    try:
        char.encode(codec)
    except UnicodeEncodeError:
        return False
    return True
