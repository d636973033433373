"""Which memory is read, and what counts as unknown, with a simulated NVML and CUDA driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest

from fgod import guard
from fgod.guard import cgroup, cuda, gpu, others, pools
from fgod.guard.child import Child, start
from fgod.guard.cuda import DriverError, Gpu
from fgod.guard.nvml import Nvml
from fgod.guard.shared import held_files, tmpfs_folders
from fgod.guard.sources import HostMemory, UnseenError, User
from fgod.system.process import Member, read_process
from tests.simulated_gpu import UUID, SimulatedDriver, SimulatedNvml
from tests.test_guard import fake_process

LIMITS = guard.Limits(limit_gb=0.5, poll_secs=0.02)  # 512 MiB
DISCRETE = Gpu(0, UUID, integrated=False, total_mib=1000.0)
GB10 = Gpu(0, UUID, integrated=True, total_mib=122_000.0)


def me() -> Member:
    own = read_process(os.getpid())
    assert own is not None
    return own


def device(simulated: SimulatedNvml, which: Gpu = DISCRETE) -> gpu.Device:
    return gpu.Device(Nvml(simulated), which)


@pytest.fixture
def own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the machine itself, where NVML's process numbers are those that we see."""
    monkeypatch.setattr(gpu, "numbers_are_ours", lambda: True)


# The driver: which GPUs there are


def test_the_driver_says_which_gpus_are_integrated() -> None:
    answer = cuda.ask(SimulatedDriver([(False, 81_000.0), (True, 122_000.0)]))
    name = "Simulated GPU"
    assert cuda.parsed(answer) == [Gpu(0, UUID, False, 81_000.0, name), Gpu(1, UUID, True, 122_000.0, name)]
    assert cuda.parsed(cuda.ask(SimulatedDriver([]))) == []


@pytest.mark.parametrize(("code", "none"), [(100, True), (34, True), (999, False), (803, False)])
def test_no_gpu_is_no_error_and_a_driver_that_fails_is(code: int, none: bool) -> None:
    with pytest.raises(cuda._CallError):
        cuda.ask(SimulatedDriver(init=code))
    if none:
        assert cuda.parsed({"error": code}) == []
    else:
        with pytest.raises(DriverError, match=str(code)):
            cuda.parsed({"error": code})


def test_pools_are_what_the_machine_says() -> None:
    def names(gpus: list[Gpu]) -> list[list[str]]:
        found = pools.of_this_machine(LIMITS, lambda: gpus, lambda: Nvml(SimulatedNvml()))
        return [[pool.name, *(source.name for source in pool.sources)] for pool in found]

    host = HostMemory(1).name
    assert names([]) == [["host", host]]
    assert names([DISCRETE]) == [["host", host], ["gpu0", "gpu0_device", "gpu0_process"]]
    assert names([GB10]) == [["unified", "unified", "unified_process"]]


def test_a_driver_that_fails_refuses_to_start_unless_blind_is_ok() -> None:
    def fails() -> list[Gpu]:
        raise DriverError("the CUDA driver answers with error 999")

    found = pools.of_this_machine(LIMITS, fails)
    with pytest.raises(guard.BlindError, match=r"error 999.*CUDA_VISIBLE_DEVICES= .*--blind-ok"):
        pools.require_sight(found, blind_ok=False)
    (line,) = pools.require_sight(found, blind_ok=True)
    assert "cannot read gpu" in line


def test_without_nvml_a_discrete_gpu_is_unseen() -> None:
    missing = SimulatedNvml(starts=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    found = pools.of_this_machine(LIMITS, lambda: [DISCRETE], lambda: Nvml(missing))
    with pytest.raises(guard.BlindError, match="gpu0"):
        pools.require_sight(found, blind_ok=False)


# A discrete GPU


def test_what_is_not_known_to_be_anothers_counts_as_ours(own_numbers: None) -> None:
    own = me()
    simulated = SimulatedNvml((1000.0, 250.0), {1: 250.0})
    source = gpu.DeviceMemory(device(simulated), exact_above_mib=512)
    assert source.used_mib([own]) == 0  # somebody else's, also while we have not opened the GPU
    simulated.memory = (1000.0, 600.0)
    assert source.used_mib([own]) == 350  # what nobody is said to use is ours
    simulated.processes = {own.pid: 100.0, 1: 250.0}
    assert source.used_mib([own]) == 350
    simulated.processes = {own.pid: 100.0, 1: None}
    assert source.used_mib([own]) == 600
    simulated.processes = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert source.used_mib([own]) == 350  # what was there before we started is not ours


def test_in_a_container_what_was_used_before_is_others(foreign_numbers: None) -> None:
    own = me()
    simulated = SimulatedNvml((1000.0, 250.0))
    source = gpu.DeviceMemory(device(simulated), exact_above_mib=512)
    simulated.memory = (1000.0, 600.0)
    assert source.used_mib([own]) == 350
    simulated.processes = {1: 600.0}  # process 1 of the machine, not of the container
    assert source.used_mib([own]) == 350
    simulated.memory, simulated.processes = (1000.0, 100.0), {}
    assert source.used_mib([own]) == 0  # others have left: from now on no more than 100 is theirs
    simulated.memory = (1000.0, 600.0)
    assert source.used_mib([own]) == 500


@pytest.mark.parametrize(
    "memory",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_UNKNOWN,
        pynvml.NVML_ERROR_GPU_IS_LOST,
        (0.0, 0.0),
        (1000.0, 0.0),
        (1000.0, 1200.0),
        (300.0, 100.0),  # a GPU of 1000 MiB
    ],
)
def test_not_supported_zero_and_impossible_are_unknown(memory: tuple[float, float] | int, own_numbers: None) -> None:
    own = me()
    simulated = SimulatedNvml(memory, {own.pid: 70.0})
    with pytest.raises(UnseenError):
        gpu.DeviceMemory(device(simulated), 512).used_mib([own])
    (_, pool) = pools.of_this_machine(LIMITS, lambda: [DISCRETE], lambda: Nvml(simulated))
    reading = pool.read(0.0, [own])
    assert (reading.source, reading.used_mib) == ("gpu0_process", 70)
    assert len(pool.events) == 2 and "gpu0 is read from gpu0_process instead of gpu0_device" in pool.events[1]


def test_processes_that_use_more_than_the_device_make_it_unknown() -> None:
    simulated = SimulatedNvml((1000.0, 10.0), {1: 900.0})
    with pytest.raises(UnseenError, match="900 of its processes"):
        gpu.DeviceMemory(device(simulated), 512).used_mib([me()])


def test_processes_without_their_memory_or_numbers_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    own = me()
    for amount in (None, 0.0):
        with pytest.raises(UnseenError, match="without their memory"):
            gpu.in_tree_mib(Nvml(SimulatedNvml(processes={own.pid: amount})).processes(b""), [own])
    monkeypatch.setattr(gpu, "INITIAL_PID_NAMESPACE", 1)  # that of no process
    with pytest.raises(UnseenError, match="own process numbers"):
        gpu.TreeDeviceMemory(device(SimulatedNvml())).used_mib([own])


def test_a_part_of_a_gpu_is_found_by_its_own_name() -> None:
    assert device(SimulatedNvml(known=f"MIG-{UUID}".encode())).used_mib() == 100


# Unified memory: GB10


@pytest.mark.parametrize(
    "memory", [pynvml.NVML_ERROR_NOT_SUPPORTED, (0.0, 0.0), (8.0, 4.0)], ids=["not supported", "zero", "wrong"]
)
def test_gb10_is_read_from_the_machines_memory_whatever_nvml_says_of_the_device(
    tmp_path: Path, memory: tuple[float, float] | int, own_numbers: None
) -> None:
    meminfo(tmp_path, total_mib=120_000, available_mib=80_000)
    devices = [device(SimulatedNvml(memory, {10: 30_000.0}), GB10)]
    tree = [fake_process(tmp_path, 10, 2_000, None)]
    source = gpu.UnifiedMemory(HostMemory(1e6, tmp_path), devices, tmp_path)
    assert (source.total_mib(), source.used_mib(tree)) == (120_000, 40_000)


def test_the_pool_is_at_least_what_the_tree_is_known_to_use(tmp_path: Path, own_numbers: None) -> None:
    meminfo(tmp_path, total_mib=120_000, available_mib=119_000)  # a kernel that counts too much as available
    devices = [device(SimulatedNvml(pynvml.NVML_ERROR_NOT_SUPPORTED, {10: 30_000.0}), GB10)]
    tree = [fake_process(tmp_path, 10, 2_000, None)]
    host = HostMemory(1e6, tmp_path)
    assert gpu.UnifiedMemory(host, devices, tmp_path).used_mib(tree) == 32_000
    assert gpu.UnifiedMemory(host, [], tmp_path).used_mib(tree) == 2_000
    (tmp_path / "meminfo").write_text("MemTotal: 0 kB\n")
    with pytest.raises(UnseenError, match="MemAvailable"):
        gpu.UnifiedMemory(HostMemory(1e6, tmp_path), devices, tmp_path).used_mib(tree)
    assert gpu.TreeUnifiedMemory(host, devices).used_mib(tree) == 32_000
    with pytest.raises(UnseenError, match="no GPU"):
        gpu.TreeUnifiedMemory(host, []).used_mib(tree)


def test_room_for_the_allocator() -> None:
    discrete = pools.of_this_machine(LIMITS, lambda: [DISCRETE], lambda: Nvml(SimulatedNvml()))[1]
    assert discrete.room_mib() == 512
    large = guard.Limits(limit_gb=1000)
    unified = pools.of_this_machine(large, lambda: [GB10], lambda: Nvml(SimulatedNvml()))[0]
    used, total = unified.source.machine_mib(), unified.source.total_mib()
    assert used is not None and total is not None
    assert unified.limit_mib == pytest.approx(0.95 * total)  # a limit above the machine would be none
    assert unified.room_mib() == pytest.approx(unified.limit_mib - used, abs=500)


def meminfo(proc: Path, total_mib: int, available_mib: int) -> None:
    text = f"MemTotal:       {total_mib * 1024} kB\nMemFree: 5 kB\nMemAvailable:   {available_mib * 1024} kB\n"
    (proc / "meminfo").write_text(text)


# Sight lost in the middle


def test_sight_lost_in_the_middle_goes_to_the_next_source_and_is_recorded(tmp_path: Path, own_numbers: None) -> None:
    class Failing(SimulatedNvml):
        asked = 0

        def nvmlDeviceGetMemoryInfo(self, handle: bytes):  # type: ignore[no-untyped-def]
            self.asked += 1
            if self.asked > 5:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)
            return super().nvmlDeviceGetMemoryInfo(handle)

    found = pools.of_this_machine(LIMITS, lambda: [DISCRETE], lambda: Nvml(Failing()))
    result = guard.run(["sleep", "0.4"], LIMITS, tmp_path / "guard.tsv", watched=found)
    assert result.exit_code == 0
    assert any("Unknown Error" in event for event in result.events)
    assert any("is read from gpu0_process instead of gpu0_device" in event for event in result.events)


@pytest.mark.parametrize("blind_ok", [False, True])
def test_with_no_source_left_the_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind_ok: bool
) -> None:
    monkeypatch.setattr(pools, "BLIND_SECS", 0.1)
    simulated = SimulatedNvml()
    limits = guard.Limits(limit_gb=0.5, poll_secs=0.02, blind_ok=blind_ok)
    found = pools.of_this_machine(limits, lambda: [DISCRETE], lambda: Nvml(simulated))
    assert pools.require_sight(found, False) == []
    simulated.processes = simulated.memory = pynvml.NVML_ERROR_UNKNOWN
    monkeypatch.setattr(pools, "require_sight", lambda known, ok: [])
    result = guard.run(["sleep", "0.6"], limits, reason=tmp_path / "reason.json", watched=found)
    if blind_ok:
        assert (result.exit_code, result.end) == (0, "own")
    else:
        assert (result.exit_code, result.end, result.killed) == (1, "blind", False)
        assert "memory of gpu0 could not be read any more" in (tmp_path / "reason.json").read_text()


# Others on the GPU


@pytest.fixture
def foreign_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with process numbers of its own."""
    monkeypatch.setattr(gpu, "numbers_are_ours", lambda: False)


def occupied_pool(simulated: SimulatedNvml) -> guard.Pool:
    return pools.of_this_machine(LIMITS, lambda: [DISCRETE], lambda: Nvml(simulated))[1]


def test_others_are_listed_and_refused_by_option(own_numbers: None) -> None:
    pool = occupied_pool(SimulatedNvml((1000.0, 300.0), {os.getpid(): 200.0, 2**22 + 1: None}))
    said: list[str] = []
    others.wait_until_free([pool], LIMITS, said.append)
    assert said == [others.described(pool)]
    assert f"gpu0: 300 MiB of 1000 MiB in use before the start, by {os.getpid()} (" in said[0]
    assert "4194305 (not visible here) an unknown amount" in said[0]
    with pytest.raises(guard.OccupiedError, match=r"found gpu0: 300 MiB.*at most 102 MiB \(guard.others_gb\)"):
        others.wait_until_free([pool], guard.Limits(limit_gb=1, others_gb=0.1), said.append)


def test_it_waits_until_others_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = SimulatedNvml((1000.0, 300.0))
    monkeypatch.setattr(others.time, "sleep", lambda secs: setattr(simulated, "memory", (1000.0, 5.0)))
    limits = guard.Limits(limit_gb=1, others_gb=0.1, wait_secs=60)
    others.wait_until_free([occupied_pool(simulated)], limits, lambda text: None)


class Unified:
    """Unified memory of which a left-over process holds 400 of 1000 MiB for some readings, and the command 200."""

    name = "unified"

    def __init__(self, readings: int) -> None:
        self.readings = readings

    def total_mib(self) -> float:
        return 1000.0

    def machine_mib(self) -> float:
        self.readings -= 1
        return 400.0 if self.readings >= 0 else 0.0

    def used_mib(self, tree: Sequence[Member]) -> float:
        return self.machine_mib() + 200.0

    def users(self) -> list[User]:
        return []


def test_a_run_that_fits_is_not_killed_for_what_a_left_over_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others_gb is for: without it the run is the one that is killed, and a refit makes it smaller for nothing."""
    monkeypatch.setattr(others, "LOOK_SECS", 0.01)

    def ended(**more: float) -> guard.GuardResult:
        limits = guard.Limits(limit_gb=0.5, poll_secs=0.02, **more)
        return guard.run(["sleep", "0.2"], limits, watched=[guard.Pool("unified", [Unified(9)], limits, [GB10], True)])

    assert ended().end == "memory"
    waited = ended(others_gb=0.1, wait_secs=30)
    assert (waited.end, waited.exit_code, waited.peak_mib) == ("own", 0, 200.0)


def starting(simulated: SimulatedNvml, memory: tuple[float, float]) -> Callable[..., Child]:
    """`child.start` of a command that takes this memory of the simulated GPU at once."""
    real = start

    def started(*arguments: Any) -> Child:
        simulated.memory = memory
        return real(*arguments)

    return started


def test_memory_that_does_not_come_back_is_said_with_its_users(
    monkeypatch: pytest.MonkeyPatch, own_numbers: None
) -> None:
    monkeypatch.setattr("fgod.guard.watch.RETURN_SECS", 0.1)
    simulated = SimulatedNvml((1000.0, 100.0), {1: 100.0})
    pool = occupied_pool(simulated)
    monkeypatch.setattr("fgod.guard.watch.child.start", starting(simulated, (1000.0, 800.0)))
    result = guard.run(["sleep", "30"], LIMITS, watched=[pool])
    assert result.killed
    (event,) = result.events
    assert "only 0 of 700 MiB came back" in event and "it is still used by 1 (" in event


# Control groups


def test_limits_and_kills_of_control_groups(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    inner = mount / "job" / "step"
    inner.mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/job/step\n")
    (proc / "self" / "mountinfo").write_text(f"30 23 0:26 / {mount} rw shared:4 - cgroup2 cgroup2 rw\n")
    (inner / "memory.max").write_text("max\n")
    (mount / "job" / "memory.max").write_text(f"{300 * 2**20}\n")
    (inner / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    found = cgroup.own(proc)
    assert (found.limit_mib(), found.oom_kills()) == (300, 2)
    meminfo(proc, total_mib=1000, available_mib=900)
    host = HostMemory(512, proc)
    assert host.total_mib() == 300
    assert guard.Pool("host", [host], LIMITS).limit_mib == pytest.approx(285)


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "memory"
    (proc / "self").mkdir(parents=True)
    (mount / "box").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("5:memory:/docker/box\n0::/\n")
    (proc / "self" / "mountinfo").write_text(f"30 23 0:26 /docker {mount} rw - cgroup cgroup rw,memory\n")
    (mount / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (mount / "box" / "memory.limit_in_bytes").write_text(f"{64 * 2**20}\n")
    (mount / "box" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert (cgroup.own(proc).limit_mib(), cgroup.own(proc).oom_kills()) == (64, 1)
    assert cgroup.own(tmp_path / "nothing") == cgroup.NONE
    assert cgroup.NONE.limit_mib() is None and cgroup.NONE.oom_kills() is None


# Files in memory

IN_FILES = """
import mmap, os, sys, time
kind, mib = sys.argv[1], int(sys.argv[2])
if kind == "shm":
    name = f"/dev/shm/fgod-test-{os.getpid()}"
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.unlink(name)
else:
    file = os.memfd_create("test")
for _ in range(mib):
    os.write(file, bytes(1 << 20))
if kind == "mapped":
    view = mmap.mmap(file, mib << 20)
    total = sum(view[i] for i in range(0, mib << 20, 4096))
print("ready", flush=True)
time.sleep(60)
"""
needs_shm = pytest.mark.skipif("/dev/shm/" not in tmpfs_folders(), reason="/dev/shm is no tmpfs here")


@pytest.mark.parametrize("kind", ["memfd", pytest.param("shm", marks=needs_shm)])
def test_what_lies_in_files_in_memory_is_killed_at_the_limit(kind: str) -> None:
    command = [sys.executable, "-S", "-c", IN_FILES, kind, "400"]
    result = guard.run(command, guard.Limits(limit_gb=0.2, poll_secs=0.02))
    assert result.killed and result.peak_mib is not None and 205 < result.peak_mib < 450


@pytest.mark.parametrize("kind", ["memfd", "mapped", pytest.param("shm", marks=needs_shm)])
def test_a_file_in_memory_counts_once_mapped_or_not(kind: str) -> None:
    def used(mib: int) -> float:
        command = [sys.executable, "-S", "-c", IN_FILES, kind, str(mib)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            member = read_process(process.pid)
            assert member is not None
            found = HostMemory(0).used_mib([member])
            process.kill()
        assert found is not None
        return found

    assert used(64) - used(1) == pytest.approx(63, abs=6)


def test_files_that_are_only_read_or_lie_on_a_disk_do_not_count(tmp_path: Path) -> None:
    writer = os.memfd_create("test")
    os.write(writer, bytes(1 << 20))
    key = os.fstat(writer).st_dev, os.fstat(writer).st_ino
    with (tmp_path / "disk").open("wb") as disk:
        disk.write(bytes(1 << 20))
        disk.flush()
        tmpfs = tuple(folder for folder in tmpfs_folders() if not str(tmp_path).startswith(folder))
        assert held_files(os.getpid(), tmpfs)[key] == 1
        reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY)
        os.close(writer)
        assert key not in held_files(os.getpid(), tmpfs)
        assert all(file != (os.fstat(disk.fileno()).st_dev, os.fstat(disk.fileno()).st_ino)
                   for file in held_files(os.getpid(), tmpfs))  # fmt: skip
    os.close(reader)
    assert held_files(2**22 + 1, tmpfs) == {}


def test_folders_in_memory_are_read_from_the_mounts(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(
        "25 24 0:23 / /dev/shm rw,relatime shared:4 - tmpfs tmpfs rw\n"
        "26 24 0:24 / /mnt/a\\040b rw - tmpfs none rw\n"
        "27 24 8:1 / /home rw - ext4 /dev/sda1 rw\n"
    )
    assert tmpfs_folders(tmp_path) == ("/dev/shm/", "/mnt/a b/") and tmpfs_folders(tmp_path / "none") == ()
