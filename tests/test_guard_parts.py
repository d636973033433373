"""What the guard decides, and how guard and trainer talk: pure parts, and small real ones."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fgod import guard
from fgod.errors import UsageError
from fgod.guard import cap, cuda, predict
from fgod.guard.ends import Action, End, OomKills, classify, exit_code, sentence
from fgod.guard.limits import Stall, lowered
from fgod.guard.phases import PhaseReader
from fgod.system.process import read_process
from tests.test_guard import HOG, LARGE, SMALL, cli, python

ROOT = str(Path(__file__).parents[1])
NONE = OomKills(0, 0)
GIB = 2**30


# Limits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stall_secs": -1.0}, "guard.stall_secs: found -1.0"),
        ({"others_gb": float("nan")}, "guard.others_gb: found nan"),
        ({"wait_secs": float("inf")}, "guard.wait_secs: found inf"),
    ],
)
def test_limits_that_do_not_go_together(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        guard.Limits(limit_gb=1.0, **values)


def test_a_limit_above_what_there_is_is_lowered() -> None:
    assert lowered(500, None) == 500
    assert lowered(500, 1000) == 500
    assert lowered(1000, 1000) == 950


def test_the_configs_keys_are_options_of_the_command_line() -> None:
    keys = {"limit_gb": 8, "over_secs": 0, "poll_secs": 0.25, "stall_secs": None, "blind_ok": True, "rank_secs": 9}
    assert guard.options({**keys, "too_large_ok": False}) == "--limit-gb=8 --poll-secs=0.25 --blind-ok"
    assert guard.options({"limit_gb": 0.5, "too_large_ok": True}) == "--limit-gb=0.5 --too-large-ok"
    with pytest.raises(UsageError, match=r"guard\.poll_secs"):
        guard.options({"limit_gb": 8, "poll_secs": 0.001})


def test_a_stall_is_no_heartbeat_for_so_long() -> None:
    stall = Stall(10)
    beats = [(0, None, False), (9, None, False), (9.5, 1, False), (19, 1, False), (19.5, 1, True), (19.6, 2, False)]
    assert [stall.stalled(t, beat) for t, beat, _ in beats] == [expected for *_, expected in beats]
    assert not Stall(0).stalled(1e9, None)


# Ends

MEMORY = Action(End.MEMORY, 3.0, "host_pss", 120.0, 100.0)


@pytest.mark.parametrize(
    ("action", "code", "received", "oom", "end", "exits"),
    [
        (None, 0, None, NONE, End.OWN, 0),
        (None, 75, None, NONE, End.OWN, 75),
        (MEMORY, -9, None, NONE, End.MEMORY, 75),
        (MEMORY, None, None, NONE, End.MEMORY, 75),
        (MEMORY, 0, None, NONE, End.OWN, 0),
        (MEMORY, -9, None, OomKills(1, 1), End.MEMORY, 75),
        (Action(End.STALLED, 3.0, ""), -9, None, NONE, End.STALLED, 1),
        (Action(End.BLIND, 3.0, "gpu0"), -9, None, NONE, End.BLIND, 1),
        (None, -9, 15, NONE, End.SIGNALLED, 143),
        (None, 0, 15, NONE, End.SIGNALLED, 143),
        (None, -9, None, NONE, End.EXTERNAL, 137),
        (None, 137, None, NONE, End.EXTERNAL, 137),
        (None, -15, None, NONE, End.EXTERNAL, 143),
        (None, -11, None, NONE, End.CRASHED, 139),
        (None, -9, None, OomKills(None, 2), End.OOM, 137),
        (None, 1, None, OomKills(1, 1), End.OOM, 1),
        (None, 1, None, OomKills(None, 1), End.OWN, 1),
        (None, -40, None, NONE, End.EXTERNAL, 168),
    ],
)
def test_how_a_command_ended(
    action: Action | None, code: int | None, received: int | None, oom: OomKills, end: End, exits: int
) -> None:
    assert classify(action, code, received, oom) is end
    assert exit_code(end, code, received) == exits
    told = sentence(end, action, guard.Limits(1), "saving", code, received, oom)
    assert (told == "") == (end is End.OWN)
    assert told.count(". ") == 0 and (not told or told.endswith("."))


def test_kills_by_the_kernel_are_counted_where_both_counts_are_known() -> None:
    assert OomKills(3, None).since(OomKills(1, 7)) == OomKills(2, None)


# Heartbeats


def test_a_command_that_stalls_is_ended_with_an_error(tmp_path: Path) -> None:
    beats = 'for i in 1 2 3 4 5; do touch "$FGOD_GUARD_PHASE"; sleep 0.1; done'
    limits = guard.Limits(limit_gb=1, poll_secs=0.02, stall_secs=0.4)
    assert guard.run(["sh", "-c", beats], limits).exit_code == 0
    result = guard.run(["sh", "-c", f"{beats}; sleep 30"], limits, reason=tmp_path / "reason.json")
    assert (result.exit_code, result.end, result.killed) == (1, "stalled", False)
    assert json.loads((tmp_path / "reason.json").read_text())["end"] == "stalled"
    assert "no heartbeat for 0.4 s" in result.reason and result.wall_s > 0.8


def test_a_phase_that_a_kill_left_half_said_is_gone_with_the_next(tmp_path, monkeypatch):
    path = tmp_path / "phase"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", lambda *told: (_ for _ in ()).throw(KeyboardInterrupt))
        guard.write_phase(path, "start")
    assert guard.read_phase(path) == "start" and len(list(tmp_path.iterdir())) == 1 and not path.exists()
    guard.write_phase(path, "model_loaded")
    assert guard.read_phase(path) == "model_loaded" and list(tmp_path.iterdir()) == [path]


def test_the_same_phase_again_is_a_heartbeat(tmp_path: Path) -> None:
    reader = PhaseReader(tmp_path / "phase")
    reader.read()
    assert (reader.phase, reader.beat) == ("start", None)
    beats = set()
    for phase in ("batch_ready", "batch_ready", "saving"):
        guard.write_phase(tmp_path / "phase", phase)
        reader.read()
        assert reader.phase == phase
        beats.add(reader.beat)
        time.sleep(0.01)
    assert len(beats) == 3


# The kernel's killer, and others'


def test_a_kill_by_the_kernel_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = itertools.count()
    monkeypatch.setattr("fgod.guard.watch._oom_kills", lambda: OomKills(None, next(counts)))
    result = guard.run(["sh", "-c", "kill -9 $$"], LARGE)
    assert (result.exit_code, result.end, result.killed) == (137, "oom", False)
    assert "1 killed on this machine meanwhile" in result.reason


# Prediction and cap


def test_what_will_not_fit_is_refused_with_the_knob_to_turn() -> None:
    parts = {"weights": 8 * GIB, "optimizer states": 30 * GIB}
    knobs = [
        predict.Knob("train.micro_batch", 2, 1 * GIB),
        predict.Knob("train.optimizer_state", "int8", 20 * GIB),
        predict.Knob("train.seq_len", 64, 6 * GIB),
    ]
    predict.check(parts, 38 * GIB, knobs)
    with pytest.raises(predict.TooLargeError) as caught:
        predict.check(parts, 33 * GIB, knobs)
    assert str(caught.value) == (
        "this run needs about 38.00 GiB (optimizer states 30.00 GiB, weights 8.00 GiB), and the guard allows "
        "33.00 GiB: 5.00 GiB too much. Nothing was loaded. Set train.seq_len to 64 (saves 6.00 GiB)."
    )
    assert caught.value.exit_code == 1
    with pytest.raises(
        predict.TooLargeError, match=r"Set train.optimizer_state to int8 .* and train.seq_len to 64 .*\)\.$"
    ):
        predict.check(parts, 15 * GIB, knobs)
    with pytest.raises(predict.TooLargeError, match=r"even that is not enough: raise guard\.limit_gb"):
        predict.check(parts, 1 * GIB, knobs)
    with pytest.raises(predict.TooLargeError, match=r"Raise guard.limit_gb, or train a smaller model\.$"):
        predict.check(parts, 1 * GIB)


def test_the_allocators_cap_leaves_a_reserve() -> None:
    assert cap.capped_mib(72 * 1024) == pytest.approx(72 * 1024 * 0.95)
    assert cap.capped_mib(8 * 1024) == 7 * 1024
    assert cap.capped_mib(1024) == 768
    assert cap.fraction(1024, 2048) == 0.375
    assert cap.fraction(1e9, 2048) == 1
    assert cap.room_mib({}) is None and cap.room_mib({cap.VARIABLE: "512"}) == 512
    for text in ("", "-1", "nan", "inf", "many"):
        with pytest.raises(UsageError, match="FGOD_GUARD_ROOM_MIB: found"):
            cap.room_mib({cap.VARIABLE: text})
    assert cap.cap_allocator(None) == {}


def test_a_device_that_others_filled_is_told_from_what_the_cap_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(cap, "cap_allocator", lambda room: {0: 768.0})
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700 << 20)
    monkeypatch.setattr(cuda, "here", lambda: [cuda.Gpu(0, "uuid", False, 8192.0)])
    for free, refused in ((100, True), (60, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free << 20, 8 << 30))
        assert ("take more than 768 MiB of gpu0" in cap.refusal(1024)) is refused


# The command line


def test_a_line_in_the_manifest(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {ROOT!r}); from fgod.cli import main; sys.exit(main())"
    words = ["guard", "--limit-gb", "0.1", "--poll-secs", "0.02", "--record", "--", *python("x = bytearray(200 << 20)")]
    done = subprocess.run([*cli()[:1], "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    (end,) = (tmp_path / "results" / "manifest.d").glob("*.end.json")
    entry = json.loads(end.read_text())
    assert entry["exit_code"] == 75 and entry["guard"]["end"] == "memory"
    assert "above the limit of 102 MiB" in entry["guard"]["reason"]


def test_a_guard_inside_a_guard(tmp_path: Path) -> None:
    """The outer one counts and kills what the inner one started; nothing is left."""
    pid_file = tmp_path / "pid"
    told = f"import os, time; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}}\\n'); "
    result = guard.run(cli("--limit-gb", 2, "--", *python(told + HOG)), SMALL)
    assert result.killed
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + 2
    while read_process(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not read_process(pid)


def test_descendants_that_ignore_everything_but_sigkill_are_ended_on_a_stop(tmp_path: Path) -> None:
    script = f"trap '' TERM INT HUP; echo $$ > {tmp_path / 'pid'}; while :; do sleep 1; done"
    command = cli("--limit-gb", 1, "--grace-secs", 0.2, "--", "sh", "-c", script)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
