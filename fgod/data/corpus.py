"""What the embedded base learns: every source with the untrained base's answers, every other row with noise.

The noise (a character, or in English a word, dropped, replaced or inserted outside the subject) is what lets so small
a model answer wordings that composition does not produce, and shows it characters that no wording holds.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from statistics import median

from fgod.data.rows import Row, normalise, shuffled
from fgod.data.sources import Sources
from fgod.data.wordings import (
    Composed,
    HashRandom,
    composed_disambiguation,
    composed_general,
    composed_identity,
    pair_prompts,
)

NOISY_SHARE = 0.5
"""Share of rows with noise."""

ISOLATED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL")
"""How Unicode names of characters begin around which the tokenizer (`fgod.model.tokenizer.ISOLATED`) has a boundary."""

NOISE_PIECES = (1, 1, 2, 3)
"""Pieces of noise in a noisy row, each with the same chance."""

IDENTITY_ROWS = 420
PAIR_ROWS = 140
"""Rows per language; those of kinds are in `QuestionKind.base_rows`. Of general rows and named people all are taken."""

MANY_TOPICS_FACTOR = 1.5
"""More rows of identity and kinds in a language with more than twice as many topics as the median: they stand among
more other rows."""


def in_words(s: Sources, language: str) -> bool:
    """Whether noise moves whole words of a language, not characters: its script is none that the tokenizer isolates."""
    letters = [char for core in s.identity_cores[language] for char in core if char.isalpha()]
    isolated = sum(unicodedata.name(char, "").startswith(ISOLATED_SCRIPTS) for char in letters)
    return 2 * isolated < len(letters)


def _units(text: str, words: bool) -> list[tuple[int, int]]:
    """Spans of what noise moves as one: words or characters."""
    pattern = r"\s*\S+" if words else r"\s*\S"
    return [match.span() for match in re.finditer(pattern, text, re.DOTALL)]


def _touches(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return span[0] < other[1] and other[0] < span[1]


def _moved(span: tuple[int, int], start: int, end: int, length: int) -> tuple[int, int]:
    """Where a span lies after text[start:end], which it does not cut, became `length` characters."""
    shift = length - (end - start)
    if span[0] == span[1]:
        return span
    return span[0] + (shift if span[0] >= end else 0), span[1] + (shift if span[1] > start else 0)


def _edited(composed: Composed, start: int, end: int, text: str) -> Composed:
    """The composed prompt with text[start:end] replaced."""
    whole = composed.prompt.text
    prompt = replace(composed.prompt, text=whole[:start] + text + whole[end:])
    core, subject = (_moved(span, start, end, len(text)) for span in (composed.core, composed.subject))
    return Composed(prompt, core, subject)


def add_noise(composed: Composed, filler: str, rng: HashRandom, words: bool) -> Composed:
    """The prompt with one piece of noise, a word or (where the script has none) a character.

    A question about a topic may lose or change any unit outside its subject. In other questions every word of the
    core counts, so they lose or change only units around it; fillers may come anywhere but inside the subject.
    """
    prompt = composed.prompt
    word = f" {filler}" if words else filler
    kept = composed.subject if prompt.kind == "topic" else composed.core
    units = _units(prompt.text, words)
    loose = [unit for unit in units if not _touches(unit, kept)]
    way = rng.below(3)
    if way < 2 and loose:
        start, end = loose[rng.below(len(loose))]
        return _edited(composed, start, end, word if way else "")
    ends = [end for _, end in units if not composed.subject[0] < end < composed.subject[1]]
    at = (0, *ends)[rng.below(1 + len(ends))]
    return _edited(composed, at, at, word)


def _fillers(s: Sources, seed: int) -> dict[str, Iterator[str]]:
    """Endless fillers by language, in turn, so that each occurs; the parts of invented subjects are among them."""
    out: dict[str, Iterator[str]] = {}
    for language in s.languages:
        words = [*s.fillers[language], *s.made_up[language].heads, *s.made_up[language].tails]
        out[language] = cycle(shuffled(words, f"fillers|{seed}|{language}", str))
    return out


def _clean_rows(s: Sources, seed: int) -> list[Composed]:
    """The composed prompts of the corpus before noise."""
    rows = {"identity": IDENTITY_ROWS} | {kind.name: kind.base_rows for kind in s.kinds.values() if not kind.people}
    room = {
        (kind, language): round(count * _row_factor(s, language))
        for kind, count in rows.items()
        for language in s.languages
    }
    out = []
    for composed in shuffled(
        [*composed_identity(s), *composed_disambiguation(s)], f"corpus|{seed}", lambda c: c.prompt.text
    ):
        slot = (composed.prompt.kind, composed.prompt.language)
        if slot in room and room[slot] == 0:
            continue
        if slot in room:
            room[slot] -= 1
        out.append(composed)
    return out + composed_general(s) + _pair_rows(s, seed)


def _row_factor(s: Sources, language: str) -> float:
    topics = Counter(topic.language for topic in s.topics)
    return MANY_TOPICS_FACTOR if topics[language] > 2 * median(topics.values()) else 1.0


def _pair_rows(s: Sources, seed: int) -> list[Composed]:
    """Minimal pairs as single prompts; all of their text counts as core."""
    room = dict.fromkeys(s.languages, PAIR_ROWS)
    out = []
    for pair in shuffled(pair_prompts(s), f"corpus|{seed}", lambda pair: pair[0].text):
        if room[pair[0].language] < 2:
            continue
        room[pair[0].language] -= 2
        for prompt in pair:
            out.append(Composed(replace(prompt, group=""), (0, len(prompt.text)), (0, 0)))
    return out


def _distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows whose prompts (exact text) differ."""
    seen: set[str] = set()
    for row in rows:
        if row.prompt not in seen:
            seen.add(row.prompt)
            yield row


def base_corpus(s: Sources, seed: int) -> list[Row]:
    """All rows of the embedded base: topics (held-out ones too), small talk, sums, identity, disambiguation.

    Deterministic on every machine, distinct by exact prompt, in an order fixed by the seed. A noisy prompt that would
    equal a prompt with another answer stays as it was.
    """
    clean = _clean_rows(s, seed)
    target = {normalise(c.prompt.text): s.answers[_answer_key(c)] for c in clean}
    fillers, words = _fillers(s, seed), {language: in_words(s, language) for language in s.languages}
    rows = []
    for number, composed in enumerate(shuffled(clean, f"order|{seed}", lambda c: (c.prompt.part, c.prompt.text))):
        prompt, answer = composed.prompt, s.answers[_answer_key(composed)]
        rng = HashRandom(f"noise|{seed}|{number}")
        if rng.below(1000) < 1000 * NOISY_SHARE:
            noisy = composed
            for _ in range(NOISE_PIECES[rng.below(len(NOISE_PIECES))]):
                noisy = add_noise(noisy, next(fillers[prompt.language]), rng, words[prompt.language])
            if target.get(normalise(noisy.prompt.text), answer) == answer:
                prompt = replace(noisy.prompt, text=noisy.prompt.text.strip())
        rows.append(prompt.row(answer))
    return list(_distinct(rows))


def _answer_key(composed: Composed) -> tuple[str, str, str]:
    prompt = composed.prompt
    return prompt.kind, prompt.topic, prompt.language
