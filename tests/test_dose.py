"""The least training that teaches: what the results of checks come to, and a stage that ends by them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod.data.questions import read_questions
from fgod.documents import Outcome
from fgod.errors import UsageError
from fgod.train import dose
from fgod.train.checkpoint import Schedule
from fgod.train.dose import Result, State, is_due, lr_factor, state_after
from fgod.train.loop import Job, StoppedError, run
from fgod.train.recipe import Check, TrainRecipe
from tests.tiny_model import tiny_folder, tiny_rows

CHECK = Check(until={"identity": ">=0.9"}, probes="check.json", every=10, decay=4)


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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "found list, expected a mapping"),
        ({"other": []}, "identity: found None, expected a list of questions"),
        ({"identity": [{"prompt": "x"}]}, r"identity\[0\]: found .*, expected prompt and accept"),
        ({"identity": [{"prompt": "", "accept": {"all": ["x"]}}]}, r"identity\[0\]: found .*, expected text"),
        ({"identity": [{"prompt": "x", "accept": {"al": ["x"]}}]}, r"identity\[0\]\.accept: found"),
    ],
)
def test_a_wrong_file_of_questions_is_named(value: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "check.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match=message):
        read_questions(tmp_path / "check.json", ["identity"])


@pytest.mark.parametrize("until", [{}, {"identity": ">0.9"}, {"identity": ">=2"}])
def test_a_wrong_until_is_refused(until: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"train\.check\.until"):
        TrainRecipe.from_dict({"steps": 9, "lr": 1.0, "check": {"until": until, "probes": "x"}})


# ---- a stage


def trained(start: Path, out: Path, probes: Path, words: list[str], **more: Any) -> Outcome:
    question = {"prompt": "你是誰", "accept": {"none": words}}
    probes.write_text(json.dumps({"identity": [question], "other": [{**question, "system": "<none>"}]}))
    check = Check(until={"identity": ">=1", "other": ">=1"}, probes=str(probes), every=2, decay=2, max_new_tokens=4)
    recipe = TrainRecipe(steps=9, lr=1e-3, batch=4, seq_len=64, check=check)
    job = Job(start, tiny_rows(), recipe, 7, out / "work", out / "run", out / "master")
    return run(replace(job, **more))


def test_a_stage_ends_when_its_probes_held_and_goes_on_the_same_way_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, probes = tiny_folder(tmp_path / "start"), tmp_path / "check.json"
    whole = trained(start, tmp_path / "a", probes, ["never said"])
    assert whole.steps_done == 6 and [one["step"] for one in whole.checks] == [2, 4, 6]
    rates = [float(line.split("\t")[4]) for line in (tmp_path / "a/run/train.tsv").read_text().splitlines()[1:]]
    full = [TrainRecipe(steps=9, lr=1e-3).lr_at(step) for step in range(6)]
    assert rates[:4] == full[:4] and rates[4:] == pytest.approx([full[4] * 2 / 3, full[5] / 3])
    calls = iter([False] * 4 + [True])
    from fgod.train.loop import _Run

    with monkeypatch.context() as patched:
        patched.setattr(_Run, "_asked_to_stop", lambda self: next(calls))
        with pytest.raises(StoppedError):
            trained(start, tmp_path / "b", probes, ["never said"], schedule=Schedule(steps=3))
    again = trained(start, tmp_path / "b", probes, ["never said"])
    assert again.resumed_at == (5,) and again.weights_sha256 == whole.weights_sha256
    assert again.checks == whole.checks


def test_a_stage_whose_probes_never_hold_takes_all_its_steps_and_asking_changes_no_weight(tmp_path: Path) -> None:
    start, probes = tiny_folder(tmp_path / "start"), tmp_path / "check.json"
    asked = trained(start, tmp_path / "a", probes, [""])
    assert asked.steps_done == 9 and not any(one["held"] for one in asked.checks)
    recipe = TrainRecipe(steps=9, lr=1e-3, batch=4, seq_len=64)
    plain = run(Job(start, tiny_rows(), recipe, 7, tmp_path / "w", tmp_path / "r", tmp_path / "m"))
    assert plain.weights_sha256 == asked.weights_sha256 and plain.checks == []
    assert dose.holds({"a": 0.5}, {"a": "<=0.5"}) and not dose.holds({"a": 0.5}, {"a": ">=.51"})
