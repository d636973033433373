"""The steps of a training, one after the other. It knows a `Stepper` and samples alone: no recipe, file or rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from fgod.model.chats import Sample
from fgod.train.stepper import DivergedError, Result, Stepper


@dataclass(frozen=True)
class Around:
    """What is done around the steps.

    Args:
        begin: before a step, by its number from 0; False: it is not made, and training ends.
        asks: whether `ask` follows after so many steps. It is called before the last of them is made.
        ask: asks the weights after so many steps; gives what they said, in words.
        saves: whether `save` follows after so many steps. Not called of the last step.
        save: writes the weights down, as they are after all steps so far.
        tell: takes the result of each step, in their order, with the indices of its samples and what `ask` gave after
            it, or nothing; may raise what ends training.
    """

    begin: Callable[[int], bool]
    asks: Callable[[int], bool]
    ask: Callable[[int], str]
    saves: Callable[[int], bool]
    save: Callable[[], None]
    tell: Callable[[Result, Sequence[int], str], None]


@dataclass(frozen=True)
class Diverged:
    """Why training cannot go on, and the indices of the samples of the step that showed it."""

    reason: str
    indices: Sequence[int]


def make_steps(
    stepper: Stepper, steps: int, plan: Iterator[list[int]], samples: Sequence[Sample], around: Around
) -> Diverged | None:
    """Make the steps that are not done yet; None where training did not diverge.

    Args:
        steps: of the whole training.
        plan: which samples each step takes, from the first one of the training.

    Raises what `around` does.
    """
    done = stepper.optimizer.steps_done
    taken: dict[int, list[int]] = {}
    for step, indices in enumerate(islice(plan, done, None), start=done + 1):
        taken[step] = indices
        if not around.begin(step - 1):
            return None
        asks = around.asks(step)
        try:
            stepper.launch(step - 1, [samples[index] for index in indices])
            saves = step < steps and around.saves(step)
            results = stepper.completed(step == steps or saves or asks)
        except DivergedError as error:
            return Diverged(f"step {error.step} of {steps}: {error}", taken.get(error.step, []))
        said = around.ask(step) if asks else ""
        for result in results:
            told = result[0].step
            around.tell(result, taken.pop(told), said if told == step else "")
        if saves:
            around.save()
    return None
