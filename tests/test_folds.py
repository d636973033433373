"""Which fold of the held-back wordings a candidate is asked, and the record of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from fgod.confirm.folds import Reservations, assign, give_fold, read_folds, with_assignment
from fgod.documents import FoldOf
from fgod.errors import FgodError
from fgod.layout import confirmation_records, folds
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
    with pytest.raises(FgodError, match=r"folds\.json: found fold 2 for D c, expected 1: another candidate"):
        give_fold(tmp_path, "D", "c", 1, [1, 2])
    write_text(confirmation_records("D", "c", tmp_path).metrics, "{}")
    with pytest.raises(FgodError, match=r"folds\.json: it does not name the candidate D c.*delete \S*confirmations as"):
        read_folds(tmp_path)
    folds(tmp_path).unlink()
    with pytest.raises(FgodError, match=r"folds\.json: it is gone, though figures stand of the candidate D c"):
        read_folds(tmp_path)


def test_candidates_that_are_due_at_once_have_a_fold_each_and_may_be_asked_in_any_order(tmp_path: Path) -> None:
    decided = Reservations(tmp_path, [1, 2])
    found = {name: decided.of("D", name).fold for name in "abcd"}
    assert found == {"a": 1, "b": 2, "c": 2, "d": 2} == {name: decided.of("D", name).fold for name in "abcd"}
    assert not folds(tmp_path).exists(), "a reservation is no record"
    for name in "cdab":
        assert give_fold(tmp_path, "D", name, found[name], [1, 2]).fold == found[name]
    later = Reservations(tmp_path, [1, 2])
    assert {name: later.of("D", name).fold for name in "dcba"} == found, "the record decides in another process"
    assert later.of("D", "d").asked_before == ("c",) and later.of("D", "c").asked_before == ()
    with pytest.raises(FgodError, match=r"found fold 2 for D c, expected 1"):
        give_fold(tmp_path, "D", "c", 1, [1, 2])


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    give_fold(tmp_path, "D", "a", 1, [1])
    text = folds(tmp_path).read_text(encoding="utf-8")
    write_text(folds(tmp_path), text.replace('"a"', '"b"'))
    with pytest.raises(FgodError, match=r"seal differs.*or delete \S*confirmations as a whole: which wordings"):
        read_folds(tmp_path)
