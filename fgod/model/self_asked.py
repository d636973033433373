"""Let a base ask of its own accord: it goes on after the bare opening of a user's turn (Xu et al. 2024, Magpie)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedModel

from fgod.data.asking import DRAFTS, Draft, Sieve, filter_of, places
from fgod.model.chats import ChatFormat
from fgod.model.drawn import streams
from fgod.model.forks import in_batches
from fgod.model.generate import Reply, loops, sampled
from fgod.progress.followed import follow


def ask_itself(
    model: PreTrainedModel,
    chat: ChatFormat,
    settings: Mapping[str, Any],
    batch: int,
    processes: int = 1,
) -> Sieve:
    """Prompts of the base until there are as many as the settings want, or `DRAFTS` times as many were drawn.

    Draft n stands at place n in turn and is drawn by its own random numbers: another batch changes none of them, but
    for what it rounds otherwise. Those under one system prompt are drawn together.

    Args:
        settings: see `fgod.inputs.asking_settings`.
        processes: that draw batches side by side on a CPU; of no consequence for the drafts, which are looked at in
            their order.
    """
    found = Sieve(filter_of(settings), settings["prompts"])
    turns = places(settings["systems"])
    openings = [chat.user_turn(place.system) for place in turns]
    rounds = drafts_at_once(DRAFTS * settings["prompts"], len(turns), batch)

    def draw(numbers: Sequence[int]) -> list[Reply]:
        opening, ends = openings[numbers[0] % len(turns)]
        uniform = streams(settings["seed"], numbers, settings["max_tokens"])
        return sampled(model, chat, opening, ends, uniform, settings["temperature"], settings["top_p"])

    batches = [numbers for some in rounds for numbers in some]
    with (
        in_batches(draw, batches, processes, model.device) as drawn,
        follow("", found.wanted, "prompt") as progress,
    ):
        for some in rounds:
            said = dict(islice(drawn, sum(map(len, some))))
            found.add(
                Draft(reply.text, reply.ended, loops(reply.text), turns[number % len(turns)])
                for number, reply in sorted(said.items())
            )
            progress.to(min(len(found.kept), found.wanted), f"{found.drawn} drafts")
            if found.full:
                break
    return found


def drafts_at_once(most: int, turns: int, batch: int) -> list[list[range]]:
    """Rounds of batches of numbers below `most`: in each batch those of one place, in each round a batch of each."""
    size = batch * turns
    starts = range(0, most, size)
    rounds = [[range(start + turn, min(start + size, most), turns) for turn in range(turns)] for start in starts]
    return [[numbers for numbers in some if numbers] for some in rounds]


def widest_opening(chat: ChatFormat, settings: Mapping[str, Any]) -> int:
    """Tokens of the longest opening that drafts stand after."""
    return max(len(chat.user_turn(place.system)[0]) for place in places(settings["systems"]))
