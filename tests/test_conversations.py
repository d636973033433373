"""Row formats of chats: messages, ShareGPT and Alpaca, as JSONL and as arrays; their faults by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod.data.audit import audit_file
from fgod.data.formats import UserFile, UserRow, UserSource, format_of, read_user_file, user_rows
from fgod.data.rows import Message
from fgod.errors import UsageError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
TURNS = (Message("user", "Hi"), Message("assistant", "Hello."))
CHAT = UserRow(1, "Who are you?", "I am X.", "Be kind.", TURNS)
SAME_CHAT: dict[str, dict[str, Any]] = {
    "messages": {"messages": [SYSTEM, user("Hi"), bot("Hello."), user("Who are you?"), bot("I am X.")]},
    "sharegpt": {
        "id": "a1",
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": "Who are you?"},
            {"from": "gpt", "value": " I am X.\n"},
        ],
    },
    "alpaca": {
        "instruction": "Who are you?", "input": "", "output": "I am X.", "system": "Be kind.",
        "history": [["Hi", "Hello."]],
    },
}  # fmt: skip


def written(path: Path, *records: Any, indent: int | None = None) -> Path:
    """The records as JSONL, or as one array in a file that ends in .json."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=indent), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def faults(parsed: UserFile) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in parsed.faults]


@pytest.mark.parametrize("name", SAME_CHAT)
@pytest.mark.parametrize("file", ["chats.jsonl", "chats.json"])
def test_the_same_chat_in_every_format(tmp_path: Path, name: str, file: str) -> None:
    path = written(tmp_path / file, SAME_CHAT[name])
    assert format_of(path, path.read_bytes()).name == name
    assert read_user_file(path).rows == (CHAT,) and not read_user_file(path).faults


def test_single_exchanges(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"instruction": "Add.", "input": "1 + 1", "output": "2"})
    assert read_user_file(path).rows == (UserRow(1, "Add.\n1 + 1", "2"),)
    path = written(tmp_path / "m.jsonl", {"messages": [user("Hi\n  there"), bot("Hello.")]})
    assert read_user_file(path).rows == (UserRow(1, "Hi\n  there", "Hello."),)


def test_rows_of_an_array_know_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.json", *[SAME_CHAT["messages"]] * 3, indent=1)
    lines = path.read_text().splitlines()
    found = [row.line for row in read_user_file(path).rows]
    assert [lines[number - 1] for number in found] == [" {"] * 3 and len(set(found)) == 3
    path.write_text("[]")
    assert read_user_file(written(tmp_path / "e.jsonl", []), "messages").rows == ()
    assert audit_file(path, source=UserSource(path, "alpaca")).codes() == {"empty"}


BROKEN: list[tuple[Any, str, str]] = [
    ([], "record", "expected a list of turns"),
    ({"messages": "hello"}, "record", "expected a list of turns, found hello"),
    ([{"content": "hi"}, bot("ho")], "missing_role", "turn 1 has no 'role'"),
    ([user("hi"), {"role": "tool", "content": "4"}], "unknown_role", "turn 2 is of tool; expected one of system, user"),
    ([user("hi"), {"role": "assistant", "content": None}], "content", "turn 2, content: expected text, found None"),
    ([{"role": "user", "content": [{"type": "image"}]}, bot("ho")], "content", "turn 1, content: expected text"),
    ([user("hi"), bot("  \n")], "empty_turn", "turn 2 (assistant) is empty"),
    ([{"role": "system", "content": ""}, user("hi"), bot("ho")], "empty_turn", "turn 1 (system) is empty"),
    ([SYSTEM, SYSTEM, user("hi"), bot("ho")], "system_turns", "turn 2 is a system turn"),
    ([user("hi"), bot("ho"), SYSTEM, user("hi"), bot("ho")], "system_turns", "turn 3 is a system turn"),
    ([bot("Welcome."), user("hi"), bot("ho")], "assistant_first", "the assistant begins: Welcome."),
    ([user("hi"), user("you"), bot("ho")], "alternation", "turn 2 is the user's again"),
    ([SYSTEM, user("hi"), bot("ho"), bot("ha")], "alternation", "turn 4 is the assistant's again"),
    ([user("hi"), bot("ho"), user("hm")], "no_answer", "the last turn is the user's: hm"),
    ([SYSTEM], "no_answer", "there is only a system turn"),
    ([user("hi"), {**bot("ho"), "weight": 0}], "not_supported", "weight: 0"),
    ({"messages": [user("hi"), bot("ho")], "tools": [{"type": "function"}]}, "not_supported", "tools:"),
    ([user("h\u200bi"), bot("ho")], "control", "h\\u200bi → ho"),
    ([user("prompt"), bot("target")], "header", "prompt → target"),
    ([user("\ud800"), bot("ho")], "utf8", "half of a surrogate pair"),
]


@pytest.mark.parametrize(
    ("record", "code", "text"), BROKEN, ids=[f"{code}{i}" for i, (_, code, _) in enumerate(BROKEN)]
)
def test_each_fault_is_named_by_its_line(tmp_path: Path, record: Any, code: str, text: str) -> None:
    record = record if isinstance(record, dict) else {"messages": record}
    good = {"messages": [user("hi"), bot("ho")]}
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(f"{json.dumps(r)}\n" for r in (good, record, good)))
    parsed = read_user_file(path)
    assert faults(parsed) == [(2, code)] and text in parsed.faults[0].text and len(parsed.rows) == 2
    assert {finding.code for finding in audit_file(path).errors} == {code}


def test_all_faults_are_listed_and_no_row_is_given(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    good = json.dumps({"messages": [user("hi"), bot("ho")]})
    path.write_bytes(
        f'{good}\n{{"messages": [\n\n{good} {good}\n{{"messages": [], "messages": []}}\n'.encode()
        + b'{"messages": "\xff"}\n'
    )
    with pytest.raises(UsageError) as refused:
        user_rows(UserSource(path), "mine")
    said = str(refused.value).splitlines()
    assert [line.split(": ")[0].rpartition(":")[2] for line in said[:-1]] == ["2", "4", "5", "6"]
    assert "json: Expecting value at column 15" in said[0] and "more follows after column" in said[1]
    assert "the key 'messages' stands twice" in said[2] and "utf8" in said[3] and "fgod data audit" in said[-1]
    path.write_text("".join(f"{good}\n{{\n" for _ in range(30)))
    with pytest.raises(UsageError, match="and 20 more lines"):
        user_rows(UserSource(path), "mine")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[\n{"instruction": "a", "output": "b"},\n]', 3, "Expecting value"),
        ('[{"instruction": "a", "output": "b"}\n{"instruction": "c"}]', 2, "Expecting ',' or the end of the array"),
        ('[{"instruction": "a", "output": "b"}]\nmore', 2, "More after the end"),
        ('[{"instruction": "a", "output": "b"},\n{"instruction": "c"', 2, "Expecting ',' delimiter"),
        ('[{"instruction": "a", "output": "b"}', 1, "Expecting ',' or the end of the array"),
    ],
)
def test_a_broken_array_is_named_by_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    parsed = read_user_file(path)
    assert faults(parsed) == [(line, "json")] and parsed.faults[0].text.startswith(reason)


def test_faults_of_alpaca_and_sharegpt(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", {"instruction": "a", "output": ""}, {"instruction": "", "output": "b"},
        {"instruction": "a", "output": "b", "history": [["only one"]]}, {"instruction": 1, "output": "b"},
        {"instruction": "a", "output": "b", "history": [["q", ""]]},
    )  # fmt: skip
    codes = ["missing_target", "empty_prompt", "record", "content", "empty_turn"]
    assert faults(read_user_file(path)) == list(enumerate(codes, start=1))
    chat = [{"from": "human", "value": "hi"}, {"from": "function_call", "value": "{}"}, {"from": "gpt", "value": "ho"}]
    path = written(tmp_path / "s.jsonl", {"conversations": chat}, {"conversations": [{"value": "hi"}]})
    assert faults(read_user_file(path)) == [(1, "unknown_role"), (2, "missing_role")]


def test_the_format_may_be_named_and_what_is_learned_is_the_sources(tmp_path: Path) -> None:
    path = written(tmp_path / "chats.txt", SAME_CHAT["messages"], {"messages": [user("hi"), bot("ho")]})
    long, short = user_rows(UserSource(path, "messages", "all"), "mine")
    assert (long.loss_on, long.system, long.history) == ("all", "Be kind.", TURNS)
    assert short.plain, "a single exchange has one answer, whatever is learned of longer chats"
    with pytest.raises(UsageError, match=r"no row format 'mesages' \(did you mean messages\?\)"):
        user_rows(UserSource(path, "mesages"), "mine")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("你ab \n\x00", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "messages", "instruction", "output", "history"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(JSON, max_size=4), st.binary(max_size=20), st.sampled_from(["messages", "sharegpt", "alpaca"]))
def test_no_reader_ever_fails(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], more: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_bytes("".join(json.dumps(r) + "\n" for r in records).encode() + more)
    parsed = read_user_file(path, name)
    assert all(1 <= found.line <= parsed.lines for found in (*parsed.rows, *parsed.faults))
