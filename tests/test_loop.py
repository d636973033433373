"""The order of what a loop does, by a stepper that computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fgod.train.loop import Around, Diverged, make_steps
from fgod.train.optimizer import StepFacts
from fgod.train.record import StepRow
from fgod.train.stepper import DivergedError, Result, Stepper

STEPS = 6
SAMPLES = cast(Any, ["a", "b", "c"])


class Late:
    """Gives the results of all but the step that was launched last, unless it is waited for them."""

    def __init__(self, log: list[str], done: int, diverges: int) -> None:
        self.log, self.diverges = log, diverges
        self.optimizer = SimpleNamespace(steps_done=done)
        self.launched: list[int] = []

    def launch(self, step: int, samples: Sequence[Any]) -> None:
        self.launched.append(step + 1)
        self.log.append(f"launch {step} {''.join(samples)}")

    def completed(self, wait: bool) -> list[tuple[StepRow, StepFacts]]:
        there = self.launched if wait else self.launched[:-1]
        self.launched = self.launched[len(there) :]
        if self.diverges in there:
            raise DivergedError("loss is nan", self.diverges)
        return [(StepRow(step, 1.0, 0.1, 1.0, None, 9, 0.1, 1.0, None, 0.0, 0.0), cast(Any, None)) for step in there]


def trained(
    done: int = 0, diverges: int = 0, begin: Callable[[int], bool] = lambda step: True, asked: int = 0, saved: int = 0
) -> tuple[list[str], Diverged | None]:
    """What happened, in its order, and how it ended."""
    log: list[str] = []

    def ask(step: int) -> str:
        log.append(f"ask {step}")
        return "said"

    def tell(result: Result, indices: Sequence[int], said: str) -> None:
        log.append(f"told {result[0].step} samples {' '.join(map(str, indices))} {said}".strip())

    around = Around(
        begin=begin,
        asks=lambda step: step == asked,
        ask=ask,
        saves=lambda step: step in (saved, STEPS),
        save=lambda: log.append("save"),
        tell=tell,
    )
    plan = ([step % len(SAMPLES)] for step in range(STEPS))
    return log, make_steps(cast(Stepper, Late(log, done, diverges)), STEPS, plan, SAMPLES, around)


def test_all_results_are_told_once_and_in_order() -> None:
    log, end = trained()
    assert end is None and "save" not in log, "the last step is not saved on the way"
    assert [line for line in log if "told" in line] == [f"told {n} samples {(n - 1) % 3}" for n in range(1, STEPS + 1)]
    assert log[:3] == ["launch 0 a", "launch 1 b", "told 1 samples 0"], "the next step does not wait"


def test_before_weights_are_asked_or_saved_all_results_are_there() -> None:
    log, _ = trained(done=2, asked=4, saved=4)
    assert log[:6] == ["launch 2 c", "launch 3 a", "ask 4", "told 3 samples 2", "told 4 samples 0 said", "save"]


def test_training_ends_where_no_step_is_to_begin() -> None:
    log, end = trained(begin=lambda step: step < 3, saved=3)
    assert end is None and log[-2:] == ["told 3 samples 2", "save"]


@pytest.mark.parametrize("step", [2, STEPS])
def test_the_samples_of_the_step_that_diverged_are_named(step: int) -> None:
    log, end = trained(diverges=step)
    assert end == Diverged(f"step {step} of {STEPS}: loss is nan", [(step - 1) % 3])
    assert f"told {step} " not in " ".join(log)
