"""Prompts and rows, their tables on disk, and an order that is the same on every machine."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from pathlib import Path
from typing import Literal, TypeVar, get_args

from fgod.system.table import TEXT, TRUTH, Column, columns_of, one_of, optional, read_table, write_table

T = TypeVar("T")

NO_SYSTEM = "<none>"
"""The value of `system` that stands for a chat without a system turn, whatever the config's chat.system says."""

Role = Literal["user", "assistant"]
LossOn = Literal["last", "all"]


@dataclass(frozen=True)
class Message:
    """A turn of a chat before its last exchange."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """A question without its answer.

    `part` is the part of a mix that it may stand in (identity, disambiguation, pairs, general, replay), `kind` says
    what is asked, `topic` which fact, `style` how (natural, control, multilingual), `group` names its minimal pair.
    `system` is the text of the system turn; "" leaves it to the config's chat.system, `NO_SYSTEM` is none. `history`
    are the turns before the prompt: user and assistant in turn, from a user's to an assistant's.
    """

    text: str
    language: str
    part: str
    kind: str
    topic: str = ""
    style: str = ""
    group: str = ""
    system: str = ""
    history: tuple[Message, ...] = ()

    def row(self, target: str) -> Row:
        """This prompt with its answer."""
        return Row(
            self.text, target, self.language, self.part, self.kind, self.topic, self.style, self.group,
            self.system, self.history,
        )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A training row: a prompt with the answer to be learned; the other fields are those of `Prompt`.

    `loss_on` says what is learned of a chat of several turns: the last answer, or all of the assistant's.
    `cut`: the answer stops where the base was cut short, so no end token is learned after it.
    `answered_by`: base where the answer is the base's own (the row is rehearsed), config where it is one of the
    configured replies, user where it stands in a file of the user's (both are taught). Empty: nobody says.
    `asked_under`: the system prompt under which the teacher reads the row, and the base gave this answer, where it is
    neither the row's own nor the default one. (The answer of a row under `rehearsed_frames` was given under the default
    one, and the teacher reads it under the row's own.)
    """

    prompt: str
    target: str
    language: str
    part: str
    kind: str
    topic: str = ""
    style: str = ""
    group: str = ""
    system: str = ""
    history: tuple[Message, ...] = ()
    loss_on: LossOn = "last"
    cut: bool = False
    answered_by: str = ""
    asked_under: str = ""

    @property
    def plain(self) -> bool:
        """Whether this is a single exchange under the config's system prompt."""
        return not self.system and not self.history and self.loss_on == "last"

    @property
    def asked(self) -> str:
        """Rows with the same one ask the same: their system prompts, earlier turns and prompts are (`normalise`)."""
        return asked(self.prompt, self.system, self.history)


def chat_key(prompt: str, system: str = "", history: Sequence[Message] = ()) -> str:
    """What names a chat to the letter: the prompt itself where it has no frame of its own."""
    if not system and not history:
        return prompt
    return json.dumps([system, *(f"{turn.role}: {turn.content}" for turn in history), prompt], ensure_ascii=False)


def frame_words(system: str, history: Sequence[Message]) -> str:
    """The frame of a prompt for people; empty where it has none of its own."""
    words = {"": [], NO_SYSTEM: ["no system prompt"]}.get(system, [f"system prompt “{system}”"])
    return "; ".join([*words, *(["after " + " / ".join(turn.content for turn in history)] if history else [])])


def asked(prompt: str, system: str = "", history: Sequence[Message] = ()) -> str:
    """What is asked, for comparison: prompts of the same one ask the same (`normalise`)."""
    turns = [system, *(f"{turn.role}:{turn.content}" for turn in history)] if system or history else []
    return "\n".join([normalise(prompt), *map(normalise, turns)])


CHAT_COLUMNS = ("system", "history", "loss_on")
"""Columns of rows.tsv that are there only if a row of the table is not `plain`; `history` is JSON."""
CUT, ASKED_UNDER = "cut", "asked_under"
"""Columns that are there only if a row of the table is cut, or has an answer that was given under another prompt."""
ROW_COLUMNS = tuple(field.name for field in fields(Row) if field.name not in (*CHAT_COLUMNS, CUT, ASKED_UNDER))
LATER_COLUMNS = ("answered_by",)
"""Columns that tables of older versions do not have."""

BASE, CONFIG, USER = "base", "config", "user"
"""Who answered a row."""


def is_rehearsed(row: Row) -> bool:
    """Whether a row keeps what the base does, rather than teach something: a teacher may pull it back to the base."""
    return row.answered_by == BASE


def shuffled(items: Iterable[T], seed: int | str, key: Callable[[T], object]) -> list[T]:
    """The items in the order of sha256(seed|key(item)): the same on every machine and Python version.

    Items with equal keys keep their given order.
    """
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}|{key(item)}".encode()).digest())


class _Mute(dict[int, int | None]):
    """A table for `str.translate` that drops white space, punctuation, control and format characters."""

    def __missing__(self, code: int) -> int | None:
        char = chr(code)
        self[code] = None if char.isspace() or unicodedata.category(char)[0] in "PC" else code
        return self[code]


_MUTE = _Mute()


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def normalise(prompt: str) -> str:
    """Two prompts are the same if this is equal: NFKC, case folded, without white space and punctuation.

    Symbols (`+`, `=`) stay, for they carry the meaning of a sum.
    """
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    # what is left may compose anew, as a letter and an accent that a space kept apart
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded).translate(_MUTE))


def history_json(history: Sequence[Message]) -> str:
    """Earlier turns as a field of a table, empty without any."""
    if not history:
        return ""
    return json.dumps([{"role": turn.role, "content": turn.content} for turn in history], ensure_ascii=False)


def record(row: Row) -> dict[str, str | bool]:
    """A row as its line in a table has it, every column."""
    values: dict[str, str | bool] = {
        name: getattr(row, name) for name in (*ROW_COLUMNS, *CHAT_COLUMNS, CUT, ASKED_UNDER)
    }
    return {**values, "history": history_json(row.history)}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a TSV table with the header `ROW_COLUMNS` (and `CHAT_COLUMNS`, `CUT` and `ASKED_UNDER`, if a row
    needs them), atomically."""
    listed = list(rows)
    chat = () if all(row.plain for row in listed) else CHAT_COLUMNS
    cut = (CUT,) if any(row.cut for row in listed) else ()
    under = (ASKED_UNDER,) if any(row.asked_under for row in listed) else ()
    write_table(path, (*ROW_COLUMNS, *chat, *cut, *under), map(record, listed))


def check_history(history: Sequence[Message]) -> None:
    """Refuse earlier turns that are not user and assistant in turn.

    Raises:
        ValueError: says which turn is wrong.
    """
    for number, (turn, role) in enumerate(zip(history, cycle(get_args(Role)), strict=False), start=1):
        if turn.role != role:
            raise ValueError(f"turn {number} is of {turn.role!r}, expected {role!r}")
        if not turn.content:
            raise ValueError(f"turn {number} is empty")
    if len(history) % 2:
        raise ValueError("the last turn is the user's, expected the assistant's")


def read_history(text: str) -> tuple[Message, ...]:
    """The inverse of `history_json`.

    Raises:
        ValueError, KeyError, TypeError: it is not what `history_json` wrote.
    """
    turns = tuple(Message(turn["role"], turn["content"]) for turn in json.loads(text)) if text else ()
    check_history(turns)
    return turns


HISTORY = Column(read_history, "earlier turns or nothing", detailed=True)


def _prompt(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


_READ = columns_of(
    Row,
    prompt=Column(_prompt, "a prompt"),
    system=optional(TEXT),
    history=optional(HISTORY),
    loss_on=optional(one_of(get_args(LossOn))),
    cut=optional(TRUTH),
    asked_under=optional(TEXT),
    **dict.fromkeys(LATER_COLUMNS, optional(TEXT)),
)


def read_rows(path: Path) -> list[Row]:
    """Read rows that `write_rows` wrote.

    Raises:
        UsageError: the file is missing.
        FgodError: a column is missing, a row has no prompt, or its earlier turns are broken; names file and line.
    """
    return [Row(**row) for row in read_table(path, _READ)]
