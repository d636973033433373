"""The record of a model's replies to many prompts: answers.tsv. `fgod.model.ask` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fgod.data.rows import Message, chat_key, read_history
from fgod.errors import FgodError
from fgod.system.files import read_table

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


def read_answers(folder: Path) -> dict[str, Answer]:
    """Answers by the keys of their chats (a prompt's is itself), in their order.

    Raises:
        UsageError: the folder has no answers.tsv.
        FgodError: a row is not as `write_answers` writes it; names file and line.
    """
    path = folder / TABLE
    found: dict[str, Answer] = {}
    for line, row in enumerate(read_table(path, COLUMNS), start=2):
        answer = parse_answer(row, f"{path}:{line}")
        if answer.key in found:
            raise FgodError(f"{path}:{line}: the prompt {answer.prompt!r} stands twice")
        found[answer.key] = answer
    return found


def parse_answer(row: Mapping[str, str], where: str) -> Answer:
    """One row of answers.tsv."""
    for column in ("ended", "looped"):
        if row[column] not in ("true", "false"):
            raise FgodError(f"{where}: {column}: found {row[column]!r}, expected true or false")
    try:
        ids = tuple(int(part) for part in row["token_ids"].split())
    except ValueError:
        raise FgodError(f"{where}: token_ids: found {row['token_ids']!r}, expected whole numbers") from None
    try:
        history = read_history(row.get("history", ""))
    except (ValueError, KeyError, TypeError) as error:  # json's own error is a ValueError
        raise FgodError(f"{where}: history: found {row['history']!r}, expected earlier turns: {error}") from error
    ended, looped = (row[column] == "true" for column in ("ended", "looped"))
    return Answer(row["prompt"], row["reply"], ids, ended, looped, row.get("system", ""), history)
