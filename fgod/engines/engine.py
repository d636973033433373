"""What the package needs to know of an inference engine that is asked what a release was probed for.

A plugin file adds one (tests/plugins/engines.py):

    class Parrot(Engine):
        name, module, extra, formats = "parrot", "json", "", ("modelopt",)
        …

    ENGINES.register(Parrot.name, Parrot())
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fgod.chat import DEFAULT, NONE, Chat, ChatSettings, system_of
from fgod.plugins import Registry

ENGINES: Registry[Engine] = Registry("engine", ["fgod.engines.llama_cpp"])


@dataclass(frozen=True)
class Reply:
    """A greedy reply of an engine.

    Args:
        prompt: the tokens that it made of the chat, by the template that its file has.
        ended: it stopped by an end token.
        first: log-probabilities of the first token, of the likeliest tokens, by token.
        tokens: how many it generated in `seconds`, the reading of the prompt included.
    """

    prompt: tuple[int, ...]
    text: str
    ended: bool
    first: Mapping[int, float]
    tokens: int
    seconds: float


Ask = Callable[[Chat, int], Reply]
"""Asks a chat for a reply of at most so many tokens."""


class Engine(ABC):
    """An engine: which formats of `fgod.registry.EXPORTERS` it loads, and how it is asked on a CPU."""

    name: str
    """In the config's `release.engines`, and in names of files."""
    module: str
    """What is imported of the package that it is."""
    extra: str
    """The extra of this package that installs it; empty: there is none."""
    formats: tuple[str, ...]
    """Those that it loads."""

    @property
    def missing(self) -> str:
        """In words, what is to be installed; empty where it is there."""
        if importlib.util.find_spec(self.module):
            return ""
        extra = f" (the extra {self.extra} of fgod)" if self.extra else ""
        return (
            f"the engine {self.name} needs the Python package {self.module}, which is not installed: install it{extra}"
        )

    @abstractmethod
    def version(self) -> str:
        """Its name and version, for records."""

    @abstractmethod
    def open(self, folder: Path, chat: ChatSettings, context: int, threads: int) -> AbstractContextManager[Ask]:
        """Load the weights of an export on the CPU.

        Args:
            chat: the config's `chat`, as far as the engine can be told.
            context: tokens of the longest prompt with its reply.

        Raises:
            FgodError: they do not load; names the folder.
        """


def messages(chat: Chat, settings: ChatSettings) -> list[dict[str, str]]:
    """A chat as messages with `role` and `content`. Where it has no system prompt of its own there is none, and the
    template writes what it writes then."""
    system = system_of(chat, settings)
    first = [] if system in (DEFAULT, NONE) else [{"role": "system", "content": system}]
    return [*first, *({"role": turn.role, "content": turn.content} for turn in chat.turns)]
