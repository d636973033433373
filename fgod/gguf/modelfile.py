"""Ollama's Modelfile beside a GGUF file: where the weights are, how chats are written, and what ends an answer.

Ollama does not run the file's chat template, which is a program in Jinja: it has templates of its own, in Go's. One is
written here for ChatML (`<|im_start|>role … <|im_end|>`), if it writes what the model's own template does.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

from fgod.chat import Chat
from fgod.data.rows import Message
from fgod.data.text import excerpt
from fgod.errors import UsageError
from fgod.model.chats import ChatFormat

OPEN, CLOSE = "<|im_start|>", "<|im_end|>\n"
ROLES: tuple[Literal["user"], Literal["assistant"]] = ("user", "assistant")

TEXTS = ("x", "  two\n\nlines \n", "<think>\nso\n</think>\n\nyes", "")
"""What turns say while both templates are compared: templates trim texts, or leave out what was thought."""


def modelfile(chat: ChatFormat, file: str) -> str:
    """The text of a Modelfile.

    Args:
        file: name of the GGUF file beside it.
    """
    spelled = chat.tokenizer.convert_ids_to_tokens(list(chat.end_ids))
    stops = "".join(f"PARAMETER stop {_quoted(token)}\n" for token in spelled)
    return f"FROM ./{file}\n{_template(chat)}{stops}"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def _template(chat: ChatFormat) -> str:
    try:
        own = go_template(chat)
    except UsageError as error:
        why = " ".join(str(error).split())
        return f"# No TEMPLATE: {why}. Ollama looks for one of its own that resembles the file's chat template.\n"
    return f"TEMPLATE {_quoted(own)}\n"


def go_template(chat: ChatFormat) -> str:
    """The model's chat template as Ollama's, for chats of texts (no tools).

    Raises:
        UsageError: it does not write ChatML, or changes what is said; says so.
    """
    default = _default_system(chat)
    _compare(chat, default)
    turn = f"{OPEN}{{{{ .Role }}}}\n{{{{ .Content }}}}{CLOSE}"
    first = ""
    if default is not None:
        unnamed = '{{ if .Messages }}{{ if ne (index .Messages 0).Role "system" }}'
        first = f"{unnamed}{_turn('system', default)}{{{{ end }}}}{{{{ end }}}}"
    return f"{first}{{{{ range .Messages }}}}{turn}{{{{ end }}}}{OPEN}assistant\n"


def _turn(role: str, text: str) -> str:
    return f"{OPEN}{role}\n{text}{CLOSE}"


def _written(chat: ChatFormat, said: Chat) -> str:
    return chat.template.written([said], prompt=True)[0]


def _default_system(chat: ChatFormat) -> str | None:
    """The system prompt that the template writes where none is given; None: no system turn."""
    written = _written(chat, Chat((Message("user", "x"),)))
    before, after = f"{OPEN}system\n", _turn("user", "x") + f"{OPEN}assistant\n"
    if written == after:
        return None
    found = written.removeprefix(before).removesuffix(CLOSE + after)
    if written != f"{before}{found}{CLOSE}{after}":
        raise UsageError(f"the chat template is not ChatML: it writes {excerpt(written, 200)}")
    if "{{" in found or '"""' in found:
        raise UsageError(f"the chat template's own system prompt {found!r} would be read as a program")
    return found


def _compare(chat: ChatFormat, default: str | None) -> None:
    """Raise UsageError where the model's template writes a chat otherwise than the one in Go would."""
    for system, turns in product(("", *TEXTS[:3]), (1, 3)):
        for first in range(len(TEXTS)):
            texts = [TEXTS[(first + number) % len(TEXTS)] for number in range(turns)]
            messages = tuple(Message(ROLES[number % 2], text) for number, text in enumerate(texts))
            named = system or default
            begin = "" if named is None else _turn("system", named)
            expected = begin + "".join(_turn(m.role, m.content) for m in messages) + f"{OPEN}assistant\n"
            written = _written(chat, Chat(messages, system))
            if written != expected:
                raise UsageError(
                    "the chat template changes what is said, or frames it by what is said: it writes "
                    f"{excerpt(written, 200)}, expected {excerpt(expected, 200)}"
                )
