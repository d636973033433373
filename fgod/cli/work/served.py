"""The work of `fgod served`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgod.chat import chat_of
from fgod.cli.work.worker import Worker, use_device
from fgod.data.rows import spread
from fgod.imports import lasting_imports
from fgod.probe.record import read_probes

with lasting_imports():
    from fgod.model import memory
    from fgod.model.chats import ChatFormat
    from fgod.probe.parity import PROMPTS
    from fgod.probe.served import compare_served

if TYPE_CHECKING:
    from fgod.cli.judging import Served


def served(args: Served, worker: Worker) -> None:
    """Compare an export as transformers alone loads it with the same as it was probed. The report has the facts."""
    use_device("cpu")
    asked = spread(read_probes(args.records.probes), PROMPTS)
    chats = ChatFormat.of_folder(args.exported, args.chat).prompts([chat_of(one) for one in asked])
    widest = max(map(len, chats), default=0)
    worker.fit(lambda _: memory.predict_served(args.exported, widest, worker.process(False)), 1, False)
    worker.report(facts=compare_served(args.exported, chats, worker.beat))
