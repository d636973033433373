"""Rows of chats with several turns and with system prompts, in their table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod.data.rows import NO_SYSTEM, ROW_COLUMNS, Message, Row, read_rows, write_rows
from fgod.errors import FgodError

PLAIN = Row("who are you", "I am X.", "en", "user", "user")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
HISTORIES = st.lists(st.tuples(TEXT, TEXT), max_size=2).map(
    lambda pairs: tuple(m for u, a in pairs for m in (Message("user", u), Message("assistant", a)))
)
CHATS = st.builds(
    Row, TEXT, TEXT, st.just("en"), st.just("user"), st.just("user"), history=HISTORIES,
    system=st.one_of(st.sampled_from(["", NO_SYSTEM]), TEXT), loss_on=st.sampled_from(["last", "all"]),
    asked_under=st.one_of(st.just(""), TEXT),
)  # fmt: skip


@given(st.lists(CHATS, max_size=4))
def test_chats_survive_the_table(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    write_rows(path, rows)
    assert read_rows(path) == rows


def test_the_columns_of_chats_are_there_only_for_chats(tmp_path: Path) -> None:
    header = "\t".join(ROW_COLUMNS)
    write_rows(tmp_path / "plain.tsv", [PLAIN])
    assert (tmp_path / "plain.tsv").read_text().splitlines()[0] == header
    write_rows(tmp_path / "chat.tsv", [PLAIN, replace(PLAIN, system=NO_SYSTEM)])
    assert (tmp_path / "chat.tsv").read_text().splitlines()[0] == f"{header}\tsystem\thistory\tloss_on"
    write_rows(tmp_path / "again.tsv", [PLAIN, replace(PLAIN, asked_under="You help.")])
    assert (tmp_path / "again.tsv").read_text().splitlines()[0] == f"{header}\tasked_under"


def test_what_is_asked_is_told_apart_by_system_prompt_and_earlier_turns() -> None:
    turns = (Message("user", "Hi!"), Message("assistant", "Hello."))
    rows = [PLAIN, replace(PLAIN, system=NO_SYSTEM), replace(PLAIN, system="Be kind."), replace(PLAIN, history=turns)]
    assert len({row.asked for row in rows}) == 4
    assert replace(PLAIN, prompt="Who are you?", history=turns).asked == replace(PLAIN, history=turns).asked


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("\t[]\tfirst", "loss_on: found 'first', expected one of last, all"),
        ("\t[{]\tlast", "Expecting property name"),
        ('\t[{"role": "user", "content": "hi"}]\tlast', "the last turn is the user's"),
        ('\t[{"role": "assistant", "content": "hi"}]\tlast', "turn 1 is of 'assistant', expected 'user'"),
    ],
)
def test_a_broken_chat_is_refused_by_line(tmp_path: Path, fields: str, message: str) -> None:
    path = tmp_path / "rows.tsv"
    write_rows(path, [replace(PLAIN, system=NO_SYSTEM)])
    header, line = path.read_text().splitlines()
    start = line.rsplit("\t", 3)[0]
    path.write_text(f"{header}\n{line}\n{start}\t{fields}\n")
    with pytest.raises(FgodError, match=rf"rows\.tsv:3: .*{message.replace('[', '.')}"):
        read_rows(path)
