"""Write a folder of the formats of `fgod.dat.exporter` from plain weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fgod.dat.codec import half, largest_finite, quantise
from fgod.dat.file import Element, write_dat
from fgod.dat.weights import QDATA, SCALE
from fgod.models.architecture import Architecture, architecture_of
from fgod.models.files import CONFIG
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.folders import (
    Weights,
    check_tensors,
    copy_side_files,
    open_weights,
    read_plain_config,
    stored_block_scales,
    weight_files,
    write_config,
)
from fgod.system import files

Rows = Iterator[tuple[str, Element, NDArray[Any]]]


def export_dat(
    master: Path,
    out: Path,
    name: str,
    scales: Element,
    dtype: str,
    quantised: Mapping[str, Any],
    device: torch.device | None = None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Export a folder of plain weights. `out` appears whole; the tensors of one scale group are in memory.

    The projections are written as training computes with them, rounded to NVFP4. The head, which training does not
    round, is quantised too, a tied one from the embedding: it is a weight of its own then, and config.json says so. The
    rest becomes float16.

    Args:
        name: of the file in `out`.
        scales: the element type of block scales.
        dtype: what the weights are computed in where they are loaded here, for config.json.
        quantised: `quantization_config` of config.json.

    Raises:
        UsageError: a file is missing, the family is not registered, the weights are quantised already or not those of
            config.json, or one is too large for its type.
        NonFiniteError: a weight is NaN or infinite; names folder and tensor.
    """
    config = read_plain_config(master)
    rule, family = stored_block_scales(master, config), architecture_of(config, master / CONFIG)
    with open_weights(master) as weights, files.atomic_folder(out) as folder:
        sources = _sources(weights, family, config)
        groups = _groups(list(sources), family)
        count = sum(len(names) * (2 if packed else 1) for names, packed in groups)

        def entries() -> Rows:
            for names, packed in groups:
                masters = {one: weights.read(sources[one]).to(device or "cpu") for one in names}
                amax = max(largest_finite(value, f"{master}: {one}") for one, value in masters.items())
                for one, value in masters.items():
                    beat()
                    where = f"{master}: {one}"
                    if packed:
                        made = quantise(value, scales, amax, rule, one != TIED_HEAD, where)
                        yield f"{one}{QDATA}", Element.UINT8, _array(made.codes)
                        yield f"{one}{SCALE}", scales, _array(made.scales).view(scales.stored)
                    else:
                        yield one, Element.FLOAT16, _array(half(value, where)).view(Element.FLOAT16.stored)

        write_dat(folder / name, count, entries())
        copy_side_files(master, folder)
        own = {**config, "tie_word_embeddings": False}
        write_config(folder, own, dtype, quantization_config=dict(quantised))
    for file in (*weight_files(master), out / name):
        files.drop_cached(file)


def _array(value: Tensor) -> NDArray[Any]:
    """The bytes of a tensor on the host: uint8, the last dimension that of bytes."""
    found: NDArray[Any] = value.contiguous().cpu().view(torch.uint8).numpy()
    return found


def _sources(weights: Weights, family: Architecture, config: Mapping[str, Any]) -> dict[str, str]:
    """The tensors to write, in transformers' order with the head at the end, and which stored one each is made of."""
    wanted = family.tensors(config, weights.folder / CONFIG)
    check_tensors(weights, wanted, config)
    return {name: name for name in wanted} | {TIED_HEAD: TIED_HEAD if TIED_HEAD in wanted else EMBEDDING}


def _groups(names: list[str], family: Architecture) -> list[tuple[list[str], bool]]:
    """Tensors that are read together, those of a scale group or one, and whether they are quantised."""
    groups: dict[str, tuple[list[str], bool]] = {}
    for name in names:
        group = TIED_HEAD if name == TIED_HEAD else family.scale_group(name)
        groups.setdefault(group or name, ([], group is not None))[0].append(name)
    return list(groups.values())
