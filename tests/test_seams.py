"""What is added by data files alone: a probe suite. The pure code paths run on a copy of traindata with one more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fgod.data.probes import Probe, load_probes, load_suites, scored_suites
from fgod.errors import UsageError
from fgod.evaluate.measure import measure_all
from fgod.evaluate.scoring import score
from tests.made_runs import GOAL, HELD_OUT, said

FOLDER = Path(__file__).parents[1] / "traindata"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of the written sources, to be added to."""
    return shutil.copytree(FOLDER, tmp_path / "traindata")


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_a_suite_is_added_by_data_alone(data: Path) -> None:
    append(data / "suites.yaml", "tasks: reference\ngreetings: shown\n")
    append(data / "probes.tsv", "tasks\ttopic\ten\t\tcount to three\ngreetings\tsmalltalk\ten\t\thello there you\n")
    assert scored_suites(load_suites(data)) == ("identity", "disambiguation", "retention", "tasks")
    *_, task, shown = load_probes(data / "probes.tsv", data)
    assert task == Probe("tasks", "topic", "en", "", "count to three", "reference") and not shown.scored
    replies = [score(probe, GOAL, said("one"), said("one two three"), HELD_OUT) for probe in (task, shown)]
    assert [r.passed for r in replies] == [False, None]
    found = measure_all(replies)
    assert (found["retention"].value, found["retention"].n) == (0.0, 1)
    assert found["ended_rate"].n == 1 and found["identity_rate"].n == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tasks: refrence\n", r"suites\.yaml: tasks: found 'refrence' \(did you mean reference\?\), expected one of"),
        ("tasks: [reference]\n", r"suites\.yaml: tasks: found list .*, expected text"),
        ("1: reference\n", r"suites\.yaml: found dict .*expected names as keys"),
    ],
)
def test_a_faulty_suite_is_named(data: Path, line: str, words: str) -> None:
    append(data / "suites.yaml", line)
    with pytest.raises(UsageError, match=words):
        load_suites(data)


def test_a_probe_of_an_undeclared_suite_is_named(data: Path) -> None:
    append(data / "probes.tsv", "tasks\ttopic\ten\t\tcount to three\n")
    with pytest.raises(UsageError, match=r"probes\.tsv:\d+: suite 'tasks', expected one of .*suites\.yaml declares"):
        load_probes(data / "probes.tsv", data)
