"""What a config says of chats, and a chat as its turns. How a model writes one is `fgod.model.chats`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgod.data.rows import NO_SYSTEM, Message, Prompt, Row
from fgod.errors import UsageError, did_you_mean

DEFAULT = "default"
NONE = "none"
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
"""Names that a chat template gets from elsewhere, or that say which template it is."""


@dataclass(frozen=True)
class ChatSettings:
    """The config's `chat`.

    Args:
        system: the system prompt of chats that have none of their own. `default`: what the template writes where none
            is given, which may be one with the model's name; `none`: no system turn at all; else its text.
        template_kwargs: variables of the chat template, such as `enable_thinking`. `date_string` is also what
            `strftime_now` gives: a template never reads the clock.

    Raises:
        UsageError: a value has the wrong type, or a variable a name that the template gets from elsewhere.
    """

    system: str = DEFAULT
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.system, str) or not self.system.strip():
            raise UsageError(f"chat.system: found {self.system!r}, expected {DEFAULT}, {NONE} or a text")
        if not isinstance(self.template_kwargs, Mapping):
            raise UsageError(f"chat.template_kwargs: found {self.template_kwargs!r}, expected a mapping")
        for name in RESERVED:
            if name in self.template_kwargs:
                raise UsageError(f"chat.template_kwargs.{name}: a chat template gets this from elsewhere; leave it out")

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> ChatSettings:
        """From the key `chat` of a config; what it lacks is as by default."""
        known = ("system", "template_kwargs")
        for key in table:
            if key not in known:
                raise UsageError(f"chat.{key}: unknown key{did_you_mean(key, known)}, expected {' or '.join(known)}")
        return cls(**table)

    def to_dict(self) -> dict[str, Any]:
        """What is not as by default, as JSON values: nothing for the default, so that it changes no digest."""
        found: dict[str, Any] = {} if self.system == DEFAULT else {"system": self.system}
        return {**found, "template_kwargs": dict(self.template_kwargs)} if self.template_kwargs else found


@dataclass(frozen=True)
class Chat:
    """A chat: its turns, user and assistant in turn, and its system prompt.

    `system`: its text; "" is as the config's chat.system says, `NO_SYSTEM` no system turn.
    """

    turns: tuple[Message, ...]
    system: str = ""


def chat_of(asked: str | Prompt | Row) -> Chat:
    """The chat up to where the answer begins."""
    if isinstance(asked, str):
        return Chat((Message("user", asked),))
    text = asked.prompt if isinstance(asked, Row) else asked.text
    return Chat((*asked.history, Message("user", text)), asked.system)


def answered(row: Row) -> Chat:
    """The chat of a row with its answer."""
    asked = chat_of(row)
    return Chat((*asked.turns, Message("assistant", row.target)), asked.system)


def system_of(chat: Chat, settings: ChatSettings) -> str:
    """`DEFAULT`, `NONE` or the text of a chat's system prompt."""
    return {"": settings.system, NO_SYSTEM: NONE}.get(chat.system, chat.system)
