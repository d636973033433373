"""Placebo rows: a mix whose taught rows have the base's own greedy answers. What training on them changes is what
training costs, whatever is taught.

Rows, their order and their frames stay; rehearsed rows stay whole. Who answered a row stays too, so that a placebo's
row is learned by the same loss as the row that it stands for. Pure: who is asked comes in from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fgod.chat import Chat
from fgod.data.rows import Message, Row, is_rehearsed
from fgod.errors import FgodError

EMPTY = "the base's answer is empty: a copy of another taught row stands in its place"
SHORTENED = "the base's answer was shortened to train.seq_len"


class Reply(Protocol):
    """What the base says (`fgod.model.generate.Reply`)."""

    @property
    def text(self) -> str: ...
    @property
    def ended(self) -> bool: ...


Ask = Callable[[Sequence[Chat]], Sequence[Reply]]


@dataclass(frozen=True)
class PlaceboRows:
    """Rows, and how many were changed otherwise than by the base's answer: {reason: rows}."""

    rows: list[Row]
    changes: dict[str, int]


def placebo_rows(
    rows: Sequence[Row], ask: Ask, lengths: Callable[[Sequence[Row]], list[int]], most: int
) -> PlaceboRows:
    """The rows with the base's own answers as targets of all that are taught.

    Args:
        ask: greedy replies to distinct chats, in their order.
        lengths: tokens of each row.
        most: tokens that a row may have; a longer answer is cut short.

    Raises:
        FgodError: the base answers nothing at all, or a prompt alone is too long.
    """
    answered = _filled(_answered(rows, ask))
    long = [number for number, tokens in enumerate(lengths(answered.rows)) if tokens > most]
    for number in long:
        answered.rows[number] = _shortened(answered.rows[number], lambda row: lengths([row])[0], most)
    return replace(answered, changes={**answered.changes, **({SHORTENED: len(long)} if long else {})})


def taught_chats(rows: Sequence[Row]) -> list[Chat]:
    """The distinct chats of taught rows up to their last answer, in order."""
    taught = [row for row in rows if not is_rehearsed(row)]
    return list(dict.fromkeys(Chat((*row.history, Message("user", row.prompt)), row.system) for row in taught))


def _answered(rows: Sequence[Row], ask: Ask) -> list[Row | None]:
    """Each row with the base's answers; None where one of them is empty. A row that is learned in all its turns is
    answered turn by turn, each after the base's own answers before it."""
    out: list[Row | None] = list(rows)
    last = max((len(row.history) for row in rows), default=0)
    for turn in range(0, last + 1, 2):
        due = {n: _chat_until(row, turn) for n, row in enumerate(out) if row is not None and _is_due(row, turn)}
        chats = list(dict.fromkeys(due.values()))
        said = dict(zip(chats, ask(chats), strict=True)) if chats else {}
        for number, chat in due.items():
            row = out[number]
            assert row is not None
            out[number] = _with_answer(row, turn, said[chat])
    return out


def _is_due(row: Row, turn: int) -> bool:
    if is_rehearsed(row):
        return False
    return turn == len(row.history) or (row.loss_on == "all" and turn < len(row.history))


def _chat_until(row: Row, turn: int) -> Chat:
    """Up to the user's turn of this number."""
    return Chat((*row.history, Message("user", row.prompt))[: turn + 1], row.system)


def _with_answer(row: Row, turn: int, said: Reply) -> Row | None:
    text = (said.text if said.ended else said.text.rstrip("\ufffd")).strip()
    if not text:
        return None
    if turn == len(row.history):
        return replace(row, target=text, cut=not said.ended)
    return replace(row, history=(*row.history[: turn + 1], Message("assistant", text), *row.history[turn + 2 :]))


def _filled(rows: Sequence[Row | None]) -> PlaceboRows:
    """As many rows as there were: the taught row before one without an answer is used once more, else the first."""
    stand_in = next((row for row in rows if row is not None and not is_rehearsed(row)), None)
    empty = sum(row is None for row in rows)
    if empty and stand_in is None:
        raise FgodError(f"placebo: the base answers none of {empty} taught rows; expected an answer to one at least")
    filled: list[Row] = []
    for row in rows:
        if row is not None and not is_rehearsed(row):
            stand_in = row
        kept = row or stand_in
        assert kept is not None
        filled.append(kept)
    return PlaceboRows(filled, {EMPTY: empty} if empty else {})


def _shortened(row: Row, length: Callable[[Row], int], most: int) -> Row:
    """The row with the longest beginning of its target that fits."""

    def cut_to(size: int) -> Row:
        return replace(row, target=row.target[:size].strip(), cut=True)

    fits, too_long = 0, len(row.target)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if length(cut_to(middle)) <= most else (fits, middle)
    if not cut_to(fits).target:
        raise FgodError(f"placebo: the prompt {row.prompt!r} leaves no room for an answer; train.seq_len is {most}")
    return cut_to(fits)
