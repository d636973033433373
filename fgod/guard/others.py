"""Who else uses the GPU, or the unified memory, before the command starts; and one trainer per GPU: which it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fgod.errors import FgodError, UsageError
from fgod.guard import cuda
from fgod.guard.limits import MIB_PER_GB, Limits
from fgod.guard.pools import Pool
from fgod.guard.sources import named_users
from fgod.system import lock

LOCK_FOLDER = Path("/tmp")
"""Where all users of a machine find the locks of its GPUs. Not TMPDIR, which differs from job to job."""

LOOK_SECS = 1.0
"""Between two looks while waiting."""

SAY_SECS = 600.0
"""Between two messages while waiting for a GPU."""


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


@dataclass(frozen=True)
class Taken:
    """GPUs that are ours alone. `locks`: descriptors, which the command inherits; `chosen`: whether there were more."""

    uuids: tuple[str, ...] = ()
    locks: tuple[int, ...] = ()
    chosen: bool = False


@contextmanager
def gpus_taken(
    pools: Sequence[Pool], count: int | Literal["all"], wait_secs: float, say: Callable[[str], None]
) -> Iterator[Taken]:
    """Hold the locks of as many visible GPUs, all or none of them: those of which others use least.

    Where there are more than are asked for, it waits until enough are free, and says who has them.

    Raises:
        LockHeldError: there are no more, and another trainer has one, also after `wait_secs`.
        UsageError: there are fewer.
    """
    number = {uuid: pool for pool in pools for uuid in pool.uuids}
    wanted = len(number) if count == "all" else count
    if not wanted or not number:
        yield Taken()
        return
    if wanted > len(number):
        raise UsageError(
            f"found {len(number)} visible GPUs{_parts(pools)}, expected at least {wanted} (train.gpus, or "
            f"`fgod resume --gpus`); {cuda.VARIABLE} says which are visible"
        )
    if wanted == len(number):
        deadline = time.monotonic() + wait_secs
        with ExitStack() as stack:
            what = f"this GPU{_parts(pools)}"
            locks = [stack.enter_context(_held_soon(lock_file(uuid), what, deadline)) for uuid in sorted(number)]
            yield Taken(tuple(sorted(number)), tuple(locks))
        return
    say_at = time.monotonic()
    while True:
        with ExitStack() as stack:
            found = _free(sorted(number, key=lambda uuid: _in_use(number[uuid])), wanted, stack)
            if len(found) == wanted:
                yield Taken(tuple(found), tuple(found.values()), chosen=True)
                return
        if time.monotonic() >= say_at:
            say(f"{wanted} of {len(number)} GPUs wanted: {_holders(number)}; waits until enough are free")
            say_at += SAY_SECS
        time.sleep(LOOK_SECS)


@contextmanager
def gpu_if_free(pools: Sequence[Pool], others_mib: float, say: Callable[[str], None]) -> Iterator[Taken]:
    """Hold the lock of one visible GPU that nobody has, that of which others use least; of none where none is free, and
    then the command is to see none. It never waits.

    Args:
        others_mib: what others may use of a GPU that counts as free.
    """
    number = {uuid: pool for pool in pools for uuid in pool.uuids}
    full = occupied(pools, others_mib)
    fit = sorted((uuid for uuid in number if number[uuid] not in full), key=lambda uuid: _in_use(number[uuid]))
    with ExitStack() as stack:
        found = _free(fit, 1, stack)
        if number and not found:
            why = [part for part in (_holders(number), "; ".join(map(described, full))) if part]
            say(f"no GPU is free: {'; '.join(why) or 'the one that had it has just ended'}")
        yield Taken(tuple(found), tuple(found.values()), chosen=len(number) > len(found))


def lock_file(uuid: str) -> Path:
    """The lock of a GPU, or of a part of one."""
    return LOCK_FOLDER / f"fgod-gpu-{uuid}.lock"


def _parts(pools: Sequence[Pool]) -> str:
    """What is to be known of a divided GPU."""
    parts = ", ".join(pool.name for pool in pools if pool.part)
    if not parts:
        return ""
    return f": {parts}, a part of a divided GPU (a process sees one; CUDA_VISIBLE_DEVICES=MIG-UUID names another)"


def _in_use(pool: Pool) -> float:
    return pool.source.machine_mib() or 0.0


def _free(uuids: Sequence[str], wanted: int, stack: ExitStack) -> dict[str, int]:
    """The first of these GPUs that nobody has, with the descriptors of their locks, which the stack holds."""
    found: dict[str, int] = {}
    for uuid in uuids:
        if len(found) < wanted and (handle := stack.enter_context(lock.held_if_free(lock_file(uuid)))) is not None:
            found[uuid] = handle
    return found


def _holders(number: Mapping[str, Pool]) -> str:
    held = {pool.named(uuid): lock.holder_of(lock_file(uuid)) for uuid, pool in number.items()}
    return ", ".join(f"{name} is held by process {holder}" for name, holder in held.items() if holder)


@contextmanager
def _held_soon(path: Path, what: str, deadline: float) -> Iterator[int]:
    while True:
        try:
            with ExitStack() as stack:
                handle = stack.enter_context(lock.held(path, what))
                kept = stack.pop_all()
        except lock.LockHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(LOOK_SECS, max(deadline - time.monotonic(), 0.01)))
            continue
        with kept:
            yield handle
        return
