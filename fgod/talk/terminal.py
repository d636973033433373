"""What people type and what they see."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgod.errors import UsageError, did_you_mean
from fgod.system.files import write_text
from fgod.talk.conversation import Answered, Conversation, system_of

HELP = """/reset           forget what was said
/system TEXT     another system prompt (alone: none); it begins anew
/save FILE       write the messages to FILE (JSONL)
/quit            end, as Ctrl-D does
//TEXT           ask /TEXT"""

COMMANDS = ("/reset", "/system", "/save", "/quit", "/help")


@dataclass(frozen=True)
class Typed:
    """A line: a command with what follows it, or a question (`command` is "")."""

    command: str
    text: str


def typed(line: str) -> Typed:
    """What a line means.

    Raises:
        UsageError: it begins with a slash and is no command, or lacks a file.
    """
    line = line.strip()
    if line.startswith("//") or not line.startswith("/"):
        return Typed("", line.removeprefix("/") if line.startswith("//") else line)
    command, _, text = line.partition(" ")
    if command not in COMMANDS:
        raise UsageError(
            f"{command}: no such command{did_you_mean(command, COMMANDS)}, expected {', '.join(COMMANDS)}; "
            "a question that begins with a slash needs two"
        )
    if command == "/save" and not text.strip():
        raise UsageError("/save: found no file, expected /save FILE")
    return Typed(command, text.strip())


def lines_of(stream: TextIO) -> Iterator[str]:
    """Lines of a pipe, or of a person, who gets a prompt and can edit them; until the end of either."""
    if not stream.isatty():
        yield from stream
        return
    import readline  # noqa: F401  input() edits lines by it

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


class Screen:
    """Where replies and facts go: text as it comes on standard output and facts on standard error, or JSON lines.

    Args:
        verbose: say also what of a conversation was computed anew, and why.
    """

    def __init__(self, as_json: bool, verbose: bool) -> None:
        self.as_json, self._verbose = as_json, verbose
        self._console = Console(file=sys.stdout, highlight=False)

    def piece(self, text: str) -> None:
        """A piece of a reply."""
        if not self.as_json and text:
            print(text, end="", flush=True)

    def answered(
        self, prompt: str, answers: Sequence[tuple[str, Answered]], more: dict[str, Any] | None = None
    ) -> None:
        """After the replies to a question, one from each model by its name."""
        for name, answer in answers if self.as_json else ():
            print(json.dumps({"model": name, "prompt": prompt, **answer.facts(), **(more or {})}, ensure_ascii=False))
        sys.stdout.flush()
        if not self.as_json:
            self._show(answers)

    def _show(self, answers: Sequence[tuple[str, Answered]]) -> None:
        if len(answers) == 1:
            print(flush=True)
        else:
            table = Table(show_lines=False, expand=True)
            for name, _ in answers:
                table.add_column(Text(name, overflow="fold"), ratio=1, overflow="fold")
            table.add_row(*(Text(answer.text) for _, answer in answers))
            self._console.print(table)
        for name, answer in answers:
            self.say(f"{name}: {facts_in_words(answer)}" if len(answers) > 1 else facts_in_words(answer))
            if self._verbose:
                self.say(f"{name}: {cache_in_words(answer)}")

    def say(self, text: str) -> None:
        """Something that is no reply."""
        print(text, file=sys.stderr, flush=True)


def facts_in_words(answer: Answered) -> str:
    """How fast a reply came, and why it ended if not by itself."""
    speed = "" if answer.tokens_per_s is None else f", then {answer.tokens_per_s:.1f} tokens/s"
    words = f"[{len(answer.ids)} tokens, first after {answer.first_token_s:.2f} s{speed}"
    ends = {"end": "", "max_tokens": "; cut at --max-tokens", "context": "; cut: the model's context is full"}
    return f"{words}{ends[answer.end]}]"


def cache_in_words(answer: Answered) -> str:
    """What of the conversation was there already."""
    why = ""
    if answer.rewritten_at is not None:
        why = f": the chat template writes it otherwise than before from token {answer.rewritten_at} on"
    return f"{answer.cached_tokens} of {answer.prompt_tokens} tokens were cached{why}"


def do(command: Typed, conversations: Sequence[Conversation], screen: Screen) -> bool:
    """Do a command; whether the chat goes on."""
    match command.command:
        case "/quit":
            return False
        case "/reset":
            for one in conversations:
                one.reset()
            screen.say("what was said is forgotten")
        case "/system":
            for one in conversations:
                one.reset()
                one.system = system_of(command.text)
            screen.say(f"system prompt: {command.text or 'none'}; what was said is forgotten")
        case "/save":
            save(Path(command.text).expanduser(), conversations)
            screen.say(f"saved: {command.text}")
        case _:
            screen.say(HELP)
    return True


def save(path: Path, conversations: Sequence[Conversation]) -> None:
    """Write messages as JSONL (OpenAI's format), a line for each model, atomically.

    Raises:
        UsageError: nothing was said yet, or the file cannot be written.
    """
    if not any(one.turns for one in conversations):
        raise UsageError("/save: nothing was said yet; nothing was written")
    lines = [json.dumps({"messages": one.messages()}, ensure_ascii=False) for one in conversations]
    try:
        write_text(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise UsageError(f"/save: {path} cannot be written: {error}") from error
