"""How a training makes its steps: the interface that the loop knows.

`fgod.train.autograd` implements it for any causal language model of transformers, `fgod.train.device.trainer` by a
network whose backward pass is written out; `fgod.train.choose` says which one serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from transformers import PreTrainedModel

from fgod.model.chats import Sample
from fgod.train.optimizer import StepFacts, TensorOptimizer
from fgod.train.recipe import TrainRecipe
from fgod.train.record import StepRow
from fgod.train.stored import StoredTensors

Phase = Callable[[str], None]
"""Called with the name of what was just done (`fgod.guard.phases`)."""

Result = tuple[StepRow, StepFacts]
"""What became of one step."""

UPDATE_NOT_FINITE = "the weights' update is not finite, or too large to be squared"


class DivergedError(Exception):
    """Training cannot go on. The message is the reason; `step`, from 1, which step it was."""

    def __init__(self, reason: str, step: int = 0) -> None:
        super().__init__(reason)
        self.step = step


class Stepper(Protocol):
    """Makes optimizer steps. On a GPU a step's results may arrive after the next one was launched."""

    lr_factor: float
    """Of the learning rate that the recipe gives a step; 1 unless the stage is about to end (`fgod.train.dose`)."""

    @property
    def recipe(self) -> TrainRecipe: ...
    @property
    def optimizer(self) -> TensorOptimizer: ...
    @property
    def model(self) -> PreTrainedModel:
        """transformers' model on the masters as they are now."""

    @property
    def masters(self) -> StoredTensors:
        """The weights as they are stored now, by name."""

    def preflight(self, chats: Sequence[Sequence[int]]) -> float:
        """Check before the first step that what is trained is what is served.

        Returns:
            The starting model's loss on its own answers to the chats (token ids each), in nats a token.

        Raises:
            PreflightError
        """

    def launch(self, step: int, samples: Sequence[Sample]) -> None:
        """Start one optimizer step (0 is the first).

        Raises:
            DivergedError: loss, gradient or update is not finite and that is already known.
        """

    def completed(self, wait: bool) -> list[Result]:
        """Results that are there, oldest first; with `wait` those of every step that was launched.

        Raises:
            DivergedError: loss, gradient or update of one is not finite.
        """

    def reset_peak(self) -> None:
        """Start to measure memory for `peak_mib`."""

    def peak_mib(self) -> float:
        """The most memory that was in use since `reset_peak`, in MiB: on a GPU torch's there, else the process's."""
