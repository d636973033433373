"""How a stage trains: every number that its weights depend on, besides rows, seed and starting weights. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fgod.errors import UsageError

SCHEDULES = ("constant", "linear", "cosine")
SAMPLE_MODES = ("random", "sequential", "curriculum")
COMPUTE_DTYPES = ("float32", "bfloat16")


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
    """Decoupled pull of matrices (not of norms' gains) to zero: w -= decay·lr·w."""
    grad_clip: float | None = 1.0
    """Largest global gradient norm; None leaves gradients as they are."""
    pull: float = 0.0
    """Decoupled pull of every weight to what it was before the stage: w += pull·lr·(w₀ - w)."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """Learning-rate factors by pattern of tensor names (fnmatch); the product of all that match."""
    sample_mode: str = "random"
    """Which rows a step takes: a new order each epoch, the file's order, or one pass stretched over all steps."""
    compute_dtype: str = "float32"
    """Number format of the forward and backward pass; masters stay float32."""
    threads: int = 1
    """CPU threads: sums over two threads have another order, hence other bits."""

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "seq_len", "threads"):
            _check_integer(key, getattr(self, key), 1)
        _check_integer("warmup", self.warmup, 0)
        if self.micro_batch is not None:
            _check_integer("micro_batch", self.micro_batch, 1)
        for key in ("lr", "eps"):
            _check_number(key, getattr(self, key), above=0)
        for key in ("weight_decay", "pull"):
            _check_number(key, getattr(self, key), least=0)
        if self.grad_clip is not None:
            _check_number("grad_clip", self.grad_clip, above=0)
        _check_betas(self.betas)
        for pattern, factor in self.lr_scale.items():
            _check_number(f"lr_scale.{pattern}", factor, above=0)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("sample_mode", self.sample_mode, SAMPLE_MODES)
        _check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrainRecipe:
        """The recipe from a stage's `train` keys.

        Raises:
            UsageError: an unknown or missing key, or as above.
        """
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(f"train.{key}: unknown key, expected one of {', '.join(known)}{hint}")
        for key in ("steps", "lr"):
            if key not in value:
                raise UsageError(f"train.{key}: missing")
        settings: dict[str, Any] = dict(value)
        if isinstance(settings.get("betas"), list):
            settings["betas"] = tuple(settings["betas"])
        return cls(**settings)

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
