"""`fgod data identity`: a file of one's own with identity rows, `prompt<TAB>target`."""

from __future__ import annotations

from itertools import product

from fgod.data.mix import Pools, plan_mix, wording
from fgod.data.recipe import STYLES, MixRecipe
from fgod.data.rows import Prompt, Row, normalise
from fgod.data.sources import MANNERS, Sources
from fgod.data.wordings import compositions, identity_prompts, make_core, style_of
from fgod.errors import UsageError
from fgod.persona import Persona, lookup

MAX_ROWS = 100_000
"""Rows of a file at most: composing takes seconds for each thousand."""


def identity_file(sources: Sources, count: int, seed: int, target: str | Persona) -> list[Row]:
    """`count` identity rows in a seeded order: 75 % natural, 15 % control, 10 % multilingual, no prompt twice.

    `target` is the one reply to all of them, or a persona that replies by language.
    `tsv.write_user_tsv(path, ((row.prompt, row.target) for row in rows))` writes them.

    Raises:
        UsageError: `count` is below 1, above `MAX_ROWS` or more than the wordings give (names the style and the rows
            missing), the target is empty, or the persona has no reply in a language.
    """
    if not isinstance(target, Persona) and not target.strip():
        raise UsageError(f"target: found {target!r}, expected what the model is to answer")
    if not 1 <= count <= MAX_ROWS:
        raise UsageError(f"count: found {count}, expected {'at least 1' if count < 1 else f'at most {MAX_ROWS}'}")
    prompts = _prompts(sources, count)
    there = {prompt.style for prompt in prompts}  # languages without Chinese have no natural and control ones
    styles = {style: weight for style, weight in STYLES.items() if style in there}
    recipe = MixRecipe("balanced", count, {"identity": 1.0}, max_repeats=1, styles=styles)
    units = tuple((prompt.row(_reply(target, prompt, seed)),) for prompt in prompts)
    return plan_mix(recipe, Pools({"identity": units}), seed)


def _prompts(sources: Sources, count: int) -> list[Prompt]:
    """The distinct identity prompts of the mixes, and further compositions of the same words for long files."""
    distinct = {normalise(prompt.text): prompt for prompt in identity_prompts(sources)}
    for language, manner in product(sources.languages, MANNERS):
        cores = [make_core(core) for core in sources.identity_cores[language]]
        wrapping, marks = sources.wrappings[language][manner], sources.marks[language]
        # Half as many for each language and manner: natural is three quarters of a file and has two languages.
        enough = len(distinct) + count // 2
        for text, _, _ in compositions(f"file|{language}|{manner}", cores, wrapping, marks, count, False):
            if len(distinct) >= enough:
                break
            prompt = Prompt(text, language, "identity", "identity", style=style_of(language, manner))
            distinct.setdefault(normalise(text), prompt)
    return list(distinct.values())


def _reply(target: str | Persona, prompt: Prompt, seed: int) -> str:
    if not isinstance(target, Persona):
        return target.strip()
    try:
        return wording(lookup(target.replies, prompt.language), prompt, seed)
    except KeyError:
        raise UsageError(f"persona.replies: no reply in {prompt.language}, found {', '.join(target.replies)}") from None
