"""Optimizer steps on a device, each as a CUDA graph where its shape is known, with its results a step later.

Shapes are few: rows are padded to the batch, tokens to the recipe's `length_bucket`, labels to a multiple of
`LABELS`; packed rows are filled up as `attention.packed_size` says. The first step of a shape runs as it is written
(and compiles what is compiled), the second is captured, every later one is replayed. Where capture fails the step runs
as it is written from then on, and that is said.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fgod.model.chats import Sample
from fgod.models.architecture import architecture_of
from fgod.nvfp4.folders import DTYPES, read_plain_config
from fgod.system.procfs import forget_peak, peak_mib, resident_mib
from fgod.train.batches import Batch, micro_batches, packed, pieces, row_losses
from fgod.train.device.attention import PACKED, PackedRows, packed_size
from fgod.train.device.head import SoftTargets
from fgod.train.device.module import ModuleNetwork
from fgod.train.device.network import Inputs, Network, SavePolicy
from fgod.train.device.ops import Ops, Say, choose_ops
from fgod.train.device.optimizer import Gradients, GroupGradients, device_optimizer
from fgod.train.device.plan import layer_plan
from fgod.train.device.weights import Masters, as_module, stream_in
from fgod.train.distil import LossParts, SoftLabels, Weighed, hard_labels, label_weights, rehearsed_labels
from fgod.train.efficiency import Projection
from fgod.train.optimizer import StepFacts, TensorOptimizer, lr_factors
from fgod.train.preflight import check_forward, check_network
from fgod.train.recipe import PACKED_ROWS, Kl, TrainRecipe
from fgod.train.record import StepRow, numbers
from fgod.train.stepper import UPDATE_NOT_FINITE, DivergedError, Phase, Result
from fgod.train.stored import OwnTensors, StoredTensors

LABELS = 64
"""Labels are filled up to a multiple of this many: fewer shapes."""

LAG = 1
"""Steps that may be under way when the results of an earlier one are read: the host prepares while the device works."""


@dataclass
class _PendingStep:
    """A step whose results are not yet read."""

    step: int
    lr: float
    tokens: int
    labels: tuple[int, Weighed]
    """All, and rehearsed ones."""
    samples: Sequence[Sample]
    loss: Tensor
    each: list[tuple[Tensor, slice | Tensor]]
    """Of each piece what its labels add to the loss, and which of these are labels."""
    step_stats: Tensor
    done: torch.cuda.Event | None


def padded(batch: Batch, rows: int, pad: int, kl: Kl | None = None, labels_to: int = 0, longest: int = 0) -> Inputs:
    """A batch on the host, rows and labels filled up; the weight of a label is what it counts beside others.

    Args:
        labels_to: how many labels there must be; 0: the next multiple of `LABELS`, or their `packed_size`.
        longest: tokens that a packed row has at most, in any step.
    """
    ids, where = _filled(batch, rows, pad, longest)
    count = len(batch.labels)
    padded_size = count + -count % LABELS if where is None else packed_size(count)
    more = (labels_to or padded_size) - count
    positions, labels = (torch.zeros(count + more, dtype=torch.int64) for _ in range(2))
    positions[:count], labels[:count] = batch.positions, batch.labels
    weights = torch.zeros(len(labels))
    weights[:count] = 1.0
    if kl is None or batch.soft is None:
        return Inputs(ids, positions, labels, weights, packed=where)
    fill = hard_labels(torch.zeros(more, dtype=torch.int64), batch.soft.ids.shape[1])
    soft = SoftLabels(*map(torch.cat, zip(batch.soft, fill, strict=True)))
    counts, cooling = label_weights(soft, kl)
    targets = SoftTargets(*soft[:3], soft.rehearsed.float(), cooling)
    return Inputs(ids, positions, labels, weights * counts, targets, where)


def _filled(batch: Batch, rows: int, pad: int, longest: int) -> tuple[Tensor, PackedRows | None]:
    """Ids of a batch of so many rows. What fills packed rows up is a row more, the last one."""
    found = batch.input_ids
    if batch.starts is None:
        ids = torch.full((rows, found.shape[1]), pad)
        ids[: len(found)] = found
        return ids, None
    count = found.shape[1]
    ids = torch.full((1, packed_size(count)), pad)
    ids[:, :count] = found
    starts = torch.full((rows + 2,), count, dtype=torch.int32)
    starts[: len(batch.starts)] = batch.starts
    starts[-1] = ids.shape[1]
    return ids, PackedRows(starts, max(longest, PACKED))


class _Shape:
    """Steps of one shape: where their inputs lie on the device, and their graph once it is captured."""

    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self.inputs = inputs.empty_like(device)
        self.loss = torch.zeros((2,) if inputs.soft is not None else (), device=device)
        self.each = torch.zeros(len(inputs.labels), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.seen = 0


class DeviceStepper:
    """A `Stepper` of a network with a hand-written backward pass. `layer_plan` decides what its layers save."""

    capture_error_mode = "global"
    """As `torch.cuda.graph` takes it: calls of which threads break a capture."""

    def __init__(
        self,
        network: Network | ModuleNetwork,
        optimizer: TensorOptimizer,
        recipe: TrainRecipe,
        pad: int,
        say: Say,
        graphs: bool = True,
        phase: Phase = lambda _: None,
    ) -> None:
        self.network, self.optimizer, self.recipe, self.pad, self.say = network, optimizer, recipe, pad, say
        self.phase, self.lr_factor = phase, 1.0
        self.gradients = self._gradients()
        self.device = network.masters.device
        self.graphs = graphs and self.device.type == "cuda" and recipe.step_in_backward
        if graphs and self.device.type == "cuda" and not recipe.step_in_backward:
            say("CUDA graphs hold steps with step_in_backward: true; this recipe's run as they are written")
        self.packs = recipe.batching == PACKED_ROWS and network.packs
        if recipe.batching == PACKED_ROWS and not network.packs:
            say(
                f"train.batching: {PACKED_ROWS}: rows are padded; on a GPU they are packed in bfloat16, for models "
                "that fgod's own network computes, with heads of 8, 16, … 256"
            )
        self.shapes: dict[tuple[int, ...], _Shape] = {}
        self.pending: deque[_PendingStep] = deque()
        self.last = time.perf_counter()
        self.pool = torch.cuda.graph_pool_handle() if self.graphs else None
        self._sent: deque[tuple[Tensor, ...]] = deque(maxlen=LAG + 3)
        rows = [[optimizer.whole_names.index(n) for n in network.masters.members[group]] for group in network.scaled]
        most = max(map(len, rows))
        self._members = torch.tensor([(row + row[:1] * most)[:most] for row in rows], device=self.device)

    def _gradients(self) -> Gradients:
        """Where gradients go."""
        return GroupGradients(self.optimizer, self.network.masters)

    @property
    def masters(self) -> StoredTensors:
        return OwnTensors(self.network.masters.tensors)

    @property
    def model(self) -> PreTrainedModel:
        return as_module(self.network.masters, self.recipe.compute_dtype, self.recipe.block_scales)

    def preflight(self, chats: Sequence[Sequence[int]]) -> float:
        model = self.model
        first_loss = check_forward(model, chats)
        self.measure()
        check_network(self._logits(chats), model, chats)
        return first_loss

    def _logits(self, chats: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """float32 [T, V] of each chat, with rows laid out as in training: two packed ones, or one that is filled up to
        a multiple of the bucket, as every shape is compiled anew."""
        network = self.network
        if not (self.packs and isinstance(network, Network)):
            for chat in chats:
                more = -len(chat) % self.recipe.length_bucket
                ids = torch.tensor([[*chat, *[self.pad] * more]], device=self.device)
                yield network.logits(ids)[0, : len(chat)]
            return
        for two in (chats[at : at + 2] for at in range(0, len(chats), 2)):
            batch = packed([Sample((*chat, self.pad), len(chat)) for chat in two])
            ids, where = _filled(batch, len(two), self.pad, self.recipe.seq_len)
            where = where and where._replace(starts=where.starts.to(self.device))
            lengths = [*map(len, two)]
            yield from network.logits(ids.to(self.device), where)[0, : sum(lengths)].split(lengths)

    # -------------------------------------------------------------------------------------------------------- a step

    def launch(self, step: int, samples: Sequence[Sample]) -> None:
        self.phase("batch_ready")
        lr = self.recipe.lr_at(step) * self.lr_factor
        batches = self._batches(samples)
        labels = sum(len(batch.labels) for batch in batches)
        values = self.optimizer.host_numbers(lr)
        self._send(self.optimizer.on_device, values)
        rehearsed = rehearsed_labels((batch.soft for batch in batches), self.recipe.kl)
        loss = torch.zeros((2,) if rehearsed.labels else (), device=self.device)
        each: list[tuple[Tensor, slice | Tensor]] = []
        self._begin_pieces()
        for number, batch in enumerate(batches):
            inputs, real = self._inputs(batch)
            inputs.weights.div_(labels)
            last = number + 1 == len(batches)
            taught_alone = inputs.soft is None and rehearsed.labels > 0
            part = loss[0] if taught_alone else loss
            shape = self._piece(inputs, last)
            part += shape.loss
            each.append((self._read_back(shape.each), real))  # the next piece may be of the same shape
        tokens, counts = sum(batch.tokens for batch in batches), (labels, rehearsed)
        loss, step_stats = self._read_back(loss), self._read_back(self.optimizer.whole_stats)
        self.pending.append(
            _PendingStep(step, lr, tokens, counts, samples, loss, each, step_stats, self._all_enqueued())
        )
        self.phase("optimizer_step_done")

    def _inputs(self, batch: Batch) -> tuple[Inputs, slice | Tensor]:
        """A batch as it is sent to the device, and where its labels are among those that fill up."""
        rows = self.recipe.micro_batch or self.recipe.batch
        inputs = padded(batch, rows, self.pad, self.recipe.kl, longest=self.recipe.seq_len)
        return inputs, slice(len(batch.labels))

    def _batches(self, samples: Sequence[Sample]) -> list[Batch]:
        if self.packs:
            return [packed(piece) for piece in pieces(samples, self.recipe.micro_batch)]
        return micro_batches(samples, self.recipe.micro_batch, self.pad, self.recipe.length_bucket)

    def _begin_pieces(self) -> None:
        """Before the first piece of a step that is no graph."""
        if not self.recipe.step_in_backward:
            self.measure()
            self.optimizer.begin_step()

    def measure(self) -> None:
        """Global scales of the masters as they are now."""
        self.network.measure_scales(self.optimizer.whole_amaxes, self._members)

    def _send(self, targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Copy from the host without waiting; what is sent stays alive until the device has surely read it."""
        if self.device.type == "cuda":
            values = tuple(value.pin_memory() for value in values)
        for target, value in zip(targets, values, strict=True):
            target.copy_(value, non_blocking=True)
        self._sent.append(tuple(values))

    def _piece(self, inputs: Inputs, last: bool) -> _Shape:
        """Compute a piece; its losses are those of its shape, until the next piece of the same one."""
        key = (*inputs.ids.shape, len(inputs.labels), 0 if inputs.soft is None else inputs.soft.ids.shape[1])
        shape = self.shapes.get(key)
        if shape is None:
            shape = self.shapes[key] = _Shape(inputs, self.device)
        self._send(shape.inputs.tensors(), inputs.tensors())
        shape.seen += 1
        if shape.graph is None and self.graphs and shape.seen > 1:
            self._capture(shape, key)
        if shape.graph is not None:
            shape.graph.replay()
        else:
            self._compute(shape, last)
        return shape

    def _compute(self, shape: _Shape, last: bool = True) -> None:
        """What a graph holds: the step, or of a step in pieces one piece (and the optimizer after the last)."""
        if self.recipe.step_in_backward:
            self.measure()
            self.optimizer.begin_step()
        tokens = shape.inputs.ids.numel()
        each = self.network.label_losses(shape.inputs, self.plan(tokens), self.gradients.on_grad)
        shape.each.copy_(each)
        shape.loss.copy_(shape.inputs.summed(each))
        if last:
            self.gradients.finish_step()
        else:
            self.gradients.finish_piece()

    def plan(self, tokens: int) -> list[SavePolicy]:
        """What each layer keeps at so many tokens."""
        return layer_plan(self.network.masters.config, self.recipe, tokens)

    def _capture(self, shape: _Shape, key: tuple[int, ...]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()  # blocks of steps as they are written are not the graph's
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode=self.capture_error_mode):
                self._compute(shape)
            shape.graph = graph
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch raises what the call inside the capture raised
            first = (str(error).strip().splitlines() or [""])[0]
            self.say(f"steps of shape {key} cannot be captured as a CUDA graph ({first}): they run as they are written")
            self.graphs = False
            torch.cuda.synchronize(self.device)

    # -------------------------------------------------------------------------------------------------------- results

    def _read_back(self, value: Tensor) -> Tensor:
        """The value on the host, once what is enqueued by now is done (`_all_enqueued`)."""
        if self.device.type != "cuda":
            return value.clone()
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        host.copy_(value, non_blocking=True)
        return host

    def _all_enqueued(self) -> torch.cuda.Event | None:
        """An event that comes when the device has done all that is enqueued by now; None on a CPU, which has."""
        if self.device.type != "cuda":
            return None
        done = torch.cuda.Event()
        done.record()
        return done

    def completed(self, wait: bool = False) -> list[Result]:
        out = []
        while len(self.pending) > (0 if wait else LAG):
            pending = self.pending.popleft()
            if pending.done is not None:
                pending.done.synchronize()
            out.append(self._result(pending))
        for row, facts in out:
            _check_finite(row, facts)
        return out

    def _result(self, pending: _PendingStep) -> Result:
        facts = self.optimizer.facts(pending.step_stats)
        whole: Projection = facts.whole
        now = time.perf_counter()
        seconds, self.last = round(now - self.last, 6), now
        taught, *rehearsed = pending.loss.flatten().tolist()
        loss = LossParts(taught, sum(rehearsed))
        row = StepRow(
            pending.step + 1, loss.loss, pending.lr, facts.grad_norm, whole.ratio(), pending.tokens, seconds,
            memory_mib(self.device), whole.noise(), whole.largest, whole.clamped_share(),
            *loss.means(*pending.labels, self.recipe.kl), row_losses=self._row_losses(pending),
        )  # fmt: skip
        return row, facts

    def _row_losses(self, pending: _PendingStep) -> str:
        """Of each row; a label's loss was divided by the count of all."""
        losses = (torch.cat([each[real] for each, real in pending.each]) * pending.labels[0]).tolist()
        return numbers(row_losses(pending.samples, self.recipe.micro_batch, losses))

    def reset_peak(self) -> None:
        forget_peak()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mib(self) -> float:
        if self.device.type != "cuda":
            return peak_mib()
        return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)


def _check_finite(row: StepRow, facts: StepFacts) -> None:
    """Raises DivergedError."""
    for found, words in ((row.loss, "the loss is"), (row.grad_norm, "the gradient's norm is")):
        if not math.isfinite(found):
            raise DivergedError(f"{words} {found}", row.step)
    if not facts.whole.finite():
        raise DivergedError(UPDATE_NOT_FINITE, row.step)


def memory_mib(device: torch.device) -> float:
    """What torch has taken of the device, or what is resident on a CPU, in MiB."""
    if device.type == "cuda":
        return round(torch.cuda.memory_reserved(device) / 2**20, 1)
    return resident_mib()


def device_stepper(
    device: torch.device, start: Path, recipe: TrainRecipe, seed: int, pad: int, phase: Phase, say: Say
) -> DeviceStepper:
    """Stream the masters of a folder of plain weights to a device, with a network and an optimizer for all of them.

    The network is the hand-written one where that computes the model's family, else transformers' own.
    """
    masters = stream_in(start, read_plain_config(start), recipe.master_dtype, device)
    ops = choose_ops(device, say)
    factors = lr_factors(masters.tensors, recipe.lr_scale, masters.config.get("tie_word_embeddings", False))
    network = choose_network(masters, recipe, ops)
    optimizer = device_optimizer(masters, recipe, factors, seed, ops)
    return DeviceStepper(network, optimizer, recipe, pad, say, phase=phase)


def choose_network(masters: Masters, recipe: TrainRecipe, ops: Ops) -> Network | ModuleNetwork:
    """The hand-written network where it computes the masters' family, else transformers' model under autograd."""
    dtype, config = DTYPES[recipe.compute_dtype], masters.config
    if architecture_of(config, "config.json").hand_written(config):
        return Network(masters, ops, dtype, recipe.block_scales, recipe.head_gradient)
    return ModuleNetwork(masters, dtype, recipe.block_scales, ops, recipe.head_gradient)
