"""Tensors that are written to a folder one at a time, whole: also where several ranks have rows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor


class StoredTensors(Protocol):
    """Named tensors. Where ranks share them all ranks ask for the same names in one order, and the first one writes."""

    @property
    def writes(self) -> bool:
        """Whether this process gets whole tensors; another one only calls `help_read`."""

    @property
    def device(self) -> torch.device: ...
    def names(self) -> list[str]: ...
    def like(self, name: str) -> Tensor:
        """The whole tensor on the device meta: its shape and dtype. It need not be there for it."""

    def whole(self, name: str) -> Tensor:
        """A tensor, perhaps the memory itself; only where `writes`."""

    def help_read(self) -> None:
        """What a process that does not write does while another one reads all names once, in order."""

    def put(self, name: str, value: Tensor) -> None:
        """Take a whole tensor over, or the rows of it that are kept here."""


class OwnTensors:
    """Those of one process."""

    writes = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def names(self) -> list[str]:
        return list(self.tensors)

    def like(self, name: str) -> Tensor:
        return torch.empty_like(self.tensors[name], device="meta")

    def whole(self, name: str) -> Tensor:
        return self.tensors[name]

    def help_read(self) -> None:
        pass

    def put(self, name: str, value: Tensor) -> None:
        self.tensors[name].copy_(value)


def read_all(stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
    """Each name with its whole tensor, in order."""
    for name in stored.names():
        yield name, stored.whole(name)
