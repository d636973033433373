"""An NVML and a CUDA driver that answer as told: real GPUs of these kinds are not at hand where the tests run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pynvml

MIB = 2**20
UUID = "00112233-4455-6677-8899-aabbccddeeff"


@dataclass
class _Memory:
    total: int
    used: int


@dataclass
class _Process:
    pid: int
    usedGpuMemory: int | None


@dataclass
class SimulatedNvml:
    """Stands for the module pynvml. `memory`: (total, used) in MiB or the error code that is answered."""

    memory: tuple[float, float] | int = (1000.0, 100.0)
    processes: Mapping[int, float | None] | int = field(default_factory=dict)
    starts: int = 0
    cuda: int = 13000
    known: bytes = f"GPU-{UUID}".encode()
    more: tuple[str, ...] = ()
    """UUIDs of further GPUs; all have the same memory and processes."""
    divided: bool = False
    parts: tuple[str, ...] = ()
    """UUIDs of the parts of the first GPU."""
    after_parts: int = pynvml.NVML_ERROR_NOT_FOUND
    """The error code that is answered to the number after those."""

    NVML_ERROR_NOT_FOUND: int = pynvml.NVML_ERROR_NOT_FOUND
    NVMLError: Any = pynvml.NVMLError

    def _answer(self, code: int) -> None:
        if code:
            raise pynvml.NVMLError(code)

    def nvmlInit(self) -> None:
        self._answer(self.starts)

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> bytes:
        if uuid not in [*self._all, *self._parts]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    @property
    def _all(self) -> list[bytes]:
        return [self.known, *(f"GPU-{uuid}".encode() for uuid in self.more)]

    @property
    def _parts(self) -> list[bytes]:
        return [f"MIG-{uuid}".encode() for uuid in self.parts]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: bytes) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: bytes, number: int) -> bytes:
        if handle != self.known or number >= len(self.parts):
            raise pynvml.NVMLError(self.after_parts)
        return self._parts[number]

    def nvmlDeviceGetCount(self) -> int:
        return len(self._all)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> bytes:
        return self._all[number]

    def nvmlDeviceGetUUID(self, handle: bytes) -> str:
        return handle.decode()

    def nvmlDeviceGetMigMode(self, handle: bytes) -> list[int]:
        return [int(self.divided), int(self.divided)]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlDeviceGetName(self, handle: bytes) -> str:
        return "Simulated GPU MIG 1g.10gb" if handle.startswith(b"MIG-") else "Simulated GPU"

    def nvmlDeviceGetMemoryInfo(self, handle: bytes) -> _Memory:
        if isinstance(self.memory, int):
            raise pynvml.NVMLError(self.memory)
        total, used = self.memory
        return _Memory(int(total * MIB), int(used * MIB))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: bytes) -> list[_Process]:
        if isinstance(self.processes, int):
            raise pynvml.NVMLError(self.processes)
        return [_Process(pid, None if mib is None else int(mib * MIB)) for pid, mib in self.processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: bytes) -> list[_Process]:
        return []


@dataclass
class SimulatedDriver:
    """Stands for libcuda: GPUs as (integrated, MiB), or the error code of cuInit."""

    gpus: list[tuple[bool, float]] = field(default_factory=list)
    init: int = 0
    name: bytes = b"Simulated GPU"

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetUuid_v2(self, uuid: Any, device: ctypes.c_int) -> int:
        uuid._obj[:] = bytes.fromhex(UUID.replace("-", ""))
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:
        assert len(self.name) < length
        name.value = self.name
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        assert attribute == 18
        value._obj.value = int(self.gpus[device.value][0])
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: ctypes.c_int) -> int:
        size._obj.value = int(self.gpus[device.value][1] * MIB)
        return 0
