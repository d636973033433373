"""Memory limits and kills of the control groups that we live in (cgroups(7), version 1 and 2), and of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fgod.system.procfs import MIB

UNLIMITED_BYTES = 2**60
"""Version 1 says "no limit" by a number close to 2⁶³."""


@dataclass(frozen=True)
class Memory:
    """The memory controller's folders, our own group first, then its parents as far as they are mounted."""

    folders: tuple[Path, ...]
    limit_file: str
    kills_file: str

    def limit_mib(self) -> float | None:
        """The lowest limit of ours and our parents' groups; None: there is none."""
        limits = [limit for folder in self.folders if (limit := _limit(folder / self.limit_file)) is not None]
        return min(limits) / MIB if limits else None

    def oom_kills(self) -> int | None:
        """Processes of our group that the kernel killed for want of memory so far; None: it does not say."""
        return _counter(self.folders[0] / self.kills_file, "oom_kill") if self.folders else None


NONE = Memory((), "", "")


def own(proc: Path = Path("/proc")) -> Memory:
    """The memory groups of this process, and so of the command; `NONE` where no controller for memory is mounted."""
    try:
        groups = (proc / "self" / "cgroup").read_text().splitlines()
        mounts = (proc / "self" / "mountinfo").read_text().splitlines()
    except FileNotFoundError:  # a kernel without control groups
        return NONE
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in groups)}
    for fields in (line.split(" ") for line in mounts):
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        root, mounted = fields[3], Path(fields[4])
        if kind == "cgroup" and "memory" in options:
            path = next((p for c, p in paths.items() if "memory" in c.split(",")), None)
            return Memory(_folders(path, root, mounted), "memory.limit_in_bytes", "memory.oom_control")
    for fields in (line.split(" ") for line in mounts):
        mounted = Path(fields[4])
        if fields[fields.index("-") + 1] == "cgroup2" and (folders := _folders(paths.get(""), fields[3], mounted)):
            return Memory(folders, "memory.max", "memory.events")
    return NONE


def _folders(path: str | None, root: str, mounted: Path) -> tuple[Path, ...]:
    """Where a group is found: its path without the part above what is mounted, and up to the mount."""
    if path is None:
        return ()
    inside = path.removeprefix(root.rstrip("/")).strip("/")
    folder = mounted / inside
    return tuple(f for f in (folder, *folder.parents) if f.is_relative_to(mounted))


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:  # the root group has none
        return None
    return int(text) if text.isdecimal() and int(text) < UNLIMITED_BYTES else None


def _counter(file: Path, name: str) -> int | None:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) for words in lines if len(words) == 2 and words[0] == name), None)


def machine_oom_kills(proc: Path = Path("/proc")) -> int | None:
    """Processes that the kernel killed for want of memory on the whole machine since it booted."""
    return _counter(proc / "vmstat", "oom_kill")
