"""A plugin: the mean length of replies, in characters. Neither a share nor a divergence."""

from __future__ import annotations

from fgod.evaluate.metric import Metric, Unit, mean, register

register(
    Metric(
        name="mean_length",
        short="length",
        unit=Unit("characters"),
        description="characters of a scored reply",
        better="higher",
        verdict="missed",
        compute=lambda records: mean(len(r.reply) for r in records if r.scored),
        offends=lambda r: 1000 - len(r.reply) if r.scored else 0,
        by_language=True,
        headline=True,
    )
)
