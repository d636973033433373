"""How a stage trains: every number that its weights depend on, besides rows, seed and starting weights. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Self

from annotated_types import Ge, Interval, Lt, MinLen
from pydantic import StringConstraints
from pydantic.dataclasses import dataclass

from fgod.errors import UsageError
from fgod.plugins import Registry
from fgod.validation import (
    KEYS,
    Count,
    CountOrZero,
    Device,
    FromList,
    Keys,
    NotNegative,
    OmitDefault,
    OneOf,
    OneOfOrAdded,
    OrNull,
    Positive,
    plain,
    validate,
)

if TYPE_CHECKING:
    from fgod.train.storage import StateFormat
    from fgod.train.update import Optimizer

MEAN_FORMATS: Registry[StateFormat] = Registry("train.m_dtype", ["fgod.train.storage"])
SQUARE_FORMATS: Registry[StateFormat] = Registry("train.v_dtype", ["fgod.train.storage"])
OPTIMIZERS: Registry[Optimizer] = Registry(
    "train.optimizer", ["fgod.train.adamw"], lambda name, optimizer: optimizer.check(name)
)

SCHEDULES = ("constant", "linear", "cosine")
PACKED_ROWS = "packed"
BATCHINGS = ("shuffled", "by_length", PACKED_ROWS)
SAMPLE_MODES = ("random", "sequential", "curriculum")
COMPUTE_DTYPES = ("float32", "bfloat16")
MASTER_DTYPES = ("fp32", "bf16", "nvfp4", "bf16-rtn", "nvfp4-rtn")
OWN_OPTIMIZERS = ("adamw",)
M_DTYPES = ("fp32", "bf16", "int8", "nvfp4")
V_DTYPES = ("fp32", "bf16", "uint8", "nvfp4")
BLOCK_SCALES = ("amax", "four-over-six")
LOSSES = ("ce", "scalar")
TEACHERS = ("rounded", "plain")

OPTIMIZER_KEYS = ("betas", "eps", "m_dtype", "v_dtype", "offload_moments")
"""Keys that not every optimizer reads; adamw, the default, reads all of them. All other keys hold for every one."""

Beta = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class MemoryModes:
    """Keys of a recipe that decide how much memory it needs; `TrainKeys` explains them."""

    master_dtype: str = "fp32"
    m_dtype: str = "fp32"
    v_dtype: str = "fp32"
    step_in_backward: bool = False
    activation_checkpointing: bool = False
    step_chunk_rows: int | None = None


MEMORY = {
    "cpu": MemoryModes(),
    "24gb": MemoryModes("bf16", "nvfp4", "uint8", True, True, 1024),
    "80gb": MemoryModes("bf16", "int8", "uint8", True, True, 4096),
    "128gb-unified": MemoryModes("bf16", "int8", "uint8", True, True, 2048),
}
"""What fits where, by the name in a recipe: 4 bytes-and-a-bit a parameter on 80 GB and unified memory, which the system
shares; 3.6 on 24 GB. A change here changes what recipes mean: raise NUMERICS_VERSION."""


@dataclass(frozen=True, config=KEYS)
class Opening(Keys):
    """The first tokens of rehearsed answers count more: they decide what an answer will be, and are few."""

    weight: Positive
    """Of the KL of each, beside that of later tokens."""
    tokens: Count = 4
    """How many of an answer."""


@dataclass(frozen=True, config=KEYS)
class Kl(Keys):
    """Rows whose answer is the base's own are rehearsed by KL(base ‖ model), not by cross entropy."""

    weight: Positive = 1.0
    """Of a rehearsed label's KL beside a taught label's cross entropy."""
    top_k: Count = 64
    """The base's most probable tokens at each label that are told apart; all others are one class."""
    temperature: Positive = 1.0
    """Of both distributions; above 1 the base's less probable tokens count more."""
    teacher: Annotated[str, OneOf(TEACHERS)] = "rounded"
    """The base as it answers, rounded to NVFP4; or plain, as its folder has it."""
    opening: Annotated[Opening | None, OmitDefault()] = None
    """How much more the first tokens of a rehearsed answer count; null: as much as later ones."""


AtLeastOrMost = Annotated[str, StringConstraints(pattern=r"^(>=|<=)\s*(0?\.[0-9]+|0|1|1\.0+)$")]


@dataclass(frozen=True, config=KEYS)
class Check(Keys):
    """A stage ends when its probes hold: the least training that teaches (`fgod.train.dose`)."""

    until: Annotated[Mapping[str, AtLeastOrMost], MinLen(1)]
    """Share of right answers to the probes of the split check, by suite: identity: ">=0.95"."""
    every: Count = 20
    """Steps between two checks."""
    decay: Count = 8
    """Steps over which the learning rate decays, once two checks in a row held."""
    max_new_tokens: Count = 32
    """Longest answer."""


@dataclass(frozen=True, config=KEYS)
class TrainKeys(Keys):
    """How a stage trains."""

    steps: Count
    """Optimizer steps."""
    lr: NotNegative
    """Peak learning rate: the size of a weight's step under AdamW. 0 only with `control`."""
    batch: Count = 16
    """Rows a step."""
    micro_batch: Count | None = None
    """Rows in memory at once; null means the batch. The gradient is that of the batch either way."""
    seq_len: Annotated[int, Ge(8)] = 96
    """Most tokens a row may have; a longer one is refused."""
    warmup: CountOrZero = 0
    """Steps over which the learning rate rises from zero."""
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    """Course of the learning rate after warm-up: constant, or to zero along a line or a half cosine."""
    optimizer: Annotated[str, OneOfOrAdded(OWN_OPTIMIZERS, OPTIMIZERS), OmitDefault()] = "adamw"
    """How a step follows from gradients: adamw, or one of a plugin, which plain torch steps, slowly on a GPU. What it
    does not use of betas, eps, m_dtype, v_dtype and offload_moments is refused where it is not the default."""
    betas: Annotated[tuple[Beta, Beta], FromList] = (0.9, 0.95)
    """Decay of the running means that the optimizer keeps: AdamW's are of gradients, and of their squares."""
    eps: Positive = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of matrices (not of norms' gains) to zero: w -= decay·lr·w."""
    grad_clip: Positive | None = 1.0
    """Largest global gradient norm; null leaves gradients as they are."""
    l2_sp: NotNegative = 0.0
    """L2-SP (Li et al. 2018), decoupled: pulls every weight to its value before the stage: w += l2_sp·lr·(w₀ - w)."""
    lr_scale: Mapping[str, Positive] = field(default_factory=dict)
    """Learning-rate factors by pattern of tensor names (fnmatch); the product of all that match."""
    sample_mode: Annotated[str, OneOf(SAMPLE_MODES)] = "random"
    """Which rows a step takes: a new order each epoch, the file's order, or one pass stretched over all steps."""
    batching: Annotated[str, OneOf(BATCHINGS), OmitDefault()] = "shuffled"
    """shuffled: rows as the order has them. by_length: of 24 batches at a time those of similar lengths together.
    packed: as shuffled, and on a GPU one after another, without padding."""
    compute_dtype: Annotated[str, OneOf(COMPUTE_DTYPES)] = "float32"
    """Number format of the forward and backward pass."""
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    """CPU threads: sums over two threads have another order, hence other bits."""
    device: Device = "cpu"
    """cpu or cuda. Another device gives other bits, so it is part of the lineage."""
    gpus: Annotated[Count, OmitDefault()] = 1
    """GPUs that share the run, of one host: weights and optimizer states are split over them, and the rows of a batch.
    Another number gives other bits, so it is part of the lineage."""
    memory: Annotated[str, OneOf(tuple(MEMORY))] = "cpu"
    """Row of the memory table: gives the six keys below whose value is null."""
    master_dtype: Annotated[str, OneOf(MASTER_DTYPES), OrNull()] = None  # type: ignore[assignment]
    """How weights accumulate: fp32, or bf16 or nvfp4 rounded stochastically. -rtn: to nearest, to show how it fails."""
    m_dtype: Annotated[str, OneOfOrAdded(M_DTYPES, MEAN_FORMATS), OrNull()] = None  # type: ignore[assignment]
    """Number format of the running mean of gradients: fp32, bf16, int8, nvfp4."""
    v_dtype: Annotated[str, OneOfOrAdded(V_DTYPES, SQUARE_FORMATS), OrNull()] = None  # type: ignore[assignment]
    """Of the root of the running mean of their squares: fp32, bf16, uint8, nvfp4."""
    step_in_backward: Annotated[bool, OrNull()] = None  # type: ignore[assignment]
    """Step each tensor as soon as its gradient is complete, and free it; grad_clip is then of each tensor."""
    activation_checkpointing: Annotated[bool, OrNull()] = None  # type: ignore[assignment]
    """Keep only what enters each layer, and compute the layer again in the backward pass."""
    offload_moments: Annotated[bool, OmitDefault()] = False
    """Keep the optimizer's states of matrices in pinned host memory; its kernel reads and writes them there. Saves GPU
    memory, costs time; the same bits. Needs step_in_backward."""
    step_chunk_rows: Count | None = None
    """Rows of a matrix that the optimizer unpacks at once; the weights do not depend on it. null: all of them, unless
    the memory table says otherwise."""
    update_clip: Positive | None = 4.0
    """Largest update, in learning rates, before decay and L2-SP: of AdamW |m̂/(√v̂ + ε)|; with float32 moments and
    β (.9, .95) none exceeds 1.2. null: no limit."""
    min_update_efficiency: Positive | None = 0.5
    """Share of the update that must land, over ten steps; below it the run stops. null: only recorded."""
    block_scales: Annotated[str, OneOf(BLOCK_SCALES)] = "amax"
    """NVFP4 block scales: amax/6, or four-over-six: of amax/6 and amax/4 the one with the smaller error."""
    length_bucket: Count = 1
    """Rows are padded to a multiple of this many tokens: fewer shapes."""
    loss: Annotated[str, OneOf(LOSSES)] = "ce"
    """ce: cross entropy of the answers. scalar (debug): mean |hidden state| at their places."""
    kl: Annotated[Kl | None, OmitDefault()] = None
    """How the base's own answers are rehearsed; null: by cross entropy, as all others are taught."""
    check: Annotated[Check | None, OmitDefault()] = None
    """When the stage ends before its last step; null: never."""
    head_gradient: Annotated[Positive, OmitDefault()] = 1.0
    """Factor on the head's gradient, before clipping; of a tied table on the part that comes from the head alone. Of an
    untied head AdamW divides by nearly the same factor."""
    control: Annotated[bool, OmitDefault()] = False
    """lr may be 0, and neither must every tensor change nor updates land. An experiment's `control` sets it."""
    train_last_layers: CountOrZero = 0
    """0: every tensor. N (debug): only the last N layers and the final norm."""


RENAMED = {"pull": "l2_sp"}
"""Keys by their old names, which a config may use too, also in refit rules."""


@dataclass(frozen=True, config=KEYS)
class TrainRecipe(TrainKeys):
    """The keys of a stage's training, those that the memory row gives among them: none is open.

    Raises:
        UsageError: keys that do not go together.
    """

    def __post_init__(self) -> None:
        for key, value in asdict(MEMORY[self.memory]).items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if self.lr == 0 and not self.control:
            raise UsageError("train.lr: found 0, expected a number above 0; 0 is for an experiment with control: true")
        if self.optimizer != TrainKeys.optimizer:
            self._refuse_unused_keys()
        if self.offload_moments and not self.step_in_backward:
            raise UsageError("train.offload_moments: found true with step_in_backward false; expected both true")
        if self.batching == "by_length" and self.sample_mode != "random":
            raise UsageError(
                f"train.batching: found by_length with sample_mode: {self.sample_mode}; expected sample_mode: random "
                "with it, or batching: shuffled"
            )
        if self.kl is not None and self.loss != "ce":
            raise UsageError(f"train.kl: found a table with loss: {self.loss}; expected loss: ce with it, or kl: null")
        if self.step_in_backward and self.micro_batch is not None and self.micro_batch < self.batch:
            raise UsageError(
                f"train.micro_batch: found {self.micro_batch} below batch ({self.batch}) with step_in_backward, which "
                "updates a tensor as soon as its first gradient arrives, so gradients of micro-batches cannot be "
                "accumulated; expected micro_batch null, a smaller batch, or step_in_backward false"
            )

        if self.gpus > 1:
            check_recipe(self, self.gpus)

    def _refuse_unused_keys(self) -> None:
        """Only for another optimizer than the default, which uses all: to look it up may import torch."""
        defaults = {one.name: one.default for one in fields(TrainKeys)} | asdict(MEMORY[self.memory])
        for key in OPTIMIZER_KEYS:
            found = getattr(self, key)
            if key not in OPTIMIZERS[self.optimizer].used_keys and found != defaults[key]:
                raise UsageError(
                    f"train.{key}: found {plain(found)!r} with optimizer: {self.optimizer}, which does not use it; "
                    f"expected it left out (or {plain(defaults[key])!r}), or an optimizer that does"
                )

    @property
    def debugging(self) -> tuple[str, ...]:
        """Settings of debugging, which only the CPU's path has."""
        found = {
            f"train_last_layers: {self.train_last_layers}": self.train_last_layers > 0,
            f"loss: {self.loss}": self.loss != "ce",
        }
        return tuple(words for words, holds in found.items() if holds)

    @property
    def partial(self) -> tuple[str, ...]:
        """Settings that make a run something else than full-parameter training that is meant to work."""
        more = {
            "control: true": self.control,
            f"master_dtype: {self.master_dtype}": self.master_dtype.endswith("-rtn"),
        }
        return (*self.debugging, *(words for words, holds in more.items() if holds))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The recipe from a stage's `train` keys.

        Raises:
            UsageError: a key is unknown or missing, has the wrong type or is out of range.
        """
        return validate(cls, value, "train")

    def to_dict(self) -> dict[str, Any]:
        """Every key as a JSON value; `from_dict` reads it back."""
        return dict(plain(self))

    def lr_at(self, step: int) -> float:
        """Learning rate of a step (0 is the first): linear warm-up, then the schedule. Zero only where `lr` is."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        match self.schedule:
            case "linear":
                return self.lr * (1 - done)
            case "cosine":
                return self.lr * (1 + math.cos(math.pi * done)) / 2
            case _:
                return self.lr


def check_recipe(recipe: TrainRecipe, gpus: int) -> None:
    """Whether so many GPUs can share a run of this recipe.

    Raises:
        UsageError: names the key that stands in the way.
    """
    if gpus == 1:
        return
    rows = recipe.micro_batch or recipe.batch
    refused = {
        f"offload_moments: found true with gpus: {gpus}; expected false: each GPU keeps its own share of the states":
            recipe.offload_moments,
        f"check: found a table with gpus: {gpus}; expected null: weights that lie on several GPUs cannot be asked":
            recipe.check is not None,
        f"master_dtype: found {recipe.master_dtype} with gpus: {gpus}; expected fp32 or bf16: the scale of NVFP4 "
        "masters is that of a whole tensor": recipe.master_dtype.startswith("nvfp4"),
        f"{'loss' if recipe.loss != 'ce' else 'train_last_layers'}: a debugging mode with gpus: {gpus}; expected gpus: "
        "1 with it": recipe.loss != "ce" or recipe.train_last_layers > 0,
        f"batching: found {PACKED_ROWS} with gpus: {gpus}; expected shuffled or by_length: GPUs share padded rows":
            recipe.batching == PACKED_ROWS,
        f"{'batch' if recipe.micro_batch is None else 'micro_batch'}: found {rows} with gpus: {gpus}; expected at "
        "least a row for each": rows < gpus,
    }  # fmt: skip
    for words, holds in refused.items():
        if holds:
            raise UsageError(f"train.{words}")
