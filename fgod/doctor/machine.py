"""The machine and the configs as the checks see them: each thing is looked up once, and a test can simulate all."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fgod import torch_build
from fgod.config import load, read_yaml
from fgod.doctor.child import ask
from fgod.doctor.told import Asked, Benchmark, Told
from fgod.errors import UsageError
from fgod.guard import cuda
from fgod.guard.cuda import DriverError, Gpu
from fgod.guard.limits import WHOLE_GB, Limits, WholeMachine
from fgod.guard.nvml import Nvml
from fgod.guard.pools import Pool, of_this_machine
from fgod.guard.sources import UnseenError
from fgod.sizes import BaseSizes, NotHereError, base_sizes, require_weights
from fgod.torch_build import Build, devices_of


def why_uncompiled(package: str) -> str:
    """Why each process compiles an installed package anew; empty where it has bytecode (PEP 3147), or will have."""
    spec = find_spec(package)
    if spec is None or spec.cached is None or Path(spec.cached).exists():
        return ""
    if sys.dont_write_bytecode:
        return "PYTHONDONTWRITEBYTECODE (or -B) is set"
    folder = next(one for one in Path(spec.cached).parents if one.exists())
    return "" if os.access(folder, os.W_OK) else f"{folder} cannot be written to"


@dataclass(frozen=True)
class Machine:
    """How this machine is asked."""

    python: tuple[int, int, int] = sys.version_info[:3]
    architecture: str = platform.machine()
    uncompiled: Callable[[], str] = lambda: why_uncompiled("torch")
    gpus: Callable[[], list[Gpu]] = cuda.visible
    nvml: Callable[[], Nvml] = Nvml
    build: Callable[[], Build] = torch_build.installed
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    writable: Callable[[Path], bool] = lambda folder: os.access(folder, os.W_OK)
    child: Callable[[Asked], Told] = ask

    def pools(self, limits: Limits) -> list[Pool]:
        """The guard's pools of memory."""
        return of_this_machine(limits, self.gpus, self.nvml)


@dataclass(frozen=True)
class Config:
    """A config that is looked at.

    Args:
        own: it is the one that a bare `snakemake` here would run, or was named: what is wrong with it is a fault.
        checked: as `fgod.config.load` gives it; None: it could not be read, or its weights are not here.
        error: why it was not.
        base: how large its base is.
    """

    name: str
    own: bool
    checked: Mapping[str, Any] | None = None
    error: UsageError | None = None
    base: BaseSizes | None = None


def read_config(path: Path, own: bool) -> Config:
    """A config with its base's sizes, or why there is none."""
    name = str(path)
    try:
        raw = read_yaml(path).get("base")
        if isinstance(raw, dict):
            require_weights(raw)
        checked = load(path)
        return Config(name, own, checked, base=base_sizes(checked["base"]))
    except NotHereError as error:
        return Config(name, own, error=error)
    except UsageError as error:
        return Config(name, own, error=error)


@dataclass(frozen=True)
class Look:
    """What the checks are given.

    Args:
        folder: of the project.
        benchmarks: what the child is to time; none for a quick look.
    """

    machine: Machine
    configs: Sequence[Config]
    folder: Path = Path(".")
    benchmarks: tuple[Benchmark, ...] = ()
    quick: bool = False

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The visible ones; none where the driver does not answer, which `driver_error` says."""
        return [] if isinstance(self._gpus, DriverError) else self._gpus

    @cached_property
    def driver_error(self) -> str:
        return str(self._gpus) if isinstance(self._gpus, DriverError) else ""

    @cached_property
    def _gpus(self) -> list[Gpu] | DriverError:
        try:
            return self.machine.gpus()
        except DriverError as error:
            return error

    @cached_property
    def nvml(self) -> Nvml | UnseenError:
        try:
            return self.machine.nvml()
        except UnseenError as error:
            return error

    @cached_property
    def told(self) -> Told:
        """What the child did; it is started when this is first asked for."""
        return self.machine.child(Asked(self.benchmarks, compiled=not self.quick))

    @cached_property
    def pools(self) -> list[Pool]:
        """The guard's, with all of the machine as the limit."""
        return self.machine.pools(WholeMachine(limit_gb=WHOLE_GB))

    @property
    def own(self) -> list[Config]:
        return [one for one in self.configs if one.own]

    @property
    def wants_gpu(self) -> bool:
        """Whether a config that counts computes on one."""
        return any(one.checked is not None and "cuda" in devices_of(one.checked) for one in self.own)
