"""Let a base ask of its own accord: it goes on after the bare opening of a user's turn (Xu et al. 2024, Magpie)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from fgod.data.asking import DRAFTS, Draft, Place, Sieve, filter_of, places
from fgod.model.chats import ChatFormat
from fgod.model.drawn import streams
from fgod.model.generate import loops, sampled

Log = Callable[[str], None]


def ask_itself(
    model: PreTrainedModel, chat: ChatFormat, settings: Mapping[str, Any], batch: int, log: Log | None = None
) -> Sieve:
    """Prompts of the base until there are as many as the settings want, or `DRAFTS` times as many were drawn.

    Draft n stands at place n in turn and is drawn by its own random numbers: another batch changes none of them, but
    for what it rounds otherwise.

    Args:
        settings: see `fgod.inputs.asking_settings`.
    """
    found = Sieve(filter_of(settings), settings["prompts"])
    turns = places(settings["systems"])
    most = DRAFTS * settings["prompts"]
    size = batch * len(turns)
    for start in range(0, most, size):
        found.add(_drafts(model, chat, settings, turns, range(start, min(start + size, most)), batch))
        if log is not None:
            log(f"self-asked: {len(found.kept)}/{found.wanted} prompts of {found.drawn} drafts")
        if found.full:
            break
    return found


def widest_opening(chat: ChatFormat, settings: Mapping[str, Any]) -> int:
    """Tokens of the longest opening that drafts stand after."""
    return max(len(chat.user_turn(place.system)[0]) for place in places(settings["systems"]))


def _drafts(
    model: PreTrainedModel,
    chat: ChatFormat,
    settings: Mapping[str, Any],
    turns: Sequence[Place],
    numbers: Sequence[int],
    batch: int,
) -> Iterator[Draft]:
    """The drafts of these numbers, in order; those under one system prompt are drawn together."""
    drafts: dict[int, Draft] = {}
    for index, place in enumerate(turns):
        mine = [number for number in numbers if number % len(turns) == index]
        opening, ends = chat.user_turn(place.system)
        for start in range(0, len(mine), batch):
            some = mine[start : start + batch]
            uniform = streams(settings["seed"], some, settings["max_tokens"])
            replies = sampled(model, chat, opening, ends, uniform, settings["temperature"], settings["top_p"])
            drafts |= {n: Draft(r.text, r.ended, loops(r.text), place) for n, r in zip(some, replies, strict=True)}
    return (drafts[number] for number in numbers)
