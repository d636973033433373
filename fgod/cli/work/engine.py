"""The work of `fgod engine`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from fgod.answers import read_answers
from fgod.chat import chat_of
from fgod.cli.work.worker import Worker, use_device, width_of
from fgod.data.probes import asked_in, load_probes
from fgod.engines.engine import ENGINES
from fgod.engines.judge import chosen, judge
from fgod.evaluate.requirements import check_limits, parse_requirements
from fgod.evaluate.scoring import Standard
from fgod.evaluate.words import load_reply_words
from fgod.gate import checks_of
from fgod.imports import lasting_imports
from fgod.persona import goal_from_config
from fgod.probe.harness import answer_to
from fgod.probe.record import read_probes, write_probes
from fgod.system.files import file_digests

with lasting_imports():
    import torch

    from fgod.engines.asking import ask_engine, figures, first_tokens, scored_reply
    from fgod.model import memory
    from fgod.model.chats import ChatFormat
    from fgod.train.device.settings import processor

if TYPE_CHECKING:
    from fgod.cli.judging import Engine


def engine(args: Engine, worker: Worker) -> None:
    """Ask an engine what was probed, and judge its replies. The report has the facts."""
    asked_engine, most = ENGINES[args.engine], args.settings["max_new_tokens"]
    threads = args.threads or len(os.sched_getaffinity(0))
    use_device("cpu")
    probed = {one.key: one for one in read_probes(args.records.probes) if one.scored}
    every = asked_in(load_probes(args.probes, args.sources, args.languages))
    probes = chosen((probe for probe in every if probe.key in probed), args.count)
    width = width_of(ChatFormat.of_folder(args.exported, args.chat), [chat_of(probe) for probe in probes])
    worker.fit(lambda _: memory.predict_served(args.exported, width, worker.process(False), most), 1, False)
    ours = first_tokens(args.exported, args.chat, probes, most, threads, beat=worker.beat)
    worker.say(f"engine · {args.engine} is asked {len(probes)} probes with {args.format}")
    replies = ask_engine(asked_engine, args.asked, args.chat, probes, ours.prompts, most, threads, worker.beat)
    standard = Standard(
        goal_from_config(args.goal),
        frozenset(args.held_out),
        args.base["closed_answers"],
        args.settings["chrf"],
        load_reply_words(args.sources, probes),
    )
    released, answers = [probed[probe.key] for probe in probes], read_answers(args.reference.parent)
    said = [
        scored_reply(probe, reply, own, answer_to(probe, answers), standard)
        for probe, reply, own in zip(probes, replies, released, strict=True)
    ]
    judged = judge(released, said, checks_of(check_limits(args.limits), parse_requirements(args.require)))
    table = args.records.engine_probes(args.engine, args.format)
    write_probes(table, said)
    worker.report(
        facts={
            "version": asked_engine.version(),
            "decision": judged.verdict.decision,
            "reasons": list(judged.verdict.reasons),
            "limits": [asdict(check) for check in judged.checks],
            "unjudged": list(judged.unjudged),
            "probes": len(probes),
            **{name: asdict(one) for name, one in figures(ours, [one.reply for one in released], replies).items()},
            "metrics": {name: asdict(one) for name, one in judged.metrics.items()},
            "threads": threads,
            "cpu": processor(torch.device("cpu")),
            "timed": len(ours.said),
            "tokens_a_second": sum(one.tokens for one in replies) / sum(one.seconds for one in replies),
            "tokens_a_second_transformers": ours.tokens_a_second,
            "tables_sha256": file_digests(table.parent, [table]),
        }
    )
