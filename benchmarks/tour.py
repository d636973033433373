"""A tour by commands from an empty folder: runs them, and writes docs/tour.md with what they really showed.

    .venv/bin/python -m benchmarks.tour --out docs                  # some 3 minutes on two CPU cores
    .venv/bin/python -m benchmarks.tour --out DOCS --work FOLDER    # the project stays in FOLDER, which must be empty
    .venv/bin/python -m benchmarks.tour --out DOCS --work FOLDER --from 4    # goes on there at step 4 of the record

The steps stand in benchmarks/tour.yaml. What was recorded lies beside the project, in FOLDER.json. A command that ends
with another exit code than is expected, or does not say what is expected, ends the tour with an error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fgod.system.files import write_text
from fgod.system.procfs import cpu_info

STEPS = Path(__file__).with_suffix(".yaml")
PAGES = {"en": "tour.md", "zh": "zh-Hant/tour.md"}
WIDTH = 132
"""Longer lines are cut."""
STATUS_SECS = 600
"""A campaign that has no step of a training within these is not waited for."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class TourError(Exception):
    """A command ended otherwise than the tour says."""


@dataclass(frozen=True)
class Command:
    """One command of a step, as benchmarks/tour.yaml says it."""

    run: str
    code: int = 0
    says: tuple[str, ...] = ()
    show: dict[str, Any] = field(default_factory=dict)
    meanwhile: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Shown:
    """What a command showed, all of it."""

    command: str
    lines: tuple[str, ...]
    code: int
    seconds: float


# ------------------------------------------------------------------------------------------------------------- running


def environment() -> dict[str, str]:
    """That of a user who has activated the environment, in a terminal without colours."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "TERM": "dumb", "NO_COLOR": "1"}


def record(command: Command, folder: Path) -> Iterator[Shown]:
    """Run a command and those meanwhile.

    Raises:
        TourError: one ended otherwise than expected; has its output.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(["sh", "-c", command.run], cwd=folder, env=environment(), stdout=said, stderr=said)
        try:
            for other in command.meanwhile:
                wait_for_a_step(folder, running)
                yield from record(Command(**other), folder)
            code = running.wait()
        finally:
            if running.poll() is None:
                running.terminate()
                running.wait()
        seconds = time.monotonic() - began
        said.seek(0)
        text = COLOURS.sub("", said.read())
    check(command, code, text)
    yield Shown(command.run.rstrip(), tuple(text.splitlines()), code, round(seconds, 1))


def check(command: Command, code: int, text: str) -> None:
    missing = [words for words in command.says if words not in text]
    if code != command.code:
        raise TourError(f"{command.run}: ended with {code}, expected {command.code}:\n{text}")
    if missing:
        raise TourError(f"{command.run}: expected {missing} in its output, found:\n{text}")


def wait_for_a_step(folder: Path, running: subprocess.Popen[bytes]) -> None:
    """Until a stage that trains has made a step.

    Raises:
        TourError: the command ended before, or it takes too long.
    """
    until = time.monotonic() + STATUS_SECS
    while time.monotonic() < until:
        if running.poll() is not None:
            raise TourError("the command ended before a stage was seen to train")
        words = ["fgod", "status", "--json"]
        asked = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
        status = json.loads(asked.stdout)
        if status["training"] and status["training"]["runs"] and status["training"]["step"]:
            return
        time.sleep(1)
    raise TourError(f"no stage trained within {STATUS_SECS} s")


# ------------------------------------------------------------------------------------------------------------- showing


def shown(lines: Sequence[str], show: dict[str, Any]) -> Iterator[str]:
    """The lines that go to the pages; each gap is a line that says how many were left out."""
    patterns = [re.compile(pattern) for pattern in show.get("match", ())]
    head, tail = int(show.get("head", 0)), len(lines) - int(show.get("tail", 0))
    left_out = 0
    for number, line in enumerate(lines):
        if not show or number < head or number >= tail or any(pattern.search(line) for pattern in patterns):
            if left_out:
                yield gap(left_out)
            left_out = 0
            yield line if len(line) <= WIDTH else f"{line[:WIDTH]}…"
        else:
            left_out += 1
    if left_out:
        yield gap(left_out)


def gap(lines: int) -> str:
    return f"[… {lines} line{'s' if lines > 1 else ''}]"


def page(told: dict[str, Any], steps: Sequence[Sequence[Shown]], language: str) -> str:
    """The page in one language."""
    other = {"en": f"[正體中文]({PAGES['zh']})", "zh": f"[English](../{PAGES['en']})"}[language]
    parts = [f"# {told['title'][language]}", other, told["intro"][language].strip(), recorded(told, language)]
    for number, (step, commands) in enumerate(zip(told["steps"], steps, strict=True), 1):
        parts += [f"## {number}. {step['title'][language]}", step["text"][language].strip()]
        shows = {one["run"].rstrip(): one.get("show", {}) for one in every(step["commands"])}
        parts += ["\n".join(block(command, shows[command.command])) for command in commands]
    return "\n\n".join(parts) + "\n"


def every(commands: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Commands, and those that run meanwhile."""
    for command in commands:
        yield from (*command.get("meanwhile", ()), command)


def block(command: Shown, show: dict[str, Any]) -> Iterator[str]:
    yield "```text"
    first, *rest = command.command.splitlines()
    yield f"$ {first}"
    yield from rest
    yield from (line.rstrip() for line in shown(command.lines, show))
    yield f"[exit {command.code} · {command.seconds:.1f} s]"
    yield "```"


def recorded(told: dict[str, Any], language: str) -> str:
    """When and on what it was recorded."""
    facts = {"date": datetime.date.today().isoformat(), "cores": len(os.sched_getaffinity(0))}
    return str(told["recorded"][language]).format(**facts, cpu=cpu_info("model name") or platform.machine())


# ------------------------------------------------------------------------------------------------------------ the tour


def tour(told: dict[str, Any], folder: Path, first: int) -> list[list[Shown]]:
    """All steps, those before `first` as they are on record beside the folder.

    Raises:
        TourError: a command ended otherwise than expected.
    """
    log = folder.with_name(f"{folder.name}.json")
    before = json.loads(log.read_text(encoding="utf-8")) if first > 1 else []
    steps = [[Shown(**{**one, "lines": tuple(one["lines"])}) for one in step] for step in before[: first - 1]]
    for number, step in list(enumerate(told["steps"], 1))[first - 1 :]:
        print(f"{number}. {step['title']['en']}", flush=True)
        commands = (Command(**command) for command in step["commands"])
        steps.append([one for command in commands for one in record(command, folder)])
        for one in steps[-1]:
            print(f"   {one.seconds:7.1f} s  {one.command.splitlines()[0]}", flush=True)
        write_text(log, json.dumps([[asdict(one) for one in done] for done in steps], ensure_ascii=False, indent=1))
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"folder of the pages: {', '.join(PAGES.values())}")
    parser.add_argument("--work", type=Path, help="the empty folder of the project (default: one that is removed)")
    of_record = "go on in --work at this step of the record; behind the last: only write the pages"
    parser.add_argument("--from", dest="first", type=int, default=1, help=of_record)
    args = parser.parse_args()
    told = yaml.safe_load(STEPS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary) / "project"
        folder.mkdir(parents=True, exist_ok=True)
        if args.first == 1 and any(folder.iterdir()):
            parser.error(f"--work: found files in {folder}, expected an empty folder, or --from")
        try:
            steps = tour(told, folder, args.first)
        except TourError as error:
            sys.exit(str(error))
    for language, name in PAGES.items():
        write_text(args.out / name, page(told, steps, language))
        print(args.out / name)


if __name__ == "__main__":
    main()
