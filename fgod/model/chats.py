"""Chats as token ids: prompts up to where the answer begins, and rows with their answers.

What prompts and answers spell is text. A control token (`<|im_end|>`) in them is encoded letter by letter: only the
chat template begins and ends turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from fgod.data.rows import Row
from fgod.errors import UsageError
from fgod.model.spec import END_OF_TEXT, TURN_END


@dataclass(frozen=True)
class Sample:
    """A row as token ids: chat prompt, answer, end token (none after a cut answer). What follows `prompt_length` is to
    be learned."""

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Frame:
    """What the chat template puts around a prompt.

    `head` and `tail` are token ids and end and begin with a control token; `before` and `after` are the text between
    them and the prompt, which is encoded together with it.
    """

    head: tuple[int, ...]
    before: str
    after: str
    tail: tuple[int, ...]


_PLACE = "PROMPT"


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame of a one-turn chat, up to where the answer begins.

    Raises:
        UsageError: the template does not hold the prompt exactly once; or the tokenizer encodes the parts of a chat
            otherwise than the whole.
    """
    chat = [{"role": "user", "content": _PLACE}]
    text = cast(str, tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    if text.count(_PLACE) != 1:
        raise UsageError(f"the chat template makes {text!r} of the prompt {_PLACE!r}; expected the prompt once")
    left, right = text.split(_PLACE)
    control = re.compile("|".join(map(re.escape, sorted(control_tokens(tokenizer)))) or r"(?!)")
    start = max((match.end() for match in control.finditer(left)), default=0)
    end = min((match.start() for match in control.finditer(right)), default=len(right))
    head, tail = _template_ids(tokenizer, left[:start]), _template_ids(tokenizer, right[end:])
    frame = Frame(head, left[start:], right[:end], tail)
    if _framed(tokenizer, frame, [_PLACE])[0] != list(_template_ids(tokenizer, text)):
        raise UsageError(
            "the tokenizer encodes the parts of a chat otherwise than the whole, as SentencePiece does that "
            "marks where a text begins; expected a byte-level tokenizer"
        )
    return frame


def _framed(tokenizer: PreTrainedTokenizerBase, frame: Frame, prompts: Sequence[str]) -> list[list[int]]:
    bodies = encode_texts(tokenizer, [f"{frame.before}{prompt}{frame.after}" for prompt in prompts])
    return [[*frame.head, *body, *frame.tail] for body in bodies]


def _template_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Ids of a part of the template: its control tokens are such."""
    return tuple(cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"]))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Spellings of the tokenizer's special tokens, which no text may be parsed as."""
    return frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def encode_chats(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of one-turn chats, each up to where the answer begins."""
    return _framed(tokenizer, chat_frame(tokenizer), prompts) if prompts else []


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts as they stand, without control tokens; one call, which is faster than one for each."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    return cast(list[list[int]], encoded["input_ids"])


def end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the tokens that end an answer: `<|im_end|>` and `<|endoftext|>`."""
    return token_id(tokenizer, TURN_END), token_id(tokenizer, END_OF_TEXT)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token by its spelling."""
    return int(cast(int, tokenizer.convert_tokens_to_ids(token)))


def row_lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[int]:
    """Tokens of each row as `encode` gives them: chat prompt, answer, end token if the answer ends."""
    prompts = encode_chats(tokenizer, [row.prompt for row in rows])
    answers = encode_texts(tokenizer, [row.target for row in rows])
    return [
        len(prompt) + len(answer) + (not row.cut) for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], seq_len: int | None = None) -> list[Sample]:
    """Rows as token ids, each with the end token after its answer, unless that is cut.

    Raises:
        UsageError: a row has no answer or is longer than `seq_len`; names the row. Or the tokenizer has no end token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UsageError("the tokenizer has no end-of-sequence token; expected <|im_end|>: answers would never end")
    samples = []
    prompts = encode_chats(tokenizer, [row.prompt for row in rows])
    answers = encode_texts(tokenizer, [row.target for row in rows])
    for number, (row, prompt, answer) in enumerate(zip(rows, prompts, answers, strict=True), start=1):
        sample = Sample((*prompt, *answer, *([] if row.cut else [end])), len(prompt))
        if not answer:
            raise UsageError(f"row {number} ({row.prompt!r}): the target {row.target!r} has no token")
        if seq_len is not None and len(sample.ids) > seq_len:
            raise UsageError(
                f"row {number} ({row.prompt!r}): {len(sample.ids)} tokens; train.seq_len allows {seq_len}: shorten the "
                "row or raise it"
            )
        samples.append(sample)
    return samples
