"""fgod doctor: each check on simulated machines, garbage that is found, configs that do not fit and what makes them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from compileall import compile_file
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch
import yaml

from fgod import outlook
from fgod.cli import main
from fgod.config import load
from fgod.doctor import checks, child, configs
from fgod.doctor import look as looks
from fgod.doctor.child import how_it_ended, run_cases
from fgod.doctor.finding import Finding, as_json, closing, faults, lines
from fgod.doctor.machine import Config, Look, Machine, read_config, why_uncompiled
from fgod.doctor.told import Asked, Benchmark, CaseResult, Speed, Told, TorchFacts, parsed
from fgod.documents import Outcome
from fgod.errors import FgodError
from fgod.exporters.write import export
from fgod.guard.cuda import DriverError, Gpu
from fgod.guard.nvml import Nvml
from fgod.guard.predict import Knob
from fgod.guard.sources import UnseenError
from fgod.nvfp4 import codec
from fgod.project import lay_out, project_files
from fgod.selftest.case import Case, Difference
from fgod.selftest.plain import cpu_cases
from fgod.sizes import BaseSizes, NotHereError, base_sizes
from fgod.system.files import write_json
from fgod.torch_build import Build
from fgod.train import checkpoint, teacher
from fgod.train.memory import knobs_to_fit, predict
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import MEAN_FORMATS, SQUARE_FORMATS
from tests.simulated_gpu import UUID, SimulatedNvml
from tests.tiny_model import tiny_folder

ROOT = Path(__file__).parents[1]
CPU = TorchFacts("2.13.0+cpu")
H100 = TorchFacts("2.13.0+cu130", "13.0", True, ("sm_80", "sm_90", "compute_120"), "3.7.0", "NVIDIA H100", (9, 0))
GIB = 1024.0
"""MiB."""


def gpu(mib: float = 80 * GIB, integrated: bool = False) -> Gpu:
    return Gpu(0, UUID, integrated, mib)


def nvml(mib: float = 80 * GIB, **changes: Any) -> Callable[[], Nvml]:
    return lambda: Nvml(SimulatedNvml((mib, 400.0), **changes))


def absent() -> Nvml:
    raise UnseenError("start: NVML says Driver Not Loaded")


def machine(told: Told | None = None, **changes: Any) -> Machine:
    """Without a GPU, and with a child that found nothing wrong."""
    told = told or Told(CPU, (CaseResult("NVFP4 codec", "every pair of codes", "cpu"),), done=True)
    found: dict[str, Any] = {
        "gpus": list, "nvml": absent, "build": lambda: Build("2.13.0", None), "free": lambda folder: 2**40,
        "child": lambda asked: told, "uncompiled": str,
    }  # fmt: skip
    return Machine(**(found | changes))


def with_gpu(facts: TorchFacts = H100, mib: float = 80 * GIB, integrated: bool = False, **changes: Any) -> Machine:
    told = Told(facts, (CaseResult("quantiser", "bf16", "gpu"),), done=True)
    return machine(told, **({"gpus": lambda: [gpu(mib, integrated)], "nvml": nvml(mib)} | changes))


def found_by(check: checks.Check, of: Machine, *configured: Config, **changes: Any) -> list[Finding]:
    return list(check(Look(of, configured, **changes)))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "traindata").symlink_to(ROOT / "traindata")
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(file: str = "config.yaml", train: Mapping[str, Any] = {}, **sections: Any) -> Config:
    """The default config with other sections, and other keys of each stage's training."""
    sections = {"refits": {"max": 0, "rules": []}} | sections
    raw = yaml.safe_load((ROOT / "config.yaml").read_text()) | sections
    for stage in raw["stages"]:
        stage["train"] |= train
    Path(file).write_text(yaml.safe_dump(raw, allow_unicode=True))
    return read_config(Path(file), own=True)


# ---- findings


def test_findings_are_shown_with_what_to_do_and_counted() -> None:
    bad = Finding("disk", "fault", "0.1 MiB free", "256 MiB", "free some room")
    note = Finding("NVML", "note", "not there")
    assert lines(bad) == [
        "fault  disk: 0.1 MiB free", "       expected: 256 MiB", "       to do: free some room"
    ]  # fmt: skip
    assert closing([bad, note]) == "1 would go wrong: disk." and closing([note]) == "Nothing is wrong (1 notes)."
    assert as_json([note])["ok"] and not as_json([bad, note])["ok"]
    assert json.loads(json.dumps(as_json([bad])))["findings"][0]["todo"] == "free some room"
    with pytest.raises(ValueError, match="without anything to do"):
        Finding("disk", "fault", "full")


def test_a_check_that_raises_is_a_fault_and_the_others_go_on() -> None:
    def broken(look: Look) -> list[Finding]:
        raise KeyError("gone")

    found = list(checks.findings(Look(machine(), ()), [("first", broken), ("Python", checks.python)]))
    assert [(one.name, one.state) for one in found] == [("first", "fault"), ("Python", "ok")]
    assert "KeyError: 'gone'" in found[0].found and found[0].todo


# ---- software and GPU


def test_an_old_python_is_a_fault() -> None:
    [old] = found_by(checks.python, machine(python=(3, 10, 1)))
    assert old.state == "fault" and old.found == "3.10.1" and "3.11" in old.expected


def test_packages_that_every_command_compiles_are_noted() -> None:
    [_, note] = found_by(checks.python, machine(uncompiled=lambda: "it is read-only"))
    assert note.state == "note" and "it is read-only" in note.found and "PYTHONPYCACHEPREFIX" in note.todo
    assert len(found_by(checks.python, machine())) == 1


def test_bytecode_is_looked_for_where_python_would_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_up").mkdir()
    module = tmp_path / "made_up" / "__init__.py"
    module.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert why_uncompiled("made_up") == "" == why_uncompiled("not_installed"), "it can be written when it is imported"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written to" in why_uncompiled("made_up")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "PYTHONDONTWRITEBYTECODE" in why_uncompiled("made_up")
    compile_file(module)
    assert why_uncompiled("made_up") == ""


def test_a_machine_without_a_gpu_has_nothing_wrong_unless_a_config_wants_one(project: Path) -> None:
    for check in (checks.torch, checks.triton, checks.driver, checks.nvml, checks.capability, checks.unified):
        assert not faults(found_by(check, machine(), changed()))
    wants = changed(train={"device": "cuda"})
    [missing] = found_by(checks.driver, machine(), wants)
    assert missing.state == "fault" and "train.device" in missing.todo
    [config] = found_by(configs.config_findings, machine(), wants)
    assert config.name == "config.yaml: GPU" and config.state == "fault"


def test_a_torch_for_cpus_beside_a_gpu_is_a_fault_only_where_a_config_wants_it(project: Path) -> None:
    of = with_gpu(CPU)
    [_, told] = found_by(checks.torch, of, changed(train={"device": "cuda"}))
    assert told.state == "fault" and told.todo.startswith("pip install torch==2.13.0+cu130 --index-url https://")
    assert found_by(checks.torch, of, changed())[1].state == "note"


def test_a_torch_that_sees_no_gpu_and_one_that_is_newer_than_the_driver(project: Path) -> None:
    wants = changed(train={"device": "cuda"})
    blind = replace(H100, available=False)
    assert "update the driver" in found_by(checks.torch, with_gpu(blind), wants)[1].todo
    [old] = found_by(checks.driver, with_gpu(nvml=nvml(cuda=12040)), wants)
    assert old.state == "fault" and old.found == "580.95.05, for CUDA up to 12.4" and "13.0" in old.expected
    [right] = found_by(checks.driver, with_gpu(), wants)
    assert right.state == "ok"


def test_triton_is_wanted_beside_a_gpu(project: Path) -> None:
    wants = changed(train={"device": "cuda"})
    [missing] = found_by(checks.triton, with_gpu(replace(H100, triton="")), wants)
    assert missing.state == "fault" and missing.todo == "pip install triton"
    assert found_by(checks.triton, with_gpu(), wants)[0].found == "3.7.0"


@pytest.mark.parametrize(
    "capability, architectures, runs",
    [
        ((9, 0), ["sm_80", "sm_90"], True), ((8, 9), ["sm_80"], True), ((12, 1), ["sm_90", "sm_120"], True),
        ((12, 1), ["sm_90"], False), ((12, 1), ["compute_90"], True), ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100f"], False), ((8, 0), ["sm_86", "compute_90"], False), ((12, 1), [], False),
    ],
)  # fmt: skip
def test_which_gpus_a_build_runs_on(capability: tuple[int, int], architectures: list[str], runs: bool) -> None:
    assert checks.runs_on(capability, architectures) == runs


def test_a_gpu_that_torch_has_no_code_for_is_named(project: Path) -> None:
    old = replace(H100, capability=(12, 1), architectures=("sm_90",), name="NVIDIA GB10")
    [told] = found_by(checks.capability, with_gpu(old), changed(train={"device": "cuda"}))
    assert told.state == "fault" and told.found == "12.1 (NVIDIA GB10)" and "sm_90" in told.expected


def test_memory_is_said_to_be_unified_or_not() -> None:
    for integrated, words in ((True, "shares the memory of the host"), (False, "has memory of its own")):
        [told] = found_by(checks.unified, with_gpu(mib=64 * GIB, integrated=integrated))
        assert words in told.found and "64.0 GiB" in told.found


def test_nvml_may_be_missing_on_unified_memory_alone() -> None:
    assert found_by(checks.nvml, with_gpu(nvml=absent))[0].state == "fault"
    assert found_by(checks.nvml, with_gpu(nvml=absent, integrated=True))[0].state == "note"
    assert found_by(checks.nvml, with_gpu())[0].found == "it answers for Simulated GPU"


# ---- disk and the guard's sight


def test_a_full_or_read_only_disk_is_a_fault() -> None:
    [full] = found_by(checks.disk, machine(free=lambda folder: 2**20))
    assert full.state == "fault" and "1.0 MiB free" in full.found and "free some room" in full.todo
    [closed] = found_by(checks.disk, machine(writable=lambda folder: False))
    assert closed.state == "fault" and "read-only" in closed.found


def test_no_sight_of_a_gpu_is_a_fault_unless_the_config_allows_it(project: Path) -> None:
    def silent() -> list[Gpu]:
        raise DriverError("the CUDA driver answers with error 999")

    for of, pool in ((machine(gpus=silent), "gpu"), (with_gpu(nvml=absent), "gpu0")):
        found = {one.name: one for one in found_by(checks.sight, of, changed())}
        blind = found[f"guard's sight of {pool}"]
        assert blind.state == "fault" and "guard.blind_ok" in blind.todo
        assert found["guard's sight of host"].state == "ok"
        allowed = found_by(checks.sight, of, changed(guard={"blind_ok": True}))
        assert not faults(allowed) and "note" in {one.state for one in allowed}
    assert found_by(checks.driver, machine(gpus=silent))[0].state == "fault"


def test_what_nvml_does_not_say_of_a_gpu_is_told() -> None:
    mute = SimulatedNvml(pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NOT_SUPPORTED)
    found = found_by(checks.sight, with_gpu(nvml=lambda: Nvml(mute)))
    [blind] = faults(found)
    assert blind.name == "guard's sight of gpu0" and "Not Supported" in blind.found


def test_sight_of_a_gpu_and_of_unified_memory_names_the_sources() -> None:
    found = {one.name: one.found for one in found_by(checks.sight, with_gpu())}
    assert found["guard's sight of gpu0"].startswith("read from gpu0_device, then gpu0_process; 80.0 GiB in all")
    [first, *_] = found_by(checks.sight, with_gpu(integrated=True))
    assert first.name == "guard's sight of unified" and first.found.startswith("read from unified, then unified_pr")


# ---- self-tests and benchmarks


def in_this_process(cases: list[Case]) -> Callable[[Asked], Told]:
    """A child that runs cases here."""

    def run(asked: Asked) -> Told:
        told: list[str] = []
        tell: child.Tell = lambda kind, value: told.append(json.dumps({kind: value}) + "\n")  # noqa: E731
        tell("torch", asdict(CPU))
        run_cases(cases, torch.device("cpu"), tell)
        tell("done", True)
        return parsed("".join(told), "")

    return run


def test_a_broken_kernel_is_named_and_the_command_exits_with_100(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of = machine(child=in_this_process(cpu_cases()))
    monkeypatch.setattr(looks, "Machine", lambda: of)
    assert main(["doctor", "--quick", "--config", "config.yaml"]) == 0, capsys.readouterr().out
    assert "Nothing is wrong" in capsys.readouterr().out
    right = codec.encode_e2m1
    monkeypatch.setattr(codec, "encode_e2m1", lambda values: right(values) ^ 1)  # silent garbage
    assert main(["doctor", "--quick", "--config", "config.yaml"]) == 100
    out = capsys.readouterr().out
    assert (
        "fault  self-test of NVFP4 quantiser on the CPU: 6 of 6 cases are wrong; weights of many sizes, amax: codes"
        in out
    )
    assert out.splitlines()[-1] == "1 would go wrong: self-test of NVFP4 quantiser on the CPU."
    assert main(["doctor", "--quick", "--json", "--config", "config.yaml"]) == 100
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and {"name", "state", "found", "expected", "todo"} == found["findings"][0].keys()


def test_a_kernel_that_raises_is_named_and_the_others_are_tested() -> None:
    def broken(device: torch.device) -> list[Difference]:
        raise RuntimeError("an illegal memory access\nwas encountered")

    cases = [Case("products", "5 x 48", broken), Case("quantiser", "bf16", lambda device: [Difference("Q", 0, 0)])]
    first, second, _ = found_by(checks.numerics, machine(child=in_this_process(cases)))
    assert first.state == "fault" and "RuntimeError: an illegal memory access" in first.found
    assert second.state == "ok"


def test_what_a_child_was_at_when_it_crashed_or_hung_is_said() -> None:
    text = '{"torch": ' + json.dumps(asdict(CPU)) + '}\n{"begin": "the self-test of products, 5 x 48"}\n{"case": {"ker'
    told = parsed(text, how_it_ended(-11, "CUDA error\n"))
    assert told.torch == CPU and told.begun == "the self-test of products, 5 x 48"
    [said] = faults(found_by(checks.numerics, machine(told)))
    assert said.found == "at the self-test of products, 5 x 48: it ended by SIGSEGV: CUDA error"
    [no_torch] = found_by(checks.torch, machine(parsed("", how_it_ended(1, "ImportError: libcudart"))))
    assert no_torch.found == "at its start: it ended with exit code 1: ImportError: libcudart" and no_torch.todo


def test_it_is_said_that_no_gpu_kernel_was_tested() -> None:
    assert "no GPU kernel was tested" in found_by(checks.numerics, machine())[-1].found
    assert not any("no GPU kernel" in one.found for one in found_by(checks.numerics, with_gpu()))
    [_, note] = found_by(checks.numerics, with_gpu(replace(H100, triton="")))
    assert note.state == "note" and "Triton is not installed" in note.found


def test_the_child_tests_and_times_here() -> None:
    base = BaseSizes({**base_sizes({"kind": "random", "shape": "tiny"}).config, "vocab_size": 512}, "tiny", 2)
    recipe = TrainRecipe(steps=3, lr=1e-3, batch=2, seq_len=24)
    told = child.ask(Asked((Benchmark("a", base.config, recipe.to_dict(), 3), Benchmark("b", {}, recipe.to_dict()))))
    assert told.done and told.torch and told.torch.version == torch.__version__ and not told.ended
    assert {one.kernel for one in told.cases if one.on == "cpu"} == {case.kernel for case in cpu_cases()}
    assert all(one.ok for one in told.cases)
    good, bad = told.speeds
    assert good.step_s > 0 and good.token_s > 0 and good.tokens == 2 * 12 and not good.error
    assert bad.error and found_by(checks.benchmark, machine(told))[1].state == "fault"
    assert Asked.read(Asked((Benchmark("a", {"x": 1}, {"y": 2}),), False).text()).benchmarks[0].config == {"x": 1}


def test_a_child_that_does_not_end_is_killed() -> None:
    told = child.ask(Asked(), patience_s=0.01)
    assert not told.done and told.ended == "it did not end within 0.01 s"


# ---- configs


def test_a_config_that_fits_says_so_with_time_and_disk(project: Path) -> None:
    config = changed()
    speeds = (Speed("config.yaml", step_s=0.05, tokens=512, token_s=0.01),)
    benchmarks = configs.benchmarks_of([config], gpu=False)
    assert [one.name for one in benchmarks] == ["config.yaml"]
    of = machine(Told(CPU, speeds=speeds, done=True))
    memory, time, disk = found_by(configs.config_findings, of, config, benchmarks=benchmarks)
    assert memory.state == time.state == disk.state == "ok"
    assert re.match(r"C-disambiguate needs \d\.\d GiB, and 8\.0 GiB are allowed", memory.found)
    assert "by the benchmark, for what is still to train" in time.found and "MiB are needed" in disk.found


def test_the_knob_that_is_named_makes_a_config_fit(project: Path) -> None:
    big = {"batch": 256, "seq_len": 512}
    config = changed(train=big, guard={"limit_gb": 1.5})
    memory, *_ = found_by(configs.config_findings, machine(), config)
    assert memory.state == "fault" and "A-mixed: set guard.limit_gb to " in memory.todo
    assert "set train.micro_batch to " in memory.todo and memory.todo.count("; ") == 3
    limit = int(memory.todo.partition("guard.limit_gb to ")[2].partition(",")[0])
    rows = int(memory.todo.partition("train.micro_batch to ")[2].partition(";")[0])
    for train, allowed in ((big, limit), (big | {"micro_batch": rows}, 1.5)):
        fitting = changed(train=train, guard={"limit_gb": allowed})
        [again, *_] = found_by(configs.config_findings, machine(), fitting)
        assert again.state == "ok", again
    lower = changed(train=big, guard={"limit_gb": limit - 1})
    assert found_by(configs.config_findings, machine(), lower)[0].state == "fault", "the least that is enough"
    tried = changed(train=big, guard={"limit_gb": 1.5, "too_large_ok": True})
    assert found_by(configs.config_findings, machine(), tried)[0].state == "note"


QWEN = {"kind": "random", "shape": "qwen3-4b", "closed_answers": True}


@pytest.mark.parametrize("stated", [{}, {"master_dtype": "fp32"}])
def test_a_row_of_the_memory_table_is_named_with_the_keys_that_hide_it(project: Path, stated: dict[str, str]) -> None:
    train = {"device": "cuda", "compute_dtype": "bfloat16", "batch": 8, "seq_len": 512, "step_in_backward": True}
    train |= {"l2_sp": 0}  # which would keep the starting weights, too
    config = changed(train=train | stated, base=QWEN, guard={"limit_gb": 24})
    of = with_gpu(mib=24 * GIB)
    memory, *_ = found_by(configs.config_findings, of, config)
    assert memory.state == "fault" and "train.memory to 24gb" in memory.todo
    out = ", ".join(f"train.{key}" for key in ("master_dtype", "step_in_backward") if key in train | stated)
    assert f"(and leave out {out})" in memory.todo
    without = {key: value for key, value in train.items() if key != "step_in_backward"}
    fits = changed(train=without | {"memory": "24gb"}, base=QWEN, guard={"limit_gb": 24})
    assert found_by(configs.config_findings, of, fits)[0].state == "ok"
    hidden = changed(train=train | {"memory": "24gb", "master_dtype": "fp32"}, base=QWEN, guard={"limit_gb": 24})
    assert found_by(configs.config_findings, of, hidden)[0].state == "fault", "what is left out matters"


def test_what_no_knob_makes_fit_wants_another_machine(project: Path) -> None:
    config = changed(train={"device": "cuda"}, base=QWEN | {"shape": "llama3-8b"})
    [memory, *_] = found_by(configs.config_findings, with_gpu(mib=4 * GIB), config)
    assert memory.state == "fault" and "no knob is enough" in memory.todo and "guard.limit_gb" not in memory.todo


def test_weights_that_are_not_here_are_said_and_count_where_the_config_does(project: Path) -> None:
    config = changed(base={"kind": "folder", "path": "models/none"})
    assert isinstance(config.error, NotHereError)
    [told] = found_by(configs.config_findings, machine(), config)
    assert told.state == "fault" and told.found.startswith("models/none: not here, so its size is not known; put the")
    [told] = found_by(configs.config_findings, machine(), replace(config, own=False))
    assert told.state == "note"
    [broken] = found_by(configs.config_findings, machine(), changed(seed="x"))
    assert broken.state == "fault" and "seed" in broken.found and broken.todo == "mend what it says"


def test_a_disk_that_a_config_would_fill_is_a_fault_with_the_knob(project: Path) -> None:
    config = changed()
    assert config.base and config.checked
    needed = outlook.disk_of(config.checked, config.base)
    for free, words in ((needed.total - 1, "set checkpoint.secs to 0"), (1, "free ")):
        found = found_by(configs.config_findings, machine(free=lambda folder, free=free: free), config)
        [full] = faults(found)
        assert full.name == "config.yaml: disk" and words in full.todo
    more = changed(checkpoint={"secs": 0, "steps": 0})
    of = machine(free=lambda folder: needed.total - 1)
    assert not faults(found_by(configs.config_findings, of, more)), "the knob makes it fit"


def test_a_bare_command_looks_at_the_config_here_and_at_those_that_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(Path(), project_files("smollm2"))
    found = looks.configs_of(())
    assert (found[0].name, found[0].own) == ("config.yaml", True)
    assert {Path(one.name).stem for one in found[1:]} >= {"config", "qwen3-4b", "smollm2"}
    assert not any(one.own for one in found[1:])
    monkeypatch.chdir(ROOT)
    assert [one.name for one in looks.configs_of(())][:2] == ["config.yaml", "config/llama3-8b.yaml"]
    assert [one.own for one in looks.configs_of([Path("config/smollm2.yaml")])] == [True]
    here = {one.name: one for one in looks.configs_of(())}
    notes = found_by(configs.config_findings, machine(), here["config/qwen3-4b.yaml"])
    assert [one.state for one in notes] == ["note"]


def test_large_models_are_timed_by_a_layer_of_the_same_widths() -> None:
    base = base_sizes(QWEN)
    small = configs.smaller(base)
    assert small.config["num_hidden_layers"] == 1 and small.config["hidden_size"] == 2560
    assert base.parameters == 4_022_468_096 and small.parameters < base.parameters / 30
    tiny = base_sizes({"kind": "random", "shape": "tiny"})
    assert configs.smaller(tiny) is tiny


# ---- what they stand on


def test_knobs_make_a_recipe_fit_or_say_that_none_does() -> None:
    config = base_sizes(QWEN).config
    recipe = TrainRecipe(steps=1, lr=1e-5, batch=16, seq_len=256)

    def predicted(one: TrainRecipe) -> Any:
        rows = one.micro_batch or one.batch
        return predict(config, one, 256, 128 * rows)

    total = predicted(recipe).total
    assert knobs_to_fit(recipe, predicted, total) == ([], True)
    for part in (0.9, 0.6, 0.3):
        knobs, fits = knobs_to_fit(recipe, predicted, part * total)
        left = TrainRecipe.from_dict(configs.applied(recipe.to_dict(), knobs))
        assert fits and predicted(left).total <= part * total
        assert predicted(left).total == total - sum(knob.saves_bytes for knob in knobs)
    knobs, fits = knobs_to_fit(recipe, predicted, 1)
    assert knobs and not fits


def test_knobs_are_told_with_what_they_replace() -> None:
    knobs = [Knob("train.batch", 4, 1), Knob("train.activation_checkpointing", "true", 1)]
    assert configs.applied({"batch": 8}, knobs) == {"batch": 4, "activation_checkpointing": True}
    assert configs.in_words({"batch": 8}, knobs) == "train.batch to 4 and train.activation_checkpointing to true"


def test_sizes_on_disk_are_those_that_are_written(tmp_path: Path) -> None:
    shape = (512, 1024)
    for registry in (MEAN_FORMATS, SQUARE_FORMATS):
        for name in ("fp32", "bf16", "int8", "uint8", "nvfp4"):
            if name in registry:
                assert registry[name].nbytes(shape) == outlook.STATE_BYTES[name] * 512 * 1024
    assert outlook.CHECKPOINTS == checkpoint.KEPT + 1
    assert (outlook.TOKEN_BYTES, outlook.LABEL_BYTES) == (teacher.BYTES_A_TOKEN, teacher.BYTES_A_LABEL)
    base = BaseSizes(json.loads((tiny_folder(tmp_path / "a") / "config.json").read_text()), "a", 4)
    for dtype in ("float32", "bfloat16"):
        export(tmp_path / "a", tmp_path / dtype, dtype)
        written = (tmp_path / dtype / "model.safetensors").stat().st_size
        assert outlook.export_bytes(base, dtype) == pytest.approx(written, abs=6000)  # the header, global scales
    assert base.parameters * 4 == pytest.approx((tmp_path / "a" / "model.safetensors").stat().st_size, abs=6000)


def test_time_is_that_of_the_newest_run_with_such_steps(project: Path) -> None:
    config = load(Path("config.yaml"))
    train = config["stages"][0]["train"]
    recipe = TrainRecipe.from_dict(train)
    assert outlook.recorded("A-mixed", recipe) is None
    for lineage, other in (("a" * 12, {}), ("b" * 12, {"batch": 99}), ("c" * 12, {"batching": "packed"})):
        folder = Path("results/runs/A-mixed") / lineage
        write_json(folder / "recipe.json", {"train": {**recipe.to_dict(), "steps": 10, **other}})
        Outcome(status="trained", steps_done=10, wall_s=5.0).write(folder / "outcome.json")
    found = outlook.recorded("A-mixed", recipe)
    assert found and found.seconds == 0.5 * recipe.steps and "a" * 12 in found.source
    said = list(outlook.said(config, "none", [("A-mixed", recipe), ("B-nudge", recipe)]))
    assert said[0].startswith("Training takes about under a minute by the record, without B-nudge, of which nothing")
    assert said[1].startswith("That takes about ") and not list(outlook.said(config, "none", []))
    broken = Path("results/runs/A-mixed") / ("a" * 12) / "outcome.json"
    broken.write_text(broken.read_text().replace("5.0", "6.0"))
    with pytest.raises(FgodError, match=r"outcome\.json"):
        outlook.recorded("A-mixed", recipe)
    assert "outcome.json" in next(iter(outlook.said(config, "none", [("A-mixed", recipe)])))


def test_of_the_disk_of_experiments_the_base_alone_counts_once(project: Path) -> None:
    config, counted = load(Path("config.yaml")), outlook.Counted()
    base = base_sizes(config["base"])
    whole, one = outlook.disk_of(config, base), outlook.disk_of(config, base, {"A-mixed"})
    assert whole.work >= one.work > 0
    assert counted.rest("b", one) == one.total
    assert counted.rest("b", whole) == whole.total - whole.base, "both train at once: each has its checkpoints"
    assert counted.rest("b", one) == one.stages + one.work + one.teacher + one.release
    assert counted.rest("other", one) == one.total
    trains = [("A-mixed", TrainRecipe.from_dict(config["stages"][0]["train"]))]
    fresh = outlook.Counted()
    first, again, other = (list(outlook.said(config, base, trains, fresh))[-1] for base in ("none", "none", "other"))
    assert " of disk; " in first
    assert all(" of disk beside what is counted above; " in text for text in (again, other)), "with its base or without"


def test_amounts_in_words() -> None:
    assert [outlook.hours(s) for s in (5, 120, 7200)] == ["under a minute", "2 min", "2.0 h"]
    assert [outlook.size(n) for n in (2**30, 2**25)] == ["1.0 GiB", "32.0 MiB"]


def test_help_loads_nothing_slow() -> None:
    shown = "try: main(['doctor', '--help'])\nexcept SystemExit: print('modules', *sys.modules)"
    code = f"import sys; from fgod.cli import main\n{shown}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text, _, modules = said.partition("modules ")
    assert "--quick" in text and "fgod.cli.doctor" in modules.split()
    assert not {"torch", "transformers", "numpy"} & set(modules.split())
