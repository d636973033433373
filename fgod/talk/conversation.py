"""A conversation with a model: its messages, and how they are fed.

What is fed depends on the messages alone, not on what was cached before: each answer is read token by token, as it was
made, and what stands between answers at once. So a cache that is fed only what is new holds what a replay of the whole
conversation would (`fgod.talk.session`), also where a template rewrites earlier turns, or where the tokens that a reply
was made of are not those of its text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from fgod.chat import Chat
from fgod.data.rows import NO_SYSTEM, Message
from fgod.data.text import has_surrogate
from fgod.errors import UsageError
from fgod.model.chats import ChatFormat, encode_texts
from fgod.model.load import Beat, silent
from fgod.talk.opening import Opened
from fgod.talk.sampling import Chooser, Sampling
from fgod.talk.session import Pass, Session, cut
from fgod.talk.stream import Stream

End = Literal["end", "max_tokens", "context"]
"""Why a reply ended: an end token; as many tokens as were asked for; the model's context is full."""


@dataclass(frozen=True)
class Answered:
    """A reply. `ids` are its tokens, without the end token."""

    text: str
    ids: tuple[int, ...]
    end: End
    prompt_tokens: int
    """Of the whole conversation up to the reply."""

    cached_tokens: int
    """How many of those were not computed again."""

    rewritten_at: int | None
    """The first token at which the conversation, as it is written now, is not what was read before."""

    first_token_s: float
    """Seconds from the question to the first token."""

    tokens_per_s: float | None
    """Of the tokens after the first one; None if there is none."""

    def facts(self) -> dict[str, Any]:
        """For people's programs."""
        speed = None if self.tokens_per_s is None else round(self.tokens_per_s, 2)
        return {
            "reply": self.text,
            "end": self.end,
            "tokens": len(self.ids),
            "token_ids": list(self.ids),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "rewritten_at": self.rewritten_at,
            "first_token_s": round(self.first_token_s, 4),
            "tokens_per_s": speed,
        }


@dataclass(frozen=True)
class Asking:
    """How a person wants to be answered.

    Args:
        system: the system prompt; "" is as the config's chat.system says, `NO_SYSTEM` is none.
        replay: compute the whole conversation anew for each reply.
    """

    max_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    replay: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens: found {self.max_tokens}, expected at least 1")


def system_of(given: str | None) -> str:
    """The system prompt that --system means: "" is none, and nothing given leaves it to the chat template."""
    return "" if given is None else given if given.strip() else NO_SYSTEM


class Conversation:
    """Messages with one model, and its cache.

    Args:
        beat: called for each token.
    """

    def __init__(self, opened: Opened, asking: Asking, beat: Beat = silent) -> None:
        self.opened, self.asking = opened, asking
        self.turns: list[Message] = []
        self.system = asking.system
        self._beat = beat
        self.session = Session(opened.model, opened.context)
        self._chooser = Chooser(asking.sampling, opened.model.device)

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.turns.clear()
        self.session.reset()

    def messages(self) -> list[dict[str, str]]:
        """What was said, as OpenAI writes it."""
        system = [{"role": "system", "content": self.system}] if self.system not in ("", NO_SYSTEM) else []
        return [*system, *({"role": turn.role, "content": turn.content} for turn in self.turns)]

    def check(self, text: str) -> int:
        """How many tokens the conversation has with a question.

        Raises:
            UsageError: they are more than the model's context, the template cannot write the conversation, or a prompt
                is no text.
        """
        return _length(self._passes(text), self.opened)

    def ask(self, text: str, show: Callable[[str], None] = lambda piece: None) -> Answered:
        """The reply to a question, which is remembered with it; its text goes to `show` as it comes.

        Raises:
            UsageError: as `check`; nothing is remembered then.
        """
        begun = time.perf_counter()
        passes = self._passes(text)
        _length(passes, self.opened)
        before = [token for one in self.session.passes for token in one]
        if self.asking.replay:
            self.session.reset()
        logits, cached = self.session.read(passes)
        stream, ids = Stream(self.opened.chat.tokenizer), list[int]()
        first = last = 0.0
        while True:
            self._beat()
            token = self._chooser.choose(logits)
            last = time.perf_counter()
            first = first or last
            end = self._end(token, len(ids))
            if end != "end":
                ids.append(token)
                show(stream.add(token))
            if end:
                break
            logits = self.session.feed((token,))
        show(stream.rest())
        said = str(self.opened.chat.tokenizer.decode(ids, skip_special_tokens=False))
        self.turns += [Message("user", text), Message("assistant", said)]
        more = len(ids) - 1 + (end == "end")
        speed = more / (last - first) if more else None
        written = [token for one in passes for token in one]
        return Answered(said, tuple(ids), end, len(written), cached, _differing(before, written), first - begun, speed)

    def _end(self, token: int, there: int) -> End | Literal[""]:
        """Whether the reply ends with a token that follows so many."""
        if token in self.opened.chat.end_ids:
            return "end"
        if there + 1 >= self.asking.max_tokens:
            return "max_tokens"
        return "context" if self.session.tokens >= self.opened.context else ""

    def _passes(self, text: str) -> list[Pass]:
        _check_text("the prompt", text)
        _check_text("the system prompt", self.system)
        return passes_of(self.opened.chat, Chat((*self.turns, Message("user", text)), self.system))


def _check_text(what: str, text: str) -> None:
    if has_surrogate(text):
        expected = "text: it has a byte that is no UTF-8, or half of a surrogate pair"
        raise UsageError(f"{what}: found {text[:60]!a}, expected {expected}")


def _length(passes: Sequence[Pass], opened: Opened) -> int:
    length = sum(map(len, passes))
    if length >= opened.context:
        raise UsageError(
            f"the prompt has {length} tokens with what was said before and what the chat template adds; the context of "
            f"{opened.name} is {opened.context} (max_position_embeddings), and a reply needs some of them: shorten it"
        )
    return length


def _differing(before: Sequence[int], now: Sequence[int]) -> int | None:
    """The first place at which two lists of tokens differ, in as far as both go."""
    return next((place for place, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), None)


def passes_of(chat: ChatFormat, asked: Chat) -> list[Pass]:
    """The passes of a chat up to where its answer begins: what stands between replies at once, replies token by token.

    A reply is looked for where it began when it was asked for; where a template writes what is before it otherwise by
    now, wherever its text stands first. All tokens are there in any case, and the same chat gives the same passes.
    """
    replies = [place for place, turn in enumerate(asked.turns) if turn.role == "assistant"]
    *starts, whole = chat.prompts([*(Chat(asked.turns[:place], asked.system) for place in replies), asked])
    texts = [asked.turns[place].content for place in replies]
    passes: list[Pass] = []
    done = 0
    for start, *ways in zip(starts, encode_texts(chat.tokenizer, texts), chat.going_on(texts), strict=True):
        said = max(ways, key=partial(_common, whole[len(start) :]))  # it begins a text where the template says so
        begin = len(start) if whole[: len(start)] == start else _found(said, whole, done)
        if begin is None or begin < done:
            continue
        end = begin + _common(said, whole[begin:])
        passes += [*cut(whole[done:begin]), *((token,) for token in whole[begin:end])]
        done = end
    return [*passes, *cut(whole[done:])]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists begin with alike."""
    there = _differing(one, other)
    return min(len(one), len(other)) if there is None else there


def _found(part: Sequence[int], whole: Sequence[int], start: int) -> int | None:
    """Where a list of tokens stands first in another one from a place on; None for an empty one, or if nowhere."""
    places = range(start, len(whole) - len(part) + 1) if part else ()
    return next((place for place in places if whole[place : place + len(part)] == part), None)
