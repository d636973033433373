"""A model's own chat template: what it writes around the texts of a chat, and where an answer begins and ends.

A template is a program that came with the model. transformers runs it in a sandbox; what it must not do besides is
refused here: read the clock, and lose or change what was said. All of it is about text; token ids are `chats`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from fgod.chat import DEFAULT, NONE, Chat, ChatSettings, system_of
from fgod.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[dict[str, str]]
"""Messages as a template gets them: role and content."""

Frame = tuple[str, ...]
"""What a template writes before, between and after the texts of a chat."""

TEXT = "text"
"""A system prompt of its own, beside `DEFAULT` and `NONE`."""

DATE = "date_string"
NO_CLOCK = (
    "it writes today's date (strftime_now), so that the same chat would be other tokens tomorrow; fix the date by "
    f"chat.template_kwargs.{DATE} in the config"
)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Spellings of the tokenizer's special tokens, which no text may be parsed as."""
    return frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


@dataclass(frozen=True)
class Shape:
    """What decides how a template frames the texts of a chat.

    `system` is `DEFAULT`, `NONE` or `TEXT`; `turns` alternate and begin with the user's; `prompt`: the text ends where
    the next answer begins.
    """

    system: str
    turns: int
    prompt: bool

    @property
    def system_texts(self) -> int:
        """How many texts come before the first turn's."""
        return int(self.system == TEXT)


class ChatTemplate:
    """The template of a tokenizer under the config's `chat`.

    Args:
        where: the folder, for messages.

    Raises:
        UsageError: there is no template, or it does not know one of the variables of the settings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings, where: str) -> None:
        self._tokenizer, self._settings, self.where = tokenizer, settings, where
        if not tokenizer.chat_template:
            raise UsageError(
                f"{where}: chat_template: found none, expected one in chat_template.jinja or tokenizer_config.json"
            )
        try:
            source = tokenizer.get_chat_template()
        except ValueError as error:  # several, and none of them the default
            raise UsageError(f"{where}: chat_template: {_first_line(error)}") from error
        self._check_variables(source, settings.template_kwargs)
        self._program = _stopped_clock(settings.template_kwargs.get(DATE)) + source
        spellings = sorted(control_tokens(tokenizer), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        self._frames: dict[Shape, Frame] = {}

    def _check_variables(self, source: str, variables: Mapping[str, Any]) -> None:
        words = set(re.findall(r"\w+", source))
        for name in variables:
            if name not in words and not (name == DATE and "strftime_now" in words):
                raise UsageError(
                    f"chat.template_kwargs.{name}: the chat template of {self.where} uses no such variable"
                    f"{did_you_mean(name, sorted(words))}"
                )

    # ----------------------------------------------------------------------------------------------- chats as text

    def shape(self, chat: Chat, prompt: bool) -> Shape:
        """The shape of a chat; with `prompt` up to where the next answer begins."""
        found = system_of(chat, self._settings)
        return Shape(found if found in (DEFAULT, NONE) else TEXT, len(chat.turns), prompt)

    def written(self, chats: Sequence[Chat], prompt: bool) -> list[str]:
        """The text of chats.

        Raises:
            UsageError: the template fails, or takes no system prompt, or writes one that cannot be left out.
        """
        shapes = [self.shape(chat, prompt) for chat in chats]
        return self._written(shapes, [self._texts(chat) for chat in chats])

    def said(self, chats: Sequence[Chat], names: Sequence[str], prompt: bool) -> list[tuple[str, ...]]:
        """The texts of chats as the template writes them, system prompts first: white space around them may be gone.

        Raises:
            UsageError: as `written`; or the template loses or changes a text: shows what it wrote.
        """
        frames = [self.frame(self.shape(chat, prompt)) for chat in chats]
        return [
            self._fitted(frame, self._texts(chat), text, name)
            for frame, chat, text, name in zip(frames, chats, self._named(chats, names, prompt), names, strict=True)
        ]

    def _named(self, chats: Sequence[Chat], names: Sequence[str], prompt: bool) -> list[str]:
        """As `written`, with the name of the chat in messages."""
        try:
            return self.written(chats, prompt)
        except UsageError:
            for chat, name in zip(chats, names, strict=True):
                try:
                    self.written([chat], prompt)
                except UsageError as error:
                    raise UsageError(f"{name}: {error}") from error
            raise

    def _texts(self, chat: Chat) -> tuple[str, ...]:
        turns = tuple(turn.content for turn in chat.turns)
        return (system_of(chat, self._settings), *turns) if self.shape(chat, False).system_texts else turns

    def _fitted(self, frame: Frame, texts: tuple[str, ...], written: str, name: str) -> tuple[str, ...]:
        stripped = tuple(text.strip() for text in texts)
        for said in (texts, stripped):
            if _whole(frame, said) == written:
                return said
        places = [rf"(\s*{re.escape(text)}\s*)" for text in stripped]
        found = re.fullmatch(_whole(tuple(map(re.escape, frame)), places), written)
        if found is None or any(said not in text for said, text in zip(found.groups(), texts, strict=True)):
            raise UsageError(
                f"{name}: the chat template of {self.where} loses or changes a text; expected every text as it is, "
                f"or without white space around it. It wrote {written!r}"
            )
        return found.groups()

    # ------------------------------------------------------------------------------------------------------ frames

    def frame(self, shape: Shape) -> Frame:
        """What is written around the texts of a chat of this shape.

        Raises:
            UsageError: as `written`; or the template does not write every text once, in order.
        """
        if shape not in self._frames:
            self._frames[shape] = self._found_frame(shape)
        return self._frames[shape]

    def _found_frame(self, shape: Shape) -> Frame:
        texts = [f"PLACE{number}ECALP" for number in range(shape.turns + shape.system_texts)]
        try:
            (written,) = self._written([shape], [texts])
        except UsageError as error:
            if shape.system == TEXT:
                self.frame(Shape(DEFAULT, shape.turns, shape.prompt))  # else it fails anyway
                raise self._no_system_taken(str(error)) from error
            raise
        places = "|".join(texts)
        if shape.system == TEXT and texts[0] not in written:
            raise self._no_system_taken(f"it makes {written!r} of the texts {', '.join(texts)}")
        if re.findall(places, written) != texts:
            raise UsageError(
                f"{self.where}: chat_template: makes {written!r} of the texts {', '.join(texts)}; expected each once, "
                "in order"
            )
        return tuple(re.split(places, written))

    def _no_system_taken(self, found: str) -> UsageError:
        return UsageError(f"chat.system: the chat template of {self.where} takes no system prompt: {found}; expected "
                          f"{DEFAULT} or {NONE}, and rows without system prompts")  # fmt: skip

    def opening(self, shape: Shape, turn: int) -> str:
        """What is written between the text before an answer and where the model begins it.

        Raises:
            UsageError: what comes before the answer, or an answer that others follow, is written otherwise in the whole
                chat than where it ends there: what is learned would not be what is asked.
        """
        whole, asked = self.frame(shape), self.frame(Shape(shape.system, turn, prompt=True))
        if not _begins(whole, asked):
            raise UsageError(
                f"{self.where}: chat_template: writes {asked!r} around the texts up to answer {turn // 2 + 1}, but "
                f"{whole!r} with it; expected the same beginning: what is learned would not be what is asked"
            )
        if turn + 1 < shape.turns:
            alone = self.frame(Shape(shape.system, turn + 1, prompt=False))
            if not _begins(whole, (*alone[:-1], alone[-1][: self.end(alone[-1])])):
                raise UsageError(
                    f"loss_on: all: the chat template of {self.where} writes an answer otherwise where later turns "
                    f"follow: {alone!r} became {whole!r}; expected loss_on: last"
                )
        return asked[-1]

    def end(self, after: str) -> int:
        """How many characters of what is written after an answer end it: up to the first control token.

        Raises:
            UsageError: there is none.
        """
        found = self.control.search(after)
        if found is None:
            raise UsageError(
                f"{self.where}: chat_template: writes {after!r} after an answer; expected a control token: answers "
                "would never end"
            )
        return found.end()

    # -------------------------------------------------------------------------------------------------- the program

    def _written(self, shapes: Sequence[Shape], texts: Sequence[Sequence[str]]) -> list[str]:
        """The text of chats that are all prompts, or none of them."""
        if not shapes:
            return []
        chats = [_messages(shape, each) for shape, each in zip(shapes, texts, strict=True)]
        written = self._rendered(chats, shapes[0].prompt)
        return [
            self._without_system(text) if shape.system == NONE else text
            for shape, text in zip(shapes, written, strict=True)
        ]

    def _rendered(self, chats: Sequence[Turns], prompt: bool) -> list[str]:
        try:
            texts = self._tokenizer.apply_chat_template(
                cast(Any, list(chats)),
                chat_template=self._program,
                add_generation_prompt=prompt,
                tokenize=False,
                **self._settings.template_kwargs,
            )
        except Exception as error:  # jinja2 raises many kinds, and a program may run into any
            roles = ", ".join(turn["role"] for turn in chats[0])
            raise UsageError(
                f"{self.where}: chat_template: fails with {_first_line(error)} (a chat of {roles}); expected a "
                "template that makes a text of messages, by them and by chat.template_kwargs alone"
            ) from error
        return cast(list[str], texts)

    # -------------------------------------------------------------------------------------------- no system prompt

    def _without_system(self, text: str) -> str:
        start, turn = self._own_system
        if not text.startswith(start + turn):
            raise UsageError(
                f"chat.system: none: the chat template of {self.where} writes {text!r}; expected {start + turn!r} at "
                "the beginning, its own system turn, which was to be left out"
            )
        return start + text.removeprefix(start + turn)

    @cached_property
    def _own_system(self) -> tuple[str, str]:
        """The beginning-of-text token, and the system turn that is written after it where no system prompt is given.

        How a later user's turn opens tells where the first one's begins, and so what stands before it.
        """
        first = self.frame(Shape(DEFAULT, 1, prompt=True))[0]
        end = self.frame(Shape(DEFAULT, 2, prompt=False))[2]
        between = self.frame(Shape(DEFAULT, 3, prompt=True))[2]
        opening = between.removeprefix(end)
        if not between.startswith(end) or not first.endswith(opening):
            raise self._inseparable(first)
        before = first.removesuffix(opening)
        bos = str(self._tokenizer.bos_token or "")
        begins = before.startswith(bos) and not opening.startswith(bos)  # SmolLM's begins every turn
        start = bos if begins else ""
        own = before.removeprefix(start)
        if not own:
            return start, ""
        try:
            given = self.frame(Shape(TEXT, 1, prompt=True))[0].removeprefix(start)
        except UsageError as error:
            raise self._inseparable(first) from error
        if own.startswith(given):
            return start, own
        if given.startswith(own):  # how every chat of this model begins
            return start + own, ""
        raise self._inseparable(first)

    def _inseparable(self, first: str) -> UsageError:
        return UsageError(
            f"chat.system: none: the chat template of {self.where} writes {first!r} before the first question, and "
            "what of it is a system turn cannot be told; expected default or a text"
        )


def _messages(shape: Shape, texts: Sequence[str]) -> Turns:
    roles = ["system"] * shape.system_texts + ["user" if turn % 2 == 0 else "assistant" for turn in range(shape.turns)]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def _whole(frame: Frame, texts: Sequence[str]) -> str:
    return "".join(part for pair in zip(frame, (*texts, ""), strict=True) for part in pair)


def _begins(whole: Frame, beginning: Frame) -> bool:
    """Whether a frame goes on as another one."""
    last = len(beginning) - 1
    return whole[:last] == beginning[:last] and whole[last].startswith(beginning[last])


def _stopped_clock(date: object) -> str:
    """A macro in place of transformers' `strftime_now`, which reads the clock: gives the date, or fails without one.

    It writes nothing itself; the newline behind it goes with it, so that the template begins on a line of its own.
    """
    given = f"raise_exception({json.dumps(NO_CLOCK)})" if date is None else json.dumps(str(date))
    return f"{{% macro strftime_now(format) %}}{{{{ {given} }}}}{{% endmacro %}}\n"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
