"""How much of what the optimizer wanted came to be: Σ⟨Δw, u⟩ / Σ⟨u, u⟩ over all tensors of a step.

1 means that updates land; near 0 that they are rounded away. A ratio of norms would hide it: rounding noise has a norm
too, but no component along the update.
"""

from __future__ import annotations

import math

from torch import Tensor


class Projection:
    """Sums over tensors of ⟨Δw, u⟩ and ⟨u, u⟩: Δw is the change of the stored weights, u the intended one."""

    def __init__(self) -> None:
        self.realised = 0.0
        self.intended = 0.0

    def add(self, change: Tensor, update: Tensor) -> None:
        """Two float32 tensors of one shape."""
        update = update.flatten()
        self.realised += change.flatten().dot(update).item()
        self.intended += update.dot(update).item()

    def finite(self) -> bool:
        """Whether every weight and update is: one that is not makes the sums so."""
        return math.isfinite(self.realised) and math.isfinite(self.intended)

    def ratio(self) -> float | None:
        """update_efficiency; None if no update was intended or the sums are not finite."""
        if not self.finite() or self.intended == 0:
            return None
        return self.realised / self.intended
