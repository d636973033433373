"""What texts of rows are: the language they are in, and what in them nobody meant to train on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

BOM = "\ufeff"
HEADER_WORDS = {
    "prompt": "prompt instruction input question query user 提示 問題 问题 輸入 输入 プロンプト 質問 프롬프트 질문",
    "target": "target output response answer reply completion assistant label 目標 目标 答案 回答 輸出 输出 応答 답변",
}
_HEADERS = {side: frozenset(words.split()) for side, words in HEADER_WORDS.items()}
_HIDDEN = frozenset("\ufffd\u200b\u2060\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" + BOM)

CONTROL_TOKEN = re.compile(r"<\|[^<>|\s]{1,60}\|>")
"""What control tokens look like in most tokenizers."""


def has_control(text: str) -> bool:
    """Whether a field holds characters that nobody sees or means to train on (emoji joiners are allowed)."""
    return any(char in _HIDDEN or unicodedata.category(char) in ("Cc", "Cs") for char in text)


def has_surrogate(text: str) -> bool:
    """Whether a text has half of a surrogate pair, or a byte that was no UTF-8: no tokenizer takes it."""
    return any(unicodedata.category(char) == "Cs" for char in text)


def excerpt(text: str, length: int = 80) -> str:
    r"""One printable line: control characters as `\u…`, cut with `…` past `length` characters."""
    shown = "".join(
        c if c.isprintable() and c not in _HIDDEN else c.encode("unicode_escape", "replace").decode() for c in text
    )
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def is_header(prompt: str, target: str) -> bool:
    """Whether a row names columns instead of being a sample."""
    return prompt.strip().casefold() in _HEADERS["prompt"] and target.strip().casefold() in _HEADERS["target"]


_SCRIPT_OF = {
    "zh": "CJK", "ja": "KANA", "ko": "HANGUL", "ru": "CYRILLIC", "uk": "CYRILLIC", "bg": "CYRILLIC", "sr": "CYRILLIC",
    "el": "GREEK", "ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "he": "HEBREW", "hi": "DEVANAGARI", "th": "THAI",
}  # fmt: skip
"""The script of languages by the first subtag of their tag; of all others LATIN."""
_SCRIPT_NAMES = {"HIRAGANA": "KANA", "KATAKANA": "KANA"}
_CHINESE = {"hant": ("hant", "tw", "hk", "mo"), "hans": ("hans", "cn", "sg")}
"""Subtags that say how Chinese is written."""


def _script(text: str) -> str:
    """Kana, hangul or Han if one of them stands in a text, in this order, else the script of most of its letters;
    empty without any."""
    names = Counter(unicodedata.name(char, "").split(" ")[0] for char in text if char.isalpha())
    scripts: Counter[str] = Counter()
    for name, count in names.items():
        scripts[_SCRIPT_NAMES.get(name, name)] += count
    for script in ("KANA", "HANGUL", "CJK"):
        if script in scripts:
            return script
    return scripts.most_common(1)[0][0] if scripts else ""


def _only_in(char: str, encoding: str, other: str) -> bool:
    def has(name: str) -> bool:
        return bool(char.encode(name, "ignore"))

    return has(encoding) and not has(other)


def chinese_script(text: str) -> str:
    """hant or hans, as which more characters of a text exist only; empty where neither is. By the character sets of
    Big5 and GB 2312."""
    hant = sum(_only_in(char, "big5", "gb2312") for char in text if char.isalpha())
    hans = sum(_only_in(char, "gb2312", "big5") for char in text if char.isalpha())
    return "" if hant == hans else "hant" if hant > hans else "hans"


def language_within(text: str, languages: Sequence[str], likeliest: str) -> str | None:
    """Which of some languages a text is in, as far as its script tells.

    Args:
        likeliest: the one of them that it is in where its script is that of several, or where it has no letter.

    Returns:
        None where it is in none of them.
    """
    script = _script(text)
    if not script:
        return likeliest
    found = [tag for tag in languages if _SCRIPT_OF.get(tag.split("-")[0].lower(), "LATIN") == script]
    if script == "CJK" and (written := chinese_script(text)):
        other = _CHINESE["hans" if written == "hant" else "hant"]
        found = [tag for tag in found if not set(tag.lower().split("-")[1:]) & set(other)]
    return likeliest if likeliest in found else next(iter(found), None)


_SIMPLIFIED = frozenset("这个们谁吗么说请问为时会来东车长门书话谈认识实从关开对应当样张飞发现简单诉记写间让过还进语")
"""Common characters that only simplified Chinese uses."""
_SCRIPTS = (("ko", re.compile("[\uac00-\ud7a3\u1100-\u11ff]")), ("ja", re.compile("[\u3041-\u30ff]")))


def guess_language(text: str) -> str:
    """The language of a prompt by its script: hangul, kana, Han (simplified if a simplified-only character stands
    in it), else English."""
    for language, pattern in _SCRIPTS:
        if pattern.search(text):
            return language
    if not re.search("[\u3400-\u9fff]", text):
        return "en"
    return "zh-Hans" if _SIMPLIFIED.intersection(text) else "zh-Hant"
