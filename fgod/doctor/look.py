"""Which configs are looked at, and the whole look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fgod.doctor.checks import findings
from fgod.doctor.configs import benchmarks_of
from fgod.doctor.finding import Finding
from fgod.doctor.machine import Config, Look, Machine, read_config
from fgod.project import config_files

OWN = Path("config.yaml")


def configs_of(named: Sequence[Path]) -> list[Config]:
    """Those that are named; else config.yaml here, if there is one, and those that come with fgod, for notes."""
    if named:
        return [read_config(path, own=True) for path in named]
    found = [read_config(OWN, own=True)] if OWN.exists() else []
    shipped = [path for path in config_files().values() if not (OWN.exists() and path.samefile(OWN))]
    return [*found, *(read_config(_near(path), own=False) for path in shipped)]


def _near(path: Path) -> Path:
    """A path as people type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def look(named: Sequence[Path], quick: bool, machine: Machine | None = None) -> Iterator[Finding]:
    """What is found, as it is found."""
    machine = machine or Machine()
    configs = configs_of(named)
    first = Look(machine, configs)
    benchmarks = () if quick else benchmarks_of(configs, bool(first.gpus))
    yield from findings(Look(machine, configs, benchmarks=benchmarks, quick=quick))
