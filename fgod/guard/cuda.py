"""What the CUDA driver says of the GPUs that the command will see. Asks libcuda itself, without torch.

    python -I -S cuda.py      prints [{"uuid": …, "integrated": …, "total_mib": …}, …], or {"error": code}

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


@dataclass(frozen=True)
class Gpu:
    """A visible GPU, or the visible part of one. `uuid` as NVML takes it, without GPU- or MIG-."""

    number: int
    uuid: str
    integrated: bool
    total_mib: float


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


def ask(library: Any) -> list[dict[str, object]]:
    """Ask a loaded libcuda. Raises _CallError."""
    _call(library.cuInit, 0)
    count = ctypes.c_int()
    _call(library.cuDeviceGetCount, ctypes.byref(count))
    return [_ask_one(library, number) for number in range(count.value)]


def _ask_one(library: Any, number: int) -> dict[str, object]:
    device, integrated, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    uuid = (ctypes.c_ubyte * 16)()
    _call(library.cuDeviceGet, ctypes.byref(device), number)
    _call(library.cuDeviceGetUuid_v2, ctypes.byref(uuid), device)
    _call(library.cuDeviceGetAttribute, ctypes.byref(integrated), INTEGRATED, device)
    _call(library.cuDeviceTotalMem_v2, ctypes.byref(total), device)
    digits = bytes(uuid).hex()
    text = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return {"uuid": text, "integrated": bool(integrated.value), "total_mib": total.value / 2**20}


def _call(function: Any, *arguments: object) -> None:
    code = function(*arguments)
    if code != 0:
        raise _CallError(code)


def main() -> None:
    try:
        answer: object = ask(ctypes.CDLL(LIBRARY))
    except _CallError as error:
        answer = {"error": error.code}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
