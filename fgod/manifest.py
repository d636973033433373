"""The manifest: what ran, on what, with what, and how it ended.

Each command leaves two files in results/manifest.d/, one at its start and one at its end, so that also a killed one is
on record: a start without an end. `write_jsonl` joins them to results/manifest.jsonl, one line a command.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import secrets
import socket
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fgod
from fgod import layout
from fgod.errors import FgodError, Stopped, StorageError
from fgod.system import terminal
from fgod.system.digests import CACHE, cached_sha256_files, cached_sha256_folder
from fgod.system.files import folder_files, write_json, write_text
from fgod.system.process import read_process
from fgod.system.procfs import cpu_info
from fgod.system.times import iso

FOLDER, JOINED = layout.MANIFEST_FOLDER, layout.MANIFEST

START, END = ".start.json", ".end.json"
PLUGIN = "--plugin"
"""The option that loads a plugin; it stands before the name of a command."""
PACKAGES = ("torch", "transformers", "compressed-tensors", "snakemake")
VARIABLES = (
    "PYTHONHASHSEED",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
)
"""Environment variables that can change a result; recorded when set."""

GIT_SECS = 20


@dataclass
class Record:
    """The running command's entry. A command that ends without an exception sets what it will exit with."""

    name: str
    exit_code: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is to stand in the entry of its end, by key."""
    inputs: list[Path] = field(default_factory=list)
    """What the command read, as far as it was not known before: digested at its end."""
    outputs: list[Path] = field(default_factory=list)
    """What the command made or removed, as far as it was not known before."""


@contextmanager
def recorded(
    root: Path,
    argv: Sequence[str],
    stage: str = "",
    lineage: str = "",
    inputs: Sequence[Path] = (),
    outputs: Sequence[Path] = (),
) -> Iterator[Record]:
    """Record a command of the project at `root`; exceptions pass through after their exit code and message are kept.

    Inputs are digested at the start, outputs at the end; what is missing is recorded as missing.
    """
    begin = datetime.now(UTC)
    record = Record(f"{begin.strftime('%Y%m%dT%H%M%S.%f')[:-3]}Z-{os.getpid()}-{secrets.token_hex(4)}")
    start = _start(root, argv, stage, lineage, begin)
    _write(root, record.name + START, start)
    try:
        start["inputs"] = describe(root, inputs)
        _write(root, record.name + START, start)
        yield record
    except BaseException as caught:
        record.exit_code = exit_code_of(caught)
        try:
            _write(root, record.name + END, _end(root, record, _message(caught), start, begin, outputs))
        except StorageError as fault:  # why the command failed is to be seen, not that its record failed too
            terminal.line(f"fgod: {fault}")
        raise
    _write(root, record.name + END, _end(root, record, "", start, begin, outputs))


def _start(root: Path, argv: Sequence[str], stage: str, lineage: str, begin: datetime) -> dict[str, Any]:
    return {
        "argv": list(argv),
        "cwd": shown_path(root, Path.cwd()),
        "start": iso(begin),
        "stage": stage,
        "lineage": lineage,
        "process": own_process(),
        "commit": commit(root),
        "versions": versions(),
        "machine": machine(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "inputs": None,
    }


def _end(
    root: Path, record: Record, error: str, start: Mapping[str, Any], begin: datetime, outputs: Sequence[Path]
) -> dict[str, Any]:
    end = datetime.now(UTC)
    more = {"inputs": [*(start["inputs"] or []), *describe(root, record.inputs)]} if record.inputs else {}
    return {
        "end": iso(end),
        "seconds": round((end - begin).total_seconds(), 3),
        "exit_code": record.exit_code,
        "error": error,
        **more,
        "outputs": describe(root, [*outputs, *record.outputs]),
        **record.facts,
    }


def arguments(argv: Sequence[str]) -> list[str]:
    """A recorded command line from its subcommand on: without `fgod`, and without the plugins that stand before it."""
    words = [str(word) for word in argv[1:]]
    while words and words[0].partition("=")[0] == PLUGIN:
        del words[: 1 if "=" in words[0] else 2]
    return words


def exit_code_of(error: BaseException) -> int:
    """The exit code with which a process ends that does not catch this."""
    match error:
        case FgodError():
            return error.exit_code
        case SystemExit(code=None):
            return 0
        case SystemExit(code=int(code)):
            return code & 0xFF
        case Stopped():
            return error.exit_code
        case KeyboardInterrupt():
            return 130
    return 1


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, str) else ""
    text = str(error)
    return text if isinstance(error, FgodError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _write(root: Path, name: str, value: Mapping[str, Any]) -> None:
    write_json(root / FOLDER / name, _encodable(value))


def _encodable(value: Any) -> Any:
    """The value with text that is not Unicode (a file name of other bytes, say) written in escapes."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return {_encodable(key): _encodable(item) for key, item in value.items()}
        case list() | tuple():
            return [_encodable(item) for item in value]
    return value


# What a command read and wrote


def shown_path(root: Path, path: Path) -> str:
    """Relative to the root if it lies below, else absolute."""
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


def describe(root: Path, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, kind (file, folder, missing, unreadable), bytes and SHA-256 of each; digests are remembered below root."""
    return [{"path": shown_path(root, path), **_content(path, root / CACHE)} for path in paths]


def _content(path: Path, cache: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            files = folder_files(path)
            size = sum(file.stat().st_size for file in files)
            return {"kind": "folder", "files": len(files), "bytes": size, "sha256": cached_sha256_folder(path, cache)}
        return {"kind": "file", "bytes": path.stat().st_size, "sha256": cached_sha256_files([path], cache)[path]}
    except FileNotFoundError:
        return {"kind": "missing", "bytes": None, "sha256": None}
    except OSError as error:
        return {"kind": "unreadable", "bytes": None, "sha256": None, "error": str(error)}


# Where and with what a command ran


def own_process() -> dict[str, Any]:
    """What tells this process from any other, on this machine and after it was started again."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), "boot": _boot(), "host": socket.gethostname()}


def _started(pid: int) -> int | None:
    process = read_process(pid)
    return process.started if process else None


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def commit(root: Path) -> dict[str, Any] | None:
    """Commit of the project's git folder and whether tracked files differ from it; None without git or a commit."""
    sha = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if sha is None or changes is None else {"sha": sha, "dirty": bool(changes)}


def _git(root: Path, *args: str) -> str | None:
    import subprocess

    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(root), *args]
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=GIT_SECS, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit: recorded as null
        return None
    return done.stdout.decode(errors="replace").strip()


@functools.cache
def versions() -> dict[str, str | None]:
    """Python, fgod and the packages that decide numbers; None: not installed. Imports none of them."""
    return {"python": platform.python_version(), "fgod": fgod.__version__, **{p: _version(p) for p in PACKAGES}}


def _version(package: str) -> str | None:
    import importlib.metadata  # here, as all commands import this module, and those that leave no entry need none of it

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def machine() -> dict[str, Any]:
    """Name, system, processor, cores that we may use, memory in MiB, GPUs (None: NVML cannot be asked)."""
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_info("model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        "gpus": _gpus(),
    }


def _gpus() -> list[str] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return [_gpu_name(pynvml, number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _gpu_name(nvml: Any, number: int) -> str:
    name = nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(number))
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


# The join


def join(root: Path) -> list[dict[str, Any]]:
    """One entry a command, by start, each with a `state`:

    done (exit code 0), failed (another), killed (no end, and its process is gone), running (no end, its process lives),
    unknown (no end, and it was started on another machine), unreadable (`file` names what cannot be read, `error` says
    why; the rest is what the other file says). Nothing is deleted.
    """
    files = _files(root)
    return _entries(root, {_command_name(file): None for file in files}, files)


def recent(root: Path, count: int) -> list[dict[str, Any]]:
    """The entries, as of `join`, of the `count` commands that began last, and of all that have no end: in a project of
    thousands of commands, few files to read."""
    files = _files(root)
    names = list({_command_name(file): None for file in files})
    open_ones = [name for name in names if name + END not in files]
    return _entries(root, dict.fromkeys([*open_ones, *names[-count:]]), files)


def _files(root: Path) -> dict[str, None]:
    """Names of the manifest's files, by the time when their commands began."""
    folder = root / FOLDER
    found = os.listdir(folder) if folder.is_dir() else []
    return dict.fromkeys(sorted(name for name in found if name.endswith(".json") and not name.startswith(".")))


def _entries(root: Path, names: Iterable[str], files: Container[str]) -> list[dict[str, Any]]:
    folder = root / FOLDER
    entries = [{"name": name} | _joined(folder, name, files) | {"name": name} for name in names]
    return sorted(entries, key=lambda e: (str(e.get("start") or e["name"]), e["name"]))


def starts(root: Path, lineages: Collection[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The starts of commands about runs of these lineages, by stage and lineage and in the order of time. Files that
    cannot be read are left out here, and named by `join`."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((root / FOLDER).glob(f"[!.]*{START}")):
        try:
            named = _LINEAGE.search(path.read_bytes())  # most are about others, and parsing thousands takes a second
        except OSError:
            continue
        if named and named[1].decode() in lineages:
            start, fault = _load(path, _START_KEYS | {"stage": str, "lineage": str})
            if not fault:
                found.setdefault((start["stage"], start["lineage"]), []).append(start)
    return found


_LINEAGE = re.compile(rb'"lineage": "([0-9A-Za-z.-]*)"')


def _command_name(file: str) -> str:
    return file.removesuffix(START).removesuffix(END)


def _joined(folder: Path, name: str, files: Container[str]) -> dict[str, Any]:
    if name in files:
        return _unreadable(name, f"the name ends neither in {START} nor in {END}")
    start, fault = _load(folder / (name + START), _START_KEYS)
    ended = name + END in files
    if not fault and not ended:
        state = state_of(start["process"])
        ended = state == "killed" and (folder / (name + END)).exists()  # it ended since the files were listed
        if not ended:
            return {**start, "state": state}
    end, end_fault = _load(folder / (name + END), _END_KEYS) if ended else ({}, "")
    if fault or end_fault:
        file = name + (START if fault else END)
        return {**start, **end, **_unreadable(file, fault or end_fault)}
    return {**start, **end, "state": "failed" if end["exit_code"] else "done"}


def _unreadable(file: str, error: str) -> dict[str, Any]:
    return {"state": "unreadable", "file": (FOLDER / file).as_posix(), "error": error}


_START_KEYS: dict[str, type] = {"argv": list, "start": str, "process": dict}
_END_KEYS: dict[str, type] = {"end": str, "exit_code": int}


def _load(path: Path, keys: Mapping[str, type]) -> tuple[dict[str, Any], str]:
    """The file's object and "", or {} and what is wrong with it."""
    try:
        value = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        return {}, "no such file"
    except RecursionError:
        return {}, "not JSON: nested too deep"
    except ValueError as error:
        return {}, f"not JSON: {error}"
    except OSError as error:
        return {}, str(error)
    if not isinstance(value, dict):
        return {}, f"expected an object, found {type(value).__name__}"
    wrong = [key for key, kind in keys.items() if not isinstance(value.get(key), kind)]
    return ({}, f"missing or of a wrong type: {', '.join(wrong)}") if wrong else (value, "")


def _finite(text: str) -> float:
    """A number of JSON; of NaN, infinity and what is too large for a float raises ValueError."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def state_of(process: Mapping[str, Any]) -> str:
    """Whether a process lives, which `own_process` described: running, killed (it is gone) or unknown (it is another
    machine's)."""
    if process.get("host") != socket.gethostname():
        return "unknown"
    pid, started = process.get("pid"), process.get("started")
    alive = process.get("boot") == _boot() and isinstance(pid, int) and _started(pid) == started is not None
    return "running" if alive else "killed"


def as_jsonl(entries: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON an entry."""
    return "".join(json.dumps(_encodable(entry), ensure_ascii=False) + "\n" for entry in entries)


def write_jsonl(root: Path) -> Path:
    """Write results/manifest.jsonl, one line a command, and return its path."""
    write_text(root / JOINED, as_jsonl(join(root)))
    return root / JOINED


def torn(root: Path) -> list[str]:
    """In words, which files of the manifest cannot be read."""
    faults = [entry for entry in join(root) if entry["state"] == "unreadable"]
    return [f"{e['file']}: {e['error']}; in {JOINED} its command is `unreadable`" for e in faults]
