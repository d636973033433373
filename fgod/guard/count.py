"""How many GPUs a pipeline may use: what profiles/default asks snakemake to share out. Imports no torch.

NVML says which there are; of those that CUDA_VISIBLE_DEVICES names, by the driver's rules, only these count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fgod.guard.cuda import PART, VARIABLE, WHOLE
from fgod.guard.nvml import Nvml
from fgod.guard.sources import UnseenError
from fgod.system import terminal

DIVIDED = (
    "a GPU is divided (MIG), and the driver shows a process one part of it: this counts as one GPU. For a run on each "
    "part, start a pipeline for each in a folder of its own, with CUDA_VISIBLE_DEVICES=MIG-UUID (nvidia-smi -L)"
)


def say(text: str) -> None:
    """On standard error."""
    terminal.line(f"fgod: {text}")


def gpus(
    environment: Mapping[str, str] = os.environ,
    dev: Path = Path("/dev"),
    nvml: Callable[[], Nvml] = Nvml,
    say: Callable[[str], None] = say,
) -> int:
    """GPUs that jobs may share out; 1 where there is none, so that a job that needs one starts and says what it found.

    Says why where not every GPU counts.
    """
    if not any(dev.glob("nvidia[0-9]*")):
        return 1
    try:
        found = nvml()
        devices = found.devices()
        divided = any(map(found.divided, devices))
        uuids = [found.uuid(device) for device in devices]
    except UnseenError as error:
        say(f"how many GPUs there are is not known ({error}): one job at a time uses one. `--resources gpu=N` says it")
        return 1
    named = environment.get(VARIABLE)
    if divided and (named is None or PART in named):
        say(DIVIDED)
        return 1
    return max(len(uuids) if named is None else len(visible(named, uuids)), 1)


def visible(named: str, uuids: Sequence[str]) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names, to the first word that names none, as the driver reads it.

    Args:
        named: numbers, or UUIDs of which the first characters are enough.
        uuids: of all GPUs, as `GPU-…`, by number.
    """
    found: list[str] = []
    for word in map(str.strip, named.split(",")):
        fit = [uuid for number, uuid in enumerate(uuids) if word == str(number) or _begins(uuid, word)]
        if len(fit) != 1:
            return found
        found += fit
    return found


def _begins(uuid: str, word: str) -> bool:
    return word.startswith(WHOLE) and uuid.lower().startswith(word.lower())
