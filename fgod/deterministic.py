"""Computing so that the same seed gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """A thread count, deterministic kernels and a seeded generator inside; all as before afterwards."""
    fill: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), fill.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        # every new tensor would be filled with NaN first, a tenth of the time; nothing here reads what it did not write
        fill.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])
            fill.fill_uninitialized_memory = before[2]
