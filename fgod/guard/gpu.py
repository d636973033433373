"""Memory of GPUs: of a discrete one, of a process tree on it, and of the one pool that an integrated one shares.

What is not known to be somebody else's counts as the command's: a worker that NVML does not list is not overlooked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgod.guard.cuda import Gpu
from fgod.guard.nvml import Nvml
from fgod.guard.sources import HostMemory, UnseenError, User
from fgod.system.process import Member, read_process
from fgod.system.procfs import Meminfo

CALM_COST = 500
"""The list of processes is read again after this many times the time that it takes, at most 0.2 % of a core …"""

SLACK_MIB = 256.0
"""… and by this much all processes together may seem to use more than the device: the two are not read at once."""


class Device:
    """One GPU as NVML shows it, with its list of processes read rarely."""

    def __init__(self, nvml: Nvml, gpu: Gpu) -> None:
        self.gpu = gpu
        self._nvml = nvml
        self._handle: Any = nvml.device(gpu.uuid)
        self._processes: dict[int, float | None] = {}
        self._due = 0.0

    def used_mib(self) -> float:
        return self._nvml.used_mib(self._handle, self.gpu.total_mib)

    def processes(self, exact: bool) -> dict[int, float | None]:
        """MiB by process number, at most `CALM_COST` times their cost old unless `exact`."""
        begin = time.monotonic()
        if exact or begin >= self._due:
            self._processes = self._nvml.processes(self._handle)
            end = time.monotonic()
            self._due = end + CALM_COST * (end - begin)
        return self._processes

    def users(self) -> list[User]:
        found = [(pid, read_process(pid), mib) for pid, mib in sorted(self.processes(exact=True).items())]
        return [User(pid, process.name if process else "not visible here", mib) for pid, process, mib in found]


INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the machine's own namespace of process numbers (PROC_PID_INIT_INO of the kernel): NVML's numbers are its."""


def numbers_are_ours(proc: Path = Path("/proc")) -> bool:
    """Whether NVML's process numbers are those that we see: not in a container with numbers of its own."""
    return (proc / "self" / "ns" / "pid").stat().st_ino == INITIAL_PID_NAMESPACE


def require_own_numbers() -> None:
    """Raises UnseenError where NVML's list names none of our processes."""
    if not numbers_are_ours():
        raise UnseenError("processes: in a container with its own process numbers NVML's list cannot be read")


def in_tree_mib(processes: dict[int, float | None], tree: Sequence[Member]) -> float:
    """MiB of the tree's processes; 0 when none is listed: none has opened the GPU yet.

    Raises:
        UnseenError: one is listed with an unknown amount.
    """
    total = 0.0
    for mib in (processes[m.pid] for m in tree if m.pid in processes):
        if mib is None:
            raise UnseenError("processes: NVML lists them without their memory")
        total += mib
    return total


class DeviceMemory:
    """A discrete GPU: what is used of the device, without what is known to be other processes'.

    Where NVML's process numbers are ours, its list names the others. Elsewhere what was used before the start is
    theirs, as long as the device never holds less; others that come later count as the command's.
    """

    def __init__(self, device: Device, exact_above_mib: float) -> None:
        self.name = f"{device.gpu.label}_device"
        self._device = device
        self._exact_above = exact_above_mib
        self._own_numbers = numbers_are_ours()
        self._before = self.machine_mib() or 0.0

    def total_mib(self) -> float | None:
        return self._device.gpu.total_mib

    def machine_mib(self) -> float | None:
        try:
            return self._device.used_mib()
        except UnseenError:
            return None

    def users(self) -> list[User]:
        return self._device.users()

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        """Up to the limit the list of others may be a moment old; above it, it is read anew."""
        device = self._device.used_mib()
        self._before = min(self._before, device)
        try:
            processes = self._device.processes(exact=device > self._exact_above)
            if _sum(processes) > device + SLACK_MIB:  # an old list, or wrong ones
                processes, device = self._device.processes(exact=True), self._device.used_mib()
        except UnseenError:
            return device - self._before
        if _sum(processes) > device + SLACK_MIB:
            raise UnseenError(f"NVML says {device:.0f} MiB of the device, and {_sum(processes):.0f} of its processes")
        return max(device - self._others_mib(processes, {m.pid for m in tree}), 0.0)

    def _others_mib(self, processes: dict[int, float | None], ours: set[int]) -> float:
        if self._own_numbers or ours & processes.keys():
            return _sum({pid: mib for pid, mib in processes.items() if pid not in ours})
        return self._before


def _sum(processes: dict[int, float | None]) -> float:
    return sum(mib for mib in processes.values() if mib is not None)


class TreeDeviceMemory:
    """A discrete GPU where the device does not report it: what NVML says of the tree's processes."""

    def __init__(self, device: Device) -> None:
        self.name = f"{device.gpu.label}_process"
        self._device = device

    def total_mib(self) -> float | None:
        return self._device.gpu.total_mib

    def machine_mib(self) -> float | None:
        return None

    def users(self) -> list[User]:
        return self._device.users()

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        require_own_numbers()
        return in_tree_mib(self._device.processes(exact=True), tree)


class UnifiedMemory:
    """Memory that GPU and host share: all that is not available of it, whoever has it, as it is the machine that fails.

    CUDA memory of an integrated GPU is in no process's RSS and in no control group. What the tree is known to use, host
    and GPU together, is a lower bound and counts where it is more.
    """

    name = "unified"

    def __init__(self, host: HostMemory, devices: Sequence[Device], proc: Path = Path("/proc")) -> None:
        self._host = host
        self._devices = devices
        self._meminfo = Meminfo(proc)

    def total_mib(self) -> float | None:
        info = self._meminfo.read()
        return None if info is None else info[0]

    def machine_mib(self) -> float | None:
        info = self._meminfo.read()
        return None if info is None else info[0] - info[1]

    def users(self) -> list[User]:
        return [user for device in self._devices for user in device.users()]

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        pool = self.machine_mib()
        if pool is None:
            raise UnseenError("/proc/meminfo does not say MemTotal and MemAvailable")
        return max(pool, known_mib(self._host, self._devices, tree))


class TreeUnifiedMemory:
    """The same where the pool cannot be read: host memory of the tree and what NVML says of its processes."""

    name = "unified_process"

    def __init__(self, host: HostMemory, devices: Sequence[Device]) -> None:
        self._host = host
        self._devices = devices

    def total_mib(self) -> float | None:
        return None

    def machine_mib(self) -> float | None:
        return None

    def users(self) -> list[User]:
        return [user for device in self._devices for user in device.users()]

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        if not self._devices:
            raise UnseenError("processes: NVML shows no GPU")
        require_own_numbers()
        host = self._host.used_mib(tree)
        on_gpus = sum(in_tree_mib(device.processes(exact=True), tree) for device in self._devices)
        return None if host is None else host + on_gpus


def known_mib(host: HostMemory, devices: Sequence[Device], tree: Sequence[Member]) -> float:
    """Host memory of the tree and GPU memory that NVML says is its own, as far as either is known."""
    known = 0.0
    try:
        known += host.used_mib(tree) or 0.0
        for device in devices if numbers_are_ours() else ():
            known += in_tree_mib(device.processes(exact=False), tree)
    except UnseenError:
        return known
    return known
