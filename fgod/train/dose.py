"""Early stopping: probes are asked while a stage trains, and it ends when they hold.

    train: {steps: 400, lr: 1.0e-5, check: {every: 20, until: {identity: ">=0.95"}}}

Every `every` steps the weights, rounded once, answer the probes of the split check (`fgod.evaluate.checked`). When
`until` holds twice in a row, the learning rate decays over `decay` steps; if it holds once more then, the stage ends,
else training goes on as it was. What comes next depends on the results so far alone (`state_after`), so that a run that
was stopped goes on the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from fgod.chat import Chat
from fgod.data.rows import Message
from fgod.evaluate.checked import CheckProbes
from fgod.evaluate.requirements import COMPARE, comparison
from fgod.evaluate.scoring import Said
from fgod.model.attention import no_plans
from fgod.model.chats import ChatFormat
from fgod.model.generate import greedy, loops
from fgod.nvfp4.layers import StraightThroughLinear, quantised_once
from fgod.train.memory import ASKED_AT_ONCE
from fgod.train.recipe import Check

TWICE = 2
"""Checks in a row that must hold before the rate decays."""


# ---------------------------------------------------------------------------------------------- the controller


@dataclass(frozen=True)
class Result:
    """A check after `step` steps: the share of right answers of each suite, and whether `until` holds."""

    step: int
    shares: Mapping[str, float]
    held: bool

    @property
    def words(self) -> str:
        """`identity 0.950, disambiguation 0.900`."""
        return ", ".join(f"{suite} {share:.3f}" for suite, share in self.shares.items())


@dataclass(frozen=True)
class State:
    """`decays_from`: the step after which the rate decays; `ended`: nothing more is to be trained."""

    decays_from: int | None = None
    ended: bool = False


def state_after(results: Sequence[Result], decay: int) -> State:
    """What the results of all checks so far come to."""
    row, decays_from = 0, None
    for result in results:
        if decays_from is not None:
            if result.held:
                return State(decays_from, ended=True)
            row, decays_from = 0, None
        else:
            row = row + 1 if result.held else 0
            decays_from = result.step if row == TWICE else None
    return State(decays_from)


def is_due(step: int, state: State, check: Check) -> bool:
    """Whether the probes are asked after so many steps."""
    return step % check.every == 0 if state.decays_from is None else step == state.decays_from + check.decay


def lr_factor(step: int, state: State, check: Check) -> float:
    """Of the learning rate of a step (0 is the first): along a line from 1 to next to nothing while it decays."""
    if state.decays_from is None:
        return 1.0
    return 1 - (step + 1 - state.decays_from) / (check.decay + 1)


def holds(shares: Mapping[str, float], until: Mapping[str, str]) -> bool:
    """Whether every share is as `until` says."""
    for name, text in until.items():
        op, limit = comparison(text)
        if not COMPARE[op](shares[name], limit):
            return False
    return True


# ---------------------------------------------------------------------------------------------- asking


class Asker:
    """Asks the probes of a model that trains."""

    def __init__(self, check: Check, chat: ChatFormat, checked: CheckProbes) -> None:
        self.check, self.chat, self.checked = check, chat, checked
        self.chats = [Chat((*p.history, Message("user", p.prompt)), p.system) for p in checked.probes]

    def ask(self, model: PreTrainedModel, step: int) -> Result:
        """What a prepared model answers with its weights rounded once; it trains on as before afterwards."""
        quantised_once(model)
        try:
            with no_plans():
                replies = greedy(model, self.chat, self.chats, self.check.max_new_tokens, ASKED_AT_ONCE)
        finally:
            for module in model.modules():
                if isinstance(module, StraightThroughLinear):
                    module.quantised = None
        shares = self.checked.shares([Said(reply.text, reply.ended, loops(reply.text)) for reply in replies])
        return Result(step, shares, holds(shares, self.check.until))
