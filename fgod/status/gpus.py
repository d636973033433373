"""Who uses the GPUs of this machine, as NVML says it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgod.system.lock import Holder, holder_of
from fgod.system.process import read_process

if TYPE_CHECKING:
    from fgod.guard.nvml import Nvml

NVML_SECS = 0.2
"""How long NVML may take. A driver that nobody uses starts first, which takes seconds: then a status goes without."""


@dataclass(frozen=True)
class User:
    """A process that uses a GPU. `name`: empty where it is not visible here; `mib`: None where NVML does not say."""

    pid: int
    name: str
    mib: float | None


@dataclass(frozen=True)
class GpuUse:
    """A GPU, or a part of a divided one (MIG: `number` is then that of the whole, `uuid` begins with MIG-), its memory
    in MiB (None: NVML does not say, as of integrated GPUs), and who uses it.

    `holder`: the command of fgod that has taken it; None where none has.
    """

    number: int
    name: str
    used_mib: float | None
    total_mib: float | None
    users: tuple[User, ...] = ()
    uuid: str = ""
    holder: Holder | None = None

    @property
    def part(self) -> bool:
        """Whether it is a part of a divided GPU."""
        from fgod.guard.cuda import PART

        return self.uuid.startswith(PART)


@dataclass(frozen=True)
class Gpus:
    """`unknown`: in words, why they could not be asked; empty where they were, or there is none."""

    found: tuple[GpuUse, ...] = ()
    unknown: str = ""


@dataclass
class _Answer:
    gpus: Gpus = field(default_factory=lambda: Gpus(unknown=f"NVML gave no answer within {NVML_SECS:g} s"))


def look(dev: Path = Path("/dev"), nvml: Callable[[], Nvml] | None = None, secs: float = NVML_SECS) -> Gpus:
    """The GPUs now. Without a device of NVIDIA nothing is asked; NVML is not waited for longer than `secs`."""
    if not any(dev.glob("nvidia[0-9]*")):
        return Gpus()
    answer = _Answer()
    thread = threading.Thread(target=_ask, args=(answer, nvml), name="nvml", daemon=True)
    thread.start()
    thread.join(secs)
    return answer.gpus


def _ask(answer: _Answer, nvml: Callable[[], Nvml] | None) -> None:
    from fgod.guard.nvml import Nvml
    from fgod.guard.sources import UnseenError

    try:
        answer.gpus = Gpus(tuple(gpu_uses((nvml or Nvml)())))
    except UnseenError as error:
        answer.gpus = Gpus(unknown=str(error))


def gpu_uses(nvml: Nvml) -> list[GpuUse]:
    """What NVML says of each GPU; of a divided one, of each of its parts, or of the whole where it cannot list them.

    Raises:
        UnseenError: it does not say which there are.
    """
    return [
        _use(nvml, number, one)
        for number, device in enumerate(nvml.devices())
        for one in _parts(nvml, device) or [device]
    ]


def _parts(nvml: Nvml, device: object) -> list[Any]:
    from fgod.guard.sources import UnseenError

    try:
        return nvml.parts(device) if nvml.divided(device) else []
    except UnseenError:
        return []


def _use(nvml: Nvml, number: int, device: object) -> GpuUse:
    from fgod.guard.cuda import bare
    from fgod.guard.others import lock_file
    from fgod.guard.sources import UnseenError

    try:
        used, total = nvml.memory_mib(device)
    except UnseenError:  # an integrated GPU has no memory of its own
        used, total = None, None
    try:
        users = nvml.processes(device)
    except UnseenError:
        users = {}
    seen = {pid: read_process(pid) for pid in users}
    named = (User(pid, known.name if (known := seen[pid]) else "", mib) for pid, mib in sorted(users.items()))
    uuid = nvml.uuid(device)
    holder = holder_of(lock_file(bare(uuid)))
    return GpuUse(number, nvml.name(device), used, total, tuple(named), uuid, holder)
