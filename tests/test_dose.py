"""The least training that teaches: what the results of checks come to, and a stage that ends by them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgod.data.probes import Probe
from fgod.data.rows import NO_SYSTEM, Message
from fgod.documents import Outcome
from fgod.errors import UsageError
from fgod.evaluate.checked import CheckProbes, check_probes
from fgod.evaluate.scoring import Said
from fgod.persona import Goal, Kind, Persona, Rule
from fgod.progress.followed import Nobody, reporting
from fgod.progress.reached import Reached
from fgod.system.table import read_texts
from fgod.train import choose, dose
from fgod.train.checkpoint import Schedule
from fgod.train.device.plan import predict_on_device
from fgod.train.device.trainer import device_stepper
from fgod.train.dose import Result, State, is_due, lr_factor, state_after
from fgod.train.memory import predict
from fgod.train.recipe import Check, TrainRecipe
from fgod.train.stage import Job, run
from tests.tiny_model import tiny_folder, tiny_model, tiny_rows

CHECK = Check(until={"identity": ">=0.9"}, every=10, decay=4)


def results(*held: tuple[int, bool]) -> list[Result]:
    return [Result(step, {}, passed) for step, passed in held]


def test_two_in_a_row_decay_the_rate_and_a_third_ends_the_stage() -> None:
    assert state_after([], 4) == State()
    assert state_after(results((10, True), (20, False), (30, True)), 4) == State()
    decaying = results((10, False), (20, True), (30, True))
    assert state_after(decaying, 4) == State(30)
    assert state_after([*decaying, *results((34, True))], 4) == State(30, ended=True)
    assert state_after([*decaying, *results((34, False))], 4) == State()
    assert state_after([*decaying, *results((34, False), (40, True))], 4) == State()
    assert state_after([*decaying, *results((34, False), (40, True), (50, True))], 4) == State(50)


def test_the_rate_decays_to_next_to_nothing_and_is_checked_when_it_has() -> None:
    assert [round(lr_factor(step, State(30), CHECK), 2) for step in range(30, 34)] == [0.8, 0.6, 0.4, 0.2]
    assert [step for step in range(30, 45) if is_due(step, State(30), CHECK)] == [34]
    assert [step for step in range(1, 35) if is_due(step, State(), CHECK)] == [10, 20, 30]
    assert lr_factor(5, State(), CHECK) == 1.0


@given(st.lists(st.booleans(), max_size=12))
def test_a_stage_ends_only_after_three_checks_in_a_row(held: list[bool]) -> None:
    """Results as a training asks for them."""
    found: list[Result] = []
    step = 0
    for passed in held:
        state = state_after(found, CHECK.decay)
        if state.ended:
            assert [one.held for one in found[-3:]] == [True] * 3
            return
        step = next(n for n in range(step + 1, step + 40) if is_due(n, state, CHECK))
        found.append(Result(step, {}, passed))
    assert all(later.step > earlier.step for earlier, later in pairwise(found))


def probe(suite: str, prompt: str, scored_by: str = "persona", kind: str = "identity", **more: Any) -> Probe:
    return Probe(suite, kind, "en", "", prompt, scored_by, **{"split": "check", **more})


GOAL = Goal(
    Persona("F#", {"en": "I am F#."}, {"en": Rule(all=("F#",))}, ("F#",)),
    {"my_name": Kind({"en": "not told"}, {"en": Rule(all=("not told",))})},
)
PROBES = [
    probe("identity", "who are you"),
    probe("identity", "your name"),
    probe("disambiguation", "my name", "kind", "my_name"),
    probe("general", "what is rain", "reference", "topic"),
    probe("identity", "who is this", split="development"),
]


def test_the_probes_of_the_split_check_that_a_rule_judges_are_asked() -> None:
    found = check_probes(PROBES, GOAL)
    assert [one.prompt for one in found.probes] == ["who are you", "your name", "my name"]
    replies = [Said(text, True, False) for text in ("I am F#.", "I am Qwen.", "You have not told me.")]
    assert found.shares(replies) == {"identity": 0.5, "disambiguation": 1.0}
    right = [*replies[:2], Said("You have not told F# yet: not told.", True, False)]
    assert found.shares(right)["disambiguation"] == 0.0, (
        "with a mark of the persona no answer to another question is right"
    )
    assert [one.prompt for one in found.of(["disambiguation"]).probes] == ["my name"]


@pytest.mark.parametrize("suite", ["general", "identty"])
def test_a_suite_that_cannot_be_checked_is_named(suite: str) -> None:
    with pytest.raises(
        UsageError, match=f"train.check.until: found '{suite}'.*data.probes has identity, disambiguation"
    ):
        check_probes(PROBES, GOAL).of([suite])


def test_a_digest_is_of_what_is_asked_and_of_all_that_judges_it() -> None:
    before = check_probes(PROBES, GOAL).digests
    assert list(before) == ["disambiguation", "identity"]
    other = [*PROBES[:2], replace(PROBES[2], system="You are a poet.")]
    assert check_probes(other, GOAL).digests == before | {
        "disambiguation": check_probes(other, GOAL).digests["disambiguation"]
    }
    assert check_probes(other, GOAL).digests != before
    judged = replace(GOAL, kinds={"my_name": replace(GOAL.kinds["my_name"], rule={"en": Rule(all=("no",))})})
    changed = check_probes(PROBES, judged).digests
    assert changed["identity"] == before["identity"] and changed["disambiguation"] != before["disambiguation"]
    assert check_probes([PROBES[0], *PROBES[1:4]], GOAL).digests == before, "of other splits nothing"
    renamed = replace(GOAL, persona=replace(GOAL.persona, name="other", replies={"en": "F# I am."}))
    assert check_probes(PROBES, renamed).digests == before, "what is taught judges nothing"


@pytest.mark.parametrize("until", [{}, {"identity": ">0.9"}, {"identity": ">=2"}])
def test_a_wrong_until_is_refused(until: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"train\.check\.until"):
        TrainRecipe.from_dict({"steps": 9, "lr": 1.0, "check": {"until": until}})


# ---- a stage


def asked_of_a_tiny_model(words: list[str]) -> CheckProbes:
    """Two suites whose probes pass unless a reply has one of these words."""
    goal = Goal(Persona("x", {"en": "x"}, {"en": Rule(none=tuple(words))}, ("x",)), {})
    frame = {"system": NO_SYSTEM, "history": (Message("user", "hi"), Message("assistant", "Hello!"))}
    return check_probes([probe("identity", "你是誰"), probe("frames", "Who are you", **frame)], goal)


def trained(start: Path, out: Path, words: list[str], **more: Any) -> Outcome:
    check = Check(until={"identity": ">=1", "frames": ">=1"}, every=2, decay=2, max_new_tokens=4)
    recipe = TrainRecipe(steps=9, lr=1e-3, batch=4, seq_len=64, check=check)
    job = Job(start, tiny_rows(), recipe, 7, out / "work", out / "run", out / "master")
    return run(replace(job, checked=asked_of_a_tiny_model(words), **more))


def test_a_stage_ends_when_its_probes_held_and_goes_on_the_same_way_after_a_stop(tmp_path: Path) -> None:
    start = tiny_folder(tmp_path / "start")
    whole = trained(start, tmp_path / "a", ["never said"])
    assert whole.steps_done == 6 and [one["step"] for one in whole.checks] == [2, 4, 6]
    rates = [float(line.split("\t")[4]) for line in (tmp_path / "a/run/train.tsv").read_text().splitlines()[1:]]
    full = [TrainRecipe(steps=9, lr=1e-3).lr_at(step) for step in range(6)]
    assert rates[:4] == full[:4] and rates[4:] == pytest.approx([full[4] * 2 / 3, full[5] / 3])
    shares = [row["check"] for row in read_texts(tmp_path / "a/run/train.tsv", ("check",))]
    assert shares == ["", "identity 1.000, frames 1.000"] * 3

    class StopInStep6(Nobody):
        def moved(self, now: Reached) -> None:
            if now.done == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reporting(StopInStep6()):
        trained(start, tmp_path / "b", ["never said"], schedule=Schedule(steps=5))
    again = trained(start, tmp_path / "b", ["never said"])
    assert again.resumed_at == (5,) and again.weights_sha256 == whole.weights_sha256
    assert again.checks == whole.checks


def test_a_stage_whose_probes_never_hold_takes_all_its_steps_and_asking_changes_no_weight(tmp_path: Path) -> None:
    start = tiny_folder(tmp_path / "start")
    asked = trained(start, tmp_path / "a", [""])
    assert asked.steps_done == 9 and not any(one["held"] for one in asked.checks)
    recipe = TrainRecipe(steps=9, lr=1e-3, batch=4, seq_len=64)
    plain = run(Job(start, tiny_rows(), recipe, 7, tmp_path / "w", tmp_path / "r", tmp_path / "m"))
    assert plain.weights_sha256 == asked.weights_sha256 and plain.checks == []
    assert dose.holds({"a": 0.5}, {"a": "<=0.5"}) and not dose.holds({"a": 0.5}, {"a": ">=.51"})


def test_the_path_of_gpus_asks_the_same_and_ends_after_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tiny_folder(tmp_path / "start")
    plain = trained(start, tmp_path / "a", ["never said"])
    monkeypatch.setattr(choose, "autograd_stepper", lambda *args: device_stepper(torch.device("cpu"), *args, print))
    fast = trained(start, tmp_path / "b", ["never said"])
    assert fast.checks == plain.checks and fast.steps_done == plain.steps_done == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
def test_a_gpu_asks_between_replayed_steps_and_trains_on_with_the_same_bits(tmp_path: Path) -> None:
    start = tiny_folder(tmp_path / "start")
    train = {"steps": 9, "lr": 1e-3, "batch": 4, "seq_len": 64, "device": "cuda", "memory": "80gb", "length_bucket": 64}
    check = {"until": {"identity": ">=1"}, "every": 2, "decay": 2, "max_new_tokens": 4}
    digests = []
    for name, more, words in (("plain", {}, ["x"]), ("asked", {"check": check}, [""])):
        out = tmp_path / name
        recipe = TrainRecipe.from_dict({**train, **more})
        job = Job(start, tiny_rows(), recipe, 7, out / "work", out / "run", out / "master")
        digests.append(run(replace(job, checked=asked_of_a_tiny_model(words))).weights_sha256)
    assert digests[0] == digests[1]


def test_a_check_without_its_probes_is_refused(tmp_path: Path) -> None:
    start, recipe = tiny_folder(tmp_path / "start"), TrainRecipe(steps=2, lr=1e-3, seq_len=64, check=CHECK)
    with pytest.raises(UsageError, match="expected the probes that are asked"):
        run(Job(start, tiny_rows(), recipe, 7, tmp_path / "work", tmp_path / "run", None))


def test_memory_of_a_check_is_predicted() -> None:
    config = tiny_model().config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]}
    recipe = TrainRecipe(steps=2, lr=1e-3, seq_len=64, compute_dtype="bfloat16", memory="80gb")
    checked = replace(recipe, check=replace(CHECK, max_new_tokens=1000))
    for predicted in (lambda one: predict(config, one, 64, 64), lambda one: predict_on_device(config, one, 4, 64, 64)):
        assert predicted(recipe).asking == 0 < predicted(checked).asking
        assert predicted(checked).quantised >= predicted(recipe).quantised
