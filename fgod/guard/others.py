"""Who else uses the GPU, or the unified memory, before the command starts; and one trainer per GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fgod.errors import FgodError
from fgod.guard.limits import MIB_PER_GB, Limits
from fgod.guard.pools import Pool
from fgod.guard.sources import named_users
from fgod.system import lock

LOCK_FOLDER = Path("/tmp")
"""Where all users of a machine find the locks of its GPUs. Not TMPDIR, which differs from job to job."""

LOOK_SECS = 1.0
"""Between two looks while waiting."""


class OccupiedError(FgodError):
    """Others use more of the GPU than guard.others_gb allows: the command was not started. Exit code 1."""


def described(pool: Pool) -> str:
    """What others use of a pool now, in words."""
    used = pool.source.machine_mib()
    users = named_users(pool.source)
    amount = "an unknown amount" if used is None else f"{used:.0f} MiB"
    total = pool.source.total_mib()
    of = "" if total is None else f" of {total:.0f} MiB"
    return f"{pool.name}: {amount}{of} in use before the start" + (f", by {users}" if users else "")


def occupied(pools: Sequence[Pool], others_mib: float) -> list[Pool]:
    """GPUs' pools of which others use more than this, as far as it is known."""
    return [p for p in pools if p.uuids and (used := p.source.machine_mib()) is not None and used > others_mib]


def wait_until_free(pools: Sequence[Pool], limits: Limits, say: Callable[[str], None]) -> None:
    """Say what others use, and wait up to `wait_secs` until it is at most `others_gb`.

    Raises:
        OccupiedError: it is still more.
    """
    for pool in pools:
        if pool.uuids:
            say(described(pool))
    allowed = limits.others_gb * MIB_PER_GB
    deadline = time.monotonic() + limits.wait_secs
    while full := occupied(pools, allowed):
        if time.monotonic() >= deadline:
            found = "; ".join(map(described, full))
            raise OccupiedError(
                f"guard: found {found}; expected at most {allowed:.0f} MiB (guard.others_gb), waited "
                f"{limits.wait_secs:g} s (guard.wait_secs). End what uses it, wait longer, or allow more"
            )
        time.sleep(min(LOOK_SECS, max(deadline - time.monotonic(), 0.01)))


@contextmanager
def gpu_locks(uuids: Sequence[str], wait_secs: float, folder: Path = LOCK_FOLDER) -> Iterator[list[int]]:
    """Hold the locks of these GPUs, in one order for everybody, and yield their descriptors.

    Raises:
        LockHeldError: another trainer has one, also after `wait_secs`.
    """
    deadline = time.monotonic() + wait_secs
    with ExitStack() as stack:
        yield [stack.enter_context(_held_soon(folder / f"fgod-gpu-{uuid}.lock", deadline)) for uuid in sorted(uuids)]


@contextmanager
def _held_soon(path: Path, deadline: float) -> Iterator[int]:
    while True:
        try:
            with ExitStack() as stack:
                handle = stack.enter_context(lock.held(path, "this GPU"))
                kept = stack.pop_all()
        except lock.LockHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(LOOK_SECS, max(deadline - time.monotonic(), 0.01)))
            continue
        with kept:
            yield handle
        return
