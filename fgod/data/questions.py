"""Questions that are asked while a stage trains, by name, each with the rule that its answer must pass. A JSON file:

{"identity": [{"prompt": "你是誰", "accept": {"all": ["F#"]}}, {"prompt": "Who are you?", "system": "<none>", …}]}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fgod.chat import Chat
from fgod.data.rows import Message
from fgod.errors import UsageError
from fgod.persona import Rule
from fgod.system.files import read_json


@dataclass(frozen=True)
class Question:
    """A chat of one turn, and what its answer must say."""

    chat: Chat
    accept: Rule


def read_questions(path: Path, names: Iterable[str]) -> dict[str, list[Question]]:
    """The lists of these names in a file.

    Raises:
        UsageError: a list is missing or empty, or a question is none; names file and place.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: found {type(value).__name__}, expected a mapping of lists of questions")
    for name in names:
        if not isinstance(value.get(name), list) or not value[name]:
            raise UsageError(
                f"{path}: {name}: found {value.get(name)!r}, expected a list of questions (train.check.until)"
            )
    return {name: [_question(one, f"{path}: {name}[{i}]") for i, one in enumerate(value[name])] for name in names}


def _question(value: object, where: str) -> Question:
    known = {"prompt", "system", "accept"}
    if not isinstance(value, dict) or not {"prompt", "accept"} <= value.keys() <= known:
        raise UsageError(f"{where}: found {value!r}, expected prompt and accept, and perhaps system")
    prompt, system, accept = value["prompt"], value.get("system", ""), value["accept"]
    if not (isinstance(prompt, str) and prompt and isinstance(system, str)):
        raise UsageError(f"{where}: found {value!r}, expected text as prompt and system")
    words = ("all", "any", "none")
    good = (
        isinstance(accept, dict)
        and accept
        and all(
            key in words and isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            for key, texts in accept.items()
        )
    )
    if not good:
        raise UsageError(f"{where}.accept: found {accept!r}, expected lists of words under all, any or none")
    return Question(Chat((Message("user", prompt),), system), Rule(**{key: tuple(t) for key, t in accept.items()}))
