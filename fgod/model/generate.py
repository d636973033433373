"""Greedy replies and drawn texts in batches, for any causal model of transformers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fgod.chat import Chat
from fgod.model.chats import ChatFormat
from fgod.model.decode import decode
from fgod.model.drawn import nucleus
from fgod.model.forks import in_batches
from fgod.progress.followed import follow

LOOP_UNIT = 8
"""Longest repeated unit, in characters, that `loops` looks for."""
LOOP_TIMES = 4
"""Repetitions in a row that make a loop, …"""
LOOP_COLUMNS = 6
"""… together at least this wide (a Han character, kana or hangul has two columns, others one), …"""
LOOP_COLUMNS_WORDLESS = 32
"""… or this wide if the unit has no letter: zeros, dashes and dots repeat in proper answers."""


@dataclass(frozen=True)
class Reply:
    """`token_ids` holds the end token too, if there is one; `text` does not. `ended`: an end token came in time."""

    text: str
    token_ids: tuple[int, ...]
    ended: bool


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar lengths, shortest first; equal lengths stay in order."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, both [rows, longest], so that all rows end in the last column."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def cut_at_end(ids: Sequence[int], ends: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Ids up to and with the first end token, and whether there is one."""
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1]), True
    return tuple(ids), False


@contextmanager
def own_settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Generate by `settings` alone: what the folder's generation_config.json says of sampling, penalties or lengths
    would otherwise fill every setting that is not given."""
    kept, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = kept


def greedy(
    model: PreTrainedModel,
    chat: ChatFormat,
    prompts: Sequence[str | Chat],
    max_new_tokens: int = 48,
    batch_size: int = 128,
    processes: int = 1,
) -> list[Reply]:
    """Greedy replies with a KV cache, in the order of the prompts; a text is a chat of one turn.

    Prompts run in left-padded batches of similar length. Deterministic for the same prompts and batch size on the
    same machine; another batch size may round a tie differently.

    Args:
        processes: that compute batches side by side on a CPU.
    """
    chats = chat.prompts(prompts)
    batches = list(length_batches([len(c) for c in chats], batch_size))
    with (
        replies(model, chat, chats, batches, max_new_tokens, processes) as said,
        follow("replies", len(prompts), "prompt") as progress,
    ):
        found = dict(progress.each(said))
    return [found[i] for i in range(len(prompts))]


def replies(
    model: PreTrainedModel,
    chat: ChatFormat,
    chats: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    max_new_tokens: int,
    processes: int = 1,
) -> AbstractContextManager[Iterator[tuple[int, Reply]]]:
    """Numbers of chats, batch by batch, and their greedy replies with a KV cache (see `fgod.model.forks.in_batches`).

    transformers' `generate` costs 15 % more on a CPU than a loop of our own, and is what users run; on a GPU
    `fgod.model.decode` gives the same replies.

    Args:
        chats: tokens of each.
        batches: numbers of the chats that run together, left-padded.
        processes: that compute batches side by side on a CPU.
    """
    ends, pad = chat.end_ids, chat.pad_id
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(ends), pad_token_id=pad
    )

    @torch.inference_mode()
    def generated(batch: Sequence[int]) -> list[Reply]:
        inputs = left_padded([chats[i] for i in batch], pad, model.device)
        if model.device.type == "cuda":
            rows = decode(model, inputs, max_new_tokens, ends, pad)
        else:
            with own_settings(model, settings):
                made = cast(Any, model).generate(**inputs)
            rows = made[:, inputs["input_ids"].shape[1] :].tolist()
        return [reply(chat.tokenizer, row, ends) for row in rows]

    return in_batches(generated, batches, processes, model.device)


@torch.inference_mode()
def sampled(
    model: PreTrainedModel,
    chat: ChatFormat,
    opening: Sequence[int],
    ends: Sequence[int],
    uniform: torch.Tensor,
    temperature: float,
    top_p: float,
) -> list[Reply]:
    """One batch of texts that are drawn after the same opening.

    Args:
        ends: tokens that end a text.
        uniform: float64 [texts, tokens], the random numbers of each text (`fgod.model.drawn.streams`).
    """
    rows, count = uniform.shape
    inputs = left_padded([opening] * rows, chat.pad_id, model.device)
    choose = nucleus(uniform.to(model.device), temperature, top_p)
    drawn = decode(model, inputs, count, ends, chat.pad_id, choose)
    return [reply(chat.tokenizer, ids, ends) for ids in drawn]


def reply(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int]) -> Reply:
    """The reply that generated ids spell; what follows its end token is padding."""
    kept, ended = cut_at_end(ids, ends)
    text = tokenizer.decode(list(kept[:-1] if ended else kept), skip_special_tokens=False)
    return Reply(cast(str, text), kept, ended)


def columns(text: str) -> int:
    """Display columns of a text: wide characters have two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def has_letter(text: str) -> bool:
    """Whether a text has a letter, or U+FFFD, which stands for a broken one."""
    return any(c == "\ufffd" or c.isalpha() for c in text)


def periodic_runs(text: str, period: int) -> Iterator[str]:
    """Longest substrings in which every character equals that `period` places before, two periods at least."""
    start = 0
    for place in range(period, len(text) + 1):
        if place == len(text) or text[place] != text[place - period]:
            if place - start >= 2 * period:
                yield text[start:place]
            start = place - period + 1


def loops(text: str) -> bool:
    """Whether a reply is caught in a loop: a unit of 1 to 8 characters at least 4 times in a row, over at least
    6 columns, or over 32 columns if the unit has no letter.

    神神神神, 之神之神之神之神, F#神F#神F#神F#神 and hahahaha are loops; 哈哈哈, hmmmm, 1000000 and ---- are none.
    """
    for period in range(1, LOOP_UNIT + 1):
        for run in periodic_runs(text, period):
            least = LOOP_COLUMNS if has_letter(run) else LOOP_COLUMNS_WORDLESS
            if len(run) >= LOOP_TIMES * period and columns(run) >= least:
                return True
    return False
