"""How far long work is, and to whom it is told."""

from __future__ import annotations

import pytest

from fgod.progress.followed import ToLog, follow, reporting
from fgod.progress.reached import Reached
from tests.heard import Heard


def test_work_is_told_and_work_inside_of_it_is_not():
    heard = Heard()
    with reporting(heard, "B"), follow("", 3, "step") as progress:
        assert list(progress.each("ab")) == ["a", "b"]
        with follow("probes", 9, "prompt") as inner:
            inner.to(4)
        progress.to(3, "loss 0.5")
    assert heard.steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    (end,) = heard.ends
    assert end.label == "B" and end.note == "loss 0.5"
    with follow("", 3, "step") as progress:  # told to nobody
        progress.to(3)
    assert len(heard.moves) == 4


def test_work_that_fails_is_not_told_as_done():
    heard = Heard()
    with pytest.raises(ValueError, match="x"), reporting(heard), follow("", 2, "step") as progress:
        progress.to(1)
        raise ValueError("x")
    assert heard.steps[-1] == (1, 2) and not heard.ends


def test_words_have_rate_and_time_left_as_soon_as_they_are_known():
    begun = Reached("fit 0 · A", "step", 0, 60, 100.0, 100.0, 0)
    assert begun.words(100.0) == "fit 0 · A · step 0 of 60" and begun.rate is None and begun.left(100.0) is None
    now = Reached("fit 0 · A", "step", 20, 60, 100.0, 110.0, 0)
    assert now.rate == 2 and now.left(110.0) == 20
    assert now.words(110.0) == "fit 0 · A · step 20 of 60 · 2/s · 20 s left"


def test_a_log_has_a_line_each_tenth_that_takes_its_time_and_one_at_the_end():
    lines: list[str] = []
    log = ToLog(lines.append)
    for second in range(101):
        log.moved(Reached("A", "step", second, 100, 0.0, float(second), 0))
    log.done(Reached("A", "step", 100, 100, 0.0, 100.0, 0))
    told = [line.split("step ")[1].split(" of")[0] for line in lines]
    assert told == [str(done) for done in range(10, 101, 10)], "the last is said once, as the end"
