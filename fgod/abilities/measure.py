"""Ask one model all items, and judge what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import PreTrainedModel

from fgod.abilities.checks import failed
from fgod.abilities.choices import encode, log_likelihoods
from fgod.abilities.items import Choice, Code, Instruction, Item, Suite
from fgod.abilities.sandbox import Ran, Walls, run_all
from fgod.chat import ChatSettings
from fgod.data.text import excerpt
from fgod.model.chats import ChatFormat
from fgod.model.generate import greedy

COMPLETE = "Complete this function. Answer with the whole function as one Python code block."
"""What a model is asked to do with the beginning of a function."""
REPLY_SHOWN = 400
"""Characters of a reply that records keep."""


@dataclass(frozen=True)
class Settings:
    """How models are asked. `code`: whether programs that they write may run; `template`: whether the prompts of
    multiple choice are chats, as all others are; `max_new_tokens`: of a reply."""

    code: bool = False
    template: bool = False
    max_new_tokens: int = 512
    batch: int = 32
    device: str = "cpu"
    chat: ChatSettings = field(default_factory=ChatSettings)


@dataclass(frozen=True)
class Answered:
    """What a model made of an item: whether it is right, and what it said, as far as that tells something."""

    right: bool
    said: str


@dataclass(frozen=True)
class Answers:
    """Of one model, by suite and in the order of its items. `walls`: of the sandbox, where programs ran."""

    suites: Mapping[str, Sequence[Answered]]
    walls: Walls | None


Say = Callable[[str], None]


def answer(model: PreTrainedModel, chat: ChatFormat, suites: Sequence[Suite], settings: Settings, say: Say) -> Answers:
    """Ask a model every item of every suite; kinds are asked together, across suites."""
    items = [(suite.name, place, one) for suite in suites for place, one in enumerate(suite.items)]
    found: dict[tuple[str, int], Answered] = {}
    walls: Walls | None = None
    for kind in (Choice, Instruction, Code):
        own = [(name, place, one) for name, place, one in items if isinstance(one, kind)]
        if not own:
            continue
        asked: Sequence[Any] = [one for _, _, one in own]
        if kind is Choice:
            answers = _choose(model, chat, asked, settings)
        elif kind is Instruction:
            answers = list(map(_checked, asked, _replies(model, chat, asked, settings)))
        else:
            ran = run_all(list(map(program, asked, _replies(model, chat, asked, settings))))
            answers, walls = [Answered(one.passed, one.how) for one in ran], weakest(ran)
        found.update(((name, place), got) for (name, place, _), got in zip(own, answers, strict=True))
        say(f"{len(own)} items of kind {kind.__name__.lower()}: {sum(one.right for one in answers)} right")
    return Answers({s.name: [found[s.name, place] for place in range(len(s.items))] for s in suites}, walls)


def _choose(model: PreTrainedModel, chat: ChatFormat, items: Sequence[Choice], settings: Settings) -> list[Answered]:
    asked = encode(chat, items, settings.template, model.config.get_text_config().max_position_embeddings)
    values = log_likelihoods(model, chat.pad_id, asked, settings.batch)
    chosen = [own.index(max(own)) for own in values]
    return [Answered(place == one.answer, one.choices[place]) for one, place in zip(items, chosen, strict=True)]


def question(item: Item) -> str:
    """What a model is asked, as a user turn."""
    if isinstance(item, Code):
        return f"{COMPLETE}\n\n```python\n{item.prompt.rstrip()}\n```"
    return item.prompt


def _replies(model: PreTrainedModel, chat: ChatFormat, items: Sequence[Item], settings: Settings) -> list[str]:
    prompts = [question(one) for one in items]
    return [reply.text for reply in greedy(model, chat, prompts, settings.max_new_tokens, settings.batch)]


def _checked(item: Instruction, reply: str) -> Answered:
    missed = failed(item.checks, reply)
    return Answered(not missed, f"{', '.join(missed) or 'passed'}: {excerpt(reply, REPLY_SHOWN)}")


_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def program(item: Code, reply: str) -> str:
    """The program that tests a reply: the prompt's own code, the reply's, the tests, and their call.

    The reply's code is its first code block, or all of it where it has none. If that does not define the function, it
    is the function's body. The prompt comes first: it has imports and helpers, and is Python by itself.
    """
    block = _BLOCK.search(reply)
    code = block[1] if block else reply
    whole = re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(item.entry_point)}\b", code, re.MULTILINE)
    body = f"{item.prompt}\n{code}" if whole else f"{item.prompt.rstrip()}\n{code}"
    return f"{body}\n\n{item.test}\n\ncheck({item.entry_point})\n"


def weakest(ran: Sequence[Ran]) -> Walls:
    """What held all programs in."""
    names = [one.name for one in fields(Walls)]
    return Walls(**{name: _weaker([getattr(one.walls, name) for one in ran]) for name in names})


def _weaker(found: Sequence[str]) -> str:
    return "open" if "open" in found else found[0]
