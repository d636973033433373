"""The folder of a project: the files that a run needs there, and where those lie that come with fgod.

fgod init FOLDER     → config.yaml, profiles/, traindata/, workflow/report.smk, Snakefile

A project has its own config and written sources. Its workflow is that of the installed package, which its Snakefile
includes, so an upgrade of fgod reaches every project.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from fgod.errors import FgodError, UsageError, did_you_mean
from fgod.system.files import folder_files, write_text

DEFAULT = "default"
"""Name of the config of the default run, config.yaml; the others are called as their files in config/."""

SNAKEFILES = ("workflow/report.smk", "Snakefile")

_INCLUDE = """\
# Runs the workflow of the installed fgod in this folder. Made by `fgod init`.
# `include:` makes the packaged rules those of this file. With `module`, snakemake would give them a config of their
# own, and would not run their onstart, onsuccess and onerror.
from fgod.project import shipped


include: shipped("{name}")


# What a bare `snakemake` asks for: that of an included file does not count.
rule project:
    default_target: True
    input:
        rules.all.input,
"""


def shipped(name: str) -> str:
    """Path of a file or folder that comes with fgod: in an installed package, or in the repository around this one.

    Raises:
        FgodError: it is in neither.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "shipped", package.parent):
        if (root / name).exists():
            return str(root / name)
    raise FgodError(f"{package / 'shipped' / name}: no such file; the package is not whole, install fgod again")


def config_files() -> dict[str, Path]:
    """The configs that come with fgod, by name."""
    others = sorted(Path(shipped("config")).glob("*.yaml"))
    return {DEFAULT: Path(shipped("config.yaml")), **{file.stem: file for file in others}}


def project_files(config: str) -> dict[str, str]:
    """The files of a project and their texts, in the order in which they are written: what can be run comes last.

    Args:
        config: name of one of `config_files`.

    Raises:
        UsageError: there is no config of this name.
    """
    known = config_files()
    if config not in known:
        raise UsageError(f"--config: found {config!r}, expected one of {', '.join(known)}{did_you_mean(config, known)}")
    written = Path(shipped("traindata"))
    sources = [file for file in folder_files(written) if not file.name.startswith(".")]  # an editor's own files
    profiles = [f"profiles/{name}/config.yaml" for name in ("default", "slurm")]
    return {
        "config.yaml": _with_schema(known[config].read_text(encoding="utf-8")),
        **{f"traindata/{file.relative_to(written)}": file.read_text(encoding="utf-8") for file in sources},
        **{profile: Path(shipped(profile)).read_text(encoding="utf-8") for profile in profiles},
        **{name: _INCLUDE.format(name=name) for name in SNAKEFILES},
    }


def _with_schema(config: str) -> str:
    """A config whose comment for editors names the schema of this package."""
    from fgod.config.schema import SCHEMA

    return re.sub(r"(?<=\$schema=)\S+", lambda _: SCHEMA.resolve().as_uri(), config, count=1)


def lay_out(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a project. Those that stand there with the same text are left alone.

    A kill in between leaves files that are whole; the same call then writes those that are missing.

    Raises:
        UsageError: something else stands where a file is to go; nothing was written.
        StorageError: the folder cannot be written to.
    """
    found = (_in_the_way(folder / name, text) for name, text in files.items())
    if taken := [*dict.fromkeys(str(path) for path in found if path)]:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UsageError(
            f"{taken[0]}{more}: found something else than would be laid out there, expected nothing; move it away or "
            "name another folder. Nothing was written"
        )
    for name, text in files.items():
        if not (folder / name).exists():
            write_text(folder / name, text)


def _in_the_way(path: Path, text: str) -> Path | None:
    """What stands at the place of a file, or of a folder above it, and would have to go for its text."""
    for above in path.parents:
        if not above.is_dir() and os.path.lexists(above):
            return above
    same = path.is_file() and path.read_bytes() == text.encode()
    return path if os.path.lexists(path) and not same else None


def next_commands(folder: Path) -> list[str]:
    """What to type next in a project that was just laid out."""
    from fgod.config import read_yaml

    base = read_yaml(folder / "config.yaml")["base"].get("path")
    missing = base is not None and not (folder / base).exists()
    return [
        *([f"cd {shlex.quote(str(folder))}"] if folder.resolve() != Path.cwd() else []),
        *([f"# put the model at {base} (the first lines of config.yaml say which), then"] if missing else []),
        "snakemake",
    ]
