"""Commands that talk with weights. A child shares our standard streams; nothing is recorded, as nothing is made."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fgod.arguments import FiniteNonNegative, Input, NonNegativeInt, Option, PositiveInt, PositiveShare, Seed
from fgod.call import Call
from fgod.cli.command import Guarded, ReadOnly
from fgod.cli.options import Anywhere, Chatting, Like
from fgod.guard.limits import WholeMachine

if TYPE_CHECKING:
    from fgod.cli.work.worker import Work

PLACES = "a master, export, release, base or Hugging Face folder, a .gguf or a .dat file"

Computed = Annotated[
    Literal["stored", "training"],
    Option("as its weights are stored (default), or as the training forward computes them, through NVFP4 rounding"),
]


@dataclass(frozen=True, kw_only=True)
class Talking(Chatting, Guarded, ReadOnly):
    """A command that opens weights and prints what they say."""

    guard: WholeMachine = field(default_factory=WholeMachine)
    device: Anywhere = "auto"
    like: Like = None
    json: Annotated[bool, Option("print JSON")] = False
    max_tokens: Annotated[PositiveInt, Option("of a reply (default %(default)s)")] = 512

    @property
    @abstractmethod
    def what(self) -> str:
        """What is done, in words, for messages."""

    def run(self, call: Call) -> None:
        self.supervised(call, self.what, gpu="if_free" if self.device == "auto" else self.device == "cuda")


@dataclass(frozen=True, kw_only=True)
class Answering(Talking):
    """A command that shows replies."""

    folder: Annotated[Path, Input(PLACES, "FOLDER", positional=True)]
    system: Annotated[str | None, Option("the system prompt; '' for none (default: as --chat says)", "TEXT")] = None
    temperature: Annotated[FiniteNonNegative, Option("draw tokens (default: likeliest)", "T")] = 0.0
    top_p: Annotated[PositiveShare, Option("from the likeliest of this probability", "P")] = 1.0
    top_k: Annotated[NonNegativeInt, Option("from so many of the likeliest", "K")] = 0
    seed: Annotated[Seed | None, Option("of the draws")] = None
    replay: Annotated[bool, Option("compute the whole conversation anew for each reply")] = False
    verbose: Annotated[bool, Option("say what was computed anew and what was cached")] = False


@dataclass(frozen=True, kw_only=True)
class Ask(Answering):
    """Ask any weights questions, each by itself."""

    prompts: Annotated[tuple[str, ...], Option("a question", "PROMPT", positional=True)]
    path: Computed = "stored"

    @property
    def what(self) -> str:
        return f"asking {self.folder}"

    def work(self) -> Work:
        from fgod.cli.work.talk import ask

        return partial(ask, self)


@dataclass(frozen=True, kw_only=True)
class Chat(Answering):
    """Talk with any weights (exit 100: a reply is not as a script expects)."""

    against: Annotated[Path | None, Input("answer with these weights too, side by side", "OTHER")] = None
    script: Annotated[Path | None, Input("ask its turns: YAML, or JSONL by its name", "FILE")] = None

    @property
    def what(self) -> str:
        return f"the chat with {self.folder}"

    def work(self) -> Work:
        from fgod.cli.work.talk import chat

        return partial(chat, self)


@dataclass(frozen=True, kw_only=True)
class Parity(Talking):
    """Compare the logits of two models: how far they are apart."""

    a: Annotated[Path, Input(PLACES, "A", positional=True)]
    path_a: Computed = "stored"
    b: Annotated[Path, Input(PLACES, "B", positional=True)]
    path_b: Computed = "stored"
    prompts: Annotated[Path | None, Input("a prompt on each line (default: five)", "FILE")] = None
    limit: Annotated[float | None, Option("exit 100 where a difference is larger", "X")] = None
    max_tokens: Annotated[PositiveInt, Option("of a reply (default %(default)s)")] = 32

    @property
    def what(self) -> str:
        return f"the comparison of {self.a} and {self.b}"

    def work(self) -> Work:
        from fgod.cli.work.talk import parity

        return partial(parity, self)
