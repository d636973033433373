"""The record of a model's replies to many prompts: answers.tsv. `fgod.model.ask` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fgod.errors import FgodError
from fgod.system.files import read_table

TABLE = "answers.tsv"
BATCH = 128
"""Prompts that are asked at once where a config says nothing else."""

COLUMNS = ("prompt", "reply", "ended", "looped", "token_ids")


@dataclass(frozen=True)
class Answer:
    """One greedy reply. `token_ids` include the end token if the reply ended."""

    prompt: str
    reply: str
    token_ids: tuple[int, ...]
    ended: bool
    looped: bool


def read_answers(folder: Path) -> dict[str, Answer]:
    """Answers by prompt, in their order.

    Raises:
        UsageError: the folder has no answers.tsv.
        FgodError: a row is not as `write_answers` writes it; names file and line.
    """
    path = folder / TABLE
    found: dict[str, Answer] = {}
    for line, row in enumerate(read_table(path, COLUMNS), start=2):
        answer = parse_answer(row, f"{path}:{line}")
        if answer.prompt in found:
            raise FgodError(f"{path}:{line}: the prompt {answer.prompt!r} stands twice")
        found[answer.prompt] = answer
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
    return Answer(row["prompt"], row["reply"], ids, row["ended"] == "true", row["looped"] == "true")
