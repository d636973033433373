"""What the work of a command that loads weights may use: it runs in a child under the guard, which
`fgod.cli.work.supervise` starts.

A worker predicts its memory before it loads anything, takes a smaller batch where the configured one would not fit, and
gives a heartbeat at each forward pass. Its report for the command: `batch`, `processes` and `predicted_mib`; `facts`
that it found out; `refused`, where torch's allocator refused what the guard does not allow; `error`, why it failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fgod.call import say
from fgod.chat import Chat
from fgod.errors import FgodError
from fgod.guard import KILLED_EXIT
from fgod.guard.cap import cap_allocator, capped_mib, refusal, room_mib
from fgod.guard.heartbeat import Heartbeat
from fgod.guard.limits import MIB_PER_GB, lowered
from fgod.guard.predict import TooLargeError, check
from fgod.guard.sources import HostMemory
from fgod.imports import lasting_imports
from fgod.system.files import write_json
from fgod.system.procfs import MIB, resident_mib

with lasting_imports():
    import torch

    from fgod.model import memory
    from fgod.model.attention import no_plans
    from fgod.model.chats import ChatFormat
    from fgod.model.load import beat_at_each_forward, check_device, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fgod.progress.followed import Progress


class AtOnce(NamedTuple):
    """How prompts are asked: so many in a batch, and so many processes with a batch each."""

    batch: int
    processes: int


class Worker:
    """What a worker may use, and what it reports.

    Args:
        report: file of its report; written with each thing that is reported, as a kill leaves no time.
        limit_gb: GiB of host memory that the guard allows.
        too_large_ok: start also what is predicted not to fit.
    """

    def __init__(self, report: Path, limit_gb: float, too_large_ok: bool) -> None:
        self._report_file = report
        self._report: dict[str, Any] = {}
        self.beat = Heartbeat.from_environment()
        self._host_mib = lowered(limit_gb * MIB_PER_GB, HostMemory(math.inf).total_mib())
        self._too_large_ok = too_large_ok
        self._process = int(resident_mib() * MIB)

    def report(self, **facts: Any) -> None:
        """Report something to the command that started this child."""
        self._report |= facts
        write_json(self._report_file, self._report)

    @property
    def scratch(self) -> Path:
        """A folder that is removed when the work has ended."""
        return self._report_file.parent

    def process(self, gpu: bool) -> int:
        """Bytes in use before anything is loaded; on a GPU none."""
        return 0 if gpu else self._process

    def say(self, text: str) -> None:
        """For people; a heartbeat too."""
        say(text)
        self.beat()

    def counted(self, progress: Progress) -> Callable[[], None]:
        """A heartbeat that says with each beat that one unit more is done."""

        def beat() -> None:
            self.beat()
            progress.next()

        return beat

    def load(self, folder: Path, device: str) -> PreTrainedModel:
        """Load the model of a folder, which gives a heartbeat at each forward pass."""
        model = load_model(folder, device=device)
        beat_at_each_forward(model, self.beat)
        self.beat("model_loaded")
        return model

    def limit(self, gpu: bool) -> int | None:
        """Bytes that may be used of the GPU (None: no guard says), or of the host."""
        if not gpu:
            return int(self._host_mib * MIB)
        room = room_mib()
        return None if room is None else int(capped_mib(room) * MIB)

    def fit(self, predicted: Callable[[int], memory.Parts], batch: int, gpu: bool) -> int:
        """The batch, halved until it is predicted to fit; 1 for work without one.

        Raises:
            TooLargeError: not even 1 is predicted to fit, and it is not to be tried all the same.
        """
        limit = self.limit(gpu)
        chosen = memory.largest_batch(predicted, batch, limit)
        if chosen is None and limit is not None:
            try:
                check(predicted(1), limit)
            except TooLargeError as error:
                if not self._too_large_ok:
                    raise
                self.say(f"fgod: {error} It is tried all the same (guard.too_large_ok).")
        elif chosen is not None and chosen < batch:
            self.say(f"fgod: {batch} prompts at once are predicted not to fit: {chosen} are asked at once")
        chosen = chosen or batch
        self._predicted(chosen, predicted(chosen))
        return chosen

    def fit_processes(self, predicted: memory.Predicted, batch: int, gpu: bool, prompts: int, processes: int) -> AtOnce:
        """The batch that fits with one process, as bits depend on it, and then as many processes as have one and fit.

        Args:
            prompts: how many are asked.
            processes: at most; a GPU has one.

        Raises:
            TooLargeError: see `fit`.
        """
        batch = self.fit(lambda size: predicted(size, 1), batch, gpu)
        limit, count = self.limit(gpu), 1 if gpu else max(1, min(processes, -(-prompts // batch)))
        while count > 1 and limit is not None and sum(predicted(batch, count).values()) > limit:
            count -= 1
        self._predicted(batch, predicted(batch, count), count)
        return AtOnce(batch, count)

    def _predicted(self, batch: int, parts: memory.Parts, processes: int = 1) -> None:
        self.report(batch=batch, processes=processes, predicted_mib=round(sum(parts.values()) / MIB, 1))


Work = Callable[[Worker], None]


def run(work: Work, worker: Worker) -> int:
    """Do the work and report what it did not come to; returns the exit code.

    75: torch's allocator refused what the guard does not allow.
    """
    try:
        with no_plans():
            work(worker)
        return 0
    except torch.OutOfMemoryError:
        refused = refusal(room_mib())
        if not refused:
            raise
        worker.report(refused=f"{refused[0].upper()}{refused[1:]}.")
        return KILLED_EXIT
    except FgodError as error:
        worker.report(error=str(error))
        return error.exit_code


def width_of(chat: ChatFormat, prompts: Sequence[str | Chat]) -> int:
    """Tokens of the longest prompt as a chat."""
    return max(map(len, chat.prompts(prompts)), default=0)


def use_device(name: str, key: str = "probe.device") -> bool:
    """Set up a device by its name; returns whether it is a GPU. On a CPU one thread computes a batch: answers are read
    again by machines with other numbers of cores, and sums in one order give the same bits. Other cores compute other
    batches (`fgod.model.forks`)."""
    if name == "cpu":
        torch.set_num_threads(1)
        return False
    check_device(name, key)
    cap_allocator(room_mib())
    return True
