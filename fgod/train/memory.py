"""What a stage will need in memory, part by part, from a config and a recipe, before anything is loaded.

    fgod train --recipe results/runs/…/recipe.json --weights artifacts/base/…/master --explain-memory

Shapes give weights, states and gradients exactly: the formats of states say how large they are. Activations are those
that transformers' decoder layers keep for the backward pass, counted with saved-tensor hooks. What a CPU's allocator
keeps of freed memory is no part (docs/training.md has how much it is). All numbers are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fgod.errors import UsageError
from fgod.guard.predict import Knob, check
from fgod.model.memory import Asked, Dimensions, Stored, predict_answers
from fgod.models.architecture import architecture_of, tensors_of
from fgod.models.names import EMBEDDING
from fgod.nvfp4.codec import CHUNK as QUANTISE_CHUNK
from fgod.nvfp4.folders import DTYPES
from fgod.train.recipe import MEMORY, OPTIMIZERS, TrainRecipe
from fgod.train.storage import FP32, as_matrix_shape, master_kind, state_bytes, state_dtypes
from fgod.train.update import CHUNK

MIB = 2**20
FIRST_STEP = {"float32": 30 * MIB, "bfloat16": 92 * MIB}
"""What torch and its libraries of products add to a process in its first step on a CPU, whatever the model, by the
compute dtype."""

_UPDATE_TEMPORARIES, _PACKED_TEMPORARIES = 4, 10
"""float32 copies of a chunk while it is stepped: update, what is wanted, change, product; and with packed states their
values, the weight, random words, their indices and what those become."""

_QUANTISE_TEMPORARIES = 3
"""float32 copies of a chunk of a weight while it is quantised: itself, quotient, binades."""

_TIED_GRADIENTS = 2
"""Float32 copies of a tied table's gradient beside it, when the backward pass ends: the head's part, which waited for
the embedding's, and their sum before it is brought into the table's order."""

_SLOPES = 12
"""Bytes a logit while the gradient of a KL is made: the logits that waited for it, cooled, and the result."""

ASKED_AT_ONCE = 64
"""Probes of a check."""

_TOP_TENSORS = 8
"""Tensors of 4 bytes a label and top token: ids, p, logits, and what is made of them."""


@dataclass(frozen=True)
class Prediction:
    """Bytes. `process` is what Python and its libraries take before anything is loaded."""

    optimizer: str
    """Its name in the recipe, no part of the total."""
    weights: int
    states: Mapping[str, int]
    """What the optimizer keeps, by its names."""
    l2_sp: int
    gradients: int
    quantised: int
    activations: int
    logits: int
    workspace: int
    process: int
    teacher: int = 0
    """Of the teacher's distributions at the labels of a step."""
    asking: int = 0
    """Of a check: the cache, activations and logits of the probes that are asked at once."""
    pinned: int = 0
    """Of the host, for states that are kept there beside a GPU: no part of the total."""

    @property
    def parts(self) -> dict[str, int]:
        """What the total is made of."""
        apart = ("optimizer", "weights", "states", "pinned")
        known = {name: size for name, size in asdict(self).items() if name not in apart}
        return {"weights": self.weights, **self.states, **known}

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def to_mib(self) -> dict[str, float]:
        pinned = {"pinned": self.pinned} if self.pinned else {}
        return {name: round(size / MIB, 1) for name, size in {**self.parts, "total": self.total, **pinned}.items()}

    def text(self) -> str:
        """A table for people."""
        words = {
            "weights": "master weights",
            **{name: kept.words for name, kept in OPTIMIZERS[self.optimizer].states.items()},
            "l2_sp": "starting weights, for L2-SP",
            "gradients": "gradients alive at once",
            "quantised": "quantised weights kept for the backward pass",
            "activations": "activations kept for the backward pass",
            "logits": "logits of the labels, beyond what a layer needs",
            "workspace": "largest temporaries",
            "process": "Python and its libraries",
            "teacher": "the teacher's distributions at the labels",
            "asking": "a check's cache, activations and logits",
            "total": "together",
            "pinned": f"host memory for {_listed(self.states)}, besides",
        }
        return "\n".join(f"{name:12} {mib:12,.1f} MiB  {words[name]}" for name, mib in self.to_mib().items())


def _listed(names: Iterable[str]) -> str:
    """`weights, m and v`; empty where there are none."""
    *others, last = ["", *names]
    before = ", ".join(filter(None, others))
    return f"{before} and {last}" if before else last


def layer_activations(config: Mapping[str, Any], item: int, where: str = "config") -> int:
    """Bytes that one layer keeps of one token for the backward pass; `item`: bytes of a number of the compute dtype."""
    family = architecture_of(config, where)
    sizes = family.sizes(config, where)
    norms = sizes.hidden * (2 * 4 + 4 * item) + 2 * 4
    attention = (sizes.heads + sizes.kv_heads) * sizes.head_dim * 2 * item + 4 * sizes.heads
    return int(norms + attention + sizes.mlp * 4 * item) + family.layer_extras(config, item)


def trained_names(config: Mapping[str, Any], recipe: TrainRecipe, where: str) -> list[str]:
    """Names of the tensors that a recipe trains.

    Raises:
        UsageError: train_last_layers is more than there are.
    """
    names, last, layers = list(tensors_of(config, where)), recipe.train_last_layers, config["num_hidden_layers"]
    if last > layers:
        raise UsageError(f"train.train_last_layers: found {last}, expected at most {layers}, the layers of {where}")
    if not last:
        return names
    kept = tuple(f"model.layers.{layer}." for layer in range(layers - last, layers))
    return [name for name in names if name.startswith(kept) or name == "model.norm.weight"]


def predict(
    config: Mapping[str, Any], recipe: TrainRecipe, width: int, labels: int, process: int = 0, where: str = "config"
) -> Prediction:
    """The widest moment of a run.

    Args:
        config: config.json of a registered family.
        width: tokens of the longest row; each of the rows at once may be as long.
        labels: answer tokens of the rows at once.
        process: bytes in use before anything is loaded.
    """
    all_shapes = tensors_of(config, where)
    trained = {name: all_shapes[name] for name in trained_names(config, recipe, where)}
    sizes = {name: torch.Size(shape).numel() for name, shape in all_shapes.items()}
    item = DTYPES[recipe.compute_dtype].itemsize
    kept = {name: master_kind(recipe.master_dtype, shape).dtype.itemsize for name, shape in all_shapes.items()}
    weights = sum(sizes[name] * kept[name] for name in sizes)
    gradients = _gradients(recipe, {name: sizes[name] for name in trained}, kept, item)
    rows = recipe.micro_batch or recipe.batch
    tokens, layers = rows * width, config["num_hidden_layers"]
    by_layer = tokens * layer_activations(config, item)
    family = architecture_of(config, where)
    packed_sizes = [size for name, size in sizes.items() if family.scale_group(name) is not None]
    quantised, largest_quantised = sum(packed_sizes) * item, max(packed_sizes)
    if recipe.activation_checkpointing:
        activations = by_layer + layers * tokens * config["hidden_size"] * item
        quantised //= layers
    else:
        activations = by_layer * layers
    update = step_temporaries(recipe, trained.values(), "cpu")
    quantised = 0 if recipe.step_in_backward else quantised
    if recipe.check is not None:  # all weights rounded once, to ask
        quantised = max(quantised, sum(packed_sizes) * item)
    logits = labels * config["vocab_size"] * (2 * item + (8 if recipe.kl is None else _SLOPES))
    if not recipe.step_in_backward:  # what waited for the backward pass is gone by then
        tied = family.sizes(config, where).tied and EMBEDDING in trained
        update = max(update, 4 * _TIED_GRADIENTS * sizes[EMBEDDING] * tied) - quantised - activations - logits
    quantiser = 4 * _QUANTISE_TEMPORARIES * min(QUANTISE_CHUNK, largest_quantised) + item * largest_quantised
    return Prediction(
        optimizer=recipe.optimizer,
        weights=weights,
        states=state_bytes(recipe, trained.values()),
        l2_sp=sum(sizes[name] * kept[name] for name in trained) if recipe.l2_sp else 0,
        gradients=gradients,
        quantised=quantised,
        activations=activations,
        logits=logits,
        workspace=max(update, quantiser),
        process=process,
        asking=max(0, asking(config, recipe, False, where) - activations - logits),  # those are gone when it asks
        teacher=0 if recipe.kl is None else 4 * _TOP_TENSORS * labels * min(recipe.kl.top_k, config["vocab_size"]),
    )


def _gradients(recipe: TrainRecipe, sizes: Mapping[str, int], kept: Mapping[str, int], item: int) -> int:
    """Bytes of the gradients that are alive at once: all in float32, or one in its master's dtype, beside itself as it
    was computed, where that is another.

    Args:
        sizes: elements of each trained tensor.
        kept: bytes of a number of its master.
        item: bytes of a number of the compute dtype.
    """
    if not recipe.step_in_backward:
        return 4 * sum(sizes.values())
    return max(size * (kept[name] + (0 if kept[name] == item else item)) for name, size in sizes.items())


def around(config: Mapping[str, Any], recipe: TrainRecipe, where: str = "config") -> int:
    """Bytes that a step on a CPU takes besides its tensors: libraries, and, where each gradient is freed as soon as it
    was used, pieces as large as the largest one that no later request fits (measured: docs/training.md)."""
    libraries = FIRST_STEP[recipe.compute_dtype]
    if not recipe.step_in_backward:
        return libraries
    shapes = tensors_of(config, where)
    largest = max(torch.Size(shapes[name]).numel() for name in trained_names(config, recipe, where))
    return libraries + largest * DTYPES[recipe.compute_dtype].itemsize


def asking(config: Mapping[str, Any], recipe: TrainRecipe, gpu: bool, where: str = "config") -> int:
    """Bytes of a check besides the weights, with prompts as long as the recipe's rows may be; 0 without one."""
    if recipe.check is None:
        return 0
    asked = Asked(recipe.seq_len, recipe.check.max_new_tokens)
    nothing = Stored(0, 0, 0, 0)
    dimensions = Dimensions.from_config(config, where)
    return sum(predict_answers(nothing, dimensions, recipe.compute_dtype, asked, ASKED_AT_ONCE, 0, gpu).values())


def step_temporaries(recipe: TrainRecipe, shapes: Iterable[tuple[int, ...]], device: str) -> int:
    """Bytes of the copies that plain torch makes while it steps the largest chunk of tensors of these shapes.

    Args:
        device: its type, a key of `CHUNK`.
    """
    packed = any(name != FP32 for name in (recipe.master_dtype, *state_dtypes(recipe).values()))
    chunk = max(_chunk(shape, recipe.step_chunk_rows, CHUNK[device]) for shape in shapes)
    return 4 * chunk * (_PACKED_TEMPORARIES if packed else _UPDATE_TEMPORARIES)


def _chunk(shape: tuple[int, ...], rows: int | None, most: int) -> int:
    """Elements of a tensor that are stepped at once."""
    height, columns = as_matrix_shape(shape)
    return min((rows or height) * columns, height * columns, most)


def check_fits(recipe: TrainRecipe, predicted: Callable[[TrainRecipe], Prediction], limit: float) -> None:
    """Refuse a recipe that is predicted to need more than the limit (bytes).

    Raises:
        TooLargeError: names the knobs of the recipe that would help, and what each saves.
    """
    found = predicted(recipe)
    knobs, _ = knobs_to_fit(recipe, predicted, limit)
    check({name: size for name, size in found.parts.items() if size > 0}, int(limit), knobs)


def knobs_to_fit(
    recipe: TrainRecipe, predicted: Callable[[TrainRecipe], Prediction], limit: float
) -> tuple[list[Knob], bool]:
    """The fewest knobs of the recipe that were found to make it fit into the limit (bytes), and whether they do.

    Each saves what it does once those before it are turned. Where nothing helps enough: those that save most.
    """
    first = _turned(recipe, predicted, limit)
    ways = [first]
    if not first[1]:  # what saves most may forbid another knob: begin with each once
        strongest = {key: (key, value, one) for key, value, one in _smaller(recipe)}
        for key, value, one in strongest.values():
            more, fits = _turned(one, predicted, limit)
            ways.append(([Knob(key, value, predicted(recipe).total - predicted(one).total), *more], fits))
    fitting = [way for way in ways if way[1]]
    return min(fitting, key=lambda way: len(way[0])) if fitting else first


def _turned(
    recipe: TrainRecipe, predicted: Callable[[TrainRecipe], Prediction], limit: float
) -> tuple[list[Knob], bool]:
    """One knob after another until the recipe fits: the one that saves least of those that are enough, or most."""
    found: list[Knob] = []
    while (needed := predicted(recipe).total) > limit:
        turned = [(Knob(key, value, needed - predicted(one).total), one) for key, value, one in _smaller(recipe)]
        useful = sorted((way for way in turned if way[0].saves_bytes > 0), key=lambda way: way[0].saves_bytes)
        if not useful:
            return found, False
        enough = [way for way in useful if needed - way[0].saves_bytes <= limit]
        knob, recipe = enough[0] if enough else useful[-1]
        found.append(knob)
    return found, True


def _smaller(recipe: TrainRecipe) -> Iterator[tuple[str, object, TrainRecipe]]:
    """The recipe with one knob turned, by the knob and its value."""
    rows = (recipe.micro_batch or recipe.batch) // 2
    while rows >= recipe.gpus:
        if recipe.step_in_backward:
            yield "train.batch", rows, replace(recipe, batch=rows, micro_batch=None)
        else:
            yield "train.micro_batch", rows, replace(recipe, micro_batch=rows)
        rows //= 2
    if not recipe.activation_checkpointing:
        yield "train.activation_checkpointing", "true", replace(recipe, activation_checkpointing=True)
    if recipe.memory != "24gb" and (recipe.micro_batch or recipe.batch) == recipe.batch:
        yield "train.memory", "24gb", replace(recipe, memory="24gb", **asdict(MEMORY["24gb"]))
    offloads = recipe.gpus == 1 and "offload_moments" in OPTIMIZERS[recipe.optimizer].used_keys
    if recipe.device == "cuda" and recipe.step_in_backward and offloads and not recipe.offload_moments:
        yield "train.offload_moments", "true", replace(recipe, offload_moments=True)


def explain(folder: Path, config: Mapping[str, Any], recipe: TrainRecipe, prediction: Prediction) -> str:
    """The table of `fgod train --explain-memory`."""
    count = sum(torch.Size(shape).numel() for shape in tensors_of(config, str(folder)).values())
    state = prediction.weights + sum(prediction.states.values()) + prediction.pinned
    dtypes = {"master": recipe.master_dtype, **state_dtypes(recipe)}
    modes = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
    when = "in" if recipe.step_in_backward else "after"
    shared = f"; on each of {recipe.gpus} GPUs" if recipe.gpus > 1 else ""
    return (
        f"{folder}: {count:,} parameters; {modes}; stepped {when} the backward pass{shared}\n{prediction.text()}\n"
        f"{state / count:.3f} bytes a parameter for {_listed(('weights', *prediction.states))}"
    )
