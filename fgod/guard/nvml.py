"""What NVML says of one GPU. What it does not know, or cannot have meant, is an UnseenError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgod.guard.cuda import PART, WHOLE
from fgod.guard.sources import UnseenError
from fgod.system.procfs import MIB

DIFFERS = 0.1
"""NVML and the CUDA driver may differ this much over a device's size: one counts what the driver keeps for itself."""


class Nvml:
    """NVML by way of nvidia-ml-py.

    Args:
        library: the module pynvml, or what stands for it in a test.

    Raises:
        UnseenError: there is no NVML, or it does not start.
    """

    def __init__(self, library: Any = None) -> None:
        self.library = library or _pynvml()
        self._ask("start", self.library.nvmlInit)

    def device(self, uuid: str) -> Any:
        """Handle of a GPU, or of a part of one (MIG)."""
        try:
            return self._ask("GPU", self.library.nvmlDeviceGetHandleByUUID, f"{WHOLE}{uuid}".encode())
        except UnseenError:
            return self._ask("GPU", self.library.nvmlDeviceGetHandleByUUID, f"{PART}{uuid}".encode())

    def devices(self) -> list[Any]:
        """Handles of all GPUs of the machine."""
        count = self._ask("number of GPUs", self.library.nvmlDeviceGetCount)
        return [self._ask("GPU", self.library.nvmlDeviceGetHandleByIndex, number) for number in range(count)]

    def uuid(self, device: Any) -> str:
        """`GPU-…`, or `MIG-…` of a part of one."""
        found = self._ask("UUID", self.library.nvmlDeviceGetUUID, device)
        return found.decode() if isinstance(found, bytes) else str(found)

    def divided(self, device: Any) -> bool:
        """Whether a GPU is divided into parts (MIG); most kinds cannot be."""
        try:
            current, _ = self.library.nvmlDeviceGetMigMode(device)
        except self.library.NVMLError:
            return False
        return bool(current)

    def parts(self, device: Any) -> list[Any]:
        """Handles of the parts of a divided GPU (MIG) that are to be seen here."""
        most = self._ask("number of parts", self.library.nvmlDeviceGetMaxMigDeviceCount, device)
        return [part for number in range(most) if (part := self._part(device, number)) is not None]

    def _part(self, device: Any, number: int) -> Any:
        try:
            return self.library.nvmlDeviceGetMigDeviceHandleByIndex(device, number)
        except self.library.NVMLError as error:
            if error.value == self.library.NVML_ERROR_NOT_FOUND:
                return None
            raise UnseenError(f"part {number}: NVML says {error}") from None

    def name(self, device: Any) -> str:
        """What its maker calls it; of a part of a divided GPU with its profile: `… MIG 1g.10gb`."""
        found = self._ask("name", self.library.nvmlDeviceGetName, device)
        return found.decode(errors="replace") if isinstance(found, bytes) else str(found)

    def driver(self) -> str:
        """The version of the driver."""
        found = self._ask("driver version", self.library.nvmlSystemGetDriverVersion)
        return found.decode(errors="replace") if isinstance(found, bytes) else str(found)

    def cuda(self) -> tuple[int, int]:
        """The newest version of CUDA that the driver runs: (13, 0)."""
        found = self._ask("CUDA version", self.library.nvmlSystemGetCudaDriverVersion)
        return found // 1000, found % 1000 // 10

    def memory_mib(self, device: Any) -> tuple[float, float]:
        """(used, total) of a device, as NVML says it; the guard compares it with the driver (`used_mib`)."""
        memory = self._ask("device memory", self.library.nvmlDeviceGetMemoryInfo, device)
        if not 0 < memory.used <= memory.total:
            raise UnseenError(f"device memory: NVML says {memory.used / MIB:.0f} of {memory.total / MIB:.0f} MiB")
        return float(memory.used / MIB), float(memory.total / MIB)

    def used_mib(self, device: Any, total_mib: float) -> float:
        """What all processes and the driver use of a device whose size the driver says is `total_mib`."""
        used, total = self.memory_mib(device)
        if abs(total - total_mib) > DIFFERS * total_mib:
            raise UnseenError(
                f"device memory: NVML says {used:.0f} of {total:.0f} MiB, the CUDA driver says that there are "
                f"{total_mib:.0f} MiB"
            )
        return used

    def processes(self, device: Any) -> dict[int, float | None]:
        """MiB by process number; None where it is unknown. Empty in a container without the host's numbers."""
        found: dict[int, float | None] = {}
        for ask in (
            self.library.nvmlDeviceGetComputeRunningProcesses,
            self.library.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for process in self._ask("processes", ask, device):
                used = process.usedGpuMemory
                known = used is not None and 0 < used < 2**63
                found[process.pid] = used / MIB if known else found.get(process.pid)
        return found

    def _ask(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return function(*arguments)
        except self.library.NVMLError as error:
            raise UnseenError(f"{what}: NVML says {error}") from None


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise UnseenError(f"nvidia-ml-py is not installed: {error}") from None
    return pynvml
