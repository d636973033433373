"""What layers keep for the backward pass, and what a run needs on a device, from a config and a recipe. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from fgod.models.architecture import Sizes, architecture_of
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.folders import DTYPES
from fgod.train.device.head import chunk_width
from fgod.train.device.network import SavePolicy
from fgod.train.device.ops import QUANTISE_ROWS
from fgod.train.memory import Prediction, asking, predict, step_temporaries, trained_names
from fgod.train.recipe import OPTIMIZERS, TrainRecipe
from fgod.train.update import CHUNK

ROOM = 0.10
"""What activations may take beside weights and moments under activation_checkpointing, as a part of those: at one row
nothing is computed again; at 8 rows of 512 tokens of a 4 B model each layer keeps its two residual streams alone."""

MLP_COPIES, LOGITS_COPIES, QUANTISE_COPIES = 10, 4, 5
"""float32 copies that plain torch has at once: [T, M] in `elementwise.swiglu_backward`, of a chunk of logits in
`elementwise.logit_slopes`, of rows in `fgod.nvfp4.codec.fake_quantise`."""

CUDA_WORKSPACE = 96 * 2**20
"""Of cuBLAS, and what torch's allocator rounds up."""


def _sizes(config: Mapping[str, Any], item: int) -> tuple[int, int, int]:
    """Bytes of one token in one layer: both residual streams; attention; gate and up."""
    sizes = architecture_of(config, "config").sizes(config, "config")
    attention = 3 * (sizes.query_width + sizes.key_width) * item + 4 * sizes.heads
    return 2 * sizes.hidden * item, attention, 2 * sizes.mlp * item


def _resident(config: Mapping[str, Any], recipe: TrainRecipe) -> int:
    one = predict(config, recipe, 1, 1)
    states = 0 if recipe.offload_moments else sum(one.states.values())
    return one.weights + states + one.l2_sp


def layer_temporaries(config: Mapping[str, Any], item: int, tokens: int) -> int:
    """Bytes of what the backward pass of a layer has at once beside what was kept for it, at so many tokens.

    Args:
        item: bytes of a number of the compute dtype.
    """
    _, attention, mlp = (tokens * size for size in _sizes(config, item))
    return tokens * config["hidden_size"] * item * 4 + 2 * mlp + mlp // 2 + attention


def layer_plan(config: Mapping[str, Any], recipe: TrainRecipe, tokens: int, gpus: int = 1) -> list[SavePolicy]:
    """What each layer keeps at so many tokens: all, or under activation_checkpointing what `ROOM` has room for.

    Args:
        tokens: on this GPU.
        gpus: that share weights and states.
    """
    layers = config["num_hidden_layers"]
    if not recipe.activation_checkpointing:
        return [SavePolicy(True, True)] * layers
    base, attention, mlp = (tokens * size for size in _sizes(config, DTYPES[recipe.compute_dtype].itemsize))
    room = ROOM * _resident(config, recipe) / gpus - layers * base
    out = []
    for _ in range(layers):
        keep = SavePolicy(room >= attention, room >= attention + mlp)
        room -= keep.attention * attention + keep.mlp * mlp
        out.append(keep)
    return out


def predict_on_device(
    config: Mapping[str, Any],
    recipe: TrainRecipe,
    rows: int,
    width: int,
    labels: int,
    where: str = "config",
    kernels: bool = True,
    gpus: int = 1,
    logits: int | None = None,
) -> Prediction:
    """Bytes that torch's allocator has at a step's widest moment.

    Args:
        width: tokens of each row.
        labels: in all.
        gpus: that share weights and states, as far as these decide what layers keep; all else is of one GPU alone.
        logits: bytes of what the head has beyond a layer; None: of a head that is on this GPU alone.
        kernels: Triton is there: kernels quantise and step, and torch compiles the rest. Without it plain torch makes
            copies in float32, whose sizes are counted in its code and were measured on no GPU.
    """
    item = DTYPES[recipe.compute_dtype].itemsize
    family = architecture_of(config, where)
    known = predict(config, recipe, width, labels, 0, where)
    tokens = rows * width
    base, attention, mlp = (tokens * size for size in _sizes(config, item))
    plan = layer_plan(config, recipe, tokens, gpus)
    kept = sum(base + keep.attention * attention + keep.mlp * mlp for keep in plan)
    groups: dict[str, int] = {}
    shapes = family.tensors(config, where)
    for name, shape in shapes.items():
        group = family.scale_group(name) or name
        groups[group] = groups.get(group, 0) + torch.Size(shape).numel()
    table = groups.pop(EMBEDDING) * item
    groups.pop(TIED_HEAD, None)
    largest = max(groups.values()) * item
    gradients = table + largest if recipe.step_in_backward else known.gradients + largest + table
    chunk = chunk_width(labels, config["vocab_size"]) * labels
    activations = kept + layer_temporaries(config, item, tokens)
    logits = chunk * (2 * item) if logits is None else logits
    trained = [shapes[name] for name in trained_names(config, recipe, where)]
    stepping = _stepping(recipe, trained, activations + logits, kernels)
    plain = 0 if kernels else _plain_copies(family.sizes(config, where), tokens, chunk)
    host = sum(known.states.values()) if recipe.offload_moments else 0  # vectors stay on the device: too few to count
    return replace(
        known,
        states=dict.fromkeys(known.states, 0) if host else known.states,
        pinned=host,
        gradients=gradients,
        quantised=2 * largest if recipe.check is None else max(2 * largest, known.quantised),
        activations=activations,
        logits=logits,
        asking=asking(config, recipe, True, where),
        workspace=CUDA_WORKSPACE + max(CHUNK["cuda"] * 4, stepping, plain),
    )


def _plain_copies(sizes: Sizes, tokens: int, chunk: int) -> int:
    """Bytes of the float32 copies that plain torch makes where Triton would not: of the MLP's backward pass, of a chunk
    of logits, or of rows that are quantised."""
    quantised = QUANTISE_ROWS * max(sizes.hidden, sizes.mlp, sizes.query_width) * QUANTISE_COPIES
    return 4 * max(MLP_COPIES * tokens * sizes.mlp, LOGITS_COPIES * chunk, quantised)


def _stepping(recipe: TrainRecipe, shapes: Iterable[tuple[int, ...]], waiting: int, kernels: bool) -> int:
    """Bytes of a step's temporaries: with the optimizer's kernels 0.

    Args:
        waiting: bytes of what waits for the backward pass; a step after it has them for itself.
    """
    if not recipe.step_in_backward:
        return step_temporaries(recipe, shapes, "cuda") - waiting
    served = kernels and recipe.master_dtype in OPTIMIZERS[recipe.optimizer].kernel_masters
    return 0 if served else step_temporaries(recipe, shapes, "cuda")
