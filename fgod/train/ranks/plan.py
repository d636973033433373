"""What each GPU of a run on several needs, from a config and a recipe. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fgod.models.architecture import architecture_of
from fgod.models.names import EMBEDDING
from fgod.nvfp4.folders import DTYPES
from fgod.train.device.head import chunk_width
from fgod.train.device.plan import layer_temporaries, predict_on_device
from fgod.train.memory import Prediction
from fgod.train.ranks.optimizer import factors_are_less
from fgod.train.ranks.packed import packed_bytes
from fgod.train.ranks.shards import TABLES
from fgod.train.recipe import TrainRecipe


def predict_on_ranks(
    config: Mapping[str, Any],
    recipe: TrainRecipe,
    gpus: int,
    rows: int,
    width: int,
    labels: int,
    where: str = "config",
    kernels: bool = True,
) -> Prediction:
    """Bytes that torch's allocator has on the fullest GPU at a step's widest moment.

    That is the backward pass of the head, or of a layer. What only one of them has is counted once: `logits` is what
    the head has beyond what a layer has.

    Args:
        rows: of the whole batch; width: tokens of each; labels: in all.
    """
    own_rows = -(-rows // gpus)
    item, family = DTYPES[recipe.compute_dtype].itemsize, architecture_of(config, where)
    shapes = family.tensors(config, where)
    groups: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and name not in TABLES:
            found = groups.setdefault(family.scale_group(name) or name, [0, shape[1]])
            found[0] += shape[0]
    height, columns = max(groups.values(), key=lambda shape: shape[0] * shape[1])
    largest, table = height * columns, torch.Size(shapes[EMBEDDING]).numel()
    tokens = own_rows * width
    if factors_are_less(tokens * gpus, height, columns):
        travelling = (gpus + 1) * tokens * (height + columns) * item + 2 * largest * item // gpus
    else:
        travelling = 2 * largest * item + 4 * largest // gpus
    gradients = table * item // gpus + travelling
    if not recipe.step_in_backward:
        gradients += 4 * sum(torch.Size(shape).numel() for shape in shapes.values()) // gpus
    layers = config["num_hidden_layers"]
    ahead = sum(packed_bytes(*shape) for shape in groups.values()) // layers * (gpus + 1) // gpus
    hidden = labels * config["hidden_size"] * (item + 3 * 4)
    vocab = -(-config["vocab_size"] // gpus)
    head = chunk_width(labels, vocab) * labels * 2 * item + hidden
    logits = max(0, head - travelling - layer_temporaries(config, item, tokens))
    alone = predict_on_device(config, recipe, own_rows, width, -(-labels // gpus), where, kernels, gpus, logits)
    return replace(
        alone,
        weights=alone.weights // gpus,
        states={name: size // gpus for name, size in alone.states.items()},
        l2_sp=alone.l2_sp // gpus,
        gradients=gradients,
        quantised=2 * largest * item + ahead,
    )
