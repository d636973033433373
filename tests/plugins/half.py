"""A plugin: AdamW's running mean as float16 fractions of the largest value of each segment of a row."""

from __future__ import annotations

import torch
from torch import Tensor

from fgod.registry import MEAN_FORMATS
from fgod.train.codecs import segment_width
from fgod.train.storage import StateFormat


class Half(StateFormat):
    in_place = False

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        rows, columns = shape
        largest = torch.zeros(rows, columns // segment_width(columns), device=device)
        return torch.zeros(shape, dtype=torch.float16, device=device), largest

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        fractions, largest = parts
        return fractions.float().unflatten(1, (largest.shape[1], -1)).mul_(largest.unsqueeze(-1)).flatten(1)

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        segments = values.unflatten(1, (-1, segment_width(values.shape[1])))
        largest = segments.abs().amax(-1)
        fractions = segments / torch.where(largest > 0, largest, 1.0).unsqueeze(-1)
        return fractions.half().flatten(1), largest


MEAN_FORMATS.register("half", Half())
