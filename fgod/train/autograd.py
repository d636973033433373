"""Steps of any causal language model of transformers: its own forward pass, torch's autograd, our optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, float32
from torch.nn import functional as F
from transformers import PreTrainedModel

from fgod.model.chats import Sample
from fgod.model.load import quiet
from fgod.model.masters import load_masters
from fgod.nvfp4.codec import NonFiniteError
from fgod.system.procfs import forget_peak, peak_mib, resident_mib
from fgod.train.batches import Batch, micro_batches, row_losses
from fgod.train.distil import LossParts, SoftLabels, divergence, label_weights, rehearsed_labels
from fgod.train.memory import trained_names
from fgod.train.optimizer import StepFacts, TensorOptimizer, lr_factors
from fgod.train.preflight import check_forward
from fgod.train.recipe import Kl, TrainRecipe
from fgod.train.record import StepRow, numbers
from fgod.train.stepper import UPDATE_NOT_FINITE, DivergedError, Phase, Result
from fgod.train.stored import OwnTensors, StoredTensors


def answer_loss(model: PreTrainedModel, batch: Batch, kind: str = "ce") -> Tensor:
    """Sum over labels of what `label_losses` gives."""
    return label_losses(model, batch, kind).sum()


def label_losses(model: PreTrainedModel, batch: Batch, kind: str = "ce", head_gradient: float = 1.0) -> Tensor:
    """The cross entropy of each label [L]; the head sees only their positions: other logits never exist.

    Of the kind `scalar`, a debugging baseline, mean |hidden state| at each label.
    """
    hidden = _label_states(model, batch)
    if kind == "scalar":
        return hidden.float().abs().mean(-1)
    logits = head_logits(model, hidden, head_gradient)
    return F.cross_entropy(logits.float(), batch.labels.to(hidden.device), reduction="none")


def head_logits(model: PreTrainedModel, hidden: Tensor, head_gradient: float = 1.0) -> Tensor:
    """Logits [L, V] of hidden states [L, H]; the gradient of the head's weight by them is multiplied by a factor."""
    logits: Tensor = model.lm_head(hidden)
    if head_gradient == 1:
        return logits
    again = model.lm_head(hidden.detach())  # has a gradient by the weight alone, and adds exactly 0
    return logits + (head_gradient - 1) * (again - again.detach())


def soft_loss(model: PreTrainedModel, batch: Batch, soft: SoftLabels, kl: Kl) -> Tensor:
    """Sums over labels [2]: the cross entropy of taught ones, and the weighted KL of rehearsed ones."""
    return summed(soft_label_losses(model, batch, soft, kl), soft)


def soft_label_losses(
    model: PreTrainedModel, batch: Batch, soft: SoftLabels, kl: Kl, head_gradient: float = 1.0
) -> Tensor:
    """Of each label [L] the cross entropy, or the weighted KL of a rehearsed one."""
    hidden = _label_states(model, batch)
    soft = SoftLabels(*(part.to(hidden.device) for part in soft))
    weights, cooling = label_weights(soft, kl)
    return divergence(head_logits(model, hidden, head_gradient), soft, cooling) * weights


def summed(each: Tensor, soft: SoftLabels) -> Tensor:
    """Sums [2] of the losses of labels [L]: of taught ones, and of rehearsed ones."""
    rehearsed = soft.rehearsed.to(each.device).float()
    return torch.stack(((each * (1 - rehearsed)).sum(), (each * rehearsed).sum()))


def _label_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Final hidden states [L, H] from which the labels are predicted."""
    device = model.lm_head.weight.device
    hidden: Tensor = model.model(input_ids=batch.input_ids.to(device), use_cache=False).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, batch.positions.to(device))


@dataclass
class AutogradStepper:
    """A `Stepper` whose steps are done when they were launched. `pad`: token id that fills rows up."""

    model: PreTrainedModel
    optimizer: TensorOptimizer
    recipe: TrainRecipe
    pad: int
    phase: Phase
    done: list[Result] = field(default_factory=list)
    lr_factor: float = 1.0

    @property
    def masters(self) -> StoredTensors:
        return OwnTensors({name: parameter.detach() for name, parameter in self.model.named_parameters()})

    def preflight(self, chats: Sequence[Sequence[int]]) -> float:
        return check_forward(self.model, chats)

    def launch(self, step: int, samples: Sequence[Sample]) -> None:
        try:
            self.done.append(self.step(step, samples))
        except DivergedError as error:
            raise DivergedError(str(error), step + 1) from error

    def completed(self, wait: bool) -> list[Result]:
        done, self.done = self.done, []
        return done

    def reset_peak(self) -> None:
        forget_peak()

    def peak_mib(self) -> float:
        return peak_mib()

    def backward(self, pieces: list[Batch]) -> tuple[LossParts, list[float]]:
        """Gradients of the mean loss over all labels of the pieces; what it is made of, and the loss of each label."""
        labels = sum(len(piece.labels) for piece in pieces)
        total, losses = LossParts(0.0, 0.0), []
        for piece in pieces:
            each, sums = self._losses(piece)
            parts = sums / labels
            taught, rehearsed = parts.tolist()
            total = LossParts(total.taught + taught, total.rehearsed + rehearsed)
            if not math.isfinite(total.loss):
                raise DivergedError(f"the loss is {total.loss}")
            losses += each.tolist()
            parts.sum().backward()
        return total, losses

    def _losses(self, piece: Batch) -> tuple[Tensor, Tensor]:
        """Of each label [L], and the sums [2]: of taught ones, and of rehearsed ones."""
        if self.recipe.kl is not None and piece.soft is not None:
            each = soft_label_losses(self.model, piece, piece.soft, self.recipe.kl, self.recipe.head_gradient)
            return each, summed(each, piece.soft)
        each = label_losses(self.model, piece, self.recipe.loss, self.recipe.head_gradient)
        loss = each.sum()
        return each, torch.stack((loss, torch.zeros_like(loss)))

    def step(self, step: int, samples: Sequence[Sample]) -> Result:
        """One optimizer step (0 is the first).

        Raises:
            DivergedError: loss, gradient or update is not finite.
        """
        begin = time.perf_counter()
        pieces = micro_batches(samples, self.recipe.micro_batch, self.pad, self.recipe.length_bucket)
        self.phase("batch_ready")
        self.optimizer.zero_grad()
        self.phase("zero_grad_done")
        lr = self.recipe.lr_at(step) * self.lr_factor
        try:
            loss, losses, facts = self._update(pieces, lr)
        except NonFiniteError as error:
            raise DivergedError(str(error)) from error
        self.phase("optimizer_step_done")
        if not facts.whole.finite():
            raise DivergedError(UPDATE_NOT_FINITE)
        seconds = round(time.perf_counter() - begin, 6)
        tokens, whole = sum(piece.tokens for piece in pieces), facts.whole
        labels = sum(len(piece.labels) for piece in pieces)
        rehearsed = rehearsed_labels((piece.soft for piece in pieces), self.recipe.kl)
        row = StepRow(
            step + 1, loss.loss, lr, facts.grad_norm, whole.ratio(), tokens, seconds, resident_mib(), whole.noise(),
            whole.largest, whole.clamped_share(), *loss.means(labels, rehearsed, self.recipe.kl),
            row_losses=numbers(row_losses(samples, self.recipe.micro_batch, losses)),
        )  # fmt: skip
        return row, facts

    def _update(self, pieces: list[Batch], lr: float) -> tuple[LossParts, list[float], StepFacts]:
        """Backward pass and optimizer, the second inside the first or after it; the loss, and that of each label."""
        if self.recipe.step_in_backward:
            self.optimizer.begin(lr)
            loss, losses = self.backward(pieces)
            self.phase("backward_done")
            facts = self.optimizer.finish()
            _check_norm(facts.grad_norm)
            return loss, losses, facts
        loss, losses = self.backward(pieces)
        self.phase("backward_done")
        facts = self.optimizer.step(lr)
        _check_norm(facts.grad_norm)
        return loss, losses, facts


def _check_norm(grad_norm: float) -> None:
    if not math.isfinite(grad_norm):
        raise DivergedError(f"the gradient's norm is {grad_norm}")


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Compute each layer again in the backward pass. Only layers themselves count as training: nothing drops out."""
    with quiet():  # newer versions of transformers have another name for it
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in model.model.layers:
        layer.training = True


def autograd_stepper(start: Path, recipe: TrainRecipe, seed: int, pad: int, phase: Phase) -> AutogradStepper:
    """Load masters and an optimizer for all of them, or for those that a debugging recipe trains."""
    model = load_masters(
        start, recipe.compute_dtype, recipe.block_scales, recipe.master_dtype, not recipe.step_in_backward
    )
    if recipe.activation_checkpointing:
        checkpoint_layers(model)
    names = set(trained_names(model.config.to_dict(), recipe, str(start)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if not recipe.step_in_backward:
            parameter.grad_dtype = float32
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
    factors = lr_factors(parameters, recipe.lr_scale, model.config.tie_word_embeddings)
    return AutogradStepper(model, TensorOptimizer(parameters, recipe, factors, seed), recipe, pad, phase)
