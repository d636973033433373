"""The memory of each phase of a few steps: `fgod train … --steps 1 --memory-report FILE`."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from fgod.system.procfs import forget_peak, peak_mib, resident_mib
from fgod.system.table import write_table
from fgod.train.memory import MIB

COLUMNS = (
    "step", "phase", "seconds", "host_mib", "host_peak_mib", "gpu_mib", "gpu_peak_mib", "gpu_reserved_mib",
)  # fmt: skip


class MemoryReport:
    """Called when a phase is done: notes what is used now, and the most that was used since the phase before.

    The table is written anew each time, so that a run that is killed leaves what came before. Of the GPU it has what
    torch's allocator gave out and what it holds; a CUDA context and libraries come on top.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.step = path, 0
        self.rows: list[dict[str, object]] = []
        self.since = time.perf_counter()
        forget_peak()

    def __call__(self, phase: str) -> None:
        gpu: tuple[float | None, ...] = (None, None, None)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            counts = (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved())
            gpu = tuple(round(count / MIB, 1) for count in counts)
            torch.cuda.reset_peak_memory_stats()
        self.step += phase == "batch_ready"
        seconds = round(time.perf_counter() - self.since, 3)
        values = (self.step, phase, seconds, resident_mib(), peak_mib(), *gpu)
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))
        write_table(self.path, COLUMNS, self.rows)
        forget_peak()
        self.since = time.perf_counter()
