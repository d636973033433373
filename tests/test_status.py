"""`fgod status`: what follows from which records. The records here are of running, killed and finished commands."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod import layout, manifest
from fgod.cli import main
from fgod.errors import FgodError
from fgod.guard.nvml import Nvml
from fgod.guard.phases import write_phase
from fgod.guard.samples import COLUMNS as GUARD_COLUMNS
from fgod.layout import run_records
from fgod.seal import SEAL, seal_of
from fgod.session import Session
from fgod.status import text, watch
from fgod.status.commands import WORKFLOW, Command, command_of
from fgod.status.facts import End, Facts, Running, Snakemake, Visited, gather
from fgod.status.gpus import Gpus, look
from fgod.status.judge import Next, Status, as_json, judge, state_of, to_follow, why_stopped
from fgod.status.records import STEP, Step, Steps, Training, pools_of, steps_of
from fgod.system.files import write_json, write_text
from fgod.system.table import write_table
from fgod.system.times import iso_of
from fgod.train.record import COLUMNS, PARTIAL, StepRow, StepTable
from tests.made_runs import write_run
from tests.mini import ROOT, Mini
from tests.simulated_gpu import SimulatedNvml

RUN = "0123456789ab"
OTHER = "ba9876543210"


# ---- decisions

TRAIN = Command("train", "running", 7, "here", "2026-01-02T03:00:10.000Z", stage="A", lineage=RUN, fit=0)
PROBE = replace(TRAIN, name="probe", fit=None)
ENDED = replace(TRAIN, state="done", end="2026-01-02T03:00:20.000Z", exit_code=0)
FAILED = replace(ENDED, state="failed", exit_code=1, error="rows.tsv: no such file")
AT_WORK = Snakemake(5, "here", "running", "2026-01-02T03:00:00.000Z")
AWAY = replace(AT_WORK, state="unknown", host="away")
WALK = (Visited(0, "A", RUN), Visited(0, "B", OTHER, alpha=0.5))
NOW = 1767322830.0  # 2026-01-02T03:00:30Z


AFTER = ("confirm", "served", "tables", "report", "promote")


def facts(*commands: Command, **more: Any) -> Facts:
    running = tuple(Running(c) for c in commands if c.state == "running")
    return Facts(NOW, commands, running, **{"after": AFTER, **more})


@pytest.mark.parametrize(
    ("found", "state", "kind", "words"),
    [
        (facts(), "stopped", "never_ran", "nothing ran"),
        (facts(TRAIN), "running", None, ""),
        (facts(replace(TRAIN, name="guard")), "running", None, ""),
        (facts(ENDED, snakemake=AT_WORK), "between", None, ""),
        (facts(ENDED), "stopped", "interrupted", f"the last command, train of A {RUN}, ended well"),
        (facts(FAILED), "stopped", "failed", "exit code 1: rows.tsv: no such file"),
        (facts(replace(TRAIN, state="killed")), "stopped", "killed", "its process 7 is gone"),
        (facts(replace(TRAIN, state="unknown", host="away")), "elsewhere", None, ""),
        (facts(replace(ENDED, state="failed", exit_code=130, error="KeyboardInterrupt")), "stopped", "stopped",
         "by Ctrl-C"),
        (facts(replace(ENDED, state="failed", exit_code=143, error="ended by SIGTERM")), "stopped", "stopped",
         "by SIGTERM"),
        (facts(replace(FAILED, error="The guard received SIGINT.", signalled=True)), "stopped", "stopped", "SIGINT"),
        (facts(replace(FAILED, name="promote", exit_code=100, error="nothing is released"), end=End(spent="2 refits"),
               snakemake=replace(AT_WORK, state="failed")), "stopped", "not_accepted", "2 refits"),
        (facts(ENDED, snakemake=replace(AT_WORK, state="killed")), "stopped", "snakemake_killed", "process 5"),
        (facts(ENDED, snakemake=replace(AT_WORK, state="unknown")), "elsewhere", None, ""),
        # another machine's, and what began here since
        (facts(ENDED, snakemake=AWAY), "stopped", "interrupted", "ended well"),
        (facts(replace(ENDED, host="away"), FAILED, snakemake=AWAY), "stopped", "failed", "no such file"),
        (facts(replace(FAILED, host="away"), ENDED, snakemake=AWAY), "stopped", "interrupted", "ended well"),
        (facts(replace(ENDED, host="away"), snakemake=AWAY), "elsewhere", None, ""),
        (facts(replace(TRAIN, state="unknown", host="away", start="2026-01-02T02:00:00.000Z"),
               snakemake=replace(AT_WORK, state="killed")), "stopped", "snakemake_killed", "process 5"),
        (facts(replace(FAILED, name="engine")), "stopped", "failed", "engine of A"),
        (facts(ENDED, replace(TRAIN, name="engine", state="killed"), snakemake=replace(AT_WORK, state="failed")),
         "stopped", "killed", "engine of A"),
        (facts(ENDED, snakemake=replace(AT_WORK, state="done")), "stopped", "finished", "asked for"),
        (facts(ENDED, snakemake=replace(AT_WORK, state="done"), end=End("artifacts/release", RUN)), "stopped",
         "released", RUN),
        (facts(ENDED, snakemake=replace(AT_WORK, state="done"), end=End(spent="2 refits")), "stopped",
         "not_accepted", "2 refits"),
        (facts(ENDED, snakemake=replace(AT_WORK, state="failed"), end=End(unconfirmed=("leak",))), "stopped",
         "not_confirmed", "leak"),
        # what failed before this snakemake began is not why it stopped
        (facts(replace(FAILED, start="2026-01-02T02:00:00.000Z"), ENDED, snakemake=replace(AT_WORK, state="failed")),
         "stopped", "interrupted", "ended well"),
        # side by side: one failed, the other one ended well
        (facts(FAILED, replace(ENDED, name="probe"), snakemake=replace(AT_WORK, state="failed")), "stopped", "failed",
         "no such file"),
        # by hand, after snakemake had ended
        (facts(FAILED, snakemake=replace(AT_WORK, state="done", end="2026-01-02T03:00:05.000Z")), "stopped", "failed",
         "no such file"),
        # a person's own command is not why a run stopped
        (facts(FAILED, replace(ENDED, name="guard", state="failed")), "stopped", "failed", "train of A"),
    ],
)  # fmt: skip
def test_the_state_and_why_follow_from_records(found: Facts, state: str, kind: str | None, words: str) -> None:
    status = judge(found)
    assert state_of(found) == status.state == state
    assert (status.why.kind if status.why else None) == kind
    if status.why:
        assert words in status.why.words and why_stopped(found) == status.why
    assert json.loads(json.dumps(as_json(status), allow_nan=False))["state"] == state
    assert text.lines(status) or found.running


def test_the_machine_is_named_that_cannot_be_seen() -> None:
    unseen = replace(TRAIN, state="unknown", host="away")
    for found in (
        facts(unseen, snakemake=replace(AT_WORK, state="done")),
        facts(unseen, replace(ENDED, name="guard", start="2026-01-02T03:00:15.000Z")),
    ):
        assert "it was started on away:" in text.lines(judge(found))[0]


def test_the_lock_of_a_killed_snakemake_is_told_as_long_as_it_is_there() -> None:
    killed = facts(ENDED, snakemake=replace(AT_WORK, state="killed"))
    told = [
        any("fgod recover" in line for line in text.lines(judge(replace(killed, locked=lock))))
        for lock in (True, False)
    ]
    assert told == [True, False]


def of(run: str, *steps: str) -> list[Next]:
    visit = next(visit for visit in WALK if visit.lineage == run)
    return [Next(step, visit.fit, visit.stage, visit.lineage) for step in steps]


def test_what_comes_next_of_a_campaign_is_told_for_each_experiment_and_of_shared_runs_once() -> None:
    shared = replace(WALK[0], experiment="x")
    found = facts(
        walk=(shared, replace(shared, experiment="y"), replace(WALK[1], experiment="y")), end=End(spent="own")
    )
    of_x = [Next(step, 0, "A", RUN, "x") for step in ("train", "export", "probe", "gate")]
    of_y = [Next(step, 0, "B", OTHER, "y") for step in ("interpolate", "export", "probe", "gate")]
    ends = {name: [Next(step, experiment=name) for step in AFTER] for name in "xy"}
    assert to_follow(found) == [*of_x, *ends["x"], *of_y, *ends["y"]]
    assert "confirm, served, tables, report, promote (x)" in "\n".join(text.lines(judge(found)))
    control = replace(shared, control=True)
    assert to_follow(facts(walk=(control,))) == [*of_x, *(Next(step, experiment="x") for step in ("tables", "report"))]
    failed = facts(walk=(replace(shared, decision="missed"),))
    assert [step.step for step in to_follow(failed)] == ["tables", "report"], "it is released nowhere"
    done = replace(found, snakemake=replace(AT_WORK, state="done"), end=End())
    assert "results/experiments.tsv" in why_stopped(done).words and to_follow(done) == []


END_OF_WALK = [Next(name) for name in AFTER]
OF_OTHER = of(OTHER, "interpolate", "export", "probe", "gate")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (facts(TRAIN, walk=WALK, snakemake=AT_WORK), [*of(RUN, "export", "probe", "gate"), *OF_OTHER, *END_OF_WALK]),
        (facts(PROBE, walk=WALK, snakemake=AT_WORK), [*of(RUN, "gate"), *OF_OTHER, *END_OF_WALK]),
        (facts(walk=WALK, snakemake=AT_WORK), [*of(RUN, "train", "export", "probe", "gate"), *OF_OTHER, *END_OF_WALK]),
        (facts(walk=(replace(WALK[0], status="trained", exported=True), WALK[1])),
         [*of(RUN, "probe", "gate"), *OF_OTHER, *END_OF_WALK]),
        (facts(walk=(replace(WALK[0], decision="accepted"), WALK[1])), [*OF_OTHER, *END_OF_WALK]),
        (facts(replace(PROBE, name="report", lineage="", stage=""), walk=(replace(WALK[0], decision="accepted"),)),
         [Next("promote")]),
        (facts(replace(PROBE, name="promote", lineage="", stage=""), walk=(replace(WALK[0], decision="accepted"),)),
         []),
        (facts(walk=WALK, snakemake=replace(AT_WORK, state="done")), []),
        (facts(walk=(replace(WALK[0], decision="missed"),), end=End(spent="2 refits")), []),
        (facts(TRAIN), []),
    ],
)  # fmt: skip
def test_what_comes_next_follows_from_the_walk_and_what_is_made(found: Facts, expected: list[Next]) -> None:
    assert to_follow(found) == expected


def steps(count: int, seconds: float = 2.0) -> Steps:
    rows = tuple(Step(i, 3.0 / i, 1e-3, 100.0, seconds, 900.0) for i in range(1, count + 1))
    return Steps(rows[-20:], tuple((row.step, row.loss) for row in rows))


def test_time_left_is_that_of_the_last_steps_and_none_before_the_first() -> None:
    training = Training("A", RUN, 100, steps(40), 30)
    assert judge(facts(TRAIN, training=training)).left_s == pytest.approx(120.0)
    assert judge(facts(TRAIN, training=replace(training, begun=False))).left_s is None
    assert judge(facts(TRAIN, training=replace(training, made=Steps()))).left_s is None
    assert judge(facts(ENDED, training=replace(training, status="trained"))).left_s is None


@pytest.mark.parametrize(("quiet", "pace", "hangs"), [(59, 1, False), (61, 1, True), (61, 20, False), (101, 20, True)])
def test_a_command_without_a_heartbeat_may_hang(quiet: float, pace: float, hangs: bool) -> None:
    found = facts(TRAIN, training=Training("A", RUN, 100, steps(40, pace), 0))
    found = replace(found, running=(Running(TRAIN, (), "backward_done", NOW - quiet),))
    (running,) = as_json(judge(found))["running"]
    assert running["may_hang"] is hangs and running["heartbeat_s"] == quiet
    assert any("may hang" in line for line in text.lines(judge(found))) is hangs


def test_commands_are_known_by_their_words() -> None:
    entry = {"state": "running", "process": {"pid": 3, "host": "h"}, "start": "2026-01-02T03:00:00.000Z"}
    words = ["fgod", "--plugin", "a.py", "--plugin=b.py", "answers", "teacher", "--limit-gb", "1.5", "--fit=2"]
    command = command_of({**entry, "argv": words})
    assert (command.name, command.limit_mib, command.fit, command.of_workflow) == ("answers teacher", 1536.0, 2, True)
    assert not command.signalled and command_of({**entry, "argv": words, "guard": {"end": "signalled"}}).signalled
    assert command_of({**entry, "argv": ["fgod", "guard", "--limit-gb=x", "--", "train"]}).limit_mib is None
    for broken in ({"start": "yesterday"}, {"process": {"pid": "x"}}, {"process": {}}, {"guard": 1}):
        with pytest.raises((AttributeError, KeyError, ValueError)):
            command_of({**entry, "argv": words, **broken})


def test_every_command_of_the_workflow_is_known() -> None:
    rules = "".join(path.read_text() for path in [*(ROOT / "rules").glob("*.smk"), *(ROOT / "workflow").glob("*.smk")])
    called = set(re.findall(r'"(?:\{FGOD\}|fgod) ([a-z-]+(?: [a-z][a-z-]*)?)', rules))
    known = {name for name in called if name in WORKFLOW or name.split()[0] in WORKFLOW}
    assert called - known == {"summary"} and len(known) > 15  # which is said at the end, and makes nothing


# ---- tables that are being written


@given(st.integers(0, 700), st.integers(0, 40))
def test_a_line_that_is_being_written_is_left_out(count: int, cut: int) -> None:
    columns = ("step", "loss", "lr", "tokens", "seconds", "memory_mib")
    rows = [f"{i}\t{1 / i}\t0.1\t10\t0.5\t9\n" for i in range(1, count + 1)]
    whole = "\t".join(columns) + "\n" + "".join(rows)
    torn = (whole + f"{count + 1}\t0.25\t0.1\t10\t0.5\t9\n"[:cut]).encode()
    kept = torn[: torn.rfind(b"\n") + 1].decode()
    found = steps_of(kept, Path("train.tsv"))
    assert found.step in (count, count + 1) and len(found.recent) == min(20, found.step) and len(found.losses) <= 240
    assert [made for made, _ in found.losses] == sorted({made for made, _ in found.losses})
    assert not found.losses or found.losses[-1][0] == found.step


def test_the_last_reading_and_the_peak_of_each_pool() -> None:
    lines = ["\t".join(GUARD_COLUMNS), "1\ta\thost\t10.0\t99.0", "1\ta\tgpu0\t\t50.0", "2\tb\thost\t7.5\t99.0", ""]
    host, gpu = pools_of("\n".join(lines), Path("guard.tsv"))
    assert (host.source, host.phase, host.used_mib, host.peak_mib, host.limit_mib) == ("host", "b", 7.5, 10.0, 99.0)
    assert (gpu.used_mib, gpu.peak_mib) == (None, None)


def test_a_broken_step_is_named_by_its_line() -> None:
    """Not every step is read: the line is that of the file, not that among those which are."""
    lines = ["\t".join(STEP), *(f"{i}\t0.5\t0.1\t10\t0.5\t9" for i in range(1, 1001)), ""]
    lines[990] = lines[990].replace("0.1", "x")
    with pytest.raises(FgodError, match=r"^train\.tsv:991: lr: found 'x', expected a number$"):
        steps_of("\n".join(lines), Path("train.tsv"))


LOSSES = st.floats(0, 1e300) | st.sampled_from([math.nan, math.inf])


@given(st.lists(LOSSES, max_size=300), st.integers(2, 90), st.integers(1, 9))
def test_a_curve_has_the_size_that_was_asked_for(losses: list[float], width: int, height: int) -> None:
    found = text.curve([(i + 1, loss) for i, loss in enumerate(losses)], width, height)
    known = any(map(math.isfinite, losses))
    assert len(found) == (height + 1 if known else 0)
    assert all(len(line.partition("│")[2]) == min(width, len(losses)) for line in found[:-1])


def test_a_falling_loss_is_a_falling_curve() -> None:
    found = text.curve([(i, 8.0 - i) for i in range(1, 8)], 7, 2)
    assert found[0].endswith("│█▅▃▁   ") and found[1].endswith("│████▆▃▁") and found[0].strip().startswith("7")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7600, "2 h 6 min"), (273600, "3 d 4 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


# ---- records on disk

LIVING = manifest.own_process()
GONE = {**LIVING, "started": LIVING["started"] - 1}
"""A process whose number was given to another one since: that the number lives says nothing."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(process: Mapping[str, Any], *words: str, stage: str = "", lineage: str = "", ago: float = 60.0) -> str:
    """The manifest's entry of a command that began; returns its name."""
    start = iso_of(time.time() - ago)
    name = f"{start.replace('-', '').replace(':', '')}-{process['pid']}"
    entry = {"argv": ["fgod", *words], "start": start, "stage": stage, "lineage": lineage, "process": dict(process)}
    write_json(manifest.FOLDER / f"{name}{manifest.START}", entry)
    return name


def end(name: str, code: int = 0, error: str = "") -> None:
    entry = {"end": iso_of(time.time()), "exit_code": code, "error": error}
    write_json(manifest.FOLDER / f"{name}{manifest.END}", entry)


def train_words() -> Sequence[str]:
    return ("train", "--recipe", "r", "--limit-gb", "2", "--fit", "0")


def training_records(lineage: str = RUN, made: int = 12) -> Path:
    """What a training leaves while it runs; returns the table of its steps."""
    write_json(run_records("A", lineage).recipe, {"stage": "A", "mix": {}, "train": {"steps": 40}})
    work = layout.work(lineage)
    with StepTable(work.folder / PARTIAL, COLUMNS, "A", lineage) as table:
        for step in range(1, made + 1):
            table.add(StepRow(step, 3.0 / step, 1e-3, 1.0, 1.0, 100, 0.5, 800.0, 0.0, 1.0, 0.0))
    write_phase(work.phase, "backward_done")
    sample = {"t": 1.0, "phase": "backward_done", "source": "host_pss", "used_mib": 900.0, "limit_mib": 2048.0}
    write_table(work.records.guard, GUARD_COLUMNS, [sample])
    return work.folder / PARTIAL


def look_now() -> tuple[Status, str]:
    status = watch.look()
    return status, "\n".join(text.lines(status))


def test_a_running_training(here: Path) -> None:
    begin(LIVING, *train_words(), stage="A", lineage=RUN)
    with training_records().open("a") as stream:
        stream.write("A\t0123456789ab\t13\t0.2")  # the next line, as it is written
    status, said = look_now()
    training = as_json(status)["training"]
    assert status.state == "running" and status.trains
    assert (training["step"], training["steps"], training["loss"], training["left_s"]) == (12, 40, 0.25, 14.0)
    assert (training["seconds_per_step"], training["tokens_per_second"]) == (0.5, 200.0)
    assert training["memory"][0]["used_mib"] == 900.0 and len(training["losses"]) == 12
    assert f"train · fit 0 · A {RUN}" in said and "step 12 of 40" in said and "14 s left" in said
    assert f"command {os.getpid()}" in said and "the limit is 2048 MiB" in said and "host_pss: 900 of 2048 MiB" in said
    assert text.line(status).startswith(f"running · train · A {RUN} · step 12 of 40 · loss 0.25")
    assert any("█" in line for line in watch.drawn(status, 60))


def test_a_training_that_goes_on_has_the_steps_of_its_checkpoint_until_it_makes_one(here: Path) -> None:
    table = training_records()
    os.utime(table, (time.time() - 600, time.time() - 600))
    (layout.work(RUN).folder / "checkpoint-00000008").mkdir()
    begin(LIVING, *train_words(), stage="A", lineage=RUN)
    status, said = look_now()
    assert as_json(status)["training"]["step"] == 8 and status.left_s is None
    assert "no step yet; it goes on from step 8" in said


def test_a_killed_training_is_told_from_a_running_one_though_its_files_are_there(here: Path) -> None:
    training_records()
    begin(GONE, *train_words(), stage="A", lineage=RUN)
    (layout.work(RUN).folder / "checkpoint-00000008").mkdir()
    status, said = look_now()
    assert status.state == "stopped" and status.why is not None and status.why.kind == "killed"
    assert not as_json(status)["running"] and as_json(status)["training"]["saved_step"] == 8
    assert f"train of A {RUN} was killed" in said and "ended after step 12 of 40; it goes on from step 8" in said


def test_a_session_says_what_comes_next_and_whether_snakemake_lives(here: Path) -> None:
    session = Session()
    session.expects([])  # of a dry-run: nothing is written
    assert not layout.SESSION.exists()
    visits = [{"fit": 0, "stage": "A", "lineage": RUN, "alpha": None}]
    session.begin("config.yaml", visits, ["tables", "report"])
    status, said = look_now()
    assert status.state == "between" and "no command runs; snakemake (process" in said
    session.expects([*visits, {"fit": 0, "stage": "B", "lineage": OTHER, "alpha": None}])
    begin(LIVING, *train_words(), stage="A", lineage=RUN, ago=0)
    training_records()
    status, said = look_now()
    assert [step.step for step in status.next] == ["export", "probe", "gate", *("train", "export", "probe", "gate"),
                                                   "tables", "report"]  # fmt: skip
    assert f"export, probe, gate of fit 0 A {RUN}" in said and f"under snakemake (process {os.getpid()})" in said
    write_json(layout.SESSION, {**session.content, "process": GONE})
    write_text(layout.LOCKS / "0.input.lock", "")
    for file in manifest.FOLDER.glob("*"):
        file.unlink()
    status, said = look_now()
    assert status.why is not None and status.why.kind == "snakemake_killed" and "fgod recover" in said
    assert "run snakemake again; it goes on with" in said
    session.end("failed")
    name = begin(LIVING, *train_words(), stage="A", lineage=RUN, ago=-1)
    end(name, 1, "artifacts: this disk is full")
    assert "this disk is full" in look_now()[1]


def test_a_finished_run_and_its_verdict(here: Path) -> None:
    decision = write_run(here, "A", RUN, "good")
    name = begin(LIVING, *train_words(), stage="A", lineage=RUN)
    end(name)
    status, said = look_now()
    assert status.facts.verdict is not None and status.facts.verdict.decision == decision
    assert f"verdict   A {RUN}: {decision}" in said
    assert as_json(status)["training"]["status"] == "trained"


def test_records_that_cannot_be_read_are_named_and_the_rest_is_told(here: Path) -> None:
    begin(LIVING, *train_words(), stage="A", lineage=RUN)
    table = training_records()
    write_run(here, "B", OTHER, "good")
    verdict = run_records("B", OTHER).verdict
    write_text(verdict, verdict.read_text().replace("accepted", "missed"))
    write_text(table, table.read_text() + "A\tx\n")
    write_text(layout.view().walk, "{")
    write_text(manifest.FOLDER / f"{begin(LIVING, 'gate', ago=5)}{manifest.START}", "{")
    write_json(manifest.FOLDER / f"x{manifest.START}", {"argv": ["fgod", "gate"], "start": "now", "process": LIVING})
    status, said = look_now()
    assert status.state == "running" and status.facts.verdict is None
    problems = "\n".join(status.facts.problems)
    assert "its seal differs" in problems and "2 fields, expected" in problems and "walk.json:1: not JSON" in problems
    assert "start.json: not JSON" in problems and "it is no entry of the manifest" in problems
    assert "problem   " in said


SESSION = {"process": LIVING, "start": "2026-01-02T03:00:00.000Z", "config": "c", "end": None, "ended": None}
VISIT = {"fit": 0, "stage": "A", "lineage": RUN, "alpha": None}


@pytest.mark.parametrize(
    "session",
    [
        {}, {**SESSION, "walk": [3]}, {**SESSION, "walk": None}, {**SESSION, "walk": [], "process": []},
        {**SESSION, "walk": [], "process": {}}, {**SESSION, "walk": [], "start": "yesterday"},
        {**SESSION, "walk": [], "end": 5}, {**SESSION, "walk": [{**VISIT, "alpha": "half"}]},
        {**SESSION, "walk": [{**VISIT, "fit": None}]},
    ],
)  # fmt: skip
def test_a_session_of_another_shape_is_a_problem(here: Path, session: Mapping[str, Any]) -> None:
    write_json(layout.SESSION, session)
    status, said = look_now()
    (problem,) = status.facts.problems
    assert problem.startswith(f"{layout.SESSION}: it has another shape") and problem in said
    assert status.facts.snakemake is None and status.facts.walk == ()


@pytest.mark.parametrize("walk", [{}, {"walk": []}, {"walk": {"visits": [1]}}, {"walk": {"visits": []}}])
@pytest.mark.parametrize("release", [{}, {"promoted": [{}]}, {"promoted": 3}, {"promoted": {"a": 1}}])
def test_a_walk_and_a_release_of_another_shape_are_problems(here: Path, walk: Any, release: Any) -> None:
    write_run(here, "A", RUN, "good")
    write_json(layout.SESSION, {**SESSION, "process": GONE, "walk": [VISIT]})
    write_json(layout.view().walk, walk)
    record = layout.Releases().record
    write_json(record, {**release, SEAL: seal_of(release)})
    status, _ = look_now()
    files = [str(layout.view().walk), str(record)]
    assert [file for file in files if any(file in problem for problem in status.facts.problems)] == files
    assert status.facts.end == End() and status.facts.walk[0].decision == "accepted"


def test_a_command_that_ends_while_the_manifest_is_read_was_not_killed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = begin(GONE, *train_words(), stage="A", lineage=RUN)
    listed = manifest._files(Path("."))
    end(name)
    monkeypatch.setattr(manifest, "_files", lambda root: listed)
    assert [entry["state"] for entry in manifest.recent(Path("."), 9)] == ["done"]
    assert [entry["state"] for entry in manifest.join(Path("."))] == ["done"]


def test_of_many_commands_the_last_ones_are_read_and_all_without_an_end(here: Path) -> None:
    names = [begin(GONE, "gate", ago=100 - i) for i in range(9)]
    for name in names[1:]:
        end(name)
    found = manifest.recent(Path("."), 3)
    assert [(entry["name"], entry["state"]) for entry in found] == [
        (names[0], "killed"), *((name, "done") for name in names[-3:])
    ]  # fmt: skip


# ---- living processes, GPUs, the command line


def test_guard_keeper_and_command_are_found_by_their_processes(here: Path) -> None:
    Path("Snakefile").touch()
    command = [sys.executable, "-m", "fgod", "guard", "--limit-gb", "1", "--", sys.executable, "-c"]
    script = "import fgod.guard.heartbeat as h; b = h.Heartbeat.from_environment(); b('busy'); input()"
    options = [*command[:6], "--phase-file", "phase", *command[6:], script]
    with subprocess.Popen(options, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for _ in range(300):
            status = watch.look()
            if status.facts.running and status.facts.running[0].phase == "busy":
                break
            time.sleep(0.1)
        (running,) = as_json(status)["running"]
        roles = {one["role"]: one["pid"] for one in running["processes"]}
        assert running["command"] == "guard" and running["limit_mib"] == 1024.0 and running["heartbeat_s"] < 30
        assert roles["guard"] == process.pid and {"keeper", "worker"} <= roles.keys()
        assert all(one["resident_mib"] > 1 for one in running["processes"])
        process.kill()
    assert watch.look().state == "stopped"


def gpu(tmp_path: Path, library: SimulatedNvml) -> Gpus:
    (tmp_path / "nvidia0").touch()
    return look(tmp_path, lambda: Nvml(library), secs=30)


def test_users_of_a_gpu(tmp_path: Path) -> None:
    assert look(tmp_path) == Gpus()
    (found,) = gpu(tmp_path, SimulatedNvml(processes={os.getpid(): 64.0, 2**22 + 1: None})).found
    assert (found.used_mib, found.total_mib, found.name) == (100.0, 1000.0, "Simulated GPU")
    assert [(user.pid, user.mib) for user in found.users] == [(os.getpid(), 64.0), (2**22 + 1, None)]
    assert found.users[0].name and not found.users[1].name
    said = "\n".join(text.lines(judge(facts(TRAIN, gpus=Gpus((found,))))))
    assert f"0 Simulated GPU: 100 of 1000 MiB · {os.getpid()} (" in said and "not visible here" in said
    (integrated,) = gpu(tmp_path, SimulatedNvml(memory=3, processes=3)).found
    assert (integrated.used_mib, integrated.users) == (None, ())
    assert "NVML says" in gpu(tmp_path, SimulatedNvml(starts=9)).unknown


def test_nvml_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()

    def slow() -> Nvml:
        time.sleep(5)
        return Nvml(SimulatedNvml())

    assert "no answer within" in look(tmp_path, slow, secs=0.01).unknown


def test_a_watch_ends_when_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [judge(facts(TRAIN)), judge(facts(ENDED, snakemake=AT_WORK)), judge(facts(FAILED)), judge(facts(TRAIN))]

    def seen() -> Iterator[Status]:
        yield from shown

    for as_lines in (False, True):
        statuses = seen()
        watch.watch(as_lines, terminal=False, see=lambda it=statuses: next(it), secs=0.0)  # type: ignore[misc]
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 3
        assert said[2].startswith("stopped · train of A") if not as_lines else json.loads(said[2])["why"]
    statuses = seen()
    watch.watch(False, terminal=True, see=lambda: next(statuses), secs=0.0)
    assert "no such file" in capsys.readouterr().out.replace("\n", " ")


def test_ctrl_c_ends_a_watch(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Status:
        raise KeyboardInterrupt

    watch.watch(False, terminal=False, see=interrupted)
    assert capsys.readouterr().out == ""


def test_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0 and "nothing ran in this folder yet" in capsys.readouterr().out
    begin(LIVING, *train_words(), stage="A", lineage=RUN)
    training_records()
    assert main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs" / "status.md").read_text()
    assert [key for key in found if f"`{key}`" not in page] == []
    parts = (
        found["running"][0],
        found["training"],
        found["training"]["memory"][0],
        found["running"][0]["processes"][0],
    )
    assert [key for part in parts for key in part if f"`{key}`" not in page] == []
    assert sorted(p.name for p in here.iterdir()) == ["artifacts", "results"], "nothing was written"


def test_a_status_loads_nothing_that_takes_long(here: Path) -> None:
    begin(LIVING, *train_words(), stage="A", lineage=RUN)
    training_records()
    code = "import sys; from fgod.cli import main; main(['status']); print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"torch", "transformers", "numpy", "pandas", "pydantic", "rich", "snakemake"}
    assert "step 12 of 40" in ended.stdout and not slow & set(ended.stderr.split())


def test_a_reader_may_leave(here: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-m", "fgod", "status", "--json"]
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_the_status_of_a_project_that_ran(ran: Mini) -> None:
    """What snakemake itself leaves; and the rows of a step of its training."""
    said = ran.run("fgod", "status").stdout
    assert "all is done: artifacts/release holds" in said and "verdict   A" in said
    found = json.loads(ran.run("fgod", "why-step", "A", "2", "--json").stdout)
    assert len(found["rows"]) == 8 and all(row["loss"] > 0 and row["prompt"] for row in found["rows"])


def test_gathering_reads_alone(here: Path) -> None:
    assert gather().commands == () and list(here.iterdir()) == []
