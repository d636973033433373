"""Write a folder of the formats of `fgod.exporters.gguf` from plain weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from fgod.models.files import MODELFILE
from fgod.nvfp4.codec import power_of_two_global_scale, quantise
from fgod.nvfp4.folders import (
    DTYPES,
    Weights,
    copy_side_files,
    open_weights,
    read_plain_config,
    stored_block_scales,
    stored_names,
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
    """Export a folder of plain weights. `out` appears whole; one tensor is in memory.

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
    config, where = read_plain_config(master), master / "config.json"
    family = architecture_of(config, where)
    family.check(config, where)
    sizes, (architecture, gguf) = family.sizes(config, where), gguf_family(config, where, kind == NVFP4)
    rule, factors = stored_block_scales(master, config), rope_factors(config, sizes, gguf, where)
    wanted = family.tensors(config, where)
    packed = {one: group for one in wanted if kind == NVFP4 and (group := family.scale_group(one))}
    for one in packed:
        if wanted[one][1] % WIDTH:
            raise UsageError(
                f"{master}: {one}: found rows of {wanted[one][1]} weights, expected a multiple of {WIDTH}: GGUF's "
                f"NVFP4 has blocks of {WIDTH}"
            )
    chat = ChatFormat.of_folder(master)
    tokens = tokenizer_keys(chat, sizes.vocab, master / "tokenizer.json")

    def stored(one: str) -> list[_Entry]:
        shape, own = wanted[one], gguf_name(one)
        if one in packed:
            return [_Entry(own, kind, shape), _Entry(f"{own.removesuffix(WEIGHT)}{SCALE}", F32, (1,))]
        plain = F32 if len(shape) == 1 or (kind == NVFP4 and dtype == "float32") else BF16
        return [_Entry(own, plain, shape)]

    with open_weights(master) as weights, files.atomic_folder(out) as folder:
        _check_names(weights, {*wanted}, config)
        scales = _global_scales(weights, packed)

        def made(one: str) -> Iterator[Tensor]:
            """What `stored` announces."""
            value = weights.read(one).to(device or "cpu").float()
            largest_finite(value, f"{master}: {one}")
            if gguf.permuted and (heads := heads_of_rows(one, sizes)):
                value = value[torch.from_numpy(permuted_rows(len(value), heads)).to(value.device)]
            if one in packed:
                scale = scales[packed[one]]
                yield blocks_of(quantise(value, scale, f"{master}: {one}", rule))
                yield torch.tensor([1 / scale])
            elif stored(one)[0].kind == BF16:
                yield value.bfloat16()
            else:
                yield value.to(DTYPES[dtype]).float()

        writer = GGUFWriter(folder / name, architecture)
        add_origin(writer, master, gguf, FILE_TYPES[kind])
        add_model(writer, config, sizes)
        add_tokenizer(writer, tokens, chat.tokenizer.get_chat_template())
        if packed:
            add_activations(writer, [gguf_name(one) for one in packed])
        rope = [] if factors is None else [_Entry(ROPE_FACTORS, F32, factors.shape)]
        with _written(writer, [*rope, *(entry for one in wanted for entry in stored(one))]):
            if factors is not None:
                _write(writer, torch.from_numpy(factors))
            for one in wanted:
                beat()
                for value in made(one):
                    _write(writer, value)
        (folder / MODELFILE).write_text(modelfile(chat, name), encoding="utf-8")
        copy_side_files(master, folder)
        write_config(folder, config, dtype, quantization_config=dict(quantised))
    for file in (*weight_files(master), out / name):
        files.drop_cached(file)


def _check_names(weights: Weights, wanted: set[str], config: Mapping[str, Any]) -> None:
    differing = sorted(wanted ^ {*stored_names(weights, config)})
    if differing:
        found = "found no tensor" if differing[0] in wanted else "found the tensor"
        raise UsageError(f"{weights.folder}: {found} {differing[0]}, expected those of config.json")


def _global_scales(weights: Weights, packed: Mapping[str, str]) -> dict[str, float]:
    """The global scale of each scale group, of which one tensor at a time is read."""
    largest: dict[str, float] = {}
    for name, group in packed.items():
        found = largest_finite(weights.read(name).float(), f"{weights.folder}: {name}")
        largest[group] = max(found, largest.get(group, 0.0))
    return {group: power_of_two_global_scale(amax, group) for group, amax in largest.items()}


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
