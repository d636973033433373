"""Chats as token ids: prompts up to where the answer begins, and rows with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from fgod.data.rows import Row
from fgod.errors import UsageError
from fgod.model.tokenizer import END_OF_TEXT, TURN_END


@dataclass(frozen=True)
class Sample:
    """A row as token ids: chat prompt, answer, end token. What follows `prompt_length` is to be learned."""

    ids: tuple[int, ...]
    prompt_length: int


def encode_chats(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of one-turn chats, each up to where the answer begins."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False) if chats else []
    return encode_texts(tokenizer, cast(list[str], texts))


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts as they stand, with no special tokens added; one call, which is faster than one for each."""
    return cast(list[list[int]], tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []


def end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the tokens that end an answer: `<|im_end|>` and `<|endoftext|>`."""
    return token_id(tokenizer, TURN_END), token_id(tokenizer, END_OF_TEXT)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token by its spelling."""
    return int(cast(int, tokenizer.convert_tokens_to_ids(token)))


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], seq_len: int | None = None) -> list[Sample]:
    """Rows as token ids.

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
        ids = (*prompt, *answer, end)
        if not answer:
            raise UsageError(f"row {number} ({row.prompt!r}): the target {row.target!r} has no token")
        if seq_len is not None and len(ids) > seq_len:
            raise UsageError(
                f"row {number} ({row.prompt!r}): {len(ids)} tokens; train.seq_len allows {seq_len}: shorten the row "
                "or raise it"
            )
        samples.append(Sample(ids, len(prompt)))
    return samples
