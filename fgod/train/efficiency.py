"""How much of what the optimizer wanted came to be: Σ⟨Δw, u⟩ / Σ⟨u, u⟩, of a step and of each group of tensors.

1 means that updates are realised; near 0 that they are rounded away. A ratio of norms would hide it: rounding noise has
a norm too, but no component along the update. It stands beside the efficiency as the noise, ‖Δw‖ / ‖u‖.
"""

from __future__ import annotations

import math
from collections import deque

from fgod.errors import FgodError

WINDOW = 10
"""Steps over which efficiency is taken before it is judged: one step's sums can be unlucky, ten cannot."""
WORTH_JUDGING = 0.01
"""Steps at a smaller share of the recipe's learning rate are not judged, as at the end of a schedule: there rounding is
larger than the update, and all these steps together move the weights by less than a thousandth of the whole."""


class LostUpdatesError(FgodError):
    """Updates are lost to rounding. The message says how much, where, and what helps."""


class Projection:
    """Sums over tensors; Δw is the change of the stored weights, u the intended one.

    realised ⟨Δw, u⟩, intended ⟨u, u⟩, moved ⟨Δw, Δw⟩; of `elements` updates `clamped` were cut to the recipe's
    update_clip, and the largest before that was `largest` (in learning rates, without decay and L2-SP).
    """

    def __init__(self) -> None:
        self.realised = self.intended = self.moved = self.largest = 0.0
        self.clamped = self.elements = 0

    def merge(self, other: Projection) -> None:
        """Add another's sums."""
        for name in ("realised", "intended", "moved", "clamped", "elements"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest = max(self.largest, other.largest)

    def finite(self) -> bool:
        """Whether every weight and update is: one that is not makes the sums so."""
        return math.isfinite(self.realised) and math.isfinite(self.intended)

    def ratio(self) -> float | None:
        """update_efficiency; None if no update was intended or the sums are not finite."""
        if not self.finite() or self.intended == 0:
            return None
        return self.realised / self.intended

    def noise(self) -> float | None:
        """‖Δw‖ / ‖u‖: 1 where rounding adds nothing; None as above."""
        if not self.finite() or self.intended == 0:
            return None
        return math.sqrt(self.moved / self.intended)

    def clamped_share(self) -> float:
        return self.clamped / self.elements if self.elements else 0.0


def group_of(tensor: str) -> str:
    """The group that a tensor's updates are summed in: embedding, attention, mlp, norms or head."""
    parts = tensor.split(".")
    if any("norm" in part for part in parts):
        return "norms"
    for part, group in (("embed_tokens", "embedding"), ("lm_head", "head"), ("mlp", "mlp"), ("self_attn", "attention")):
        if part in parts:
            return group
    return "other"


class Watch:
    """Stops a run whose updates vanish: efficiency of the last steps together, below a limit, ends it.

    Args:
        limit: the least efficiency; None: nothing is judged.
        lr: the recipe's learning rate.
    """

    def __init__(self, limit: float | None, lr: float, window: int = WINDOW) -> None:
        self.limit, self.lr = limit, lr
        self.sums: deque[tuple[float, float]] = deque(maxlen=window)

    def add(self, projection: Projection, lr: float) -> float | None:
        """Take the sums of a step; returns the efficiency of a full window if it is below the limit."""
        if lr < WORTH_JUDGING * self.lr:
            return None
        self.sums.append((projection.realised, projection.intended))
        if self.limit is None or len(self.sums) < (self.sums.maxlen or 0):
            return None
        realised, intended = (sum(column) for column in zip(*self.sums, strict=True))
        ratio = realised / intended if intended > 0 else 1.0
        return ratio if ratio < self.limit else None


def lost_updates(efficiency: float, master: str, lr: float, weight_rms: float) -> LostUpdatesError:
    """The error of a run whose efficiency is too low, with its cure.

    Args:
        weight_rms: root mean square of the matrices' weights; half a rounding step of such a weight says which
            learning rate is realised (an AdamW update is about one learning rate).
    """
    lost = f"{1 - efficiency:.0%} of the update is lost"
    if master in ("fp32", "bf16", "nvfp4"):
        return LostUpdatesError(
            f"{lost} over {WINDOW} steps with {master} masters, which lose nothing in expectation: the learning rate "
            f"{lr:.1e} is too small beside rounding noise; expected train.lr higher, or master_dtype fp32"
        )
    kind, half_step = ("bf16", 2.0**-9) if master == "bf16-rtn" else ("nvfp4", 0.125)
    return LostUpdatesError(
        f"{lost} to rounding in {kind} masters (train.master_dtype: {master}): use stochastic rounding "
        f"(master_dtype: {kind}) or fp32, or lr ≥ {half_step * weight_rms:.1e} (found {lr:.1e})"
    )
