"""The pools of memory that can run full on this machine, and how each is read.

The limit holds for each pool by itself. A pool has sources in order of trust: the first that can be read is used, and
the next when it cannot any more. Which pools there are is what the machine says, never its name:

    no visible GPU       host: the tree's PSS (RSS where the kernel does not report PSS)
    discrete GPUs        host, and each GPU: its device memory, else NVML's list of processes
    integrated GPU       unified: MemTotal − MemAvailable, else the tree's PSS and NVML's list of processes
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fgod.errors import FgodError
from fgod.guard import cuda
from fgod.guard.cuda import DriverError, Gpu
from fgod.guard.gpu import Device, DeviceMemory, TreeDeviceMemory, TreeUnifiedMemory, UnifiedMemory
from fgod.guard.limits import Limits, OverTime, lowered
from fgod.guard.nvml import Nvml
from fgod.guard.sources import HostMemory, MemorySource, UnseenError, User
from fgod.system.process import Member, read_process

RETRY_SECS = 5.0
"""How often a source that could not be read is tried again."""

BLIND_SECS = 1.0
"""How long no source of a pool may be readable before the run is stopped."""


class BlindError(FgodError):
    """No source of a pool can be read: the command was not started. Exit code 1."""


@dataclass(frozen=True)
class Reading:
    """What a pool says now: `used_mib` is None when it is unknown or there is nothing to read yet."""

    source: str
    used_mib: float | None
    blind: bool = False


class Pool:
    """One pool: its sources, and how long it has been over the limit or out of sight.

    `whole`: what everybody uses of it counts against the limit, not only the command's part. `part`: it is that
    of a part of a divided GPU (MIG).
    """

    def __init__(
        self, name: str, sources: Sequence[MemorySource], limits: Limits, gpus: Sequence[Gpu] = (), whole: bool = False
    ) -> None:
        self.name = name
        self.sources = tuple(sources)
        self.part = any(gpu.part for gpu in gpus)
        self._full_uuids = {gpu.uuid: gpu.full_uuid for gpu in gpus}
        self.uuids = tuple(self._full_uuids)
        """GPUs whose memory this is: their other users are listed and waited for before the start."""
        self.whole = whole
        self.before_mib = self.sources[0].machine_mib()
        """What everybody used of it when this was made: before the command."""
        self.limit_mib = lowered(limits.limit_mib, self._first_total())
        self.over = OverTime(self.limit_mib, limits.over_secs)
        self.current = self.sources[0].name
        self.events: list[str] = []
        self._retry_at = dict.fromkeys((s.name for s in sources), float("-inf"))
        self._blind_since: float | None = None

    def named(self, uuid: str) -> str:
        """One of its GPUs as CUDA_VISIBLE_DEVICES names it."""
        return self._full_uuids[uuid]

    def room_mib(self) -> float:
        """What a command that starts now may take of it: where the whole pool counts, others' part is gone already."""
        return self.limit_mib - (self.before_mib or 0.0) if self.whole else self.limit_mib

    def others_mib(self, used_mib: float) -> float | None:
        """What others use of it when `used_mib` counts against the limit; of a whole pool, what they did before."""
        if self.whole:
            return self.before_mib
        machine = self.source.machine_mib()
        return None if machine is None else max(machine - used_mib, 0.0)

    def _first_total(self) -> float | None:
        return next((total for s in self.sources if (total := s.total_mib()) is not None), None)

    @property
    def source(self) -> MemorySource:
        """The one that was read last."""
        return next(s for s in self.sources if s.name == self.current)

    def troubles(self) -> list[str]:
        """Why no source can be read now; empty when one can."""
        reasons = []
        own = read_process(os.getpid())
        for source in self.sources:
            try:
                source.used_mib([own] if own else [])
            except UnseenError as error:
                reasons.append(f"{source.name}: {error}")
            else:
                return []
        return reasons

    def read(self, t: float, tree: Sequence[Member]) -> Reading:
        """Ask the sources in order; a change of source, and sight lost or found again, are noted in `events`."""
        for source in self.sources:
            if t < self._retry_at[source.name]:
                continue
            try:
                used = source.used_mib(tree)
            except UnseenError as error:
                if tree:  # a command that ends while it is read is nothing to note
                    self._lost(t, source, error)
                continue
            self._seen(t, source)
            return Reading(source.name, used)
        return Reading(self.current, None, self._blind(t) if tree else False)

    def _lost(self, t: float, source: MemorySource, error: UnseenError) -> None:
        if self._retry_at[source.name] == float("-inf"):
            self.events.append(f"{t:.1f} s: {source.name} cannot be read: {error}")
        self._retry_at[source.name] = t + (RETRY_SECS if len(self.sources) > 1 else 0.0)

    def _seen(self, t: float, source: MemorySource) -> None:
        self._retry_at[source.name] = float("-inf")
        self._blind_since = None
        if source.name != self.current:
            self.events.append(f"{t:.1f} s: {self.name} is read from {source.name} instead of {self.current}")
            self.current = source.name

    def _blind(self, t: float) -> bool:
        if self._blind_since is None:
            self._blind_since = t
        return t - self._blind_since >= BLIND_SECS


class _Unseen:
    """Stands for a source that could not even be opened."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self._why = why

    def total_mib(self) -> float | None:
        return None

    def machine_mib(self) -> float | None:
        return None

    def users(self) -> list[User]:
        return []

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        raise UnseenError(self._why)


def of_this_machine(
    limits: Limits,
    gpus: Callable[[], list[Gpu]] = cuda.visible,
    nvml: Callable[[], Nvml] = Nvml,
) -> list[Pool]:
    """The pools that a command started now can fill. Those that cannot be read are among them (see `require_sight`)."""
    host = HostMemory(limits.limit_mib)
    try:
        found = gpus()
    except DriverError as error:
        return [Pool("host", [host], limits), Pool("gpu", [_Unseen("gpu", str(error))], limits)]
    discrete = [gpu for gpu in found if not gpu.integrated]
    integrated = [gpu for gpu in found if gpu.integrated]
    pools = [_discrete(gpu, limits, nvml) for gpu in discrete]
    if integrated:
        return [_unified(integrated, host, limits, nvml), *pools]
    return [Pool("host", [host], limits), *pools]


def _discrete(gpu: Gpu, limits: Limits, nvml: Callable[[], Nvml]) -> Pool:
    try:
        device = Device(nvml(), gpu)
    except UnseenError as error:
        return Pool(gpu.pool, [_Unseen(gpu.label, str(error))], limits, [gpu])
    limit = lowered(limits.limit_mib, gpu.total_mib)
    return Pool(gpu.pool, [DeviceMemory(device, limit), TreeDeviceMemory(device)], limits, [gpu])


def _unified(gpus: Sequence[Gpu], host: HostMemory, limits: Limits, nvml: Callable[[], Nvml]) -> Pool:
    try:
        library = nvml()
        devices = [Device(library, gpu) for gpu in gpus]
    except UnseenError:  # only a cross-check is lost: the kernel reports the pool
        devices = []
    sources: list[MemorySource] = [UnifiedMemory(host, devices), TreeUnifiedMemory(host, devices)]
    return Pool("unified", sources, limits, gpus, whole=True)


def require_sight(pools: Sequence[Pool], blind_ok: bool) -> list[str]:
    """What cannot be seen, in words.

    Raises:
        BlindError: something cannot, and nobody said that this is fine.
    """
    blind = [f"{pool.name} ({'; '.join(troubles)})" for pool in pools if (troubles := pool.troubles())]
    if blind and not blind_ok:
        raise BlindError(
            f"guard: found no way to read {', '.join(blind)}; expected one, as a limit that is not seen is none. "
            "Start with CUDA_VISIBLE_DEVICES= (empty) where the command needs no GPU, or with --blind-ok "
            "(guard.blind_ok in the config) to go on without"
        )
    return [f"cannot read {pool}, and goes on (--blind-ok)" for pool in blind]
