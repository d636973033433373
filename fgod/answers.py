"""The record of a model's replies to many prompts: answers.tsv. `fgod.model.ask` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fgod.data.rows import HISTORY, Message, chat_key
from fgod.errors import FgodError
from fgod.system.table import TEXT, Column, columns_of, optional, read_table

TABLE = "answers.tsv"
BATCH = 128
"""Prompts that are asked at once where a config says nothing else."""

COLUMNS = ("prompt", "reply", "ended", "looped", "token_ids")
FRAME = ("system", "history")
"""Columns that are there only if a chat of the table has a frame of its own; `history` is JSON."""


@dataclass(frozen=True)
class Answer:
    """One greedy reply. `token_ids` include the end token if the reply ended; `system` and `history` are the frame of
    the prompt, as in `fgod.data.rows.Prompt`."""

    prompt: str
    reply: str
    token_ids: tuple[int, ...]
    ended: bool
    looped: bool
    system: str = ""
    history: tuple[Message, ...] = ()

    @property
    def key(self) -> str:
        """Names the chat: the prompt itself where it has no frame of its own."""
        return chat_key(self.prompt, self.system, self.history)


def _token_ids(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


_READ = columns_of(
    Answer,
    token_ids=Column(_token_ids, "whole numbers"),
    system=optional(TEXT),
    history=optional(HISTORY),
)


def read_answers(folder: Path) -> dict[str, Answer]:
    """Answers by the keys of their chats (a prompt's is itself), in their order.

    Raises:
        UsageError: the folder has no answers.tsv.
        FgodError: a row is not as `write_answers` writes it; names file and line.
    """
    path = folder / TABLE
    found: dict[str, Answer] = {}
    for line, row in enumerate(read_table(path, _READ), start=2):
        answer = Answer(**row)
        if answer.key in found:
            raise FgodError(f"{path}:{line}: the prompt {answer.prompt!r} stands twice")
        found[answer.key] = answer
    return found
