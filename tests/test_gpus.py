"""Several simulated GPUs of one machine: how many there are, and which of them a command takes. Commands are real."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
import torch
from snakemake.profiles import ProfileConfigFileParser

from fgod.errors import UsageError
from fgod.guard import LockHeldError, cap, count, cuda, others, watch
from fgod.guard.cuda import Gpu
from fgod.guard.limits import Limits
from fgod.guard.nvml import Nvml
from fgod.guard.pools import Pool, of_this_machine
from fgod.status.gpus import Gpus, gpu_uses
from fgod.status.judge import judge
from fgod.status.text import lines
from fgod.system import lock
from fgod.system.lock import Holder, holder_of
from tests.simulated_gpu import UUID, SimulatedDriver, SimulatedNvml
from tests.test_guard import until
from tests.test_status import TRAIN, facts

ROOT = Path(__file__).parents[1]
OTHER = "11112233-4455-6677-8899-aabbccddeeff"
THIRD = "22222233-4455-6677-8899-aabbccddeeff"
PART_OF_ONE = Gpu(0, UUID, False, 1000.0, "Simulated GPU MIG 1g.10gb")

GPUS = """
from pathlib import Path
from fgod.guard import others
from fgod.guard.cuda import Gpu
from fgod.guard.limits import Limits
from fgod.guard.nvml import Nvml
from fgod.guard.pools import of_this_machine
from tests.simulated_gpu import SimulatedNvml
LIMITS = Limits(limit_gb=2, poll_secs=0.05)
others.LOOK_SECS = 0.05
def simulated(uuids, folder):
    others.LOCK_FOLDER = Path(folder)
    nvml = Nvml(SimulatedNvml(known=f"GPU-{uuids[0]}".encode(), more=tuple(uuids[1:])))
    gpus = [Gpu(number, uuid, False, 1000.0) for number, uuid in enumerate(uuids)]
    return of_this_machine(LIMITS, lambda: gpus, lambda: nvml)
"""
COMMAND = f"""
import sys
{GPUS}
from fgod.guard import run
print("began", flush=True)
code = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); time.sleep(60)"
result = run([sys.executable, "-S", "-c", code], LIMITS, watched=simulated(sys.argv[2:], sys.argv[1]), gpus=1)
"""


def simulated(uuids: list[str], folder: Path) -> list[Pool]:
    """Pools of simulated GPUs, whose locks lie in this folder: in this process as in those of commands."""
    names: dict[str, object] = {}
    exec(GPUS, names)
    found: list[Pool] = names["simulated"](uuids, folder)  # type: ignore[operator]
    return found


class Started:
    """A guarded command that takes one of the GPUs. `seen`: its CUDA_VISIBLE_DEVICES, None while it waits for one."""

    def __init__(self, folder: Path, uuids: list[str], name: str) -> None:
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        words = [sys.executable, "-c", COMMAND, str(folder), *uuids]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(words, stdout=out, stderr=err, cwd=folder, env=environment)

    @property
    def seen(self) -> str | None:
        said = self.out.read_text().splitlines()
        return said[1] if len(said) > 1 else None


@contextmanager
def started(folder: Path, uuids: list[str], *names: str) -> Iterator[list[Started]]:
    """The commands begin one after another; at the end they are killed."""
    made: list[Started] = []
    try:
        for name in names:
            made.append(Started(folder, uuids, name))
            assert until(lambda: bool(made[-1].seen or "waits" in made[-1].err.read_text()), 30), made[
                -1
            ].err.read_text()
        yield made
    finally:
        for one in made:
            one.process.kill()
            one.process.wait()


def test_each_command_takes_a_free_gpu_and_sees_no_other(tmp_path: Path) -> None:
    """The third waits, says who has them, and gets that of the first when a kill -9 has ended its guard."""
    with started(tmp_path, [UUID, OTHER], "first", "second", "third") as (first, second, third):
        assert {first.seen, second.seen} == {f"GPU-{UUID}", f"GPU-{OTHER}"}
        assert third.seen is None
        said = third.err.read_text()
        assert "1 of 2 GPUs wanted" in said and "waits until enough are free" in said
        for one in (first, second):
            assert f"{one.seen} is held by process {one.process.pid} (" in said and f"at work in {tmp_path}" in said
        first.process.send_signal(signal.SIGKILL)
        assert until(lambda: third.seen is not None, 15), third.err.read_text()
        assert third.seen == first.seen
        told = second.err.read_text()
        assert [f"fgod guard: gpu{number}:" in told for number in (0, 1)] == [
            second.seen.endswith(u) for u in (UUID, OTHER)
        ]


def test_where_there_is_one_gpu_a_second_command_is_refused_and_nothing_is_hidden(tmp_path: Path) -> None:
    with started(tmp_path, [UUID], "first") as (first,):
        assert first.seen == os.environ.get("CUDA_VISIBLE_DEVICES", "None")
        with (
            pytest.raises(LockHeldError, match=rf"using this GPU, found process .*\b{first.process.pid}\b"),
            others.gpus_taken(simulated([UUID], tmp_path), 1, 0.05, print),
        ):
            pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(others, "LOCK_FOLDER", tmp_path)
    return tmp_path


def test_gpus_that_others_use_least_are_taken_first(folder: Path) -> None:
    known = simulated([UUID, OTHER], folder)
    busy = next(pool for pool in known if pool.uuids == (UUID,))
    busy.source.machine_mib = lambda: 900.0  # type: ignore[method-assign]
    with others.gpus_taken(known, 1, 0, print) as taken:
        assert (taken.uuids, taken.chosen, len(taken.locks)) == ((OTHER,), True, 1)
        with others.gpus_taken(known, 1, 0, print) as second:
            assert second.uuids == (UUID,)


def test_several_are_taken_all_or_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = [UUID, OTHER, UUID.replace("00", "22", 1)]
    known = simulated(three, folder)
    said: list[str] = []

    def stop(secs: float) -> None:
        raise TimeoutError

    with others.gpus_taken(known, 2, 0, print) as taken:
        assert len(set(taken.uuids)) == 2
        monkeypatch.setattr(others.time, "sleep", stop)
        with pytest.raises(TimeoutError), others.gpus_taken(known, 2, 0, said.append):
            pass
        (left,) = {*three} - {*taken.uuids}
        assert holder_of(others.lock_file(left)) is None
        assert left not in said[0] and all(uuid in said[0] for uuid in taken.uuids)
    with others.gpus_taken(known, "all", 0, print) as taken:
        assert (len(taken.uuids), taken.chosen) == (3, False)
    with (
        pytest.raises(UsageError, match=r"found 3 visible GPUs, expected at least 4 .*CUDA_VISIBLE_DEVICES"),
        others.gpus_taken(known, 4, 0, print),
    ):
        pass
    with others.gpus_taken(known, 0, 0, print) as none, others.gpus_taken([], 1, 0, print) as absent:
        assert none.uuids == absent.uuids == ()


def test_a_part_of_a_divided_gpu_is_told_as_one(folder: Path) -> None:
    part = SimulatedNvml(known=f"MIG-{UUID}".encode())
    known = of_this_machine(Limits(limit_gb=2), lambda: [PART_OF_ONE], lambda: Nvml(part))
    with others.gpus_taken(known, 1, 0, print) as taken:
        assert taken.uuids == (UUID,) and not taken.chosen
        with (
            pytest.raises(LockHeldError, match=rf"MIG-{UUID} \(Simulated GPU MIG 1g.10gb\), a part of a divided GPU"),
            others.gpus_taken(known, 1, 0, print),
        ):
            pass
        said: list[str] = []
        with others.gpu_if_free(known, math.inf, said.append):
            assert f"MIG-{UUID} is held by process {os.getpid()} (" in said[0] and "GPU-0" not in said[0]
    assert known[1].name == f"MIG-{UUID} (Simulated GPU MIG 1g.10gb)"
    assert [source.name for source in known[1].sources] == [f"MIG-{UUID}_device", f"MIG-{UUID}_process"]
    chosen = others.Taken((UUID,), chosen=True)
    assert watch._environment(known, None, chosen)["CUDA_VISIBLE_DEVICES"] == f"MIG-{UUID}"
    with (
        pytest.raises(UsageError, match=r"1 visible GPUs: MIG-.*, expected at least 2"),
        others.gpus_taken(known, 2, 0, print),
    ):
        pass


def test_a_part_has_one_name_wherever_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pool that cannot be read, and of an allocator that refuses, it is that of the pool that is read."""
    library = SimulatedDriver([(False, 1000.0)], name=b"Simulated GPU MIG 1g.10gb")
    (seen,) = cuda.parsed(cuda.ask(library))
    assert seen == PART_OF_ONE
    absent = SimulatedNvml(starts=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    (_, blind) = of_this_machine(Limits(limit_gb=2), lambda: [seen], lambda: Nvml(absent))
    name = f"MIG-{UUID} (Simulated GPU MIG 1g.10gb)"
    assert (blind.name, blind.part, blind.named(UUID)) == (name, True, f"MIG-{UUID}")
    assert blind.troubles()[0].startswith(f"MIG-{UUID}: ")

    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda file: library)
    monkeypatch.setattr(cap, "cap_allocator", lambda room: {0: 700.0})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800 * 2**20, 1000 * 2**20))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    assert f" more than 700 MiB of {name}, " in cap.refusal(900.0)


def test_a_free_gpu_is_taken_or_none_and_then_none_is_seen(folder: Path) -> None:
    """Never waits. Memory that is shared with the host is watched all the same."""
    known, said = simulated([UUID, OTHER], folder), []
    with others.gpu_if_free(known, math.inf, said.append) as first:
        assert len(first.uuids) == len(first.locks) == 1 and first.chosen
        with others.gpu_if_free(known, math.inf, said.append) as second:
            assert {*first.uuids, *second.uuids} == {UUID, OTHER} and said == []
            with others.gpu_if_free(known, math.inf, said.append) as third:
                assert (third.uuids, third.locks, third.chosen) == ((), (), True)
                assert watch._environment(known, None, third)["CUDA_VISIBLE_DEVICES"] == ""
    assert said[0].startswith("no GPU is free: ") and said[0].count(f"is held by process {os.getpid()} (") == 2

    for pool in known:
        pool.source.machine_mib = lambda: 900.0  # type: ignore[method-assign]
    with others.gpu_if_free(known, 800.0, said.append) as full:
        assert full.uuids == () and "gpu0: 900 MiB of" in said[1]
    alone = simulated([UUID], folder)
    with others.gpu_if_free(alone, math.inf, print) as one, others.gpu_if_free([], math.inf, print) as absent:
        assert (one.uuids, one.chosen, absent.uuids, absent.chosen) == ((UUID,), False, (), False)

    gpu, nvml = Gpu(0, UUID, True, 1000.0), Nvml(SimulatedNvml())
    unified = of_this_machine(Limits(limit_gb=2, others_gb=0), lambda: [gpu], lambda: nvml)
    with ExitStack() as stack:
        watched, taken = watch._allowed(unified, Limits(limit_gb=2, others_gb=0), "if_free", stack)
        assert (watched, taken.uuids) == (unified, ())


def test_status_says_who_has_which_gpu(folder: Path) -> None:
    nvml = Nvml(SimulatedNvml(more=(OTHER,)))
    with lock.held(others.lock_file(OTHER)):
        free, taken = gpu_uses(nvml)
        assert (free.uuid, free.holder) == (f"GPU-{UUID}", None)
        assert taken.holder == Holder(os.uname().nodename, os.getpid(), os.getcwd())
    told = facts(TRAIN, gpus=Gpus((free, taken)))
    said = "\n".join(lines(judge(told)))
    assert f"· taken by process {os.getpid()} (" in said and f"at work in {os.getcwd()}" in said
    assert said.count("taken by") == 1
    ours = replace(taken, holder=Holder(os.uname().nodename, told.running[0].command.pid, "/p"))
    assert "· taken by train of " in "\n".join(lines(judge(facts(TRAIN, gpus=Gpus((ours,))))))
    assert [use.holder for use in gpu_uses(nvml)] == [None, None]  # the file alone says nothing


def test_status_names_the_parts_of_a_divided_gpu(folder: Path) -> None:
    divided = Nvml(SimulatedNvml(divided=True, parts=(OTHER, UUID)))
    with lock.held(others.lock_file(OTHER)):
        taken, free = gpu_uses(divided)
    assert (taken.uuid, free.uuid) == (f"MIG-{OTHER}", f"MIG-{UUID}")
    assert taken.holder is not None and free.holder is None
    said = "\n".join(lines(judge(facts(TRAIN, gpus=Gpus((taken, free))))))
    assert f"0 Simulated GPU MIG 1g.10gb MIG-{OTHER}: 100 of 1000 MiB · taken by process" in said
    (undivided_yet,) = gpu_uses(Nvml(SimulatedNvml(divided=True)))
    assert undivided_yet.uuid == f"GPU-{UUID}", "no part was made"
    unreadable = SimulatedNvml(divided=True, parts=(OTHER,), after_parts=pynvml.NVML_ERROR_UNKNOWN, more=(THIRD,))
    assert [one.uuid for one in gpu_uses(Nvml(unreadable))] == [f"GPU-{UUID}", f"GPU-{THIRD}"]


def test_a_lock_of_another_machine_is_told_by_its_record(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock.held(path):
        path.write_text('{"host": "node7", "pid": 1, "folder": "/shared/p"}')
        with pytest.raises(LockHeldError, match="found process 1 on node7, at work in /shared/p"), lock.held(path):
            pass


# How many there are


def counted(nvml: SimulatedNvml, tmp_path: Path, environment: Mapping[str, str] = {}) -> tuple[int, str]:
    (tmp_path / "nvidia0").touch()
    said: list[str] = []
    return count.gpus(environment, tmp_path, lambda: Nvml(nvml), said.append), "".join(said)


def test_jobs_on_gpus_are_as_many_as_gpus(tmp_path: Path) -> None:
    two = SimulatedNvml(more=(OTHER,))
    assert counted(SimulatedNvml(), tmp_path) == (1, "")
    assert counted(two, tmp_path) == (2, "")
    assert counted(two, tmp_path, {"CUDA_VISIBLE_DEVICES": "1"}) == (1, "")
    assert counted(two, tmp_path, {"CUDA_VISIBLE_DEVICES": ""}) == (1, "")  # the job says that it sees none
    blind, why = counted(SimulatedNvml(starts=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), tmp_path)
    assert blind == 1 and "NVML says" in why and "--resources gpu=N" in why
    divided, why = counted(SimulatedNvml(more=(OTHER,), divided=True), tmp_path)
    assert divided == 1 and "MIG" in why and "CUDA_VISIBLE_DEVICES=MIG-UUID" in why
    assert (
        counted(SimulatedNvml(more=(OTHER,), divided=True), tmp_path, {"CUDA_VISIBLE_DEVICES": f"GPU-{OTHER}"})[0] == 1
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert count.gpus({}, empty, nvml=lambda: pytest.fail("NVML is asked")) == 1


@pytest.mark.parametrize(
    ("named", "numbers"),
    [("0,1", [0, 1]), ("1", [1]), (" 1 , 0", [1, 0]), ("-1", []), ("0,-1,1", [0]), ("0,7,1", [0]), ("", []),
     ("GPU-1111", [1]), ("gpu-1111", []), ("GPU-", []), ("GPU-9", [])],
)  # fmt: skip
def test_which_gpus_a_variable_names(named: str, numbers: list[int]) -> None:
    uuids = [f"GPU-{UUID}", f"GPU-{OTHER}"]
    assert count.visible(named, uuids) == [uuids[number] for number in numbers]


def test_the_default_profile_asks_for_the_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "gpus", lambda: 3)
    with (ROOT / "profiles/default/config.yaml").open() as stream:
        assert ProfileConfigFileParser().parse(stream)["resources"] == ["gpu=3"]
