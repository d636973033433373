"""Which fold of the held-back wordings a candidate is asked, and the record of it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from fgod.confirm.folds import (
    Reservations,
    assign,
    give_fold,
    holding,
    may_have,
    read_folds,
    read_reserved,
    with_assignment,
)
from fgod.documents import FoldOf, ReservedFolds
from fgod.errors import FgodError
from fgod.layout import confirmation_records, folds, reserved_folds
from fgod.system.files import write_text


def record(*entries: tuple[int, str]) -> list[FoldOf]:
    return [FoldOf(fold=fold, stage="D", lineage=lineage) for fold, lineage in entries]


def test_each_candidate_has_a_fold_of_its_own_and_keeps_it() -> None:
    assert assign([], "a", [2, 1]) == assign(record((1, "a"), (2, "b")), "a", [1, 2])
    assert (assign([], "a", [2, 1]).fold, assign(record((1, "a")), "b", [1, 2]).fold) == (1, 2)


def test_when_they_are_used_up_the_last_is_asked_again_and_says_of_whom_before() -> None:
    used = record((1, "a"), (2, "b"))
    third = assign(used, "c", [1, 2])
    assert (third.fold, third.asked_before) == (2, ("b",))
    later = [*used, *record((2, "c"))]
    assert assign(later, "d", [1, 2]).asked_before == ("b", "c")
    assert assign(later, "c", [1, 2]) == third and assign(later, "b", [1, 2]).asked_before == ()


def test_new_wordings_are_a_fresh_fold_and_lost_ones_are_replaced() -> None:
    used = record((1, "a"), (2, "b"))
    assert assign(used, "c", [1, 2, 3]).fold == 3
    assert assign(used, "b", [1, 3]).fold == 3, "its own is no longer among the probes"


@drawn(st.lists(st.sampled_from("abcdef"), max_size=20), st.sets(st.integers(1, 5), min_size=1))
def test_no_fold_is_asked_twice_while_another_is_fresh(asked: list[str], available: set[int]) -> None:
    given: list[FoldOf] = []
    fold_of: dict[str, int] = {}
    for lineage in asked:
        found = assign(given, lineage, sorted(available))
        fresh = available - {entry.fold for entry in given}
        assert found.fold in available and fold_of.setdefault(lineage, found.fold) == found.fold
        known = lineage in {entry.lineage for entry in given}
        assert known or (found.fold in fresh) == bool(fresh)
        assert known or bool(found.asked_before) == (not fresh)
        given = with_assignment(given, "D", lineage, found.fold)
        assert assign(given, lineage, sorted(available)) == found, "asked again, the same"


def test_the_record_is_written_before_and_goes_with_the_figures_only(tmp_path: Path) -> None:
    assert read_folds(tmp_path) == []
    assert give_fold(tmp_path, "D", "a", 1, [1, 2]).fold == give_fold(tmp_path, "D", "a", 1, [1, 2]).fold == 1
    assert give_fold(tmp_path, "D", "b", 2, [1, 2]).fold == 2
    assert read_folds(tmp_path) == record((1, "a"), (2, "b"))
    with pytest.raises(FgodError, match=r"/folds\.json: fold 1 was given to another candidate while D c was"):
        give_fold(tmp_path, "D", "c", 1, [1, 2])
    write_text(confirmation_records("D", "c", tmp_path).metrics, "{}")
    with pytest.raises(FgodError, match=r"folds\.json: it does not name the candidate D c.*delete \S*confirmations as"):
        read_folds(tmp_path)
    folds(tmp_path).unlink()
    with pytest.raises(FgodError, match=r"folds\.json: it is gone, though figures stand of the candidate D c"):
        read_folds(tmp_path)


def test_candidates_that_are_due_at_once_have_a_fold_each_and_may_be_asked_in_any_order(tmp_path: Path) -> None:
    decided = Reservations(tmp_path, [1, 2], [*"abcd"])
    found = {name: decided.of("D", name).fold for name in "abcd"}
    assert found == {"a": 1, "b": 2, "c": 2, "d": 2} == {name: decided.of("D", name).fold for name in "abcd"}
    assert not folds(tmp_path).exists(), "a reservation is no record"
    for name in "cdab":
        assert give_fold(tmp_path, "D", name, found[name], [1, 2]).fold == found[name]
    later = Reservations(tmp_path, [1, 2], [*"abcd"])
    assert {name: later.of("D", name).fold for name in "dcba"} == found, "the record decides in another process"
    assert later.of("D", "d").asked_before == ("c",) and later.of("D", "c").asked_before == ()
    with pytest.raises(FgodError, match=r"/folds\.json: D c was given fold 2, expected 1; run snakemake again"):
        give_fold(tmp_path, "D", "c", 1, [1, 2])


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    give_fold(tmp_path, "D", "a", 1, [1])
    text = folds(tmp_path).read_text(encoding="utf-8")
    write_text(folds(tmp_path), text.replace('"a"', '"b"'))
    with pytest.raises(FgodError, match=r"seal differs.*or delete \S*confirmations as a whole: which wordings"):
        read_folds(tmp_path)


@pytest.mark.parametrize(
    ("fold", "lineage", "expected"),
    [(1, "a", True), (2, "a", False), (1, "c", False), (2, "c", True), (3, "c", True), (4, "c", False)],
)
def test_a_candidate_may_have_its_own_fold_or_a_fresh_one_or_the_last(fold: int, lineage: str, expected: bool) -> None:
    assert may_have(record((1, "a"), (3, "b")), lineage, fold, [1, 2, 3]) == expected


@pytest.mark.parametrize(
    ("reserved", "available", "held"),
    [
        ([(2, "b"), (3, "c"), (3, "d")], [1, 2, 3], [(2, "b"), (3, "c"), (3, "d")]),  # the last is shared
        ([(2, "a")], [1, 2], []),  # it was asked meanwhile
        ([(2, "a")], [2, 3], [(2, "a")]),  # but what it was asked is no longer among the probes
        ([(1, "b"), (2, "c")], [1, 2], [(2, "c")]),  # another was asked it
        ([(2, "b")], [1, 3], []),  # its wordings are gone
        ([(2, "b"), (2, "c")], [1, 2, 3], [(2, "b")]),  # the last one then; there is a fresh one now
        ([(2, "b"), (3, "b")], [1, 2, 3], [(2, "b")]),
    ],
)
def test_reservations_hold_as_long_as_their_candidates_may_have_them(
    reserved: list[tuple[int, str]], available: list[int], held: list[tuple[int, str]]
) -> None:
    assert holding(record((1, "a")), record(*reserved), available) == record(*held)


def test_what_is_kept_decides_in_the_processes_of_jobs_and_ends_when_it_is_asked(tmp_path: Path) -> None:
    decided = Reservations(tmp_path, [1, 2, 3], ["a", "b"])
    assert decided.of("D", "a").fold == 1 and not reserved_folds(tmp_path).exists(), "nobody else is to know it yet"
    decided.keep()
    assert decided.of("D", "b").fold == 2
    assert read_reserved(tmp_path) == record((1, "a"), (2, "b")) and read_folds(tmp_path) == []
    written = reserved_folds(tmp_path).read_bytes()
    job = Reservations(tmp_path, [1, 2, 3], ["a", "b"])
    assert (job.of("D", "b").fold, job.of("D", "c").fold, job.of("D", "a").fold) == (2, 3, 1)
    assert reserved_folds(tmp_path).read_bytes() == written, "a job, a dry-run or a plan only reads it"
    with pytest.raises(FgodError, match=r"reserved\.json: fold 1 was given to another candidate while D c was"):
        give_fold(tmp_path, "D", "c", 1, [1, 2, 3])
    with pytest.raises(FgodError, match=r"reserved\.json: D b was given fold 2, expected 3; run"):
        give_fold(tmp_path, "D", "b", 3, [1, 2, 3])
    give_fold(tmp_path, "D", "b", 2, [1, 2, 3])
    assert (read_folds(tmp_path), read_reserved(tmp_path)) == (record((2, "b")), record((1, "a")))
    assert {name: decided.of("D", name).fold for name in "ab"} == {"a": 1, "b": 2}
    give_fold(tmp_path, "D", "a", 1, [1, 2, 3])
    assert (read_folds(tmp_path), read_reserved(tmp_path)) == (record((2, "b"), (1, "a")), [])


def test_the_next_start_drops_reservations_of_runs_that_are_no_candidates_and_no_others(tmp_path: Path) -> None:
    before = Reservations(tmp_path, [1, 2, 3], [])
    before.keep()
    assert not reserved_folds(tmp_path).exists()
    assert [before.of("D", name).fold for name in "abc"] == [1, 2, 3]
    now = Reservations(tmp_path, [1, 2, 3], ["c"])  # which may wait in a queue
    now.keep()
    assert read_reserved(tmp_path) == record((3, "c"))
    assert [now.of("D", name).fold for name in "dec"] == [1, 2, 3]
    Reservations(tmp_path, [], []).keep()
    assert len(read_reserved(tmp_path)) == 3, "nothing is held back by this config: it says nothing of candidates"


def test_reservations_of_runs_that_are_no_candidates_decide_nothing_before_they_are_dropped(tmp_path: Path) -> None:
    before = Reservations(tmp_path, [1, 2], ["x", "y"])
    before.keep()
    assert [before.of("D", name).fold for name in "xy"] == [1, 2]
    now = Reservations(tmp_path, [1, 2], ["c", "d"])
    assert [now.of("D", name).fold for name in "cd"] == [1, 2], "as a dry-run, a plan and a snakemake at its start do"
    assert read_reserved(tmp_path) == record((1, "x"), (2, "y"))
    now.keep()
    assert read_reserved(tmp_path) == record((1, "c"), (2, "d"))
    later = Reservations(tmp_path, [1, 2], ["c", "d", "e"]).of("D", "e")
    assert (later.fold, later.asked_before) == (2, ("d",))


def test_a_run_that_was_not_expected_has_what_was_reserved_for_it_unless_a_candidate_got_that(tmp_path: Path) -> None:
    decided = Reservations(tmp_path, [1, 2, 3], ["a"])
    decided.keep()
    assert [decided.of("D", name).fold for name in "arb"] == [1, 2, 3]
    assert Reservations(tmp_path, [1, 2, 3], []).of("D", "r").fold == 2, "a job of it decides the same"
    other = Reservations(tmp_path, [1, 2, 3], ["c", "d"])
    assert [other.of("D", name).fold for name in "cdrc"] == [1, 2, 3, 1]
    other.keep()
    assert read_reserved(tmp_path) == record((1, "c"), (2, "d"), (3, "r"))


def test_what_could_not_be_written_was_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = Reservations(tmp_path, [1, 2], ["a"])
    decided.keep()
    with monkeypatch.context() as patched:
        patched.setattr(ReservedFolds, "write", full)
        with pytest.raises(OSError, match="No space left"):
            decided.of("D", "a")
    assert decided.given == [] and decided.of("D", "a").fold == 1 and read_reserved(tmp_path) == record((1, "a"))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_start_is_refused_where_another_process_gave_a_fold_away_since_it_decided(tmp_path: Path) -> None:
    here = Reservations(tmp_path, [1, 2, 3], ["a", "c"])
    assert here.of("D", "a").fold == 1
    give_fold(tmp_path, "D", "b", 1, [1, 2, 3])
    said = "fold 1 was given to another candidate while D a was waiting; run snakemake again"
    with pytest.raises(FgodError, match=f"/folds\\.json: {said}"):
        here.keep()
    here, again = (Reservations(tmp_path, [1, 2, 3], ["a", "c"]) for _ in range(2))
    assert here.of("D", "c").fold == again.of("D", "a").fold == 2
    again.keep()
    assert read_reserved(tmp_path) == record((2, "a"))
    said = "fold 2 was given to another candidate while D c was waiting; run snakemake again"
    with pytest.raises(FgodError, match=f"/reserved\\.json: {said}"):
        here.keep()


RACE = """
import sys
from pathlib import Path
from fgod.confirm.folds import Reservations, give_fold
results, name, available = Path(sys.argv[1]), sys.argv[2], [*range(1, 21)]
both = [f"{one}{number}" for one in "ab" for number in range(10)]
mine = Reservations(results, available, both)
mine.keep()
print("ready", flush=True)
sys.stdin.readline()
names = [f"{name}{number}" for number in range(10)]
for name in names:
    mine.of("D", name)
for name in names:
    give_fold(results, "D", name, Reservations(results, available, both).of("D", name).fold, available)
"""


def test_two_processes_that_race_for_folds_have_each_its_own(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, tmp_path, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    given = read_folds(tmp_path)
    assert sorted(entry.fold for entry in given) == [*range(1, 21)] and read_reserved(tmp_path) == []
    assert len({entry.lineage for entry in given}) == 20


def test_an_edited_reservation_is_refused(tmp_path: Path) -> None:
    decided = Reservations(tmp_path, [1, 2], [])
    decided.keep()
    decided.of("D", "a")
    text = reserved_folds(tmp_path).read_text(encoding="utf-8")
    write_text(reserved_folds(tmp_path), text.replace('"a"', '"b"'))
    with pytest.raises(FgodError, match=r"reserved\.json: .*seal differs.*delete \S*reserved\.json while no job"):
        decided.of("D", "a")
