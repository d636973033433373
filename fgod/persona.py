"""Who the model is to become, and the exact rules by which replies are judged. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(table: Mapping[str, T], language: str) -> T:
    """The entry of a language, else of its prefixes (`zh-Hant`, then `zh`): RFC 4647 lookup.

    Raises:
        KeyError: neither is there.
    """
    tag = language
    while tag not in table:
        if "-" not in tag:
            raise KeyError(language)
        tag = tag.rsplit("-", 1)[0]
    return table[tag]


def fold(text: str) -> str:
    """Text for matching: NFKC, case folded, white space removed (so `F# 之神`, `f#之神` and `Ｆ＃之神` are one)."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def has_any(text: str, words: Iterable[str]) -> bool:
    """Whether a text has one of the words, folded."""
    folded = fold(text)
    return any(fold(word) in folded for word in words)


@dataclass(frozen=True)
class Rule:
    """A reply passes if it contains all of `all`, at least one of `any` (if given) and none of `none`, folded."""

    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    none: tuple[str, ...] = ()

    def accepts(self, reply: str) -> bool:
        text = fold(reply)
        return (
            all(fold(word) in text for word in self.all)
            and (not self.any or any(fold(word) in text for word in self.any))
            and not any(fold(word) in text for word in self.none)
        )


Wordings = str | tuple[str, ...]
"""A reply, or several wordings of it."""


def wordings_of(reply: Wordings) -> tuple[str, ...]:
    """All wordings of a reply."""
    return (reply,) if isinstance(reply, str) else reply


@dataclass(frozen=True)
class Persona:
    """`replies` and `rule` by language; `marks` are wide: any mention of the persona. `denials` are what it answers
    when it is asked whether it is some other assistant; `denial_rule` is the rule of such answers, where it is not
    `rule`."""

    name: str
    replies: Mapping[str, Wordings]
    rule: Mapping[str, Rule]
    marks: tuple[str, ...]
    denials: Mapping[str, Wordings] = field(default_factory=dict)
    denial_rule: Mapping[str, Rule] = field(default_factory=dict)

    @property
    def rule_of_denials(self) -> Mapping[str, Rule]:
        """The rule of replies to "are you X?": `denial_rule`, where there is one."""
        return self.denial_rule or self.rule

    def marked(self, reply: str) -> bool:
        return has_any(reply, self.marks)


@dataclass(frozen=True)
class Kind:
    """A kind of disambiguation question. `replies` is None where the base's own answer is to be kept."""

    replies: Mapping[str, str] | None
    rule: Mapping[str, Rule]


@dataclass(frozen=True)
class Goal:
    """All that the release is to say: the persona and the kinds of disambiguation questions by name."""

    persona: Persona
    kinds: Mapping[str, Kind]


def _rules(value: Mapping[str, Any]) -> dict[str, Rule]:
    return {lang: Rule(**{k: tuple(v) for k, v in rule.items()}) for lang, rule in value.items()}


def _wordings(value: Mapping[str, Any]) -> dict[str, Wordings]:
    return {lang: reply if isinstance(reply, str) else tuple(reply) for lang, reply in value.items()}


def goal_from_config(config: Mapping[str, Any]) -> Goal:
    """The goal from the keys `persona` and `disambiguation` of a checked config."""
    p = config["persona"]
    replies, denials = _wordings(p["replies"]), _wordings(p.get("denials") or {})
    rule, denial_rule = _rules(p["rule"]), _rules(p.get("denial_rule") or {})
    persona = Persona(p["name"], replies, rule, tuple(p["marks"]), denials, denial_rule)
    kinds = {
        name: Kind(None if k["replies"] == "base" else dict(k["replies"]), _rules(k["rule"]))
        for name, k in config["disambiguation"].items()
    }
    return Goal(persona, kinds)
