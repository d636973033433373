"""Rows to token ids, and which rows each step takes. Deterministic: no random number generator is involved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count

import torch
from torch import Tensor

from fgod.data.rows import Row, shuffled
from fgod.errors import UsageError
from fgod.model.chats import Sample
from fgod.train.distil import SoftLabels, joined
from fgod.train.recipe import TrainRecipe


@dataclass(frozen=True)
class Batch:
    """Rows padded at the right: a causal model needs no mask for them, as nothing looks at what comes after it.

    input_ids: int64 [rows, longest - 1], for nothing is predicted from a row's last token; positions: int64 [labels],
    places in the flattened ids whose next token is a label; labels: int64 [labels]; tokens: those of the rows; soft:
    the same labels with the teacher's distributions, where rows are rehearsed that have one; starts: int32 [rows + 1],
    where rows begin and where the last one ends, if they are packed: input_ids are [1, tokens] then, without padding.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    tokens: int
    soft: SoftLabels | None = None
    starts: Tensor | None = None


def collate(samples: Sequence[Sample], pad: int, bucket: int = 1) -> Batch:
    """Pad samples to the longest one, and on to a multiple of `bucket` tokens."""
    width = max(len(sample.ids) for sample in samples) - 1
    width += -width % bucket
    ids = [[*sample.ids[:-1], *[pad] * (width + 1 - len(sample.ids))] for sample in samples]
    positions = [
        row * width + column for row, sample in enumerate(samples) for column in (place - 1 for place in sample.learned)
    ]
    labels = [sample.ids[place] for sample in samples for place in sample.learned]
    tokens = sum(len(sample.ids) for sample in samples)
    return Batch(torch.tensor(ids), torch.tensor(positions), torch.tensor(labels), tokens, joined(samples))


def packed(samples: Sequence[Sample]) -> Batch:
    """Samples one after another, without padding. Only `input_ids`, `positions` and `starts` differ from those of
    `collate`."""
    starts = [0, *accumulate(len(sample.ids) - 1 for sample in samples)]
    ids = [token for sample in samples for token in sample.ids[:-1]]
    positions = [start + place - 1 for start, sample in zip(starts, samples, strict=False) for place in sample.learned]
    labels = [sample.ids[place] for sample in samples for place in sample.learned]
    return Batch(
        torch.tensor([ids]), torch.tensor(positions), torch.tensor(labels), len(ids) + len(samples), joined(samples),
        torch.tensor(starts, dtype=torch.int32),
    )  # fmt: skip


def real_share(lengths: Sequence[int], chosen: Sequence[Sequence[int]], bucket: int = 1) -> float:
    """The share of tokens that are computed in these batches that is no padding, to a multiple of `bucket`."""
    real = sum(lengths[i] - 1 for batch in chosen for i in batch)
    widths = [max(lengths[i] for i in batch) - 1 for batch in chosen]
    return real / sum(len(batch) * (width + -width % bucket) for batch, width in zip(chosen, widths, strict=True))


def units(rows: Sequence[Row], batch: int) -> list[list[int]]:
    """Indices of rows that must stay in one batch: those of a group together, at the place of its first row.

    Raises:
        UsageError: a group is larger than the batch; names it.
    """
    by_group: dict[str, list[int]] = {}
    out = []
    for index, row in enumerate(rows):
        if row.group and row.group in by_group:
            by_group[row.group].append(index)
            continue
        out.append([index])
        if row.group:
            by_group[row.group] = out[-1]
    for group, members in by_group.items():
        if len(members) > batch:
            raise UsageError(f"train.batch: {batch}; the group {group!r} has {len(members)} rows for one batch")
    return out


def _take_fitting(waiting: list[list[int]], free: int) -> list[int] | None:
    """Remove and return the first unit that fits into `free` places."""
    for place, unit in enumerate(waiting):
        if len(unit) <= free:
            return waiting.pop(place)
    return None


WINDOW = 24
"""Batches whose rows are sorted by length together: more leave less padding, and batches of one kind of row."""


def _epochs(rows: Sequence[Row], batch: int, seed: int) -> Iterator[list[int]]:
    """All units, again and again, each epoch in another order."""
    numbered = list(enumerate(units(rows, batch)))
    for epoch in count():
        yield from (unit for _, unit in shuffled(numbered, f"{seed}|epoch {epoch}", key=lambda item: item[0]))


def _by_length(rows: Sequence[Row], lengths: Sequence[int], batch: int, seed: int) -> Iterator[list[int]]:
    """Windows of the shuffled order; the units of each are sorted by their longest row and cut into batches, which come
    in a shuffled order."""
    stream = _epochs(rows, batch, seed)
    unit = next(stream)
    for number in count():
        window: list[list[int]] = []
        while sum(map(len, window)) + len(unit) <= WINDOW * batch:
            window.append(unit)
            unit = next(stream)
        cut = _cut(sorted(window, key=lambda unit: max(lengths[i] for i in unit)), batch)
        yield from (one for _, one in shuffled(enumerate(cut), f"{seed}|window {number}", key=lambda item: item[0]))


def _cut(waiting: list[list[int]], batch: int) -> list[list[int]]:
    """Units in order as batches; a later one that fits fills a place where the next one does not."""
    out = []
    while waiting:
        chosen: list[int] = []
        while (unit := _take_fitting(waiting, batch - len(chosen))) is not None:
            chosen += unit
        out.append(chosen)
    return out


def _random(rows: Sequence[Row], batch: int, seed: int) -> Iterator[list[int]]:
    """Each epoch another order; a batch goes on into the next epoch only when this one has no unit left."""
    together = units(rows, batch)
    numbered = list(enumerate(together))
    waiting: list[list[int]] = []
    epoch = 0
    while True:
        chosen: list[int] = []
        while len(chosen) < batch:
            if not waiting:
                order = shuffled(numbered, f"{seed}|epoch {epoch}", key=lambda item: item[0])
                waiting = [unit for _, unit in order]
                epoch += 1
            unit = _take_fitting(waiting, batch - len(chosen))
            if unit is None:
                break
            chosen += unit
        yield chosen


def _sequential(rows: Sequence[Row], batch: int) -> Iterator[list[int]]:
    """The given order, wrapping; a batch ends early where a group would be cut."""
    together = units(rows, batch)
    place = 0
    while True:
        chosen: list[int] = []
        while len(chosen) + len(together[place]) <= batch:
            chosen += together[place]
            place = (place + 1) % len(together)
        yield chosen


def _curriculum(rows: Sequence[Row], batch: int, steps: int) -> Iterator[list[int]]:
    """Draw i of steps·batch takes row ⌊i·rows/(steps·batch)⌋, with its group; a batch may end early, as above."""
    unit_of = {index: unit for unit in units(rows, batch) for index in unit}
    for step in range(steps):
        chosen: list[int] = []
        while len(chosen) < batch:
            draw = step * batch + len(chosen)
            unit = unit_of[draw * len(rows) // (steps * batch)]
            if len(chosen) + len(unit) > batch:
                break
            chosen += unit
        yield chosen


def batches(rows: Sequence[Row], recipe: TrainRecipe, seed: int, lengths: Sequence[int] = ()) -> Iterator[list[int]]:
    """Row indices of each of the recipe's steps: `batch` of them, or fewer where a group would be cut.

    Args:
        lengths: tokens of each row, for a recipe that batches by them.
    """
    match recipe.sample_mode:
        case "random" if recipe.batching == "by_length":
            source = _by_length(rows, lengths, recipe.batch, seed)
        case "random":
            source = _random(rows, recipe.batch, seed)
        case "sequential":
            source = _sequential(rows, recipe.batch)
        case _:
            source = _curriculum(rows, recipe.batch, recipe.steps)
    for _ in range(recipe.steps):
        yield next(source)


def pieces(samples: Sequence[Sample], size: int | None) -> list[list[Sample]]:
    """A batch cut into pieces of at most `size` rows, of similar lengths: less padding. Whole, it keeps its order."""
    order = computed_order(samples, size)
    size = size or len(samples)
    return [[samples[i] for i in order[first : first + size]] for first in range(0, len(samples), size)]


def micro_batches(samples: Sequence[Sample], size: int | None, pad: int, bucket: int = 1) -> list[Batch]:
    """The `pieces` of a batch, their rows padded."""
    return [collate(piece, pad, bucket) for piece in pieces(samples, size)]


def computed_order(samples: Sequence[Sample], size: int | None) -> list[int]:
    """Places of the samples in the order in which `pieces` takes them: by length where it cuts."""
    if size is None or size >= len(samples):
        return list(range(len(samples)))
    return sorted(range(len(samples)), key=lambda place: len(samples[place].ids))


def row_losses(samples: Sequence[Sample], size: int | None, losses: Sequence[float]) -> list[float]:
    """The mean loss of each sample's labels, in the samples' order; not a number for one without labels, or
    with a loss that is none.

    Args:
        size: as of `micro_batches`.
        losses: of all labels, piece by piece.
    """
    means, first = [math.nan] * len(samples), 0
    for place in computed_order(samples, size):
        count = len(samples[place].learned)
        if count:
            own = losses[first : first + count]
            means[place] = math.fsum(own) / count if all(map(math.isfinite, own)) else math.nan
        first += count
    return means
