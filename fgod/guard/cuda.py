"""What the CUDA driver says of the GPUs that the command will see. Asks libcuda itself, without torch.

    python -I -S cuda.py      prints [{"uuid": …, "integrated": …, "total_mib": …, "name": …}, …], or {"error": code}

The driver reads CUDA_VISIBLE_DEVICES as it will for the command, knows parts of a GPU (MIG), and says whether a GPU
shares the memory of the host: cudaDeviceProp.integrated, which NVML does not report. It is read in its own process,
which ends at once: the guard itself never opens a GPU, and a driver that hangs costs a wait and no more.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

LIBRARY = "libcuda.so.1"

VARIABLE = "CUDA_VISIBLE_DEVICES"
"""The variable by which the driver shows some GPUs alone."""

INTEGRATED = 18
"""CU_DEVICE_ATTRIBUTE_INTEGRATED."""

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE: none there, or none visible."""

STUB = 34
"""CUDA_ERROR_STUB_LIBRARY: a library to link against, without a driver."""

ASK_SECS = 60.0
"""A driver without persistence mode takes seconds to wake many GPUs."""


NAME_BYTES = 256
"""More than any name of a device takes."""

WHOLE, PART = "GPU-", "MIG-"
"""What stands before the UUID of a GPU, and of a part of a divided one, where NVML or CUDA_VISIBLE_DEVICES names it."""


def bare(uuid: str) -> str:
    """A UUID without that."""
    return uuid.removeprefix(WHOLE).removeprefix(PART)


@dataclass(frozen=True)
class Gpu:
    """A visible GPU, or the visible part of one. `uuid`: without GPU- or MIG-; `name`: its maker's."""

    number: int
    uuid: str
    integrated: bool
    total_mib: float
    name: str = ""

    @property
    def part(self) -> bool:
        """Whether it is a part of a divided GPU (MIG), whose name ends with its profile: `… MIG 1g.10gb`."""
        return " MIG " in self.name

    @property
    def full_uuid(self) -> str:
        """As CUDA_VISIBLE_DEVICES names it."""
        return f"{PART if self.part else WHOLE}{self.uuid}"

    @property
    def label(self) -> str:
        """How sources of its memory begin: `gpu0`, by its number among those that are visible; of a part with its UUID,
        as every process sees its own part as number 0."""
        return self.full_uuid if self.part else f"gpu{self.number}"

    @property
    def pool(self) -> str:
        """How the pool of its memory is called: the same, of a part with its name."""
        return f"{self.label} ({self.name})" if self.part else self.label


class DriverError(Exception):
    """There is a driver, and it cannot be asked. The message says why."""


class _CallError(Exception):
    """A call answered with an error code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def visible() -> list[Gpu]:
    """The GPUs that a command started now would see; none where there is no driver.

    Raises:
        DriverError: the driver does not answer.
    """
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return []
    words = [sys.executable, "-I", "-S", __file__]
    try:
        done = subprocess.run(words, capture_output=True, timeout=ASK_SECS, check=False)
    except subprocess.TimeoutExpired:
        raise DriverError(f"the CUDA driver did not answer within {ASK_SECS:g} s") from None
    if done.returncode != 0:
        raise DriverError(f"asking the CUDA driver ended with {done.returncode}: {done.stderr.decode()[-300:].strip()}")
    return parsed(json.loads(done.stdout))


def parsed(answer: Any) -> list[Gpu]:
    """Raises DriverError when the answer is an error other than that there is no GPU."""
    if isinstance(answer, dict):
        if answer["error"] in (NO_DEVICE, STUB):
            return []
        raise DriverError(f"the CUDA driver answers with error {answer['error']}")
    return [Gpu(number, **fields) for number, fields in enumerate(answer)]


def here() -> list[Gpu]:
    """The same as `visible`, in a process that uses a GPU already.

    Raises:
        DriverError: the driver does not answer.
    """
    return parsed(_answer())


def ask(library: Any) -> list[dict[str, object]]:
    """Ask a loaded libcuda. Raises _CallError."""
    _call(library.cuInit, 0)
    count = ctypes.c_int()
    _call(library.cuDeviceGetCount, ctypes.byref(count))
    return [_ask_one(library, number) for number in range(count.value)]


def _ask_one(library: Any, number: int) -> dict[str, object]:
    device, integrated, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    uuid, name = (ctypes.c_ubyte * 16)(), ctypes.create_string_buffer(NAME_BYTES)
    _call(library.cuDeviceGet, ctypes.byref(device), number)
    _call(library.cuDeviceGetUuid_v2, ctypes.byref(uuid), device)
    _call(library.cuDeviceGetAttribute, ctypes.byref(integrated), INTEGRATED, device)
    _call(library.cuDeviceTotalMem_v2, ctypes.byref(total), device)
    _call(library.cuDeviceGetName, name, NAME_BYTES, device)
    digits = bytes(uuid).hex()
    text = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return {
        "uuid": text,
        "integrated": bool(integrated.value),
        "total_mib": total.value / 2**20,
        "name": name.value.decode(errors="replace"),
    }


def _call(function: Any, *arguments: object) -> None:
    code = function(*arguments)
    if code != 0:
        raise _CallError(code)


def _answer() -> object:
    try:
        return ask(ctypes.CDLL(LIBRARY))
    except _CallError as error:
        return {"error": error.code}


def main() -> None:
    print(json.dumps(_answer()))


if __name__ == "__main__":
    main()
