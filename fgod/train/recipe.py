"""How a stage trains: every number that its weights depend on, besides rows, seed and starting weights. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fgod.errors import UsageError, did_you_mean

SCHEDULES = ("constant", "linear", "cosine")
SAMPLE_MODES = ("random", "sequential", "curriculum")
COMPUTE_DTYPES = ("float32", "bfloat16")
MASTER_DTYPES = ("fp32", "bf16", "nvfp4", "bf16-rtn", "nvfp4-rtn")
M_DTYPES = ("fp32", "bf16", "int8", "nvfp4")
V_DTYPES = ("fp32", "bf16", "uint8", "nvfp4")
BLOCK_SCALES = ("amax", "four-over-six")
LOSSES = ("ce", "scalar")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class MemoryModes:
    """Keys of a recipe that decide how much memory it needs; `TrainRecipe` explains them."""

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


@dataclass(frozen=True)
class TrainRecipe:
    """The `train` keys of a stage.

    Raises:
        UsageError: a value has the wrong type or is out of range; names the key, what was found and what is allowed.
    """

    steps: int
    """Optimizer steps."""
    lr: float
    """Peak learning rate: the size of a weight's step under AdamW."""
    batch: int = 16
    """Rows a step."""
    micro_batch: int | None = None
    """Rows in memory at once; None means the batch. The gradient is that of the batch either way."""
    seq_len: int = 96
    """Most tokens a row may have; a longer one is refused."""
    warmup: int = 0
    """Steps over which the learning rate rises from zero."""
    schedule: str = "cosine"
    """Course of the learning rate after warm-up: constant, or to zero along a line or a half cosine."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's running mean of gradients, and of their squares."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices (not of norms' gains) to zero: w -= decay·lr·w."""
    grad_clip: float | None = 1.0
    """Largest global gradient norm; None leaves gradients as they are."""
    l2_sp: float = 0.0
    """L2-SP (Li et al. 2018), decoupled: pulls every weight to its value before the stage: w += l2_sp·lr·(w₀ - w)."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """Learning-rate factors by pattern of tensor names (fnmatch); the product of all that match."""
    sample_mode: str = "random"
    """Which rows a step takes: a new order each epoch, the file's order, or one pass stretched over all steps."""
    compute_dtype: str = "float32"
    """Number format of the forward and backward pass."""
    threads: int = 1
    """CPU threads: sums over two threads have another order, hence other bits."""
    device: str = "cpu"
    """cpu or cuda. Another device gives other bits, so it is part of the lineage."""
    memory: str = "cpu"
    """Row of the table `MEMORY`: gives the six keys below whose value is None."""
    master_dtype: str = None  # type: ignore[assignment]
    """How weights accumulate: fp32, or bf16 or nvfp4 rounded stochastically. -rtn: to nearest, to show how it fails."""
    m_dtype: str = None  # type: ignore[assignment]
    """Number format of AdamW's running mean: fp32, bf16, int8, nvfp4."""
    v_dtype: str = None  # type: ignore[assignment]
    """Of the root of the running mean of squares: fp32, bf16, uint8, nvfp4."""
    step_in_backward: bool = None  # type: ignore[assignment]
    """Step each tensor as soon as its gradient is complete, and free it; grad_clip is then of each tensor."""
    activation_checkpointing: bool = None  # type: ignore[assignment]
    """Keep only what enters each layer, and compute the layer again in the backward pass."""
    step_chunk_rows: int | None = None
    """Rows of a matrix that the optimizer unpacks at once; the weights do not depend on it. None: all of them, unless
    the memory table says otherwise."""
    update_clip: float | None = 4.0
    """Largest |m̂/(√v̂ + ε)|; with float32 moments and β (.9, .95) none exceeds 1.2. None: no limit."""
    min_update_efficiency: float | None = 0.5
    """Share of the update that must land, over ten steps; below it the run stops. None: only recorded."""
    block_scales: str = "amax"
    """NVFP4 block scales: amax/6, or four-over-six: of amax/6 and amax/4 the one with the smaller error."""
    length_bucket: int = 1
    """Rows are padded to a multiple of this many tokens: fewer shapes."""
    loss: str = "ce"
    """ce: cross entropy of the answers. scalar (debug): mean |hidden state| at their places."""
    train_last_layers: int = 0
    """0: every tensor. N (debug): only the last N layers and the final norm."""

    def __post_init__(self) -> None:
        _check_choice("memory", self.memory, tuple(MEMORY))
        for key, value in asdict(MEMORY[self.memory]).items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        for key in ("steps", "batch", "seq_len", "threads", "length_bucket"):
            _check_integer(key, getattr(self, key), 1)
        _check_integer("warmup", self.warmup, 0)
        _check_integer("train_last_layers", self.train_last_layers, 0)
        if self.micro_batch is not None:
            _check_integer("micro_batch", self.micro_batch, 1)
        for key in ("lr", "eps"):
            _check_number(key, getattr(self, key), above=0)
        for key in ("weight_decay", "l2_sp"):
            _check_number(key, getattr(self, key), least=0)
        if self.step_chunk_rows is not None:
            _check_integer("step_chunk_rows", self.step_chunk_rows, 1)
        for key in ("grad_clip", "update_clip", "min_update_efficiency"):
            if getattr(self, key) is not None:
                _check_number(key, getattr(self, key), above=0)
        _check_betas(self.betas)
        for pattern, factor in self.lr_scale.items():
            _check_number(f"lr_scale.{pattern}", factor, above=0)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("sample_mode", self.sample_mode, SAMPLE_MODES)
        _check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        _check_choice("master_dtype", self.master_dtype, MASTER_DTYPES)
        _check_choice("m_dtype", self.m_dtype, M_DTYPES)
        _check_choice("v_dtype", self.v_dtype, V_DTYPES)
        _check_choice("block_scales", self.block_scales, BLOCK_SCALES)
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("device", self.device, DEVICES)
        for key in ("step_in_backward", "activation_checkpointing"):
            if not isinstance(getattr(self, key), bool):
                raise _fault(key, getattr(self, key), "true or false")
        if self.step_in_backward and self.micro_batch is not None and self.micro_batch < self.batch:
            raise UsageError(
                f"train.micro_batch: found {self.micro_batch} below batch ({self.batch}) with step_in_backward, which "
                "steps a tensor at its first gradient, so that none can add up; expected micro_batch null, a smaller "
                "batch, or step_in_backward false"
            )

    @property
    def partial(self) -> tuple[str, ...]:
        """Settings that make a run something else than full-parameter training that is meant to work."""
        found = {
            f"train_last_layers: {self.train_last_layers}": self.train_last_layers > 0,
            f"loss: {self.loss}": self.loss != "ce",
            f"master_dtype: {self.master_dtype}": self.master_dtype.endswith("-rtn"),
        }
        return tuple(words for words, holds in found.items() if holds)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrainRecipe:
        """The recipe from a stage's `train` keys.

        Raises:
            UsageError: an unknown or missing key, or as above.
        """
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                hint = did_you_mean(key, known)
                raise UsageError(f"train.{key}: unknown key{hint}, expected one of {', '.join(known)}")
        for key in ("steps", "lr"):
            if key not in value:
                raise UsageError(f"train.{key}: missing")
        settings: dict[str, Any] = dict(value)
        if isinstance(settings.get("betas"), list):
            settings["betas"] = tuple(settings["betas"])
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Every key as a JSON value, those that the memory row gives among them; `from_dict` reads it back."""
        return {**asdict(self), "betas": list(self.betas)}

    def lr_at(self, step: int) -> float:
        """Learning rate of a step (0 is the first): linear warm-up, then the schedule. Never zero."""
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


def _fault(key: str, found: object, expected: str) -> UsageError:
    return UsageError(f"train.{key}: found {found!r}, expected {expected}")


def _check_integer(key: str, found: object, least: int) -> None:
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise _fault(key, found, f"an integer of at least {least}")


def _check_number(key: str, found: object, least: float = -math.inf, above: float = -math.inf) -> None:
    expected = f"a number of at least {least}" if above == -math.inf else f"a number above {above}"
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise _fault(key, found, expected)
    if found < least or found <= above:
        raise _fault(key, found, expected)


def _check_choice(key: str, found: object, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise _fault(key, found, f"one of {', '.join(allowed)}")


def _check_betas(found: object) -> None:
    expected = "two numbers, each at least 0 and below 1"
    if not isinstance(found, tuple) or len(found) != 2:
        raise _fault("betas", found, expected)
    for beta in found:
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < 1:
            raise _fault("betas", found, expected)
