"""Small readers of /proc that keep their files open: opening one costs more than reading it."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")
MIB = 2**20


def cpu_info(key: str, proc: Path = Path("/proc")) -> str:
    """A line of /proc/cpuinfo of the first processor, such as `model name` or `vendor_id`; empty where there is none,
    as on ARM."""
    for line in (proc / "cpuinfo").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


class OpenFile:
    """A file of /proc, read anew each time. Raises OSError as open(2) and read(2) do."""

    def __init__(self, path: Path) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, size: int) -> bytes:
        return os.pread(self._handle, size, 0)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


class Meminfo:
    """MemTotal and MemAvailable (proc_meminfo(5)) in MiB."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._path = proc / "meminfo"
        self._file: OpenFile | None = None

    def read(self) -> tuple[float, float] | None:
        """(total, available); None where the kernel does not report one of them, or says 0."""
        try:
            self._file = self._file or OpenFile(self._path)
            text = self._file.read(160)  # they stand in the first three lines
        except OSError:
            return None
        total, available = kib_field(text, b"MemTotal:"), kib_field(text, b"MemAvailable:")
        return (total, available) if total and available else None


def kib_field(text: bytes, name: bytes) -> float | None:
    """The value of a line `Name:   123 kB`, in MiB; None without such a line."""
    line = next((line for line in text.splitlines() if line.startswith(name)), b"")
    words = line.split()
    return int(words[1]) / 1024 if len(words) > 1 else None


class Statm:
    """Memory maps of processes in pages (proc_pid_statm(5)). An open file stays with its process, not its number."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._files: dict[int, tuple[int, OpenFile]] = {}

    def read(self, pid: int, started: int) -> bytes:
        """What the kernel says, for `parsed`; empty for a process that is gone.

        Raises:
            PermissionError: it is hidden from us.
        """
        try:
            known = self._files.get(pid)
            if known is None or known[0] != started:
                known = self._files[pid] = started, OpenFile(self._proc / str(pid) / "statm")
            return known[1].read(128)
        except (FileNotFoundError, ProcessLookupError):
            return b""

    @staticmethod
    def parsed(text: bytes) -> tuple[int, int] | None:
        """(extent, resident); None for a process that is gone or has given its memory back."""
        extent, pages = map(int, text.split()[:2]) if text else (0, 0)
        return (extent, pages) if pages else None

    def keep_only(self, pids: Set[int]) -> None:
        """Close the files of all other processes."""
        for pid in self._files.keys() - pids:
            del self._files[pid]


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * PAGE_BYTES / MIB, 1)


def forget_peak() -> None:
    """Reset the counter of `peak_mib` to what is resident now (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float:
    """Largest resident memory of this process since `forget_peak`, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)
