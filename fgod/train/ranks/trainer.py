"""Steps of one rank among several: its rows of each batch, with what they come to on every rank the same."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fgod.errors import UsageError
from fgod.models.architecture import architecture_of
from fgod.nvfp4.folders import DTYPES, read_plain_config
from fgod.train.batches import Batch
from fgod.train.device.network import Inputs, SavePolicy
from fgod.train.device.ops import Say, choose_ops
from fgod.train.device.plan import layer_plan
from fgod.train.device.trainer import LABELS, DeviceStepper, padded
from fgod.train.device.weights import Masters, as_module, stream_in
from fgod.train.distil import SoftLabels
from fgod.train.optimizer import lr_factors
from fgod.train.preflight import check_forward, check_network
from fgod.train.ranks.group import Ranks
from fgod.train.ranks.network import RankNetwork
from fgod.train.ranks.optimizer import RankGradients, RankOptimizer, RankTensors
from fgod.train.ranks.shards import Shards, split, stream_shard
from fgod.train.recipe import Kl, TrainRecipe, check_recipe
from fgod.train.stepper import Phase
from fgod.train.stored import StoredTensors


def rows_of_rank(batch: Batch, rank: int, rows: int) -> Batch:
    """The rows rank · rows, … of a batch, perhaps none; `tokens` stays that of the whole batch."""
    width, first = batch.input_ids.shape[1], rank * rows
    ids = batch.input_ids[first : first + rows]
    inside = (batch.positions >= first * width) & (batch.positions < (first + rows) * width)
    soft = None if batch.soft is None else SoftLabels(*(part[inside] for part in batch.soft))
    return Batch(ids, batch.positions[inside] - first * width, batch.labels[inside], batch.tokens, soft)


def inputs_of_rank(batch: Batch, rank: int, count: int, rows: int, pad: int, kl: Kl | None) -> tuple[Inputs, Tensor]:
    """What a rank gets of a batch, and where the batch's labels are among those of all ranks.

    Args:
        rows: of the whole batch, filled up.
    """
    each = -(-rows // count)
    parts = [rows_of_rank(batch, one, each) for one in range(count)]
    most = max(len(part.labels) for part in parts)
    most += -most % LABELS
    made = [padded(part, each, pad, kl, most) for part in parts]
    real = torch.cat([torch.arange(one * most, one * most + len(part.labels)) for one, part in enumerate(parts)])
    labels, weights = (torch.cat([getattr(one, name) for one in made]) for name in ("labels", "weights"))
    softs = [one.soft for one in made]
    first, own = softs[0], made[rank]
    soft = None if first is None else type(first)(*map(torch.cat, zip(*softs, strict=True)))
    return Inputs(own.ids, own.positions, labels, weights, soft), real


@dataclass(frozen=True)
class Asked:
    """What a rank's stepper is made for.

    Args:
        start: folder of plain weights to start from.
        seed: of stochastic rounding.
        pad: token id that fills rows up.
        graphs: use CUDA graphs where they work.
    """

    start: Path
    recipe: TrainRecipe
    seed: int
    pad: int
    phase: Phase
    say: Say
    graphs: bool = True


class RankStepper(DeviceStepper):
    """A `Stepper` of one rank; every rank must make the same calls."""

    capture_error_mode = "thread_local"  # NCCL's watchdog is another thread

    network: RankNetwork
    optimizer: RankOptimizer

    def __init__(self, network: RankNetwork, optimizer: RankOptimizer, asked: Asked) -> None:
        super().__init__(network, optimizer, asked.recipe, asked.pad, asked.say, asked.graphs, asked.phase)
        self.ranks, self.start = network.ranks, asked.start

    def _gradients(self) -> RankGradients:
        return RankGradients(self.optimizer, self.network.masters)

    @property
    def model(self) -> PreTrainedModel:
        raise UsageError(
            f"train.gpus: found {self.ranks.count}; a model whose weights lie on several GPUs cannot be asked; "
            "expected gpus: 1 with train.check"
        )

    @property
    def masters(self) -> StoredTensors:
        shards, own = self.network.shards, self.optimizer.tensors
        local = {name: {"w": tensor.parameter} for name, tensor in own.items()}
        like = {name: {"w": whole} for name, whole in shards.whole.tensors.items()}
        return RankTensors(self.ranks, shards, local, like, alone=True)

    def preflight(self, chats: Sequence[Sequence[int]]) -> float:
        """The first rank has the whole model for a moment, with which the network of all ranks is compared."""
        self.measure()
        first_loss = 0.0
        if self.ranks.first:
            config = self.network.masters.config
            whole = stream_in(self.start, config, self.recipe.master_dtype, self.device)
            model = as_module(whole, self.recipe.compute_dtype, self.recipe.block_scales)
            first_loss = check_forward(model, chats)
            check_network(self._logits(chats), model, chats)
            del model, whole
            gc.collect()  # modules refer to each other in circles: without it the whole model stays for some steps
        else:
            for _ in self._logits(chats):
                pass
        return self.ranks.agreed(first_loss)

    def _inputs(self, batch: Batch) -> tuple[Inputs, slice | Tensor]:
        rows = self.recipe.micro_batch or self.recipe.batch
        return inputs_of_rank(batch, self.ranks.rank, self.ranks.count, rows, self.pad, self.recipe.kl)

    def plan(self, tokens: int) -> list[SavePolicy]:
        return layer_plan(self.network.masters.config, self.recipe, tokens, self.ranks.count)

    def peak_mib(self) -> float:
        """That of the rank that had most."""
        own = torch.tensor([super().peak_mib()], device=self.device)
        return round(self.ranks.largest(own).item(), 1)


def rank_stepper(ranks: Ranks, asked: Asked) -> RankStepper:
    """Stream a rank's masters in, with its network and optimizer.

    Raises:
        UsageError: the recipe or the model's family is not for several GPUs.
    """
    start, recipe = asked.start, asked.recipe
    config = read_plain_config(start)
    check_recipe(recipe, ranks.count)
    shards = split(config, recipe.master_dtype, ranks.count, str(start))
    return stepper_of(ranks, shards, stream_shard(start, shards, ranks.rank, ranks.device), asked)


def stepper_of(ranks: Ranks, shards: Shards, masters: Masters, asked: Asked) -> RankStepper:
    """The same of masters that are there; raises UsageError as `rank_stepper` does."""
    config, recipe = masters.config, asked.recipe
    if not architecture_of(config, str(asked.start)).hand_written(config):
        raise UsageError(
            f"{asked.start}: found model_type {config['model_type']} with train.gpus: {ranks.count}, which no "
            "hand-written network computes; expected a dense family (llama, mistral, qwen2, qwen3), or gpus: 1"
        )
    ops = choose_ops(ranks.device, asked.say)
    factors = lr_factors(shards.whole.tensors, recipe.lr_scale, config.get("tie_word_embeddings", False))
    network = RankNetwork(masters, shards, ranks, ops, DTYPES[recipe.compute_dtype], recipe)
    optimizer = RankOptimizer(masters, shards, ranks, recipe, factors, asked.seed, ops)
    return RankStepper(network, optimizer, asked)
