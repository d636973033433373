"""Feed a reader of files that somebody else made with damaged ones, guided by coverage (atheris, libFuzzer).

    pip install atheris
    .venv/bin/python -m benchmarks.fuzz READER --seconds 600

Readers and small valid files are those of tests/untrusted.py; cases of tests/corpus/READER are seeds too (--corpus).
JSON is changed by its structure as often as by its bytes. A finding is, within one file:

- an exception that is no `FgodError`, or one whose message does not name the file;
- more than 5 seconds of a CPU (30 seconds, and the end of the search, where no Python runs meanwhile);
- more than 64 MiB more resident memory than ever before, or 1 GiB more address space than after the seeds;
- a new file outside the reader's folder, a file outside it opened to be written, a process, a connection, a pickle, or
  Python code that is compiled or executed and no chat template in jinja's sandbox.

Each kind of finding is written once to --found, by its exception and place, and the search goes on. At the end: files
read, counters of coverage, findings. Exit code 1 where there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import atheris

with atheris.instrument_imports(include=["fgod"]):
    from tests.untrusted import READERS, Forbidden, Untrusted, Watch, with_header

MIB = 2**20
SECONDS = 5
GROWTH, ADDRESSES = 64 * MIB, 1024 * MIB
INTERESTING: list[Any] = [
    None, True, -1, 0, 1, 15, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "a", "..", "../x", "/etc/passwd", "\0", "\ud800", "{{ x.__class__ }}", [], {}, [[]], [0, 0],
    [2**62, 4],
]  # fmt: skip


class TooSlow(BaseException):
    """A reader took too long."""


class Hunt:
    """Tries files with a reader, and keeps what it finds."""

    def __init__(self, name: str, root: Path, found: Path, seconds: float) -> None:
        self.name, self.reader, self.root, self.found, self.seconds = name, READERS[name], root, found, seconds
        self.folder = root / "inside"
        self.reader.prepare(self.folder)
        self.watch = Watch()
        self.tried, self.refused, self.kinds = 0, 0, dict[str, int]()
        self.begin = time.monotonic()
        self.peak = 0

    def try_one(self, raw: bytes) -> None:
        """Nothing is raised: what is found is written down. Ends the process when the time is over."""
        if time.monotonic() - self.begin > self.seconds:
            self.end()
        self.tried += 1
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with self.watch.over(self.folder):
                self.refused += self.reader.try_one(self.folder, raw) is not None
            self.check()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever it is, it is a finding
            self.keep(raw, error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def check(self) -> None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        grown, self.peak = most - (self.peak or most), most
        if grown > GROWTH:
            raise MemoryError(f"{grown / MIB:.0f} MiB more resident memory")
        strange = [path for path in self.root.iterdir() if path != self.folder]
        if strange:
            raise Forbidden(f"made {strange}")

    def keep(self, raw: bytes, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if "/fgod/" in f.filename), frames[-1] if frames else None)
        kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}" if place else repr(error)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if self.kinds[kind] > 1:
            return
        path = self.found / f"{self.name}-{hashlib.sha256(raw).hexdigest()[:12]}"
        path.write_bytes(raw)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        print(f"FOUND {kind}: {str(error)[:200]} ({len(raw)} bytes, {path})", flush=True)

    def end(self) -> None:
        """libFuzzer leaves by exit(3), which runs nothing of Python's, and so cannot be waited for."""
        print(self.text(), flush=True)
        shutil.rmtree(self.root.parent, ignore_errors=True)
        os._exit(bool(self.kinds))

    def text(self) -> str:
        seconds = time.monotonic() - self.begin
        kinds = "; ".join(f"{kind} ({count} times)" for kind, count in self.kinds.items()) or "none"
        return (
            f"{self.name}: {self.tried:,} files in {seconds:.0f} s, {self.refused:,} refused, "
            f"{self.tried - self.refused - sum(self.kinds.values()):,} read; findings: {kinds}"
        )


def mutate_json(value: Any, chance: random.Random) -> Any:
    """A value with one node replaced, removed, doubled or wrapped."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key: Any = chance.choice(list(keys)[-8:] if chance.random() < 0.3 else list(keys))
        made: Any = dict(value) if isinstance(value, dict) else list(value)
        what = chance.random()
        if what < 0.1:
            del made[key]
        elif what < 0.15 and isinstance(made, dict):
            made[str(chance.choice(INTERESTING))] = made.pop(key)
        else:
            made[key] = mutate_json(made[key], chance)
        return made
    if chance.random() < 0.1:
        return [value]
    if isinstance(value, int) and chance.random() < 0.3:
        return value + chance.choice([-1, 1, 16, -16])
    return chance.choice(INTERESTING)


def mutator(reader: Untrusted) -> Any:
    """libFuzzer's custom mutator for JSON and safetensors: by structure, and of one file in four by bytes.

    What is no JSON any more is replaced by a seed: else the search stays among files that no parser takes.
    """
    framed, seeds = reader.file.endswith(".safetensors"), reader.seeds()

    def parts(data: bytes) -> tuple[Any, bytes]:
        if not framed:
            return json.loads(data), b""
        [length] = struct.unpack("<Q", data[:8])
        return json.loads(data[8 : 8 + length]), data[8 + length :]

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.25:
            return bytes(atheris.Mutate(data, most))
        try:
            value, rest = parts(data)
        except (ValueError, struct.error, RecursionError):
            value, rest = parts(chance.choice(seeds))
        for _ in range(chance.randint(1, 3)):
            value = mutate_json(value, chance)
        text = json.dumps(value).encode(errors="surrogatepass")
        made = with_header(text, rest) if framed else text
        return made if len(made) <= most else bytes(atheris.Mutate(data, most))

    return mutated


def too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS} s of a CPU")


def address_space() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", choices=sorted(READERS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="more seeds (default: tests/corpus/READER)")
    parser.add_argument("--found", type=Path, metavar="FOLDER", default=Path("found"))
    args = parser.parse_args()
    corpus = args.corpus or Path(__file__).parents[1] / "tests" / "corpus" / args.reader
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    args.found.mkdir(parents=True, exist_ok=True)
    hunt = Hunt(args.reader, root / "place", args.found, args.seconds)
    seeds = root / "seeds"
    seeds.mkdir()
    known = [path.read_bytes() for path in sorted(corpus.glob("*"))] if corpus.is_dir() else []
    for number, raw in enumerate([*hunt.reader.seeds(), *known]):
        (seeds / f"{number:04}").write_bytes(raw)
        try:
            hunt.reader.try_one(hunt.folder, raw)  # imports what is imported late
        except BaseException as error:
            hunt.keep(raw, error)
    largest = max(path.stat().st_size for path in seeds.iterdir())
    signal.signal(signal.SIGPROF, too_slow)
    most = address_space() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    options = [f"-max_len={largest + 1024}", "-timeout=30", "-rss_limit_mb=0",
               f"-artifact_prefix={args.found}/{args.reader}-crash-"]  # fmt: skip
    custom = {"custom_mutator": mutator(hunt.reader)} if hunt.reader.file.endswith((".json", ".safetensors")) else {}
    atheris.Setup([sys.argv[0], *options, str(seeds)], hunt.try_one, **custom)
    hunt.begin = time.monotonic()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
