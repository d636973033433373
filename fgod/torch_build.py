"""Which build of torch a config needs, and how pip gets it: `make run CONFIG=FILE` asks before it starts snakemake.

    python -m fgod.torch_build config/qwen3-4b.yaml              install it where it is missing
    python -m fgod.torch_build config/qwen3-4b.yaml --dry-run    say what that would be

A config that names the device cuda needs a build of torch for CUDA; every other runs with the one that there is.
"""

from __future__ import annotations

import argparse
import platform
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from fgod.config import read_yaml, resolve
from fgod.errors import FgodError, UsageError
from fgod.system.stop import exit_on_fgod_error

CUDA = "cu130"
"""Builds for CUDA 13.0, which PyTorch's index has for both machines below; the GPU of a DGX Spark needs it."""

INDEX = f"https://download.pytorch.org/whl/{CUDA}"
MACHINES = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Build:
    """A build of torch: `version` as it was released; `cuda` is the version of CUDA it is for, None: CPUs alone."""

    version: str
    cuda: str | None


def devices_of(config: Mapping[str, Any]) -> set[str]:
    """The devices that a checked config computes on."""
    return {config["probe"]["device"], *(stage["train"]["device"] for stage in config["stages"])}


def pip_arguments(config: Mapping[str, Any], found: Build, machine: str) -> list[str]:
    """What pip is called with so that the config's devices can be used; empty where nothing is missing.

    Args:
        machine: as `platform.machine` names it.

    Raises:
        UsageError: there is no build for this machine.
    """
    if "cuda" not in devices_of(config) or found.cuda is not None:
        return []
    if machine not in MACHINES:
        raise UsageError(
            f"torch: found a machine {machine!r}, expected one of {', '.join(MACHINES)}, for which PyTorch has builds "
            "for CUDA; install one yourself, or let the config name the device cpu"
        )
    return ["install", f"torch=={found.version}+{CUDA}", "--index-url", INDEX]


def installed() -> Build:
    """The build of this environment, without importing it.

    Raises:
        UsageError: there is none.
    """
    spec = PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        raise UsageError("torch: not installed; install fgod again, with its dependencies")
    facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return Build(str(facts["__version__"]).partition("+")[0], facts["cuda"])


def main() -> None:
    """Install what a config needs."""
    parser = argparse.ArgumentParser(prog="python -m fgod.torch_build", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be installed")
    args = parser.parse_args()
    with exit_on_fgod_error():
        wanted = pip_arguments(resolve(read_yaml(args.config), str(args.config)), installed(), platform.machine())
        if wanted:
            _install([sys.executable, "-m", "pip", *wanted], args.config, args.dry_run)


def _install(command: list[str], config: Path, dry_run: bool) -> None:
    shown = " ".join(command)
    text = f"{config} computes on cuda, and the torch that is here cannot; installing a build that can (gigabytes)"
    print(f"fgod: {text}: {shown}", flush=True)
    if not dry_run and (code := subprocess.run(command).returncode):
        raise FgodError(f"{shown}: pip failed with exit code {code}, see above; torch is as it was")


if __name__ == "__main__":
    main()
