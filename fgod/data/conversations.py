"""The row formats of chats in JSON, as JSONL or as an array:

| format | record |
|---|---|
| messages | {"messages": [{"role": "system" / "user" / "assistant", "content": …}, …]} (OpenAI) |
| sharegpt | {"conversations": [{"from": "system" / "human" / "gpt", "value": …}, …]}, with or without "system": … |
| alpaca | {"instruction": …, "input": …, "output": …}, with or without "system": …, "history": [[asked, said], …] |

A chat has at most one system turn, which comes first, then turns of user and assistant in turn, and ends with the
assistant's: its last exchange is the row, what comes before is the row's history. The input of an Alpaca record follows
its instruction on a new line. White space around texts is dropped, as in all row formats. What a record says beside
this is left alone (`id`, `source`), unless it would change what is learned (tools, weights of turns): that is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from fgod.data.formats import (
    CONTROL,
    EMPTY_PROMPT,
    HEADER,
    MISSING_TARGET,
    ROW_FORMATS,
    UTF8,
    Fault,
    FaultKind,
    RowFormat,
    UserFile,
    UserRow,
)
from fgod.data.records import Record, has_keys, read_records
from fgod.data.rows import Message
from fgod.data.text import excerpt, has_control, has_surrogate, is_header

NO_CHAT = FaultKind("record", "that are no chats")
MISSING_ROLE = FaultKind("missing_role", "with a turn that has no role")
UNKNOWN_ROLE = FaultKind("unknown_role", "with a role other than system, user and assistant")
NO_TEXT = FaultKind("content", "with a turn whose content is no text")
EMPTY_TURN = FaultKind("empty_turn", "with an empty turn")
SYSTEM_TURNS = FaultKind("system_turns", "with a system turn that is not the only and first one")
ASSISTANT_FIRST = FaultKind("assistant_first", "whose first turn is the assistant's")
ALTERNATION = FaultKind("alternation", "whose turns of user and assistant do not alternate")
NO_ANSWER = FaultKind("no_answer", "whose last turn is not the assistant's")
NOT_TRAINED = FaultKind("not_supported", "that say what cannot be trained (tools, weights of turns)")

_ROLES = {
    "messages": {"system": "system", "user": "user", "assistant": "assistant"},
    "sharegpt": {
        "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
        "assistant": "assistant",
    },
}  # fmt: skip
"""Roles by their names in a format."""
_RECORD_KEYS = ("tools", "functions", "function_call", "tool_choice")
_TURN_KEYS = ("weight", "tool_calls", "tool_call_id", "function_call", "refusal", "audio", "name")
"""Keys that a chat is not to have, unless they are empty: they would be dropped silently."""


class _Wrong(Exception):
    """What is wrong with a record; `text` says it for a person."""

    def __init__(self, kind: FaultKind, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


def _object(value: Any, keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(NO_CHAT, f"expected an object, found {_shown(value)}")
    for key in keys:
        if value.get(key) not in (None, "", [], {}):
            raise _Wrong(NOT_TRAINED, f"{key}: {_shown(value[key])}")
    return value


def _shown(value: Any) -> str:
    return excerpt(value if isinstance(value, str) else repr(value), 60)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Wrong(NO_TEXT, f"{where}: expected text, found {_shown(value)}")
    if has_surrogate(value):
        raise _Wrong(UTF8, f"{where}: half of a surrogate pair in {_shown(value)}")
    return value.strip()


# ---------------------------------------------------------------------------------------------- turns


def _turns(value: Any, names: tuple[str, str], roles: Mapping[str, str]) -> list[tuple[str, str]]:
    """(role, text) of each turn of a list; `names` are its keys for role and text."""
    if not isinstance(value, list) or not value:
        raise _Wrong(NO_CHAT, f"expected a list of turns, found {_shown(value)}")
    return [_turn(number, turn, names, roles) for number, turn in enumerate(value, start=1)]


def _turn(number: int, value: Any, names: tuple[str, str], roles: Mapping[str, str]) -> tuple[str, str]:
    role_key, text_key = names
    turn = _object(value, _TURN_KEYS)
    if turn.get(role_key) in (None, ""):
        raise _Wrong(MISSING_ROLE, f"turn {number} has no {role_key!r}: {_shown(turn)}")
    name = turn[role_key]
    if not isinstance(name, str) or name not in roles:
        raise _Wrong(UNKNOWN_ROLE, f"turn {number} is of {_shown(name)}; expected one of {', '.join(roles)}")
    text = _text(turn.get(text_key), f"turn {number}, {text_key}")
    if not text:
        raise _Wrong(EMPTY_TURN, f"turn {number} ({name}) is empty")
    return roles[name], text


def _row(line: int, turns: list[tuple[str, str]]) -> UserRow:
    """The row of a chat whose turns all have a role and a text."""
    system = turns[0][1] if turns[0][0] == "system" else ""
    said = turns[1:] if system else turns
    for number, (role, _) in enumerate(said, start=2 if system else 1):
        if role == "system":
            raise _Wrong(SYSTEM_TURNS, f"turn {number} is a system turn")
    if not said:
        raise _Wrong(NO_ANSWER, "there is only a system turn")
    if said[0][0] == "assistant":
        raise _Wrong(ASSISTANT_FIRST, f"the assistant begins: {_shown(said[0][1])}")
    for number, ((role, _), (after, _)) in enumerate(pairwise(said), start=3 if system else 2):
        if role == after:
            raise _Wrong(ALTERNATION, f"turn {number} is the {role}'s again")
    if said[-1][0] != "assistant":
        raise _Wrong(NO_ANSWER, f"the last turn is the user's: {_shown(said[-1][1])}")
    history = [Message("user" if role == "user" else "assistant", text) for role, text in said[:-2]]
    return UserRow(line, said[-2][1], said[-1][1], system, tuple(history))


# ---------------------------------------------------------------------------------------------- formats


def _messages(record: Record) -> UserRow:
    value = _object(record.value, _RECORD_KEYS)
    return _row(record.line, _turns(value.get("messages"), ("role", "content"), _ROLES["messages"]))


def _sharegpt(record: Record) -> UserRow:
    value = _object(record.value, _RECORD_KEYS)
    turns = _turns(value.get("conversations"), ("from", "value"), _ROLES["sharegpt"])
    system = _text(value["system"], "system") if value.get("system") is not None else ""
    return _row(record.line, [("system", system), *turns] if system else turns)


def _alpaca(record: Record) -> UserRow:
    value = _object(record.value, _RECORD_KEYS)
    texts = {key: _text(value.get(key) or "", key) for key in ("instruction", "input", "output", "system")}
    history = value.get("history") or []
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise _Wrong(NO_CHAT, f"history: expected pairs [question, answer], found {_shown(history)}")
    said = [_text(text, "history") for pair in history for text in pair]
    if not all(said):
        raise _Wrong(EMPTY_TURN, "history has an empty turn")
    turns = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(said))
    prompt = "\n".join(filter(None, (texts["instruction"], texts["input"])))
    if not prompt or not texts["output"]:
        raise _Wrong(MISSING_TARGET if prompt else EMPTY_PROMPT, _shown(value))
    return UserRow(record.line, prompt, texts["output"], texts["system"], turns)


def _checked(row: UserRow) -> UserRow | Fault:
    """A row, or its fault: texts of a chat may have several lines, and else no control characters."""
    texts = [row.prompt, row.target, row.system, *(turn.content for turn in row.history)]
    kind = CONTROL if any(has_control(re.sub(r"[\n\t]", " ", text)) for text in texts) else None
    kind = kind or (HEADER if is_header(row.prompt, row.target) else None)
    return Fault(row.line, kind, f"{_shown(row.prompt)} → {_shown(row.target)}", row) if kind else row


def _read_record(record: Record, read: Callable[[Record], UserRow]) -> UserRow | Fault:
    try:
        return _checked(read(record))
    except _Wrong as wrong:
        return Fault(record.line, wrong.kind, wrong.text)


def parse(data: bytes, read: Callable[[Record], UserRow]) -> UserFile:
    """Parse a file's bytes by a reader of records."""
    rows: list[UserRow] = []
    faults: list[Fault] = []
    for record in read_records(data):
        found = record if isinstance(record, Fault) else _read_record(record, read)
        rows.append(found) if isinstance(found, UserRow) else faults.append(found)
    return UserFile(tuple(rows), tuple(faults), (), data.count(b"\n") + bool(data and not data.endswith(b"\n")))


def _register(name: str, keys: tuple[str, ...], row: str, read: Callable[[Record], UserRow]) -> None:
    def recognises(data: bytes) -> bool:
        return has_keys(data, *keys)

    suffixes = (".jsonl", ".json", ".ndjson")
    ROW_FORMATS.register(name, RowFormat(name, suffixes, row, partial(parse, read=read), recognises))


_register("messages", ("messages",), '{"messages": [{"role": …, "content": …}, …]}', _messages)
_register("sharegpt", ("conversations",), '{"conversations": [{"from": …, "value": …}, …]}', _sharegpt)
_register("alpaca", ("instruction", "output"), '{"instruction": …, "input": …, "output": …}', _alpaca)
