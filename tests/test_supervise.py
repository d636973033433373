"""Commands that load weights work in a child under the guard, and try less at once where it was killed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fgod.cli import parse
from fgod.cli.command import SideBySide
from fgod.cli.work import supervise
from fgod.cli.work import worker as workers
from fgod.cli.work.supervise import Attempt, ChildError, KilledError, attempt_all, attempt_of, check_result
from fgod.cli.work.worker import Worker, run
from fgod.errors import UsageError
from fgod.exporters.write import export
from fgod.guard import End, GuardResult, Limits, phases
from fgod.guard.heartbeat import Heartbeat
from fgod.guard.predict import TooLargeError
from fgod.model import memory
from fgod.model.ask import AnswerSettings, write_answers
from fgod.model.chats import ChatFormat
from fgod.model.generate import greedy
from fgod.model.load import load_model
from fgod.system.procfs import MIB
from fgod.train.teacher import teacher_predictor
from tests.mini import ROOT
from tests.tiny_model import tiny_folder, tiny_rows

DONE = Attempt(8, 1, False, "answered", "", 0, 100.0, 90.0)
KILLED = replace(DONE, killed=True, exit_code=75, reason="The guard killed the command.")


# Attempts


@pytest.mark.parametrize(
    ("fits", "processes", "tried"),  # fits: most prompts at once, in all processes, that are not killed
    [
        (8, 1, [(8, 1)]),
        (4, 1, [(8, 1), (4, 1)]),
        (1, 1, [(8, 1), (4, 1), (2, 1), (1, 1)]),
        (0, 1, [(8, 1), (4, 1), (2, 1), (1, 1)]),
        (24, 3, [(8, 3)]),
        (8, 3, [(8, 3), (8, 1)]),  # the same batch, and so the same bits
        (4, 2, [(8, 2), (8, 1), (4, 1)]),
        (0, 2, [(8, 2), (8, 1), (4, 1), (2, 1), (1, 1)]),
    ],
)
def test_after_a_kill_one_process_is_tried_and_then_half_the_batch_down_to_one(
    fits: int, processes: int, tried: list[tuple[int, int]]
) -> None:
    said: list[str] = []

    def start(batch: int, alone: bool) -> Attempt:
        count = 1 if alone else processes
        return replace(DONE if batch * count <= fits else KILLED, batch=batch, processes=count)

    attempts = attempt_all(start, 8, said.append)
    assert [(a.batch, a.processes) for a in attempts] == tried and len(said) == len(tried) - 1
    assert [a.killed for a in attempts] == [batch * count > fits for batch, count in tried]
    if len(said) > 1 and processes > 1:
        assert said[:2] == [
            "killed with 8 prompts at once in each of 2 processes: it is tried again with 8 in one process",
            "killed with 8 prompts at once: it is tried again with 4",
        ]


def test_one_prompt_at_a_time_in_several_processes_is_tried_in_one() -> None:
    killed = replace(KILLED, batch=1, processes=4)
    attempts = attempt_all(lambda batch, alone: replace(killed, processes=1 if alone else 4), 1, print)
    assert [a.processes for a in attempts] == [4, 1]
    with pytest.raises(KilledError, match=r"one prompt at a time \(tried: 1 × 4 processes, 1\)\."):
        check_result(attempts, "the probe")


def test_work_without_a_batch_and_what_was_killed_before_it_asked_is_tried_once() -> None:
    for killed in (replace(KILLED, batch=0), replace(KILLED, phase="start")):
        assert len(attempt_all(lambda *_, killed=killed: killed, killed.batch, print)) == 1  # type: ignore[misc]


def test_an_error_that_is_no_kill_is_not_tried_again() -> None:
    assert len(attempt_all(lambda *_: replace(DONE, exit_code=1, error="broken"), 8, print)) == 1


def test_what_is_killed_with_one_prompt_too_is_an_error_that_says_what_to_change() -> None:
    attempts = [replace(KILLED, batch=batch) for batch in (2, 1)]
    with pytest.raises(KilledError, match=r"it needs more .*one prompt at a time \(tried: 2, 1\)\..* Raise g"):
        check_result(attempts, "the probe")
    assert KilledError.exit_code == 75


def test_the_error_of_a_child_is_the_commands_with_its_exit_code() -> None:
    with pytest.raises(ChildError, match=r"^config: broken$") as caught:
        check_result([replace(DONE, exit_code=2, error="config: broken")], "the probe")
    assert caught.value.exit_code == 2
    with pytest.raises(ChildError, match=r"the probe came to no result\. It failed with exit code 1, see above\."):
        check_result([replace(DONE, exit_code=1)], "the probe")
    with pytest.raises(ChildError, match=r"^process 7 was ended\. The kernel killed a process\.$"):
        check_result(
            [replace(DONE, exit_code=137, error="process 7 was ended", reason="The kernel killed a process.")], "x"
        )
    with pytest.raises(ChildError, match=r"came to no result\. The kernel did it\.") as caught:
        check_result([replace(DONE, exit_code=137, reason="The kernel did it.")], "the probe")
    assert caught.value.exit_code == 137
    check_result([KILLED, DONE], "the probe")


def test_an_attempt_is_made_of_the_childs_end_and_its_report() -> None:
    own = GuardResult(75, End.OWN, "", 50.0, None, "answered", 1.0)
    refused = attempt_of(own, {"batch": 4, "processes": 2, "refused": "No.", "predicted_mib": 9.0}, 8)
    assert (refused.killed, refused.batch, refused.reason, refused.predicted_mib) == (True, 4, "No.", 9.0)
    assert refused.processes == 2 and attempt_of(own, {}, 8).processes == 1
    assert not attempt_of(own, {}, 8).killed and attempt_of(own, {"batch": 1}, 0).batch == 0
    assert attempt_of(replace(own, end=End.MEMORY, reason="Killed."), {}, 8).reason == "Killed."


CHILD = """
import json, os, sys, time
from pathlib import Path
batch, processes, report = int(sys.argv[1]), int(sys.argv[2]) or 2, Path(sys.argv[3])
told = {"batch": batch, "processes": processes, "predicted_mib": 1.0, "facts": {"asked": batch}}
report.write_text(json.dumps(told))
Path(os.environ["FGOD_GUARD_PHASE"]).write_text("model_loaded\\n")
time.sleep(0.1)
x = bytearray(batch * processes * 100 << 20)
time.sleep(0.2 if batch * processes < 4 else 20)
"""


def test_real_children_are_killed_until_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(argv: list[str], batch: int, processes: int, report: Path) -> list[str]:
        return [sys.executable, "-S", "-c", CHILD, str(batch), str(processes), str(report)]

    monkeypatch.setattr(supervise, "child_command", command)
    facts: dict[str, Any] = {}
    limits = Limits(limit_gb=0.35, poll_secs=0.02)
    assert supervise.supervise(["probe"], limits, facts, "the probe", 4, several=True) == {"asked": 2}
    attempts = facts["attempts"]
    assert [(a["batch"], a["processes"], a["killed"]) for a in attempts] == [(4, 2, True), (4, 1, True), (2, 1, False)]
    assert all("above the limit of 358 MiB" in a["reason"] for a in attempts[:2]) and not attempts[2]["reason"]
    assert facts["guard"]["phase"] == "model_loaded"


def test_a_child_has_the_same_command_line() -> None:
    own = ["--plugin", "p.py", "probe", "--rows", "a"]
    command = supervise.child_command(own, 4, 0, Path("r.json"))
    assert command[1:] == ["-m", "fgod", *own, "--batch", "4", "--child", "r.json"]
    again = supervise.child_command([*own, "--processes", "3"], 4, 1, Path("r.json"))
    assert again[-8:] == ["--processes", "3", "--batch", "4", "--processes", "1", "--child", "r.json"]
    assert supervise.child_command(["export"], 0, 0, Path("r.json"))[2:] == ["fgod", "export", "--child", "r.json"]


def test_every_rule_that_loads_weights_names_limits_and_its_gpu() -> None:
    rules = "".join((ROOT / "rules" / f"{name}.smk").read_text() for name in ("base", "train", "probe"))
    for name in ("base", "export_base", "rehearsal", "reference", "train", "interpolate", "export", "probe"):
        body = rules.split(f"rule {name}:")[1].split("\nrule ")[0].split("\n\n\n")[0]
        assert "{GUARD}" in body, name
        assert name == "base" or "gpu=" in body, name


def test_every_rule_that_asks_a_model_takes_the_cores_that_its_processes_use() -> None:
    rules = "".join(
        (ROOT / "rules" / f"{name}.smk").read_text() for name in ("base", "data", "probe", "confirm", "placebo")
    )
    asking = [body for body in rules.split("rule ") if "--processes {threads}" in body]
    assert [body.split(":")[0] for body in asking] == [
        "self_asked", "rehearsal", "reference", "teacher", "probe", "fold_reference", "fold_probe", "placebo_mix",
        "base_probe",
    ]  # fmt: skip
    assert all("threads: " in body and "processes(" in body for body in asking)
    assert sum("} answers " in body or "} probe " in body or "data placebo" in body for body in asking) == len(asking)


@pytest.mark.parametrize("argv", [["--batch", "0"], ["--batch", "-1"], ["--batch", "x"], ["--processes", "0"]])
def test_a_batch_is_a_whole_number_above_zero(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    known = shlex.split("answers reference --export e --probes p --sources s --out o --settings {}")
    with pytest.raises(SystemExit):
        parse([*known, "--limit-gb", "1", *argv])
    assert f"argument {argv[0]}: Not of type PositiveInt: " in capsys.readouterr().err


# The child's side


def test_a_heartbeat_says_phases_and_that_it_lives(tmp_path: Path) -> None:
    file = tmp_path / "phase"
    beat = Heartbeat.from_environment({phases.VARIABLE: str(file)})
    beat()  # before any phase
    beat("model_loaded")
    assert phases.read_phase(file) == "model_loaded"
    reader = phases.PhaseReader(file)
    reader.read()
    before = reader.beat
    beat()
    reader.read()
    assert reader.beat != before and reader.phase == "model_loaded"


def test_without_a_guard_a_heartbeat_does_nothing() -> None:
    Heartbeat(None)("model_loaded")


def test_there_is_a_heartbeat_at_each_forward_pass(tmp_path: Path) -> None:
    beats: list[str] = []
    answers = write_answers(
        tiny_folder(tmp_path / "base"),
        ["你是誰", "Who are you"],
        tmp_path / "answers",
        AnswerSettings(max_new_tokens=5, batch_size=1),
        beat=lambda phase="": beats.append(phase),
    )
    passes = sum(len(a.token_ids) for a in answers)
    assert [b for b in beats if b] == ["model_loaded", "saving"] and beats.count("") == passes


def worker(tmp_path: Path, limit_mib: float, too_large_ok: bool = False) -> Worker:
    return Worker(tmp_path / "report.json", limit_mib / 1024, too_large_ok)


def report_of(tmp_path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((tmp_path / "report.json").read_text())
    return found


def test_a_batch_that_is_predicted_not_to_fit_is_halved_before_anything_is_loaded(tmp_path: Path) -> None:

    def predicted(batch: int) -> memory.Parts:
        return {"weights": 500 * int(MIB), "KV cache": batch * 100 * int(MIB)}

    assert worker(tmp_path, 1000).fit(predicted, 16, False) == 4
    assert report_of(tmp_path) == {"batch": 4, "processes": 1, "predicted_mib": 900.0}


def test_what_is_predicted_not_to_fit_with_one_prompt_is_refused_or_tried_all_the_same(tmp_path: Path) -> None:
    def predicted(batch: int) -> memory.Parts:
        return {"weights": 2000 * int(MIB), "KV cache": batch}

    with pytest.raises(TooLargeError, match=r"weights 1\.95 GiB.*Raise guard\.limit_gb"):
        worker(tmp_path, 1000).fit(predicted, 16, False)
    assert worker(tmp_path, 1000, too_large_ok=True).fit(predicted, 16, False) == 16


def test_a_command_asks_by_as_many_processes_as_it_may_use_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    known = shlex.split("answers reference --export e --probes p --sources s --out o --settings {} --limit-gb 1")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 7})
    for more, count in (([], 3), (["--processes", "2"], 2), (["--processes", "2", "--processes", "1"], 1)):
        command = parse([*known, *more])
        assert isinstance(command, SideBySide) and command.most_processes == count


@pytest.mark.parametrize(
    ("limit", "prompts", "processes", "gpu", "expected"),
    [
        (10_000, 64, 4, False, (16, 4)),
        (10_000, 33, 4, False, (16, 3)),  # as many as there are batches
        (10_000, 0, 4, False, (16, 1)),
        (5000, 64, 4, False, (16, 2)),  # fewer, before the batch becomes smaller
        (1400, 64, 4, False, (8, 1)),  # the same batch, on which bits depend, as with one
        (1400, 64, 1, False, (8, 1)),
        (10_000, 64, 4, True, (16, 1)),
    ],
)
def test_processes_are_fewer_where_more_are_predicted_not_to_fit_and_change_no_batch(
    limit: int, prompts: int, processes: int, gpu: bool, expected: tuple[int, int], tmp_path: Path
) -> None:
    def predicted(batch: int, processes: int) -> memory.Parts:
        return {"weights": 500 * int(MIB), "KV cache": processes * batch * 100 * int(MIB)}

    found = worker(tmp_path, limit).fit_processes(predicted, 16, gpu, prompts, processes)
    assert found == expected
    together = 500.0 + 100 * found[0] * found[1]
    assert report_of(tmp_path) == {"batch": found[0], "processes": found[1], "predicted_mib": together}


@pytest.mark.parametrize("refused", ["", "torch was to take more"])
def test_memory_that_the_allocator_refused_is_reported(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(worker: Worker) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(workers, "refusal", lambda room: refused)
    if refused:
        assert run(work, worker(tmp_path, 2048)) == 75 and report_of(tmp_path) == {"refused": "Torch was to take more."}
    else:  # others have filled the device
        with pytest.raises(torch.OutOfMemoryError):
            run(work, worker(tmp_path, 2048))


def test_an_error_is_reported_with_its_exit_code(tmp_path: Path) -> None:
    def work(worker: Worker) -> None:
        raise UsageError("probes.tsv:3: broken")

    assert run(work, worker(tmp_path, 2048)) == 2
    assert report_of(tmp_path) == {"error": "probes.tsv:3: broken"}


# What is predicted


def test_weights_and_cache_are_predicted_exactly(tmp_path: Path) -> None:
    from transformers import StaticCache

    base = tiny_folder(tmp_path / "base")
    export(base, tmp_path / "nvfp4")
    for folder in (base, tmp_path / "nvfp4"):
        model = load_model(folder)
        count = sum(parameter.numel() for parameter in model.parameters())
        size = memory.Dimensions.from_config(model.config.to_dict(), "config.json")
        parts = memory.predict_answers(memory.stored(folder), size, "float32", memory.Asked(10, 6), 3, 0, gpu=True)
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.inference_mode():
            model(input_ids=torch.zeros(3, 4, dtype=torch.int64), past_key_values=cache, use_cache=True)
        assert parts["weights"] == count * 4
        assert parts["KV cache"] == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_half_the_batch_halves_what_depends_on_it() -> None:
    size = memory.Dimensions(layers=36, hidden=2560, mlp=9728, heads=32, kv_heads=8, head_dim=128, vocab=151936)
    model = memory.Stored(weights=4_000_000_000, reading=0, file=0, tensors=1)
    asked = memory.Asked(width=64, new=96)

    def parts(batch: int) -> memory.Parts:
        return memory.predict_answers(model, size, "bfloat16", asked, batch, 0, gpu=False)

    def compared(batch: int) -> memory.Parts:
        return memory.predict_comparison(model, model, size, "bfloat16", asked, batch, 0)

    for part in ("KV cache", "activations", "logits"):
        assert parts(64)[part] == 2 * parts(32)[part] > 0
    for part in ("activations", "logits"):
        assert compared(64)[part] == 2 * compared(32)[part] > 0
    assert compared(64)["logits"] == 2 * 64 * 96 * 151936 * 2
    assert compared(64)["weights"] == compared(64)["reference weights"] == 8_000_000_000


def test_each_process_is_predicted_to_have_what_depends_on_its_batch(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    samples = ChatFormat.of_folder(base).rows(tiny_rows())
    asked = memory.Asked(width=64, new=96)
    predictions = (
        memory.answers_predictor(base, asked, 10**6, gpu=False),
        memory.probe_predictor(base, base, base, asked, 10**6, gpu=False),
        teacher_predictor(base, samples, 8, 10**6, gpu=False),
    )
    shared = {"process", "weights", "reference weights", "soft labels"}
    for predicted in predictions:
        one, three = predicted(256, 1), predicted(256, 3)
        assert three.keys() == one.keys() and one["forked processes"] == 0
        assert three["forked processes"] == 3 * memory.FORKED_BYTES
        own = one.keys() - shared - {"forked processes"}
        assert own and all(three[part] == 3 * one[part] > 0 for part in own)
        assert all(three[part] == one[part] for part in shared & one.keys())


def test_replies_in_a_smaller_batch_are_the_same(tmp_path: Path) -> None:
    """What a retry may change: ties, of which there are none here."""
    base = tiny_folder(tmp_path / "base")
    model, chat = load_model(base), ChatFormat.of_folder(base)
    prompts = ["你是誰", "我是誰", "What is rain", "なに", "누구"]
    assert greedy(model, chat, prompts, 8, 5) == greedy(model, chat, prompts, 8, 2)


def test_a_config_without_a_size_is_named() -> None:
    with pytest.raises(UsageError, match=r"m/config\.json: hidden_size: found None, expected a whole number above 0"):
        memory.Dimensions.from_config({}, "m/config.json")


# In a project


def test_weights_are_loaded_under_the_guard_alone(ran: Any) -> None:
    entries = [entry for entry in ran.manifest() if entry["argv"][1] in ("base", "export", "answers", "probe")]
    guarded = [entry for entry in entries if "check" not in entry["argv"]]
    assert len(guarded) >= 6 and all(entry["guard"]["end"] == "own" for entry in guarded)
    for entry in guarded:
        [attempt] = entry["attempts"]
        assert not attempt["killed"] and attempt["peak_mib"] > 0
        assert entry["argv"][1] == "base" or attempt["predicted_mib"] > 0
    [probe] = [entry["argv"] for entry in guarded if entry["argv"][1] == "probe"]
    ended = ran.run(*probe, "--limit-gb", "0.2")
    assert ended.returncode == 75, ended.stderr
    assert "fgod: the probe of artifacts/A/" in ended.stderr and "Raise guard.limit_gb" in ended.stderr


def test_a_worker_asks_without_a_plan_for_each_shape_of_a_batch(tmp_path: Path) -> None:
    found = list[bool]()
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        worker = Worker(tmp_path / "report.json", 1.0, False)
        assert run(lambda _: found.append(torch.backends.cuda.cudnn_sdp_enabled()), worker) == 0
        assert found == [False] and torch.backends.cuda.cudnn_sdp_enabled(), "as before afterwards"
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
