"""A user's file: what is a row, what is a fault, and that writing and reading agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod.data.formats import UserRow, UserSource, read_user_file, user_rows
from fgod.data.text import excerpt, guess_language, has_control
from fgod.data.tsv import parse, write_user_tsv
from fgod.errors import UsageError

FIELD = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cf", "Cn", "Co")), min_size=1, max_size=30).map(
    str.strip
)


def faults(text: str | bytes) -> list[tuple[int, str]]:
    data = text.encode() if isinstance(text, str) else text
    return [(fault.line, fault.code) for fault in parse(data).faults]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_parse_never_fails_and_accounts_for_every_line(data: bytes) -> None:
    parsed = parse(data)
    numbers = [row.line for row in parsed.rows] + [f.line for f in parsed.faults if f.code != "comment_with_tab"]
    assert len(numbers) == len(set(numbers))
    assert not set(numbers) & set(parsed.comments)
    assert all(1 <= n <= parsed.lines for n in [*numbers, *parsed.comments])
    for row in parsed.rows:
        assert row.prompt and row.target and not has_control(row.prompt + row.target)
    assert all(excerpt(fault.text, 1000).isprintable() for fault in parsed.faults)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab你#\t\n\r \ufeff\x00\ufffd\u200b"), max_size=60))
def test_parse_of_nasty_text(text: str) -> None:
    parsed = parse(text.encode())
    assert all("\t" not in row.prompt and "\r" not in row.target for row in parsed.rows)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(FIELD, FIELD), max_size=8))
def test_what_is_written_is_read_back_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("tsv") / "rows.tsv"
    try:
        write_user_tsv(path, rows)
    except UsageError:
        assert not path.exists()
        return
    parsed = read_user_file(path)
    assert parsed.faults == () and parsed.comments == ()
    assert parsed.rows == tuple(UserRow(i, p, t) for i, (p, t) in enumerate(rows, start=1))


@pytest.mark.parametrize(
    "row",
    [("a\tb", "c"), ("a\nb", "c"), ("", "c"), ("a", ""), ("# a", "c"), (" a", "c"), ("prompt", "target"), ("a", "\x00"),
     ("a", "b\r"), ("\ufeffa", "b"), ("\ud800", "b")],
)  # fmt: skip
def test_rows_that_the_format_cannot_hold_are_refused(tmp_path: Path, row: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="row 2"):
        write_user_tsv(tmp_path / "x.tsv", [("fine", "row"), row])
    assert list(tmp_path.iterdir()) == []


def test_byte_order_mark_crlf_blank_lines_and_comments() -> None:
    parsed = parse(
        "\ufeff# format: prompt<TAB>target\r\n\r\n你是誰\t我是 F# 之神。\r\n#include 是什麼\t前置處理指令。".encode()
    )
    assert parsed.comments == (1,) and parsed.faults == () and parsed.lines == 4
    assert parsed.rows == (UserRow(3, "你是誰", "我是 F# 之神。"), UserRow(4, "#include 是什麼", "前置處理指令。"))


def test_each_broken_line_is_named_by_its_line() -> None:
    text = "prompt\ttarget\nonly a prompt\na\t\n\tb\na\tb\tc\na\x07\tb\na\t\ufffd\n# x\ty\nok\tok\n"
    assert faults(text) == [
        (1, "header"), (2, "missing_target"), (3, "missing_target"), (4, "empty_prompt"), (5, "fields"),
        (6, "control"), (7, "control"), (8, "comment_with_tab"),
    ]  # fmt: skip
    assert faults("ok\tok\n".encode("utf-16")) != []
    assert faults(b"ok\tok\n\xff\xfe\tx\n") == [(2, "utf8")]


def test_a_user_file_as_a_part_of_a_mix(tmp_path: Path) -> None:
    path = tmp_path / "my.tsv"
    path.write_text("# mine\n你是谁\t我是某某。\nwho are you\tI am X.\n", encoding="utf-8")
    rows = user_rows(UserSource(path), "my_rows")
    assert [(r.prompt, r.language, r.part, r.kind) for r in rows] == [
        ("你是谁", "zh-Hans", "my_rows", "user"),
        ("who are you", "en", "my_rows", "user"),
    ]
    path.write_text("你是誰\t我是某某。\nno target\nnone here\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"my\.tsv:2: missing_target: no target\n.*my\.tsv:3: missing_target: none"):
        user_rows(UserSource(path), "my_rows")
    with pytest.raises(UsageError, match="cannot be read"):
        user_rows(UserSource(tmp_path / "nowhere.tsv"), "my_rows")


@pytest.mark.parametrize(
    ("text", "language"),
    [("你是誰", "zh-Hant"), ("这是什么", "zh-Hans"), ("who are you", "en"), ("あなたは誰", "ja"), ("너는 누구야", "ko"),
     ("學 F#", "zh-Hant"), ("1+1", "en")],
)  # fmt: skip
def test_language_by_script(text: str, language: str) -> None:
    assert guess_language(text) == language
