"""The work of `fgod probe`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fgod.chat import chat_of
from fgod.cli.work.worker import Worker, use_device, width_of
from fgod.data.probes import asked_in, expected, load_probes
from fgod.data.sources import load_sources
from fgod.evaluate.scoring import Standard
from fgod.evaluate.settings import ProbeSettings
from fgod.evaluate.words import load_reply_words
from fgod.imports import lasting_imports
from fgod.persona import goal_from_config
from fgod.probe.harness import unseen

with lasting_imports():
    from fgod.model import memory
    from fgod.model.chats import ChatFormat
    from fgod.probe.run import Reference, run_probes

if TYPE_CHECKING:
    from fgod.cli.judging import Probe


def probe(args: Probe, worker: Worker) -> None:
    """Ask a run's export the probes of the gate or of a confirmation, and measure."""
    every = load_probes(args.probes, args.sources, args.languages)
    sources = load_sources(args.sources, args.languages)
    left = unseen(every, args.rows)
    if len(left) < len(every):
        worker.say(
            f"probe · {len(every) - len(left)} probes are not asked: the base asked them itself, and rehearses them"
        )
    probes = asked_in(left, args.fold)
    known = {p.key: expected(sources, p) if args.base["kind"] == "embedded" else () for p in probes}
    settings = ProbeSettings.from_dict(args.settings)
    gpu = use_device(settings.device)
    master, export = (args.model, args.model) if args.model else (args.trained.master, args.exported)
    reference = Reference(args.reference.parent, args.reference_export)
    chat = ChatFormat.of_folder(export, args.chat)
    asked = memory.Asked(width_of(chat, [chat_of(p) for p in probes]), settings.max_new_tokens)
    predicted = memory.probe_predictor(export, reference.weights, master, asked, worker.process(gpu), gpu)
    batch, processes = worker.fit_processes(predicted, args.at_once, gpu, len(probes), args.most_processes)
    settings = replace(settings, batch=batch)
    run_probes(
        export,
        None if args.fold or args.model else master,  # the gate's probe has measured parity; the base did not train
        reference,
        probes,
        known,
        Standard(
            goal_from_config(args.goal),
            frozenset(args.held_out),
            args.base["closed_answers"],
            settings.chrf,
            load_reply_words(args.sources, probes),
        ),
        settings,
        args.out.parent,
        worker.beat,
        chat,
        processes,
    )
