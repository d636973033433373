"""The folder of plain weights that every import makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

from torch import Tensor

from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, write_weights
from fgod.system.files import atomic_folder


@contextmanager
def plain_folder(
    out: Path,
    shapes: Mapping[str, tuple[int, ...]],
    itemsize: int,
    read: Callable[[str], Tensor],
    beat: Callable[[], None],
) -> Iterator[Path]:
    """A folder with these tensors, for all else that belongs into it; `out` appears whole when the block ends.

    Args:
        itemsize: bytes of a number.
        read: a tensor as it is to be stored. At most one shard of them is in memory.
        beat: called for each tensor.
    """

    def made(name: str) -> dict[str, Tensor]:
        beat()
        return {name: read(name)}

    with atomic_folder(out) as folder:
        write_weights(folder, list(shapes), lambda name: itemsize * prod(shapes[name]), made, DEVICE_SHARD_BYTES)
        yield folder
