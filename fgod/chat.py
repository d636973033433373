"""What a config says of chats, and a chat as its turns. How a model writes one is `fgod.model.chats`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, Protocol, Self

from pydantic.dataclasses import dataclass

from fgod.data.rows import NO_SYSTEM, Message, Prompt, Row
from fgod.validation import KEYS, Keys, OmitDefault, Text, fault, plain, validate

DEFAULT = "default"
NONE = "none"
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
"""Names that a chat template gets from elsewhere, or that say which template it is."""


@dataclass(frozen=True, config=KEYS)
class ChatSettings(Keys):
    """How chats are written, by the model's own chat template."""

    system: Annotated[Text, OmitDefault()] = DEFAULT
    """System prompt of chats without their own; default: what the template says; none: no system turn; or a text."""
    template_kwargs: Annotated[Mapping[str, Any], OmitDefault()] = field(default_factory=dict)
    """Variables of the chat template; date_string is the date that it writes: it never reads the clock."""

    def __post_init__(self) -> None:
        if not self.system.strip():
            raise fault("system", f"found {self.system!r}, expected {DEFAULT}, {NONE} or a text")
        for name, value in self.template_kwargs.items():
            if name in RESERVED:
                raise fault(f"template_kwargs.{name}", "a chat template gets this from elsewhere; leave it out")
            if not _is_json(value):  # such as a date, which YAML makes of 2024-07-26
                raise fault(f"template_kwargs.{name}", f"found {value} ({type(value).__name__}); write it in quotes")

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """From the key `chat` of a config; what it lacks is as by default.

        Raises:
            UsageError: an unknown key, or a value of another type.
        """
        return validate(cls, table, "chat")

    def to_dict(self) -> dict[str, Any]:
        """What is not as by default, as JSON values: nothing for the default, which changes no digest."""
        settings: dict[str, Any] = plain(self)
        return settings

    @property
    def words(self) -> str:
        """For people: how chats are to be written."""
        known = {DEFAULT: "what the chat template writes where none is given", NONE: "none"}
        system = known.get(self.system, f"“{self.system}”")
        given = "".join(f"; {name}: {value}" for name, value in self.template_kwargs.items())
        return f"system prompt: {system}{given}"


def _is_json(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float)


@plain_dataclass(frozen=True)
class Chat:
    """A chat: its turns, user and assistant in turn, and its system prompt.

    `system`: its text; "" is as the config's chat.system says, `NO_SYSTEM` no system turn.
    """

    turns: tuple[Message, ...]
    system: str = ""


class Framed(Protocol):
    """What holds a prompt and its frame: a row, a probe, an answer."""

    @property
    def prompt(self) -> str: ...
    @property
    def system(self) -> str: ...
    @property
    def history(self) -> tuple[Message, ...]: ...


def chat_of(asked: str | Prompt | Framed) -> Chat:
    """The chat up to where the answer begins."""
    if isinstance(asked, str):
        return Chat((Message("user", asked),))
    text = asked.text if isinstance(asked, Prompt) else asked.prompt
    return Chat((*asked.history, Message("user", text)), asked.system)


def answered(row: Row) -> Chat:
    """The chat of a row with its answer."""
    asked = chat_of(row)
    return Chat((*asked.turns, Message("assistant", row.target)), asked.system)


def system_of(chat: Chat, settings: ChatSettings) -> str:
    """`DEFAULT`, `NONE` or the text of a chat's system prompt."""
    return {"": settings.system, NO_SYSTEM: NONE}.get(chat.system, chat.system)
