"""Write a folder of the formats of `fgod.gguf.exporter` from plain weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType, LlamaFileType
from gguf.gguf_writer import GGUFWriter
from numpy.typing import NDArray
from torch import Tensor

from fgod.dat.codec import largest_finite
from fgod.errors import UsageError
from fgod.gguf.blocks import BYTES, WIDTH, blocks_of
from fgod.gguf.metadata import add_activations, add_model, add_origin, add_tokenizer, gguf_family, rope_factors
from fgod.gguf.modelfile import modelfile
from fgod.gguf.tokens import tokenizer_keys
from fgod.importing.gguf_config import ROPE_FACTORS, gguf_name, heads_of_rows, permuted_rows
from fgod.importing.gguf_file import SCALE, WEIGHT
from fgod.model.chats import ChatFormat
from fgod.models.architecture import architecture_of
from fgod.models.files import CONFIG, MODELFILE
from fgod.nvfp4.codec import power_of_two_global_scale, quantise_chunks
from fgod.nvfp4.folders import (
    DTYPES,
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

F32, BF16, NVFP4 = GGMLQuantizationType.F32, GGMLQuantizationType.BF16, GGMLQuantizationType.NVFP4
FILE_TYPES = {BF16: LlamaFileType.MOSTLY_BF16, NVFP4: LlamaFileType.MOSTLY_NVFP4}


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file. `shape` has the rows first."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """With bytes as the last dimension."""
        *rows, width = self.shape
        sizes = {F32: width * 4, BF16: width * 2, NVFP4: width // WIDTH * BYTES}
        return (*rows, sizes[self.kind])


class _Streamed(np.ndarray[Any, np.dtype[np.uint8]]):
    """An array that the stream writes: numpy's own `tofile` does not say what failed."""

    def tofile(self, fid: BinaryIO, *_: object) -> None:  # type: ignore[override]
        fid.write(self.data)


def export_gguf(
    master: Path,
    out: Path,
    name: str,
    kind: GGMLQuantizationType,
    dtype: str,
    quantised: Mapping[str, Any],
    device: torch.device | None = None,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Export a folder of plain weights. `out` appears whole; the tensors of one scale group are in memory.

    Args:
        name: of the file in `out`.
        kind: NVFP4: the projections are written as training computes with them, codes and scales of the NVFP4 export,
            and what else has rows in `dtype`. BF16: whatever has rows is rounded to BF16. Norms and biases are float32,
            rounded to `dtype` first.
        dtype: what the weights are computed in where they are loaded here, for config.json.
        quantised: `quantization_config` of config.json.

    Raises:
        UsageError: a file is missing, llama.cpp has no such family, the weights are quantised already or not those of
            config.json, a row is no whole number of blocks, or the tokenizer is none that GGUF can describe.
        NonFiniteError: a weight is NaN or infinite; names folder and tensor.
    """
    config, where = read_plain_config(master), master / CONFIG
    family = architecture_of(config, where)
    family.check(config, where)
    sizes, (architecture, gguf) = family.sizes(config, where), gguf_family(config, where, kind == NVFP4)
    rule, factors = stored_block_scales(master, config), rope_factors(config, sizes, gguf, where)
    shapes = family.tensors(config, where)
    packed = {one: group for one in shapes if kind == NVFP4 and (group := family.scale_group(one))}
    heads = {one: found for one in shapes if gguf.permuted and (found := heads_of_rows(one, sizes))}
    layout = _Layout(master, shapes, packed, heads, kind, DTYPES[dtype])
    layout.check_rows()
    chat = ChatFormat.of_folder(master)
    tokens = tokenizer_keys(chat, sizes.vocab, master / "tokenizer.json")
    with open_weights(master) as weights, files.atomic_folder(out) as folder:
        check_tensors(weights, shapes, config)
        writer = GGUFWriter(folder / name, architecture)
        add_origin(writer, master, gguf, FILE_TYPES[kind])
        add_model(writer, config, sizes)
        add_tokenizer(writer, tokens, chat.tokenizer.get_chat_template())
        if packed:
            add_activations(writer, [gguf_name(one) for one in packed])
        rope = [] if factors is None else [_Entry(ROPE_FACTORS, F32, factors.shape)]
        with _written(writer, [*rope, *(entry for one in shapes for entry in layout.entries(one))]):
            if factors is not None:
                _write(writer, torch.from_numpy(factors))
            for one, value, scale in _masters(weights, shapes, packed, device or torch.device("cpu")):
                beat()
                for stored in layout.made(one, value, scale, rule):
                    _write(writer, stored)
        (folder / MODELFILE).write_text(modelfile(chat, name), encoding="utf-8")
        copy_side_files(master, folder)
        write_config(folder, config, dtype, quantization_config=dict(quantised))
    for file in (*weight_files(master), out / name):
        files.drop_cached(file)


@dataclass(frozen=True)
class _Layout:
    """How the tensors of a model are stored.

    Args:
        shapes: by transformers' names.
        packed: the scale group of each tensor that becomes NVFP4.
        heads: of each tensor whose rows llama.cpp has in another order.
        kind: of what has rows.
        dtype: what is not packed is rounded to it.
    """

    master: Path
    shapes: Mapping[str, tuple[int, ...]]
    packed: Mapping[str, str]
    heads: Mapping[str, int]
    kind: GGMLQuantizationType
    dtype: torch.dtype

    def check_rows(self) -> None:
        """Raise UsageError for rows that are no whole number of blocks."""
        for name in self.packed:
            width = self.shapes[name][1]
            if width % WIDTH:
                raise UsageError(
                    f"{self.master}: {name}: found rows of {width} weights, expected a multiple of {WIDTH}: GGUF's "
                    f"NVFP4 has blocks of {WIDTH}"
                )

    def entries(self, name: str) -> list[_Entry]:
        """What a tensor becomes in the file."""
        shape, own = self.shapes[name], gguf_name(name)
        if name in self.packed:
            return [_Entry(own, NVFP4, shape), _Entry(f"{own.removesuffix(WEIGHT)}{SCALE}", F32, (1,))]
        return [_Entry(own, BF16 if self._bf16(name) else F32, shape)]

    def made(self, name: str, value: Tensor, scale: float | None, rule: str) -> Iterator[Tensor]:
        """The data of `entries`.

        Args:
            value: in transformers' order of rows.
            scale: the global scale of its scale group; None: it is not packed.
            rule: of block scales.

        Raises:
            NonFiniteError: a weight is NaN or infinite; names folder and tensor.
        """
        where = f"{self.master}: {name}"
        if scale is None:
            largest_finite(value, where)
        if name in self.heads:
            order = permuted_rows(len(value), self.heads[name])
            value = value[torch.from_numpy(order).to(value.device)]
        if name in self.packed:
            assert scale is not None
            yield from quantise_chunks(value, scale, lambda chunk: (blocks_of(chunk),), where, rule)
            yield torch.tensor([1 / scale])
        elif self._bf16(name):
            yield value.bfloat16()
        else:
            yield value.to(self.dtype).float()

    def _bf16(self, name: str) -> bool:
        return len(self.shapes[name]) > 1 and (self.kind == BF16 or self.dtype == torch.bfloat16)


def _masters(
    weights: Weights, names: Iterable[str], packed: Mapping[str, str], device: torch.device
) -> Iterator[tuple[str, Tensor, float | None]]:
    """Each tensor, with the global scale of its scale group if it has one: groups are read together, each tensor once.
    What is packed is on the device. The rest is only stored, and stays on the host.

    Raises:
        NonFiniteError: a weight that is packed is NaN or infinite; names folder and tensor.
    """
    scales: dict[str, float] = {}
    held: dict[str, Tensor] = {}
    for name in names:
        group = packed.get(name)
        if group is None:
            yield name, weights.read(name), None
            continue
        if group not in scales:
            members = {one: weights.read(one).to(device) for one, its in packed.items() if its == group}
            amax = max(largest_finite(value, f"{weights.folder}: {one}") for one, value in members.items())
            scales[group] = power_of_two_global_scale(amax, group)
            held |= members
            members.clear()
        yield name, held.pop(name), scales[group]


@contextmanager
def _written(writer: GGUFWriter, entries: list[_Entry]) -> Iterator[None]:
    """Write everything before the tensors, and close the file at the end."""
    for entry in entries:
        shape = entry.byte_shape
        writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), prod(shape), raw_dtype=entry.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        yield
        writer.flush()
    finally:
        writer.close()


def _write(writer: GGUFWriter, value: Tensor) -> None:
    """Write the next of the tensors that were announced."""
    raw: NDArray[np.uint8] = value.contiguous().cpu().view(torch.uint8).numpy()
    writer.write_tensor_data(raw.view(_Streamed))
