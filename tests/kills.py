"""Kills a miniature run at random moments, over and over, and looks at what is left each time.

    make test-kill                                   # KILLS=200 SEED=1
    python -m tests.kills --count 200 --seed 1 [--folder F]

One project is run, killed, run again and killed again until it comes to its end, then anew: from nothing, from the
base, or from the mixes. Who is killed (snakemake, the shell of a command, guard, keeper, trainer, exporter, prober, …,
or all at once as Ctrl-C does), when, and by which signal is drawn from the seed and the kill's number. A kill is
followed by another one of what still lives, one time in four. All that was done is kept in the folder: the same command
goes on where it was stopped, and prints the tally.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgod.system.files import digest, read_json, sha256_file
from fgod.system.stop import VARIABLE
from fgod.system.table import read_texts
from tests.mini import BIN, Mini, stage

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
LIFE = {
    "guard": 11.0, "keeper": 10.0, "base": 30.0, "reference": 8.0, "rehearsal": 8.0, "mixer": 0.6, "trainer": 9.0,
    "exporter": 4.0, "prober": 9.0, "starter": 4.0, "report": 1.2, "other": 0.8,
}  # fmt: skip
"""Seconds that each process lives, about."""

GUARDED = {"train": "guard", "base": "guard", "export": "starter", "probe": "starter", "answers": "starter"}
"""Roles of the commands that start a child under the guard; the child's has --child (`fgod.cli.work.supervise`)."""

ENDED_SECS = 300.0
"""Within these snakemake ends: told by SIGTERM it waits for its command, and what the keeper ignores stops nobody."""

START_SECS = 4.0
"""Seconds that snakemake takes until it has started a command, about."""

PHASES: dict[str, tuple[tuple[str, ...], float]] = {
    "base": (("guard", "keeper", "base"), 0.15),
    "base's export": (("starter", "exporter"), 0.5),
    "reference": (("starter", "reference"), 0.3),
    "rehearsal": (("starter", "rehearsal"), 0.3),
    "mix": (("mixer",), 0.5),
    "train": (("guard", "keeper", "trainer"), 0.15),
    "export": (("starter", "exporter"), 0.4),
    "probe": (("starter", "prober"), 0.3),
    "end": (("report", "other"), 0.3),
}
"""What runs in each part of the chain, and how often the kill is left for the part after it."""

BEFORE_STAGES = (
    ("base", "artifacts/base/*/base.json", 1),
    ("base's export", "artifacts/base/*/*/exported.json", 1),
    ("reference", "artifacts/base/*/answers/*/harness.json", 1),
    ("rehearsal", "artifacts/base/*/answers/*/answers.tsv", 2),
    ("mix", "artifacts/mixes/*/audit-*.json", 1),
)
"""Parts of the chain, and how many files say that each is done."""

KEPT: tuple[tuple[str, ...], ...] = (("base", "mixes"), ("base",), ("base", "mixes"), ())
"""What is kept of artifacts/ when a run has come to its end, in turn."""

Processes = dict[int, str]


def role(words: list[str]) -> str | None:
    """What a process is to us, by its command line."""
    if any(word.endswith("guard/keeper.py") for word in words):
        return "keeper"
    if words[1:3] == ["-m", "fgod.train"]:
        return "trainer"
    names = [Path(word).name for word in words[:4]]
    if names[:2] == ["bash", "-c"] and VARIABLE in words[2]:
        return "shell"
    if "snakemake" in names:
        return "snakemake"
    if "fgod" not in names:
        return None
    command, kind, *_ = [*words[names.index("fgod") + 1 :], "", ""]
    if command in GUARDED and "--child" not in words:
        return GUARDED[command]
    roles = {"export": "exporter", "probe": "prober", "data": "mixer", "answers": kind}
    named = roles.get(command, command)
    return named if named in LIFE else "other"


def processes_in(folder: Path) -> Processes:
    """Living processes of a project by number: those that have its folder as theirs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            named = role(words) if len(words) > 1 else None
            if named and (entry / "cwd").readlink() == folder:
                found[int(entry.name)] = named
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has just ended
            continue
    return found


@dataclass(frozen=True)
class Kill:
    """Who is to be killed, by what, and when: so long after a process of the role `seen` appeared.

    Whoever lives then is hit where the target has ended.
    """

    target: str
    signal: signal.Signals
    seen: str
    delay: float
    second: tuple[signal.Signals, float] | None = None
    """Of another one that still lives, so many seconds later."""

    shells: bool = False
    """Whether a shell stands between snakemake and each command."""


@dataclass(frozen=True)
class Landed:
    """What became of a kill: who was hit, also by the second signal, and snakemake's exit code (negative: a signal)."""

    hit: str
    also: str
    code: int
    said: str
    locked: bool


class Faults(AssertionError):
    """What is not as it has to be after a kill."""


class Victim:
    """A project whose runs are killed."""

    def __init__(self, mini: Mini) -> None:
        self.mini, self.folder = mini, mini.folder.resolve()
        self.settled: dict[str, str] = {}
        """sha256 of the weights of the base and of judged runs, by path: they are never other ones."""

    def started(self, *arguments: str, shells: bool = False) -> subprocess.Popen[str]:
        """A snakemake in a session of its own, as a terminal would start it.

        Args:
            shells: whether the shells of commands stay. Bash (since 5.1) becomes the command where no trap is set.
        """
        self.mini.write()
        said = (self.folder.parent / "said.log").open("w")
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        if shells:
            trap = self.folder.parent / "trap.sh"
            trap.write_text("trap : USR2\n")
            environment["BASH_ENV"] = str(trap)
        # what a shell starts in the background ignores Ctrl-C, and so would all that it starts
        command = ["env", "--default-signal=INT", "snakemake", "--cores", "1", *arguments]
        with said:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, start_new_session=True, text=True,
                stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def said(self) -> str:
        return (self.folder.parent / "said.log").read_text()

    def killed(self, kill: Kill) -> Landed:
        """Run, kill, wait for the end of all, and check what is left.

        Raises:
            Faults: something is not as it has to be.
        """
        snakemake = self.started(shells=kill.shells)
        try:
            hit, also = self._kill(snakemake, kill)
            snakemake.wait(timeout=ENDED_SECS)
        except subprocess.TimeoutExpired:
            raise Faults(f"snakemake has not ended {ENDED_SECS:g} s after {kill}") from None
        finally:
            if snakemake.poll() is None:
                os.killpg(snakemake.pid, signal.SIGKILL)
        code, said = snakemake.wait(), self.said()
        self.check_alone()
        self.check_whole()
        self.check_settled()
        locked = any(self.folder.glob(".snakemake/locks/*"))
        return Landed(hit, also, code, said, locked)

    def _kill(self, snakemake: subprocess.Popen[str], kill: Kill) -> tuple[str, str]:
        """The roles that were hit by the first and by the second signal."""
        if not self._seen(snakemake, kill.seen):
            return "", ""
        until = time.monotonic() + kill.delay
        while time.monotonic() < until and snakemake.poll() is None:
            self._here()
            time.sleep(min(0.05, max(0.0, until - time.monotonic())))
        hit = self._signal(snakemake, kill)
        if not hit or kill.second is None:
            return hit, ""
        time.sleep(kill.second[1])
        return hit, self._any(kill, kill.second[0])

    def _seen(self, snakemake: subprocess.Popen[str], wanted: str) -> bool:
        while snakemake.poll() is None:
            if wanted in self._here().values():
                return True
            time.sleep(0.05)
        return False

    def _here(self) -> Processes:
        found = processes_in(self.folder)
        trainers = sum(named == "trainer" for named in found.values())
        if trainers > 1:
            raise Faults(f"{trainers} trainers at once")
        return found

    def _signal(self, snakemake: subprocess.Popen[str], kill: Kill) -> str:
        if kill.target == "all":
            if snakemake.poll() is not None:
                return ""
            os.killpg(snakemake.pid, kill.signal)
            return "all"
        hit = [pid for pid, named in self._here().items() if named == kill.target and self._sent(pid, kill.signal)]
        return kill.target if hit else self._any(kill, kill.signal)

    def _any(self, kill: Kill, number: signal.Signals) -> str:
        """Hit one of those who live."""
        left = sorted(self._here().items())
        if not left:
            return ""
        pid, named = left[int(kill.delay * 1000) % len(left)]
        return named if self._sent(pid, number) else ""

    @staticmethod
    def _sent(pid: int, number: signal.Signals) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def check_alone(self) -> None:
        """Nobody lives on after snakemake."""
        deadline = time.monotonic() + 20
        while left := processes_in(self.folder):
            if time.monotonic() > deadline:
                raise Faults(f"still there 20 s after snakemake: {left}")
            time.sleep(0.05)

    def check_whole(self) -> None:
        """Every file that has its final name is whole."""
        for path in finished_files(self.folder):
            try:
                check_file(path)
            except Exception as error:
                raise Faults(f"{path}: not whole: {type(error).__name__}: {error}") from error

    def check_settled(self) -> None:
        """What judged runs left is as it was."""
        for path, recorded in self.settled.items():
            if not (self.folder / path).is_file():
                raise Faults(f"{path} is lost")
            if sha256_file(self.folder / path) != recorded:
                raise Faults(f"{path} was written again")
        folders = [stamp.parent for stamp in self.folder.glob("artifacts/base/*/base.json")]
        for verdict in self.folder.glob("results/runs/*/*/verdict.json"):
            folders.append(self.folder / "artifacts" / verdict.parent.relative_to(self.folder / "results/runs"))
        for path in (weights for folder in folders for weights in folder.glob("*/model.safetensors")):
            self.settled.setdefault(path.relative_to(self.folder).as_posix(), sha256_file(path))

    def recover(self, by: str) -> None:
        """Take the lock of a killed snakemake away, as its message says or by `fgod recover`."""
        if by == "unlock":
            said = self.mini.snakemake(code=1)
            if "--unlock" not in said:
                raise Faults(f"locked, and no word of --unlock: {said[-2000:]}")
            self.mini.snakemake("--unlock")
        else:
            ended = self.mini.run("fgod", "recover")
            if ended.returncode or "Ready" not in ended.stdout:
                raise Faults(f"fgod recover: {ended.stdout}{ended.stderr}")
        if any(self.folder.glob(".snakemake/locks/*")):
            raise Faults(f"still locked after {by}")

    def result(self) -> dict[str, str]:
        """sha256 of all that a run is for, by path: the release, what every probe was answered, and the verdicts."""
        files = [*self.folder.glob("artifacts/release/*"), *self.folder.glob("results/runs/*/*/*")]
        wanted = {"probes.tsv", "metrics.json", "participation.tsv"}
        kept = [f for f in files if "release" in f.parts or f.name in wanted]
        found = {f.relative_to(self.folder).as_posix(): sha256_file(f) for f in sorted(kept)}
        for path in sorted(self.folder.glob("results/runs/*/*/verdict.json")):
            verdict = read_json(path)
            for key in ("seal", "judged"):  # digests of records that hold times
                verdict.pop(key)
            found[path.relative_to(self.folder).as_posix()] = digest(verdict)
        return found

    def leftovers(self) -> list[Path]:
        return [p for top in ("artifacts", "results") for p in (self.folder / top).rglob(".*")]

    def forget(self, but: tuple[str, ...] = ("base", "mixes")) -> None:
        """Forget all but these folders of artifacts/; with base alone, also what the base answered."""
        for path in (self.folder / "results", *(self.folder / "artifacts").iterdir()):
            if path.is_symlink():
                path.unlink()
            elif path.name not in but:
                shutil.rmtree(path, ignore_errors=path.name == "results")
        if but == ("base",):
            for answers in self.folder.glob("artifacts/base/*/answers"):
                shutil.rmtree(answers)
        self.settled = {}


def finished_files(folder: Path) -> Iterator[Path]:
    """Files below artifacts/ and results/ that have their final names; scratch of trainings only where it is whole."""
    for top in ("artifacts", "results"):
        for path in (folder / top).rglob("*"):
            inside = path.relative_to(folder).parts
            scratch = inside[1] == "work" and ".partial." in path.name
            if path.is_file() and not scratch and not any(part.startswith(".") for part in inside):
                yield path


def check_file(path: Path) -> None:
    """Raises an exception where a file is not whole."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        assert all(json.loads(line) for line in path.read_text().splitlines())
    elif path.suffix == ".tsv":
        assert path.read_bytes().endswith(b"\n")
        read_texts(path)
    elif path.suffix == ".safetensors":
        check_weights(path)
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")


def check_weights(path: Path) -> None:
    """A safetensors file has the length that its header says."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    assert path.stat().st_size == 8 + length + max(ends)


# ------------------------------------------------------------------------------------------------------- the long run


class Campaign:
    """Kills by number, with their tally in a file."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.file = folder, seed, folder / "tally.jsonl"
        project = folder / "專案 with spaces"
        fresh = not project.exists()
        self.victim = Victim(Mini.create(project) if fresh else Mini(project))
        self.victim.mini.config["stages"] = [stage("A"), stage("B", steps=6)]
        self.victim.mini.config["checkpoint"] = {"steps": 2}
        self.tally: list[dict[str, Any]] = []
        if self.file.exists():
            self.tally = [json.loads(line) for line in self.file.read_text().splitlines()]

    def prepare(self) -> None:
        """Run once undisturbed: what every later run has to come to."""
        if (self.folder / "expected.json").exists():
            return
        print("the run that nobody disturbs …", flush=True)
        self.victim.mini.snakemake()
        (self.folder / "expected.json").write_text(json.dumps(self.victim.result()))
        self.victim.forget(but=())

    def phase(self) -> str:
        """The part of the chain that comes next; empty when there is a release."""
        folder = self.victim.folder
        if (folder / "results/release.json").exists():
            return ""
        for phase, pattern, count in BEFORE_STAGES:
            if len(list(folder.glob(pattern))) < count:
                return phase
        for name in ("A", "B"):
            for phase, pattern in (
                ("train", f"results/runs/{name}/*/outcome.json"),
                ("export", f"artifacts/{name}/*/exported.json"),
                ("probe", f"results/runs/{name}/*/metrics.json"),
            ):
                if not list(folder.glob(pattern)):
                    return phase
        return "end"

    def draw(self, number: int) -> Kill | None:
        """The kill of this number; None: let it come to its end."""
        chosen, order = random.Random(f"{self.seed} {number}"), list(PHASES)
        place = order.index(self.phase())
        while place < len(order) and chosen.random() < PHASES[order[place]][1]:
            place += 1
        if place == len(order):
            return None
        seen = chosen.choice(PHASES[order[place]][0])
        target = chosen.choices([seen, "snakemake", "all", "shell"], [0.55, 0.25, 0.1, 0.1])[0]
        number_of = signal.SIGINT if target == "all" else chosen.choice(SIGNALS)
        if target == "keeper" and chosen.random() < 0.8:
            number_of = signal.SIGKILL  # it ignores the others, and the run comes to its end
        delay = chosen.uniform(0, LIFE[seen])
        if target == "snakemake" and chosen.random() < 0.3:
            seen, delay = "snakemake", chosen.uniform(0, START_SECS)
        second = (chosen.choice(SIGNALS), chosen.uniform(0, 0.5)) if chosen.random() < 0.25 else None
        return Kill(target, number_of, seen, delay, second, shells=target == "shell" or chosen.random() < 0.3)

    def go_on(self, count: int) -> None:
        """Until so many kills hit."""
        number = len(self.tally)
        while sum(entry["hit"] for entry in self.tally) < count:
            begin = time.monotonic()
            phase = self.phase()
            kill = self.draw(number) if phase else None
            if kill is None:
                self.finish()
                number += 1
                self._note({"n": number, "hit": False, "finished": True, "secs": round(time.monotonic() - begin, 1)})
                continue
            landed = self.victim.killed(kill)
            if landed.locked:
                self.victim.recover("unlock" if number % 4 == 0 else "recover")
            number += 1
            self._note(
                {
                    "n": number, "hit": bool(landed.hit), "target": landed.hit or kill.target,
                    "signal": kill.signal.name, "seen": kill.seen, "delay": round(kill.delay, 2),
                    "also": landed.also, "code": landed.code, "phase": phase, "shells": kill.shells,
                    "locked": landed.locked, "secs": round(time.monotonic() - begin, 1),
                }
            )  # fmt: skip

    def finish(self) -> None:
        """Let a run come to its end, and compare."""
        self.victim.mini.snakemake()
        self.victim.check_alone()
        self.victim.check_whole()
        self.victim.check_settled()
        found, expected = self.victim.result(), read_json(self.folder / "expected.json")
        if found != expected:
            differ = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
            raise Faults(f"not what an undisturbed run makes: {differ}")
        if self.victim.leftovers():
            raise Faults(f"left over: {self.victim.leftovers()}")
        finished = sum(bool(entry.get("finished")) for entry in self.tally)
        self.victim.forget(KEPT[finished % len(KEPT)])

    def _note(self, entry: dict[str, Any]) -> None:
        self.tally.append(entry)
        with self.file.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
        if len(self.tally) % 20 == 0:
            print(self.text(), flush=True)

    def text(self) -> str:
        """Kills by target and signal."""
        hits = [entry for entry in self.tally if entry["hit"]]
        counts = Counter((e["target"], e["signal"]) for e in hits)
        lines = [f"{'target':12}{''.join(f'{s.name:>9}' for s in SIGNALS)}{'all':>9}"]
        for target in dict.fromkeys(["snakemake", "shell", *LIFE, "all"]):
            row = [counts[target, s.name] for s in SIGNALS]
            lines.append(f"{target:12}{''.join(f'{n:9}' for n in row)}{sum(row):9}")
        finished = sum(bool(entry.get("finished")) for entry in self.tally)
        twice, locked = sum(bool(e["also"]) for e in hits), sum(e["locked"] for e in hits)
        lines.append(
            f"{len(hits)} kills, {twice} of them followed by a second one; the lock stayed after {locked}; "
            f"{finished} runs came to their end with the bits of an undisturbed one"
        )
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="kills in all, those of earlier slices too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the project and the tally are kept (default: below TMPDIR)")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.gettempdir()) / f"fgod-kills-{args.seed}"
    campaign = Campaign(folder, args.seed)
    campaign.prepare()
    try:
        campaign.go_on(args.count)
        campaign.finish()
    except Faults as fault:
        print(campaign.text(), file=sys.stderr)
        sys.exit(
            f"after kill {len(campaign.tally)}, in {campaign.victim.folder}: {fault}\n{campaign.victim.said()[-3000:]}"
        )
    print(campaign.text())


if __name__ == "__main__":
    main()
