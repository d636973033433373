"""Conversations, scripts, the terminal, and the commands: in process, and on a pseudo-terminal under the guard."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgod.chat import Chat, ChatSettings
from fgod.cli import parse
from fgod.cli.command import Guarded
from fgod.cli.work import talk as work
from fgod.cli.work.worker import Worker
from fgod.data.rows import NO_SYSTEM, Message
from fgod.errors import RefusedError, UsageError
from fgod.exporters.write import export
from fgod.guard.predict import TooLargeError
from fgod.importing.gguf import import_gguf
from fgod.model.chats import ChatFormat
from fgod.model.generate import greedy
from fgod.model.load import load_model, load_tokenizer, quiet
from fgod.model.tokenizer import CHAT_TEMPLATE
from fgod.persona import Rule
from fgod.probe.parity import gap, summary
from fgod.system.files import read_json, write_json
from fgod.talk.conversation import Answered, Asking, Conversation, passes_of, system_of
from fgod.talk.opening import Opened, bytes_a_token, check_place, context_of, open_model, predicted, stored_dtype
from fgod.talk.script import failures, read_script
from fgod.talk.terminal import Typed, cache_in_words, facts_in_words, save, typed
from tests.families import family_model
from tests.gguf_files import write_gguf
from tests.tiny_model import tiny_folder

QUESTIONS = ("你是誰", "What is rain", "なに", "Who are you")
REWRITING = CHAT_TEMPLATE.replace("message['role'] +", "message['role'] + ('!' if loop.last else '') +")
"""It marks the last turn."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return speaking_folder(tmp_path_factory.mktemp("tiny") / "base")


def speaking_folder(path: Path) -> Path:
    """A tiny model that says digits alone, of which each is a token: its replies are the tokens of their text."""
    tiny_folder(path, tied=False)
    model, tokenizer = load_model(path), load_tokenizer(path)
    digits = tokenizer.convert_tokens_to_ids([*"0123456789"])
    silent = [token for token in range(model.config.vocab_size) if token not in digits]
    model.lm_head.weight[silent] = 0
    with quiet():
        model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    export(folder, folder.parent / "nvfp4")
    return folder.parent / "nvfp4"


def opened(folder: Path, template: str = CHAT_TEMPLATE, context: int = 1024) -> Opened:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    return Opened(str(folder), load_model(folder), ChatFormat(tokenizer), context)


# Conversations


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, REWRITING], ids=["plain", "rewriting"])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_conversation_with_a_cache_is_that_of_a_full_replay_to_the_bit(
    folder: Path, template: str, system: str
) -> None:
    model = opened(folder, template)
    cached = Conversation(model, Asking(12, system=system))
    replayed = Conversation(model, Asking(12, system=system, replay=True))
    for turn, question in enumerate(QUESTIONS):
        ours, theirs = cached.ask(question), replayed.ask(question)
        assert (ours.text, ours.ids, ours.end) == (theirs.text, theirs.ids, theirs.end)
        assert theirs.cached_tokens == 0 and (ours.cached_tokens > 0) == (turn > (template == REWRITING))
        assert (ours.rewritten_at is not None) == (turn > 0 and template == REWRITING)
        assert cached.session.passes == replayed.session.passes
        for one, other in zip(cached.session.cache.layers, replayed.session.cache.layers, strict=True):
            there = cached.session.tokens
            assert torch.equal(one.keys[:, :, :there], other.keys[:, :, :there])
            assert torch.equal(one.values[:, :, :there], other.values[:, :, :there])
    assert cached.messages() == replayed.messages()


def test_only_what_is_new_is_computed(folder: Path) -> None:
    talk = Conversation(opened(folder), Asking(6))
    first = talk.ask("你是誰")
    second = talk.ask("なに")
    # all but the last token of a reply that was cut has been read
    assert second.cached_tokens == first.prompt_tokens + len(first.ids) - (first.end != "end")


def test_a_first_reply_is_that_of_transformers_generate(folder: Path) -> None:
    model = opened(folder)
    for question, theirs in zip(QUESTIONS, greedy(model.model, model.chat, QUESTIONS, 12), strict=True):
        shown: list[str] = []
        ours = Conversation(opened(folder), Asking(12)).ask(question, shown.append)
        assert (ours.text, ours.end == "end") == (theirs.text, theirs.ended)
        assert "".join(shown) == ours.text
        assert ours.ids == (theirs.token_ids[:-1] if theirs.ended else theirs.token_ids)


def test_the_passes_of_a_chat_are_its_prompt_and_replies_are_single_tokens(folder: Path) -> None:
    chat = opened(folder).chat
    turns = (Message("user", "hi"), Message("assistant", "abc"), Message("user", "你"))
    passes = passes_of(chat, Chat(turns))
    assert [token for one in passes for token in one] == chat.prompt_ids(Chat(turns))
    reply = chat.tokenizer.encode("abc", add_special_tokens=False)
    assert passes[1:-1] == [(token,) for token in reply] and min(len(passes[0]), len(passes[-1])) > 1


def test_a_prompt_beyond_the_context_is_refused_and_not_remembered(folder: Path) -> None:
    talk = Conversation(opened(folder, context=40), Asking(5))
    with pytest.raises(UsageError, match=r"the prompt has \d+ tokens .*the context of .*base is 40"):
        talk.ask("x y " * 40)
    assert talk.turns == [] and talk.session.tokens == 0
    assert talk.ask("hi").end == "max_tokens"


@pytest.mark.parametrize("text", ["hi \ud800", "hi \udcff"])
def test_what_is_no_text_is_refused(folder: Path, text: str) -> None:
    talk = Conversation(opened(folder), Asking(5))
    with pytest.raises(UsageError, match=r"the prompt: found 'hi \\ud.*', expected text"):
        talk.ask(text)
    talk.system = text
    with pytest.raises(UsageError, match=r"the system prompt: found .*expected text"):
        talk.ask("hi")
    assert talk.turns == [] and talk.session.tokens == 0


def test_a_reply_ends_where_the_context_does(folder: Path) -> None:
    model = opened(folder, context=30)
    answer = Conversation(model, Asking(500)).ask("hi")
    assert answer.end == "context" and answer.prompt_tokens + len(answer.ids) == 31


def test_what_was_said_can_be_forgotten(folder: Path) -> None:
    talk = Conversation(opened(folder), Asking(5))
    first = talk.ask("hi")
    talk.ask("你是誰")
    talk.reset()
    again = talk.ask("hi")
    assert again.ids == first.ids and again.cached_tokens == 0 and len(talk.turns) == 2


def test_system_prompts(folder: Path) -> None:
    assert system_of(None) == "" and system_of("") == system_of(" ") == NO_SYSTEM and system_of("x") == "x"
    talk = Conversation(opened(folder), Asking(2, system="Be brief."))
    talk.ask("hi")
    assert [one["role"] for one in talk.messages()] == ["system", "user", "assistant"]


# Opening


def test_what_cannot_be_opened_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"none: no such folder or file, expected a model folder, a \.gguf or a \.dat file"
    ):
        check_place(tmp_path / "none")
    (tmp_path / "run" / "nvfp4").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"run: found no config\.json, expected a model folder$"):
        check_place(tmp_path / "run")
    (tmp_path / "run" / "nvfp4" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"found no config\.json, expected a model folder: .*run/nvfp4\?"):
        check_place(tmp_path / "run")
    with pytest.raises(UsageError, match="max_position_embeddings: found None"):
        context_of(tmp_path, {})
    with pytest.raises(UsageError, match="dtype: found 'int4', expected one of float16, float32, bfloat16"):
        stored_dtype(tmp_path, {"dtype": "int4"})
    assert stored_dtype(tmp_path, {"torch_dtype": "float16"}) == torch.bfloat16


def test_a_folder_without_a_template_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="chat_template: found none"):
        open_model(folder, "stored", "cpu", ChatSettings())


def test_an_export_has_no_training_forward(exported: Path) -> None:
    with pytest.raises(UsageError, match="quantization_config"):
        open_model(exported, "training", "cpu", ChatSettings())


def test_weights_are_predicted_and_counted(folder: Path) -> None:
    model = open_model(folder, "stored", "cpu", ChatSettings()).model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert predicted(folder, "stored", 64, 0, gpu=False)["weights"] == weights
    assert predicted(folder, "training", 64, 0, gpu=False)["rounded weights"] == weights
    # of the embedding [304, 32] a line; the cache of 10 tokens: 2 layers, keys and values of 1 head of 16; float32
    assert bytes_a_token(model, 10) == weights - 303 * 32 * 4 + 10 * 2 * 2 * 16 * 4
    assert bytes_a_token(model, 10, rows=3) - bytes_a_token(model, 10) == 2 * (32 * 4 + 10 * 2 * 2 * 16 * 4)
    tied = load_model(tiny_folder(folder.parent / "tied"))
    weights = sum(parameter.nbytes for parameter in tied.parameters())
    assert bytes_a_token(tied, 0) == weights + 32 * 4, "the head reads all of the table"


# Scripts


SCRIPT = """system: Be brief.
turns:
  - user: 你是誰
    expect: {any: [F# 之神, 神], none: 通義}
  - user: hi
    reset: true
"""


def test_scripts_are_read_from_yaml_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SCRIPT)
    script = read_script(tmp_path / "a.yaml")
    assert script.system == "Be brief." and [turn.line for turn in script.turns] == [3, 5]
    assert script.turns[0].expect == Rule(any=("F# 之神", "神"), none=("通義",)) and script.turns[1].reset
    lines = [{"user": "你是誰", "expect": {"any": ["F# 之神", "神"], "none": ["通義"]}}, {"user": "hi", "reset": True}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    turns = read_script(tmp_path / "a.jsonl").turns
    assert [turn.expect for turn in turns] == [turn.expect for turn in script.turns]
    assert [turn.line for turn in turns] == [1, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- user: hi\n  expect: {alll: [x]}\n", r"a\.yaml:2: expect\.alll: unknown key \(did you mean all\?\)"),
        ("- user: hi\n  expect:\n    any:\n      - 3\n", r"a\.yaml:3: expect\.any: found '\[3\]', expected a text"),
        ("- user: hi\n  expect: hello\n", r"a\.yaml:2: expect: found 'hello', expected marks"),
        ("- user: hi\n- ask: you\n", r"a\.yaml:2: ask: unknown key"),
        ("- user: hi\n- expect: {all: x}\n", r"a\.yaml:2: user: found 'None', expected the text of a question"),
        ("- user: hi\n  reset: 3\n", r"a\.yaml:2: reset: found '3', expected true or false"),
        ("- hi\n", r"a\.yaml:1: found 'hi', expected a turn"),
        ("turn: []\n", r"a\.yaml:1: turn: unknown key \(did you mean turns\?\)"),
        ("system: [x]\nturns: []\n", r"a\.yaml:1: system: found"),
        ("turns: []\n", r"a\.yaml:1: found no turn"),
        ("- user: [\n", r"a\.yaml:2: not YAML"),
        ("- user: hi\n- user: 2024-13-01\n", r"a\.yaml:2: not YAML: month must be in 1\.\.12"),
        (f"- user: {'9' * 5000}\n", r"a\.yaml:1: not YAML: Exceeds the limit"),
        ("[" * 3000, r"a\.yaml: not YAML: nested too deeply"),
        ("- user: a\0b\n", r"a\.yaml: not YAML: unacceptable character #x0000"),
        ("", r"a\.yaml:1: found 'None', expected a list of turns"),
    ],
)
def test_what_is_wrong_with_a_script_is_said_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_script(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"user": "hi"}\n{"user"\n', r"a\.jsonl:2: not JSON: .* at column 8"),
        ('{"user": "hi"}\n' + "[" * 100000, r"a\.jsonl:2: not JSON: nested too deeply"),
        ('{"user": "hi \\ud800"}', r"a\.jsonl:1: user: found 'hi \\ud800', expected the text of a question"),
        (f'{{"user": {"9" * 5000}}}', r"a\.jsonl:1: not JSON: Exceeds the limit"),
        ('{"user": "hi"}\n{"user": "x", "expect": {"some": "y"}}\n', r"a\.jsonl:2: expect\.some: unknown key"),
        ("\n", r"a\.jsonl:1: found no turn"),
    ],
)
def test_what_is_wrong_with_jsonl_is_said_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_script(tmp_path / "a.jsonl")


def test_a_script_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: cannot be read: No such file"):
        read_script(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_bytes(b"- user: \xff\n")
    with pytest.raises(UsageError, match=r"a\.yaml: not UTF-8 at byte 8"):
        read_script(tmp_path / "a.yaml")


WORDS = st.lists(st.sampled_from(["神", "F# 之神", "a b", "通義"]), max_size=2).map(tuple)


@given(WORDS, WORDS, WORDS, st.text(alphabet="神F# 之通義aAb", max_size=12))
def test_marks_fail_where_the_rule_does_not_accept(
    every: tuple[str, ...], some: tuple[str, ...], none: tuple[str, ...], reply: str
) -> None:
    rule = Rule(every, some, none)
    assert (failures(rule, reply) == []) == rule.accepts(reply)


# The terminal


def test_lines_are_commands_or_questions() -> None:
    assert typed(" 你是誰 \n") == Typed("", "你是誰") and typed("//etc\n") == Typed("", "/etc")
    assert typed("/system Be brief.") == Typed("/system", "Be brief.") and typed("/quit") == Typed("/quit", "")
    with pytest.raises(UsageError, match=r"/rest: no such command \(did you mean /reset\?\)"):
        typed("/rest")
    with pytest.raises(UsageError, match="/save: found no file"):
        typed("/save ")


def test_messages_are_saved_as_jsonl(folder: Path, tmp_path: Path) -> None:
    talks = [Conversation(opened(folder), Asking(3, system=system)) for system in ("Be brief.", "")]
    with pytest.raises(UsageError, match="nothing was said yet"):
        save(tmp_path / "said.jsonl", talks)
    for one in talks:
        one.ask("hi")
    save(tmp_path / "said.jsonl", talks)
    with pytest.raises(UsageError, match=r"/save: .*said\.jsonl/x cannot be written"):
        save(tmp_path / "said.jsonl" / "x", talks)
    first, second = map(json.loads, (tmp_path / "said.jsonl").read_text().splitlines())
    assert [one["role"] for one in first["messages"]] == ["system", "user", "assistant"]
    assert second["messages"][-1] == {"role": "assistant", "content": talks[1].turns[-1].content}


def test_facts_are_said_in_words() -> None:
    answer = Answered("x", (1, 2), "max_tokens", 20, 12, None, 0.5, 10.0)
    assert facts_in_words(answer) == "[2 tokens, first after 0.50 s, then 10.0 tokens/s; cut at --max-tokens]"
    assert cache_in_words(answer) == "12 of 20 tokens were cached"


# Parity


def test_a_gap_is_its_definition() -> None:
    a = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    b = a.clone()
    b[1] = torch.tensor([3.0, 3.5, 0.0])
    found = gap("?", a, b, 1)
    assert (found.largest, found.largest_at, found.mean) == (3.5, 1, pytest.approx(3.5 / 9))
    assert (found.differs_at, found.token_ids) == (1, (0, 1))
    assert found.cosine == pytest.approx(9 / (3 * (9 + 3.5**2) ** 0.5))
    same = gap("?", a, a, 1)
    assert same.largest == 0 and same.differs_at is None and "equal to the bit" in summary([same])
    broken = gap("?", a, a / 0, 1)
    assert not broken.finite and broken.facts()["largest"] is None
    assert "prompt 2, token 1 of its reply" in summary([same, found])


# The commands, in process


def parsed(tmp_path: Path, *words: str) -> tuple[Any, Worker]:
    args = parse(words)
    assert isinstance(args, Guarded)
    return args, Worker(tmp_path / "report.json", args.guard.limit_gb, args.too_large_ok)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_questions_are_answered_each_by_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work.ask(*parsed(tmp_path, "ask", str(folder), "hi", "你是誰", "hi", "--max-tokens", "4", "--json"))
    first, second, third = said(capsys)
    assert first["prompt"] == "hi" and second["cached_tokens"] == 0 and first["token_ids"] == third["token_ids"]
    work.ask(*parsed(tmp_path, "ask", str(folder), "hi", "--max-tokens", "4"))
    shown = capsys.readouterr()
    assert shown.out == first["reply"] + "\n" and "\n[4 tokens, first after " in shown.err


def test_a_gguf_file_is_asked_as_what_is_imported_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "a.gguf", family_model("qwen3"))
    import_gguf(tmp_path / "a.gguf", tmp_path / "imported")
    for place in ("a.gguf", "imported"):
        work.ask(*parsed(tmp_path, "ask", str(tmp_path / place), "hi", "--max-tokens", "5", "--json"))
    ours, theirs = said(capsys)
    assert ours["token_ids"] == theirs["token_ids"] and ours["model"] == str(tmp_path / "a.gguf")


def test_drawn_replies_are_those_of_their_seed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["ask", str(folder), "hi", "--max-tokens", "12", "--json", "--temperature", "2", "--top-k", "200"]
    for seed in ("1", "1", "2"):
        work.ask(*parsed(tmp_path, *drawn, "--seed", seed))
    first, again, other = (one["token_ids"] for one in said(capsys))
    assert first == again != other


def test_training_and_export_are_equal_to_the_bit(
    folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["parity", str(folder), str(exported), "--path-a", "training", "--max-tokens", "6"]
    work.parity(*parsed(tmp_path, *same, "--limit", "0", "--json"))
    [found] = said(capsys)
    assert all(one["largest"] == 0 and one["differs_at"] is None for one in found["prompts"])
    with pytest.raises(RefusedError, match="differ by more than --limit 0: largest difference"):
        work.parity(*parsed(tmp_path, "parity", str(folder), str(exported), "--limit", "0"))
    assert "first differing greedy token" in capsys.readouterr().out
    work.ask(*parsed(tmp_path, "ask", str(folder), "hi", "--path", "training", "--max-tokens", "5", "--json"))
    work.ask(*parsed(tmp_path, "ask", str(exported), "hi", "--max-tokens", "5", "--json"))
    training, stored = said(capsys)
    assert training["token_ids"] == stored["token_ids"]


def test_models_of_other_vocabularies_are_not_compared(folder: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other")
    model = load_model(other)
    with quiet():
        model.resize_token_embeddings(320)
        model.save_pretrained(other)
    with pytest.raises(UsageError, match=r"a vocabulary of 320 tokens, and .* has one of 304"):
        work.parity(*parsed(tmp_path, "parity", str(folder), str(other)))


def test_prompts_of_a_file_are_its_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("你是誰\n\n hi \n")
    assert work.prompts_of(tmp_path / "p.txt") == ["你是誰", "hi"] and len(work.prompts_of(None)) == 5
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(UsageError, match="found no prompt"):
        work.prompts_of(tmp_path / "p.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        work.prompts_of(tmp_path / "none")


def test_a_script_says_what_is_not_as_expected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("- user: hi\n  expect: {all: [zzz]}\n- user: 你是誰\n  expect: {none: [zzz]}\n")
    words = ["chat", str(folder), "--script", str(tmp_path / "a.yaml"), "--max-tokens", "3", "--json"]
    with pytest.raises(RefusedError, match=r"1 marks.*\n.*a\.yaml:1: 'hi': all: 'zzz' is missing"):
        work.chat(*parsed(tmp_path, *words))
    first, second = said(capsys)
    assert first["failed"] == ["all: 'zzz' is missing"] and second["failed"] == [] and second["cached_tokens"] > 0


def test_two_models_answer_side_by_side(
    folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("- user: hi\n")
    words = ["chat", str(folder), "--against", str(exported), "--script", str(tmp_path / "a.yaml"), "--max-tokens", "3"]
    work.chat(*parsed(tmp_path, *words, "--json"))
    assert [one["model"] for one in said(capsys)] == [str(folder), str(exported)]
    work.chat(*parsed(tmp_path, *words))
    shown = capsys.readouterr()
    assert "│" in shown.out and f"{exported}: [3 tokens" in shown.err


def test_what_is_wrong_with_a_line_is_said_and_the_next_is_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "said.jsonl"
    typed_lines = [
        "/oops",
        "",
        "hi",
        "/reset",
        "hi",
        "/system Be brief.",
        "hi",
        f"/save {file}",
        "/help",
        "/quit",
        "hi",
    ]
    monkeypatch.setattr(work, "lines_of", lambda stream: iter(typed_lines))
    work.chat(*parsed(tmp_path, "chat", str(folder), "--max-tokens", "3", "--verbose"))
    shown = capsys.readouterr()
    assert "/oops: no such command" in shown.err and len(shown.out.splitlines()) == 3
    assert json.loads(file.read_text())["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "tokens were cached" in shown.err


def test_the_device_is_a_gpu_with_room_or_else_the_cpu_and_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, worker = parsed(tmp_path, "ask", str(folder), "1")
    assert args.device == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args.work()(worker)
    cpu = f"fgod: computes on the CPU with {torch.get_num_threads()} threads: "
    assert next(line for line in capsys.readouterr().err.splitlines() if "computes on" in line).startswith(cpu)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert work.chosen(dict, worker) == "cpu"
    assert capsys.readouterr().err == f"{cpu}no GPU is free, or CUDA_VISIBLE_DEVICES hides them\n"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (3 << 20, 8 << 20))
    for room, device, said in (
        ("8", "cuda", "fgod: computes on H100\n"),
        ("1", "cpu", f"{cpu}2 MiB are predicted, and 1 MiB may be used of H100\n"),
    ):
        monkeypatch.setattr(worker, "limit", lambda gpu, room=room: int(room) << 20)
        assert work.chosen(lambda: {"weights": 2 << 20}, worker) == device
        assert capsys.readouterr().err == said


def test_what_does_not_fit_is_refused_before_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    config = read_json(folder / "config.json")
    large = tiny_folder(tmp_path / "large")
    write_json(large / "config.json", {**config, "max_position_embeddings": 2**40})
    with pytest.raises(TooLargeError, match=r"KV cache .* Nothing was loaded"):
        work.ask(*parsed(tmp_path, "ask", str(large), "hi", "--max-tokens", str(2**30), "--limit-gb", "2"))


# Under the guard, on a pseudo-terminal


def test_a_person_talks_with_weights_under_the_guard(folder: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "fgod", "chat", str(folder), "--max-tokens", "4"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True)
    os.close(theirs)
    shown = ""

    def wait_for(text: str, times: int = 1) -> None:
        nonlocal shown
        end = time.monotonic() + 240
        while shown.count(text) < times:
            assert time.monotonic() < end and process.poll() is None, shown
            if select.select([ours], [], [], 1.0)[0]:
                shown += os.read(ours, 4096).decode(errors="replace")

    wait_for("> ")
    os.write(ours, "你是誰\n".encode())
    wait_for("tokens/s")
    os.write(ours, b"/save said.jsonl\n/quit\n")
    wait_for("saved: said.jsonl")
    assert process.wait(60) == 0, shown
    os.close(ours)
    messages = json.loads((tmp_path / "said.jsonl").read_text())["messages"]
    assert messages[0] == {"role": "user", "content": "你是誰"} and messages[1]["role"] == "assistant"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["said.jsonl"], "nothing else was written"
