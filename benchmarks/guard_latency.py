"""How long a command lives after it broke its limit, over many trials.

    python benchmarks/guard_latency.py [--trials 100] [--poll-secs 0.05] [--cuda]

The command writes the time, then takes more than the limit at once: host memory, or with --cuda memory of GPU 0 by
cuMemAlloc. The time of its death is when its pidfd says so to this process: the memory is free then. Prints minimum,
median and maximum in milliseconds, from just before the allocation to death, so the allocation's own time is in it.
"""

from __future__ import annotations

import argparse
import os
import select
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from fgod import guard

HOST = """
import mmap, sys, time
block = mmap.mmap(-1, 108 << 20)
for offset in range(0, 84 << 20, 1 << 20):
    block[offset : offset + (1 << 20)] = bytes(1 << 20)
time.sleep(float(sys.argv[2]))
open(sys.argv[1], "w").write(f"{time.monotonic()}\\n")
for offset in range(84 << 20, 108 << 20, 1 << 20):
    block[offset : offset + (1 << 20)] = bytes(1 << 20)
time.sleep(30)
"""
CUDA = """
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0 and cuda.cuCtxSetCurrent(context) == 0
time.sleep(float(sys.argv[2]))
open(sys.argv[1], "w").write(f"{time.monotonic()}\\n")
assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(8 << 30)) == 0
time.sleep(30)
"""


def when_dead(started: Path, times: list[float]) -> None:
    """Wait for the command's own number, then for its end."""
    while not (started.exists() and started.read_text().endswith("\n")):
        time.sleep(0.001)
    handle = os.pidfd_open(int(started.read_text()))
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    times.append(time.monotonic())
    os.close(handle)


def trial(program: str, limits: guard.Limits, pause: float, folder: Path) -> float:
    """Milliseconds from the begin of the allocation to the command's death."""
    begun, started = folder / "begun", folder / "started"
    for old in (begun, started):
        old.unlink(missing_ok=True)
    shell = f'echo $$ > {started}; exec "$@"'
    times: list[float] = []
    waiter = threading.Thread(target=when_dead, args=(started, times))
    waiter.start()
    command = ["sh", "-c", shell, "sh", sys.executable, "-S", "-c", program, str(begun), str(pause)]
    result = guard.run(command, limits)
    waiter.join()
    if not result.killed:
        raise SystemExit(f"the command was not killed: exit code {result.exit_code} {result.reason}")
    return 1e3 * (times[0] - float(begun.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--poll-secs", type=float, default=0.05)
    parser.add_argument("--cuda", action="store_true", help="with memory of GPU 0")
    args = parser.parse_args()
    limits = guard.Limits(limit_gb=4 if args.cuda else 100 / 1024, poll_secs=args.poll_secs)
    with tempfile.TemporaryDirectory() as folder:
        pauses = [args.poll_secs * (2 + number / args.trials) for number in range(args.trials)]
        program = CUDA if args.cuda else HOST
        values = [trial(program, limits, pause, Path(folder)) for pause in pauses]
    low, middle, high = min(values), statistics.median(values), max(values)
    print(
        f"{args.trials} trials, poll {1e3 * args.poll_secs:g} ms: min {low:.1f}, median {middle:.1f}, max {high:.1f} ms"
    )


if __name__ == "__main__":
    main()
