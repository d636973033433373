"""What watching costs: processor time of the guard over a command that does nothing, without its start and its end.

    python benchmarks/guard_overhead.py [--poll-secs 0.05] [--secs 20] [--processes 1 5] [--table]

Prints one line for each number of processes: per cent of a core, microseconds a poll. All threads of the guard and
its keeper count.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from fgod import guard
from fgod.system.process import read_process
from fgod.system.procfs import TICKS_PER_SEC

IDLE = """
import os, sys, time
for _ in range(int(sys.argv[1]) - 1):
    if os.fork() == 0:
        break
time.sleep(float(sys.argv[2]))
"""
SETTLE_SECS = 1.5


def children_ticks() -> int:
    """Processor time of our direct children (the keeper), in ticks of 10 ms."""
    ticks = 0
    for name in filter(str.isdecimal, os.listdir("/proc")):
        member = read_process(int(name))
        if member and member.parent == os.getpid():
            ticks += sum(map(int, Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks


def measure(processes: int, poll_secs: float, secs: float, table: Path | None) -> tuple[float, float]:
    """(per cent of a core, microseconds a poll) between start and end."""
    limits = guard.Limits(limit_gb=16, poll_secs=poll_secs)
    command = [sys.executable, "-S", "-c", IDLE, str(processes), str(secs + 2 * SETTLE_SECS)]
    seen: list[float] = []

    def look() -> None:
        time.sleep(SETTLE_SECS)
        before, began = time.process_time() + children_ticks() / TICKS_PER_SEC, time.monotonic()
        time.sleep(secs)
        spent = time.process_time() + children_ticks() / TICKS_PER_SEC - before
        seen.append(spent / (time.monotonic() - began))

    looker = threading.Thread(target=look)
    looker.start()
    result = guard.run(command, limits, table)
    looker.join()
    if result.exit_code != 0:
        raise SystemExit(f"the idle command ended with {result.exit_code}: {result.reason}")
    return 100 * seen[0], 1e6 * seen[0] * poll_secs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--poll-secs", type=float, default=0.05)
    parser.add_argument("--secs", type=float, default=20.0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--table", action="store_true", help="write guard.tsv too, every five seconds")
    args = parser.parse_args()
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "guard.tsv" if args.table else None
            percent, microseconds = measure(processes, args.poll_secs, args.secs, table)
        print(f"{processes} idle process(es): {percent:.2f} % of a core, {microseconds:.0f} µs a poll")


if __name__ == "__main__":
    main()
