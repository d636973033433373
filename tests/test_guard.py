"""The guard with real processes that really use memory, and its parts alone."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod import guard
from fgod.errors import UsageError
from fgod.guard.limits import OverTime
from fgod.guard.samples import Sample, Samples, TableWriter
from fgod.guard.sources import HostMemory, User
from fgod.system import process as processes
from fgod.system.lock import holder_numbers
from fgod.system.process import Member, ProcessTree, read_process
from fgod.system.procfs import MIB
from fgod.system.table import read_texts

PYTHON = sys.executable
SMALL = guard.Limits(limit_gb=0.1, poll_secs=0.02)  # 102 MiB; a bare Python needs about 10
LARGE = guard.Limits(limit_gb=2, poll_secs=0.02)
HOG = "import time; x = bytearray(200 << 20); time.sleep(30)"
CLI = """
import signal, sys
from fgod.arguments import Parser, add_options, options_of
from fgod.errors import FgodError
from fgod.guard import GuardOptions
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # a shell starts background jobs with SIGINT ignored, and so it would stay
parser = Parser()
add_options(parser, GuardOptions)
try:
    sys.exit(options_of(GuardOptions, parser.parse_args()).ended().exit_code)
except FgodError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def python(code: str, *args: object) -> list[str]:
    return [PYTHON, "-S", "-c", code, *map(str, args)]


def cli(*args: object) -> list[str]:
    return [PYTHON, "-c", CLI, *map(str, args)]


@cache
def bare_mib() -> float:
    """What a Python of tests uses before it does anything: other machines have other pages and libraries."""
    code = "import os, subprocess, time; print(open('/proc/self/statm').read().split()[1])"
    pages = int(subprocess.run(python(code), capture_output=True, check=True).stdout)
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def room_for(mib: float, poll_secs: float = 0.02) -> guard.Limits:
    """A limit that leaves a Python this much memory."""
    return guard.Limits(limit_gb=(bare_mib() + mib) / 1024, poll_secs=poll_secs)


def alive(pid: int) -> bool:
    return read_process(pid) is not None


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def number_in(path: Path) -> int:
    """A process number that a child wrote; waits for it."""
    assert until(lambda: path.exists() and path.read_text().endswith("\n")), f"{path} was not written"
    return int(path.read_text())


@contextmanager
def background(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# Ends


def test_the_commands_own_exit_code_passes_through(tmp_path: Path) -> None:
    for code in (0, 3, guard.KILLED_EXIT):
        result = guard.run(["sh", "-c", f"exit {code}"], LARGE, tmp_path / "guard.tsv", tmp_path / "reason.json")
        assert (result.exit_code, result.killed, result.reason) == (code, False, "")
        assert not (tmp_path / "reason.json").exists()
        assert read_texts(tmp_path / "guard.tsv", guard.COLUMNS) is not None


def test_a_kill_by_someone_else_is_an_error_and_not_ours(tmp_path: Path) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV):
        result = guard.run(["sh", "-c", f"kill -{number} $$"], LARGE, reason=tmp_path / "reason.json")
        assert (result.exit_code, result.killed) == (128 + number, False)
        told = json.loads((tmp_path / "reason.json").read_text())
        assert told["end"] == result.end == ("external" if number == signal.SIGKILL else "crashed")
        assert number.name in told["reason"] and "did not send" in told["reason"]


def test_past_the_limit_the_command_is_killed_with_a_reason(tmp_path: Path) -> None:
    table, reason = tmp_path / "run" / "guard.tsv", tmp_path / "run" / "reason.json"
    begin = time.monotonic()
    result = guard.run(python(HOG), SMALL, table, reason)
    assert time.monotonic() - begin < 5
    assert (result.exit_code, result.killed, result.survivors) == (75, True, ())
    assert result.peak_mib is not None and result.peak_mib > 102
    assert result.others_mib is not None and result.others_mib > 0
    told = json.loads(reason.read_text())
    assert told["reason"] == result.reason and "above the limit of 102 MiB (0.1 GiB)" in result.reason
    assert told["used_mib"] > told["limit_mib"] == 102.4
    assert told["phase"] == "start" and told["total_mib"] > told["others_mib"] > 0
    rows = read_texts(table, guard.COLUMNS)
    assert max(float(r["used_mib"]) for r in rows if r["used_mib"]) == told["used_mib"]
    assert {r["limit_mib"] for r in rows} == {"102.4"}


def test_a_grandchild_behind_a_shell_counts_and_dies(tmp_path: Path) -> None:
    """The worker of the machine that went down was a grandchild: its guard saw 0 MiB."""
    pid_file = tmp_path / "pid"
    code = f"import os; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}}\\n'); {HOG}"
    result = guard.run(["sh", "-c", f'{PYTHON} -S -c "$0"; echo survived', code], SMALL)
    assert result.killed and result.exit_code == 75
    assert not alive(number_in(pid_file))


def test_an_orphan_of_the_group_counts_and_dies(tmp_path: Path) -> None:
    """A double fork: the hog's parent is gone, so only its session tells whose it is."""
    pid_file = tmp_path / "pid"
    code = f"""
import os, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        open({str(pid_file)!r}, "w").write(f"{{os.getpid()}}\\n")
        time.sleep(0.2)
        x = bytearray(200 << 20)
    else:
        os._exit(0)
time.sleep(30)
"""
    result = guard.run(python(code), SMALL)
    assert result.killed
    assert not alive(number_in(pid_file))


def test_a_group_of_processes_is_counted_together() -> None:
    """Four times 45 MiB are above the limit, none alone is."""
    code = "import os, time\nfor _ in range(2): os.fork()\nx = bytearray(45 << 20); time.sleep(30)"
    assert guard.run(python(code), room_for(90)).killed


def test_shared_pages_count_once() -> None:
    """Four processes that share 60 MiB use 60 MiB, not 240: PSS."""
    code = "import os, time\nx = bytearray(60 << 20)\nfor _ in range(2): os.fork()\ntime.sleep(0.5)"
    result = guard.run(python(code), room_for(90))
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this kernel does not tell PSS")
    assert result.exit_code == 0
    assert result.peak_mib is not None and 60 < result.peak_mib < bare_mib() + 90


def test_starting_programs_does_not_count_the_parents_memory_twice() -> None:
    """Between vfork and exec a child seems to use all that its parent does."""
    code = "import subprocess\nx = bytearray(70 << 20)\nfor _ in range(300): subprocess.run(['true'])"
    result = guard.run(python(code), room_for(70 + 35, poll_secs=0.005))
    assert result.exit_code == 0, result.reason


def test_a_peak_shorter_than_over_secs_is_allowed() -> None:
    code = "import time; x = bytearray(200 << 20); time.sleep(0.2); del x; time.sleep(0.3)"
    limits = guard.Limits(limit_gb=0.1, over_secs=5, poll_secs=0.02)
    result = guard.run(python(code), limits)
    assert (result.exit_code, result.killed) == (0, False)
    assert result.peak_mib is not None and result.peak_mib > 150


def test_above_the_limit_for_longer_than_over_secs_is_not() -> None:
    begin = time.monotonic()
    result = guard.run(python(HOG), guard.Limits(limit_gb=0.1, over_secs=0.4, poll_secs=0.02))
    assert result.killed and "for 0.4 s" in result.reason
    assert 0.4 < time.monotonic() - begin < 5


def test_what_the_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    result = guard.run(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; exit 4"], LARGE)
    pid = number_in(pid_file)
    assert result.exit_code == 4 and not result.killed
    assert result.left_behind == (f"{pid} (sleep)",)
    assert not alive(pid)


def test_a_stale_reason_does_not_survive_a_new_run(tmp_path: Path) -> None:
    reason, phase_file = tmp_path / "reason.json", tmp_path / "phase"
    reason.write_text("{}")
    phase_file.write_text("saving\n")
    result = guard.run(["true"], LARGE, reason=reason, phase_file=phase_file)
    assert result.phase == "start" and not reason.exists()


def test_a_program_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no-such-program.*No such file"):
        guard.run(["no-such-program"], LARGE)
    with pytest.raises(UsageError, match="no command"):
        guard.run([], LARGE)


def test_an_exception_in_the_guard_ends_the_command(tmp_path: Path) -> None:
    class Broken(HostMemory):
        def used_mib(self, tree: Sequence[Member]) -> float | None:
            if os.getpid() in {m.pid for m in tree}:
                return 1.0
            if pid_file.exists() and pid_file.read_text().endswith("\n"):
                raise RuntimeError("the source broke")
            return None

    pid_file = tmp_path / "pid"
    with pytest.raises(RuntimeError, match="the source broke"):
        guard.run(
            ["sh", "-c", f"echo $$ > {pid_file}; sleep 60"], LARGE, watched=[guard.Pool("host", [Broken(1)], LARGE)]
        )
    assert not alive(number_in(pid_file))


def test_exit_codes_survive_an_ignored_sigchld() -> None:
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert guard.run(["sh", "-c", "exit 9"], LARGE).exit_code == 9
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, old)


def test_outside_the_main_thread() -> None:
    results: list[guard.GuardResult] = []
    thread = threading.Thread(target=lambda: results.append(guard.run(python(HOG), SMALL)))
    thread.start()
    thread.join(10)
    assert [r.killed for r in results] == [True]


# Sources that are not memory of the host


class Told:
    """A source that says what it is told, the last word for ever."""

    name = "told"

    def __init__(self, *readings: float | None) -> None:
        self._readings = list(readings)

    def total_mib(self) -> float | None:
        return None

    def machine_mib(self) -> float | None:
        return None

    def users(self) -> list[User]:
        return []

    def used_mib(self, tree: Sequence[Member]) -> float | None:
        if os.getpid() in {m.pid for m in tree}:  # asked before the start whether it can see
            return 1.0
        return self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]


def test_unknown_is_empty_in_the_table_and_never_zero(tmp_path: Path) -> None:
    result = guard.run(
        ["sleep", "0.1"], SMALL, tmp_path / "guard.tsv", watched=[guard.Pool("told", [Told(None)], SMALL)]
    )
    assert (result.exit_code, result.peak_mib, result.others_mib) == (0, None, None)
    assert {r["used_mib"] for r in read_texts(tmp_path / "guard.tsv")} == {""}


def test_any_source_above_the_limit_kills(tmp_path: Path) -> None:
    host, told = HostMemory(SMALL.limit_mib), Told(5.0, None, 500.0)
    pools = [guard.Pool("host", [host], SMALL), guard.Pool("told", [told], SMALL)]
    result = guard.run(["sleep", "30"], SMALL, tmp_path / "guard.tsv", watched=pools)
    assert result.killed and "told was 500 MiB" in result.reason and "an unknown amount" in result.reason
    rows = read_texts(tmp_path / "guard.tsv")
    assert [r["used_mib"] for r in rows if r["source"] == "told"] == ["5.0", "", "500.0"]


# Phases, lock, signals


def test_phases_stand_beside_the_readings_and_in_the_reason(tmp_path: Path) -> None:
    phase_file, table = tmp_path / "phase", tmp_path / "guard.tsv"
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from fgod.guard.phases import write_phase
path = Path({str(phase_file)!r})
time.sleep(0.5)  # a loaded machine may let the guard wait before its first reading
write_phase(path, "model_loaded"); time.sleep(0.5)
write_phase(path, "backward_done"); x = bytearray(200 << 20); time.sleep(30)
"""
    result = guard.run(python(code), SMALL, table, tmp_path / "reason.json", phase_file)
    assert result.killed and result.phase == "backward_done" and "in phase backward_done" in result.reason
    assert json.loads((tmp_path / "reason.json").read_text())["phase"] == "backward_done"
    phases = [r["phase"] for r in read_texts(table)]
    assert list(dict.fromkeys(phases)) == ["start", "model_loaded", "backward_done"]


@pytest.mark.parametrize(
    ("content", "phase"),
    [(b"", "start"), (b"saving", "saving"), (b"a\tb\nc\n", "ab"), (b"\xff\xfe", "��"), (b"x" * 999, "x" * 64)],
)
def test_a_phase_is_one_short_printable_line(tmp_path: Path, content: bytes, phase: str) -> None:
    (tmp_path / "phase").write_bytes(content)
    assert guard.read_phase(tmp_path / "phase") == phase


def test_the_lock_names_its_holder_and_lets_no_second_command_in(tmp_path: Path) -> None:
    lock, started = tmp_path / "lock", tmp_path / "started"
    first = cli("--limit-gb", 2, "--lock", lock, "--", "sh", "-c", f"echo $$ > {started}; exec sleep 60")
    with background(first) as holder:
        pid = number_in(started)
        with pytest.raises(guard.LockHeldError, match=rf"{lock}.*\b{holder.pid}\b.*\b{pid}\b"):
            guard.run(["touch", str(tmp_path / "second")], LARGE, lock_file=lock)
        second = subprocess.run(cli("--limit-gb", 2, "--lock", lock, "--", "true"), capture_output=True, text=True)
        assert second.returncode == 1 and str(pid) in second.stderr
    assert not (tmp_path / "second").exists()
    assert until(lambda: not alive(pid))
    assert guard.run(["true"], LARGE, lock_file=lock).exit_code == 0


def test_the_lock_is_held_as_long_as_anyone_lives_who_could_write(tmp_path: Path) -> None:
    """The command has the lock open itself, also while its guard stands still."""
    lock, started = tmp_path / "lock", tmp_path / "started"
    script = f"sleep 60 & echo $! > {started}; wait"
    with background(cli("--limit-gb", 2, "--lock", lock, "--", "sh", "-c", script)):
        grandchild = number_in(started)
        with open(lock) as stream:
            assert grandchild in holder_numbers(stream.fileno())
    assert until(lambda: not alive(grandchild), 2)
    assert guard.run(["true"], LARGE, lock_file=lock).exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_no_orphan_after_the_guard_died(tmp_path: Path, number: signal.Signals) -> None:
    """Behind a shell, after a double fork, and in a session of its own: all are gone within two seconds."""
    pids = [tmp_path / name for name in ("shell", "grandchild", "daemon")]
    script = f"sleep 60 & echo $! > {pids[1]}; setsid sh -c 'sleep 60 & echo $! > {pids[2]}'; echo $$ > {pids[0]}; wait"
    with background(cli("--limit-gb", 2, "--", "sh", "-c", script)) as process:
        numbers = [number_in(path) for path in pids]
        process.send_signal(number)
        assert until(lambda: not any(alive(pid) for pid in numbers), 2)


def test_a_keeper_that_is_killed_ends_the_command_with_an_error(tmp_path: Path) -> None:
    pids = [tmp_path / name for name in ("shell", "daemon")]
    script = f"setsid sh -c 'sleep 60 & echo $! > {pids[1]}'; echo $$ > {pids[0]}; wait; sleep 60"
    command = cli("--limit-gb", 2, "--poll-secs", 0.02, "--", "sh", "-c", script)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        shell, daemon = (number_in(path) for path in pids)
        time.sleep(0.1)  # seen by the guard
        member = read_process(shell)
        assert member is not None
        os.kill(member.parent, signal.SIGKILL)
        assert process.wait(5) == 1
        assert process.stderr is not None and "helper process" in process.stderr.read()
    assert not alive(shell) and not alive(daemon)


def test_a_daemon_of_the_command_counts_and_dies(tmp_path: Path) -> None:
    """Double fork and setsid before its memory grows: neither parent, group nor session tell whose it is."""
    pid_file = tmp_path / "pid"
    code = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    open({str(pid_file)!r}, "w").write(f"{{os.getpid()}}\\n")
    time.sleep(0.2)
    x = bytearray(200 << 20)
time.sleep(30)
"""
    assert guard.run(python(code), SMALL).killed
    assert not alive(number_in(pid_file))


def test_it_touches_nobody_elses_process(tmp_path: Path) -> None:
    with background(["sleep", "60"]) as stranger:
        assert guard.run(python(HOG), SMALL).killed
        assert stranger.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_guard_ends_the_whole_group_first(tmp_path: Path, number: signal.Signals) -> None:
    pid_file, table, reason = tmp_path / "pid", tmp_path / "guard.tsv", tmp_path / "reason.json"
    script = f"trap '' INT TERM HUP; sleep 60 & echo $! > {pid_file}; wait; sleep 60"
    options = ["--limit-gb", 2, "--grace-secs", 0.2, "--table", table, "--reason", reason]
    command = cli(*options, "--", "sh", "-c", script)
    with background(command) as process:
        grandchild = number_in(pid_file)
        process.send_signal(number)
        assert process.wait(5) == 128 + number
        assert not alive(grandchild)
    assert json.loads(reason.read_text())["end"] == "signalled" and table.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_guard_reaches_the_commands_own_handler(tmp_path: Path, number: signal.Signals) -> None:
    pid_file, handled, reason = tmp_path / "pid", tmp_path / "handled", tmp_path / "reason.json"
    code = f"""
import os, signal, sys, time
def stop(number, frame):
    open({str(handled)!r}, "w").write(f"{{number}}\\n")
    sys.exit(7)
signal.signal({int(number)}, stop)
open({str(pid_file)!r}, "w").write(f"{{os.getpid()}}\\n")
time.sleep(60)
"""
    with background(cli("--limit-gb", 2, "--grace-secs", 60, "--reason", reason, "--", *python(code))) as process:
        pid = number_in(pid_file)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert number_in(handled) == number and not alive(pid)
    told = json.loads(reason.read_text())
    assert told["end"] == "signalled" and told["reason"].endswith("which ended by itself.")


def test_a_command_that_ignores_the_signal_is_killed_after_its_grace_or_by_a_second_one(tmp_path: Path) -> None:
    """What it does meanwhile is still watched."""
    for grace, second in ((0.5, False), (60, True)):
        pid_file, reason = tmp_path / f"pid{second}", tmp_path / "reason.json"
        script = f"trap '' TERM; echo $$ > {pid_file}; while :; do sleep 0.1; done"
        with background(
            cli("--limit-gb", 2, "--grace-secs", grace, "--reason", reason, "--", "sh", "-c", script)
        ) as it:
            pid, begin = number_in(pid_file), time.monotonic()
            it.send_signal(signal.SIGTERM)
            if second:
                time.sleep(0.2)
                it.send_signal(signal.SIGTERM)
            assert it.wait(20) == 128 + signal.SIGTERM and (second or time.monotonic() - begin >= grace)
        assert not alive(pid) and "which it killed after" in json.loads(reason.read_text())["reason"]


def test_the_limit_holds_also_in_the_grace_of_a_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
import os, signal, time
def grow(number, frame):
    x = bytearray(400 << 20)
    time.sleep(60)
signal.signal(signal.SIGTERM, grow)
open({str(pid_file)!r}, "w").write(f"{{os.getpid()}}\\n")
time.sleep(60)
"""
    options = ["--limit-gb", 0.2, "--poll-secs", 0.02, "--grace-secs", 60]
    with background(cli(*options, "--", *python(code))) as process:
        number_in(pid_file)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75


def test_command_line(tmp_path: Path) -> None:
    options = ["--limit-gb", 0.1, "--over-secs", 0, "--poll-secs", 0.02]
    files = ["--table", tmp_path / "g.tsv", "--reason", tmp_path / "r.json", "--phase-file", tmp_path / "phase"]
    killed = subprocess.run(cli(*options, *files, "--", *python(HOG)), capture_output=True, text=True)
    assert killed.returncode == 75
    assert killed.stderr == "fgod guard: " + json.loads((tmp_path / "r.json").read_text())["reason"] + "\n"
    own = subprocess.run(
        cli(*options, "--", "sh", "-c", "echo -- $0 $1; exit 3", "--limit-gb", "--"), capture_output=True
    )
    assert (own.returncode, own.stdout) == (3, b"-- --limit-gb --\n")
    wrong = subprocess.run(cli("--limit-gb", -1, "--", "true"), capture_output=True, text=True)
    assert wrong.returncode == 2 and "guard.limit_gb: found -1.0, expected" in wrong.stderr


# Parts


@pytest.mark.parametrize("key", ["limit_gb", "over_secs", "poll_secs"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_limits_out_of_range(key: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"guard.{key}: found"):
        guard.Limits(**{"limit_gb": 1.0, key: value})


def test_the_unit_is_gib() -> None:
    assert guard.Limits(limit_gb=108).limit_mib == 108 * 1024


def test_over_time_forgets_only_when_usage_is_known_to_be_below() -> None:
    over = OverTime(limit_mib=10, over_secs=2)
    assert not over.breached(0, 11)
    assert not over.breached(1, None)
    assert over.breached(2, 11)
    assert not over.breached(3, 10)
    assert not over.breached(4, 11)
    assert not over.breached(9, None)
    assert over.breached(9, 12)


usages = st.one_of(st.none(), st.floats(0, 1e6))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["host", "gpu"]), usages), max_size=400))
def test_thinning_keeps_the_maximum_of_each_phase(readings: list[tuple[str, str, float | None]]) -> None:
    samples = Samples(limit=16)
    for t, (phase, source, used) in enumerate(readings):
        samples.add(Sample(float(t), phase, source, used, 1.0))
    kept = samples.sorted()
    assert len(kept) <= 16 + 6
    assert [s.t for s in kept] == sorted(s.t for s in kept)
    assert maxima((s.phase, s.source, s.used_mib) for s in kept) == maxima(readings)
    assert {(s.phase, s.source, s.used_mib) for s in kept} <= set(readings)


def maxima(readings: object) -> dict[tuple[str, str], float]:
    best: dict[tuple[str, str], float] = {}
    for phase, source, used in readings:  # type: ignore[attr-defined]
        key = (phase, source)
        best[key] = max(best.get(key, -1.0), -1.0 if used is None else used)
    return best


def test_thinning_is_even_over_a_long_run() -> None:
    samples = Samples(limit=100)
    for t in range(30_000):
        samples.add(Sample(float(t), "ab"[t % 2], "host", float(t % 977), 1.0))
    times = [s.t for s in samples.sorted()]
    assert 40 <= len(times) <= 102
    assert max(b - a for a, b in itertools.pairwise(times)) < 3_600
    assert times[0] < 2_000


def test_phases_without_end_do_not_make_a_table_without_end() -> None:
    samples = Samples(limit=50)
    for t in range(5000):
        samples.add(Sample(float(t), f"step {t}", "host", float(t), 1.0))
    assert len(samples.sorted()) <= 101
    assert samples.sorted()[-1].used_mib == 4999.0


def test_the_table_is_whole_at_any_time(tmp_path: Path) -> None:
    samples = Samples()
    writer = TableWriter(tmp_path / "guard.tsv", samples, every_secs=0.01)
    samples.add(Sample(0.0, "start", "host", None, 5.0))
    writer.start()
    assert until((tmp_path / "guard.tsv").exists)
    assert read_texts(tmp_path / "guard.tsv")[0]["used_mib"] == ""
    samples.add(Sample(1.0, "start", "host", 3.14159, 5.0))
    writer.finish()
    assert read_texts(tmp_path / "guard.tsv")[1] == dict(
        zip(guard.COLUMNS, ["1.0", "start", "host", "3.1", "5.0"], strict=True)
    )


def test_a_table_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(OSError):
        guard.run(["sh", "-c", f"rm -rf {folder}; touch {folder}"], LARGE, folder / "guard.tsv")


def test_a_killed_guard_leaves_its_table(tmp_path: Path) -> None:
    table = tmp_path / "guard.tsv"
    code = f"""
import sys
from pathlib import Path
from fgod import guard
guard.run(["sleep", "60"], guard.Limits(1, poll_secs=0.02), Path({str(table)!r}), write_secs=0.05)
"""
    with background([PYTHON, "-c", code]) as process:
        assert until(table.exists)
        process.kill()
    assert read_texts(table, guard.COLUMNS)


def test_a_child_whose_parent_ends_during_a_look_is_found_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, shell, child, stranger = 100, 101, 102, 103

    def listed(shell_lives: bool, parent: int) -> None:
        found = {
            keeper: Member(keeper, 1, keeper, keeper, 1, "keeper"),
            child: Member(child, parent, shell, shell, 3, "sleep"),
            1: Member(1, 0, 1, 1, 0, "init"),
            stranger: Member(stranger, 1, 1, 1, 2, "other"),
        }
        names = [str(pid) for pid in (1, keeper, *([shell] if shell_lives else []), child, stranger)]
        monkeypatch.setattr(processes.os, "listdir", lambda path: names)
        monkeypatch.setattr(processes, "read_process", found.get)

    tree = ProcessTree(keeper, keeper=True)
    listed(shell_lives=True, parent=shell)  # read before the shell ended, which is a zombie when its turn comes
    assert tree.watched() == []
    listed(shell_lives=False, parent=keeper)
    assert [member.pid for member in tree.watched()] == [child], "also where no process was created since"


def test_a_child_whose_parent_ends_during_a_look_is_found_by_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, shell, child = 100, 101, 102
    parents = iter([shell, keeper])  # read before the shell ended, then after the keeper has taken it over
    listings = iter([[str(keeper), str(shell), str(child)], [str(keeper), str(child)]])
    monkeypatch.setattr(processes.os, "listdir", lambda path: next(listings))

    def read(pid: int) -> Member | None:
        if pid == child:
            return Member(child, next(parents), shell, shell, 3, "sleep")
        return Member(keeper, 1, keeper, keeper, 1, "keeper") if pid == keeper else None

    monkeypatch.setattr(processes, "read_process", read)
    assert [member.pid for member in ProcessTree(keeper, keeper=True).wait_gone(0)] == [child]


def test_a_process_with_a_hidden_parent_does_not_hold_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(processes.os, "listdir", lambda path: looks.append(path) or ["100", "102"])
    monkeypatch.setattr(
        processes, "read_process", lambda pid: Member(102, 99, 99, 99, 3, "other") if pid == 102 else None
    )
    assert ProcessTree(100, keeper=True).members() == []
    assert len(looks) == 2, "the second finds the same"


def test_a_tree_is_found_and_killed() -> None:
    script = "sleep 60 & (sleep 60 &) ; wait"
    process = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    tree = ProcessTree(process.pid)
    assert until(lambda: sorted(m.name for m in tree.members()) == ["sh", "sleep", "sleep"])
    found = tree.members()
    assert os.getpid() not in {m.pid for m in found}
    assert tree.kill() == []
    assert not any(alive(m.pid) for m in found)
    assert process.wait() == -signal.SIGKILL


def test_a_member_that_left_the_session_stays_a_member() -> None:
    code = "import os, time\nif os.fork():\n  time.sleep(.3); os._exit(0)\ntime.sleep(.1); os.setsid(); time.sleep(60)"
    process = subprocess.Popen(python(code), start_new_session=True)
    tree = ProcessTree(process.pid)
    assert until(lambda: len(tree.members()) == 2)
    process.wait()
    assert [m.session == m.pid for m in tree.members()] == [True]
    assert tree.kill() == []


def test_names_of_processes_may_hold_anything(tmp_path: Path) -> None:
    program = tmp_path / "a ) Z 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "60"])
    found = read_process(process.pid)
    process.kill()
    process.wait()
    assert found is not None and found.name == "a ) Z 1 (b" and found.parent == os.getpid()
    assert read_process(process.pid) is None


def fake_process(proc: Path, pid: int, resident_mib: float, pss_mib: float | None) -> Member:
    """A process of a made-up /proc, old enough not to be in vfork."""
    pages = int(resident_mib * MIB / os.sysconf("SC_PAGE_SIZE"))
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / str(pid) / "statm").write_text(f"{2 * pages} {pages} 0 0 0 0 0\n")
    if pss_mib is not None:
        text = f"00-ff ---p 0 00:00 0 [rollup]\nRss: 1 kB\nPss:   {int(pss_mib * 1024)} kB\n"
        (proc / str(pid) / "smaps_rollup").write_text(text)
    return Member(pid, 1, pid, pid, 0, "fake")


def test_host_memory_by_pss_with_rss_where_pss_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "smaps_rollup").touch()
    (tmp_path / "meminfo").write_text("MemTotal: 102400 kB\nMemAvailable: 61440 kB\nHugePages_Total: 0\n")
    tree = [fake_process(tmp_path, 10, 64, 40), fake_process(tmp_path, 11, 32, None)]
    source = HostMemory(1000, tmp_path)
    assert (source.name, source.used_mib(tree)) == ("host_pss", 72)
    assert (source.total_mib(), source.machine_mib()) == (100, 40)
    assert HostMemory(1000, tmp_path / "nothing").total_mib() is None


def test_host_memory_without_pss_is_rss_and_without_processes_unknown(tmp_path: Path) -> None:
    source = HostMemory(1000, tmp_path)
    assert source.name == "host_rss"
    assert source.used_mib([fake_process(tmp_path, 10, 64, None)]) == 64
    assert source.used_mib([]) is None
    assert source.used_mib([Member(99, 1, 99, 99, 0, "gone")]) is None
    assert source.used_mib([fake_process(tmp_path, 12, 0, None)]) is None


def test_between_exact_readings_growth_is_seen_and_a_breach_is_exact(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "smaps_rollup").touch()
    source = HostMemory(100, tmp_path)
    assert source.used_mib([fake_process(tmp_path, 10, 64, 40)]) == 40
    assert source.used_mib([fake_process(tmp_path, 10, 96, 40)]) in (40, 72)  # 72: not read again yet
    assert source.used_mib([fake_process(tmp_path, 10, 256, 90)]) == 90
