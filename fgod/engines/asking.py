"""What an engine says to the probes of a release, beside what was probed: both greedily, on a CPU, one chat at a time.

The engine writes each chat by the template of its own file. Only one of both models is in memory at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fgod.chat import ChatSettings, chat_of
from fgod.data.probes import Probe
from fgod.engines.engine import Engine, Reply
from fgod.engines.judge import divergence, same_reply
from fgod.evaluate.metric import Estimate, share, weighted_mean
from fgod.evaluate.scoring import Said, Scored, Standard, score
from fgod.model import generate
from fgod.model.chats import ChatFormat
from fgod.model.load import Beat, beat_at_each_forward, load_model, silent
from fgod.probe.parity import logits_of
from fgod.progress.followed import follow

TIMED = 4
"""Prompts that transformers answers too, for its speed."""


@dataclass(frozen=True)
class Ours:
    """Of the export that was probed: tokens of each prompt, log-probabilities [V] of what follows; the replies to the
    first prompts, and how fast they came."""

    prompts: list[list[int]]
    first: list[NDArray[np.float64]]
    said: list[generate.Reply]
    tokens_a_second: float


def first_tokens(
    export: Path,
    settings: ChatSettings,
    probes: Sequence[Probe],
    most: int,
    threads: int,
    timed: int = TIMED,
    beat: Beat = silent,
) -> Ours:
    """Read each prompt, and answer some.

    Args:
        most: tokens of a reply.
        threads: while it answers; it reads with one.
        timed: how many are answered.
    """
    model, chat = load_model(export), ChatFormat.of_folder(export, settings)
    beat_at_each_forward(model, beat)
    beat("model_loaded")
    chats = [chat_of(probe) for probe in probes]
    prompts = chat.prompts(chats)
    with follow("as probed", len(prompts), "prompt") as progress:
        first = [logits_of(model, [ids])[0][-1].double().log_softmax(-1).numpy() for ids in progress.each(prompts)]
    torch.set_num_threads(threads)
    start = time.perf_counter()
    said = [generate.greedy(model, chat, [asked], most, 1)[0] for asked in chats[:timed]]
    seconds = time.perf_counter() - start
    torch.set_num_threads(1)
    return Ours(prompts, first, said, sum(len(one.token_ids) for one in said) / seconds)


def ask_engine(
    engine: Engine,
    folder: Path,
    settings: ChatSettings,
    probes: Sequence[Probe],
    prompts: Sequence[Sequence[int]],
    most: int,
    threads: int,
    beat: Beat = silent,
) -> list[Reply]:
    """The engine's replies, in the order of the probes.

    Args:
        prompts: tokens of each, as this package writes them.
    """
    context = 2 * max(map(len, prompts)) + most  # its own template may write more
    with engine.open(folder, settings, context, threads) as ask, follow("", len(probes), "probe") as progress:
        beat("engine_loaded")
        return [_asked(ask(chat_of(probe), most), beat) for probe in progress.each(probes)]


def _asked(reply: Reply, beat: Beat) -> Reply:
    beat()
    return reply


def scored_reply(probe: Probe, reply: Reply, ours: Scored, reference: Said, standard: Standard) -> Scored:
    """An engine's reply, scored as ours was but for its distributions."""
    said = Said(reply.text, reply.ended, generate.loops(reply.text))
    return replace(score(probe, standard, said, reference), proper=ours.proper)


def figures(ours: Ours, released: Sequence[str], replies: Sequence[Reply]) -> dict[str, Estimate]:
    """How far an engine's replies are those that were probed: fields of `fgod.documents.EngineVerdict`.

    Args:
        released: the replies that were probed.
    """
    listed = [(own, reply.first) for own, reply in zip(ours.first, replies, strict=True) if reply.first]
    apart = [divergence(own, first) for own, first in listed]
    return {
        "engine_agreement": share(same_reply(own, reply.text) for own, reply in zip(released, replies, strict=True)),
        "first_token": share(own[max(first, key=first.__getitem__)] == own.max() for own, first in listed),
        "first_kl": weighted_mean(apart, [1.0] * len(apart)),
        "same_prompts": share(tuple(ids) == reply.prompt for ids, reply in zip(ours.prompts, replies, strict=True)),
    }
