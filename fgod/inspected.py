"""What a folder of weights, a TorchSharp or a GGUF file holds, as text: `fgod inspect FOLDER`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from fgod.dat.codec import Packed
from fgod.dat.exporter import DAT, FILE, Dat
from fgod.dat.file import SUFFIX as DAT_SUFFIX
from fgod.dat.file import DatFile, read_dat
from fgod.dat.weights import packed_of, stored_weights, tensor_of
from fgod.documents import Release, differing_release_files
from fgod.errors import UsageError
from fgod.exporters.exporter import Exporter, exporter_of
from fgod.exporters.nvfp4 import NVFP4, Nvfp4
from fgod.exporters.read import read_export
from fgod.gguf.blocks import quantised_of
from fgod.gguf.exporter import FILE as GGUF_FILE
from fgod.gguf.exporter import Gguf
from fgod.importing.file import SUFFIXES
from fgod.importing.gguf_file import GgufFile, read_gguf
from fgod.layout import RELEASE_RECORD, RunWeights
from fgod.model.load import read_config
from fgod.models.files import CONFIG
from fgod.nvfp4.codec import AT_ONCE, BLOCK, E2M1, Quantised, decode_e2m1, largest_magnitude, rows_at_once, unpack
from fgod.nvfp4.folders import weight_files
from fgod.system.files import read_json, sha256_file, sha256_folder
from fgod.system.table import NUMBER, TEXT, read_table


@dataclass(frozen=True)
class Inspected:
    """One tensor. `stored` is nvfp4, dat, a dtype or a type of GGML's; `faults` says what in it no model may hold,
    empty if nothing."""

    name: str
    shape: tuple[int, ...]
    stored: str
    nbytes: int
    amax: float
    detail: str
    faults: str


def inspect_tensor(name: str, value: Quantised | Tensor, zero_scales: bool = False) -> Inspected:
    """What a stored tensor holds; broken scales are counted, not decoded. `zero_scales`: scales may be 0."""
    if not isinstance(value, Quantised):
        parts = value.reshape(-1).split(AT_ONCE[value.device.type])
        bad = sum(int((~torch.isfinite(part)).sum()) for part in parts)
        faults = f"{bad:,} non-finite weights" if bad else ""
        stored = str(value.dtype).removeprefix("torch.")
        return Inspected(
            name, tuple(value.shape), stored, value.nbytes, _largest(part.float() for part in parts), "", faults
        )
    scales = value.scales.float()
    steps, rows = scales / value.global_scale, rows_at_once(value.codes)
    amax = _largest(
        decode_e2m1(codes).unflatten(1, (-1, BLOCK)) * its_steps.unsqueeze(-1)
        for codes, its_steps in zip(value.codes.split(rows), steps.split(rows), strict=True)
    )
    nbytes = value.codes.numel() // 2 + value.scales.nbytes + 4
    detail = f"global scale {value.global_scale:g} · scales {_scale_histogram(scales)} · codes {_codes(value.codes)}"
    return Inspected(
        name, tuple(value.codes.shape), NVFP4.name, nbytes, amax, detail, _scale_faults(scales, value, zero_scales)
    )


def _largest(parts: Iterable[Tensor]) -> float:
    """The largest magnitude in any of the parts; NaN if any element is NaN."""
    return torch.tensor([largest_magnitude(part) for part in parts]).max().item()


def _inspect_packed(name: str, packed: Packed) -> Inspected:
    """What a quantised weight without a tensor scale holds."""
    value = Quantised(unpack(packed.codes), packed.scales, 1.0)
    found = inspect_tensor(name, value, zero_scales=True)
    kind = str(packed.scales.dtype).removeprefix("torch.")
    detail = f"{kind} scales {_scale_histogram(packed.scales.float())} · codes {_codes(value.codes)}"
    return replace(found, stored=DAT.name, nbytes=packed.codes.nbytes + packed.scales.nbytes, detail=detail)


def _inspect_dat(file: DatFile) -> Iterator[Inspected]:
    for name, stored in stored_weights(file).items():
        if stored.scale is None:
            yield inspect_tensor(name, tensor_of(file, stored.data))
        else:
            yield _inspect_packed(name, packed_of(file, stored))


def _inspect_gguf(file: GgufFile) -> Iterator[Inspected]:
    """By GGUF's names, and with llama.cpp's order of rows; a tensor's scale is a line of its own."""
    for name, tensor in file.tensors.items():
        if tensor.type == GGMLQuantizationType.NVFP4:
            scale = file.scale(name)
            value = quantised_of(torch.from_numpy(file.stored(name)), 1.0 if scale is None else float(scale))
            yield replace(inspect_tensor(name, value), nbytes=tensor.nbytes)
        else:
            found = inspect_tensor(name, torch.from_numpy(file.read(name)))
            yield replace(found, stored=tensor.type.name.lower(), nbytes=tensor.nbytes)


def _scale_histogram(scales: Tensor) -> str:
    """Share of block scales by power of two: `2^3 12%` are those in [8, 16)."""
    _, exponents = torch.frexp(scales[torch.isfinite(scales) & (scales > 0)])
    found, its_counts = torch.unique(exponents - 1, return_counts=True)
    counts = zip(found.tolist(), its_counts.tolist(), strict=True)
    total = max(1, scales.numel())
    zeros = [f"0 {share:.0%}"] if (share := int((scales == 0).sum()) / total) else []
    return " ".join([*zeros, *(f"2^{exponent} {count / total:.0%}" for exponent, count in counts)])


def _codes(codes: Tensor) -> str:
    """Share of each magnitude among the codes."""
    counts = torch.bincount((codes & 7).flatten(), minlength=8).tolist()
    return " ".join(f"{value:g} {count / codes.numel():.0%}" for value, count in zip(E2M1, counts, strict=True))


def _scale_faults(scales: Tensor, value: Quantised, zero_scales: bool) -> str:
    counts = {
        "non-finite scales": int((~torch.isfinite(scales)).sum()),
        "zero scales": 0 if zero_scales else int((scales == 0).sum()),
        "negative scales": int((scales < 0).sum()),
        "bad global scale": int(not (math.isfinite(value.global_scale) and value.global_scale > 0)),
    }
    return ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)


def _participation(folder: Path) -> dict[str, str]:
    """By tensor: how it took part in the run that made artifacts/{stage}/{lineage}/…, as far as that is on record."""
    parts = folder.resolve().parents
    if len(parts) < 4:
        return {}
    path = parts[3] / "results" / "runs" / parts[1].name / parts[0].name / "participation.tsv"
    columns = {"tensor": TEXT, "trainable": TEXT, "got_gradient": TEXT, "changed_share": NUMBER}
    rows = read_table(path, columns) if path.exists() else []
    return {row["tensor"]: _took_part(row) for row in rows}


def _took_part(row: Mapping[str, Any]) -> str:
    changed = f"{row['changed_share']:.1%} changed"
    return f"trainable {row['trainable']}, gradient {row['got_gradient']}, {changed}"


def _digest(folder: Path) -> str:
    """The folder's sha256, computed anew, and whether it is the one on record beside it."""
    if (folder / RELEASE_RECORD).exists():
        record = folder / RELEASE_RECORD
        changed = ", ".join(differing_release_files(folder, Release.read(record)))
        return f"FAULT: not as recorded in {record}: {changed}" if changed else f"all files as recorded in {record}"
    run = RunWeights(folder.parent)
    stamp = {run.master: run.trained, run.exported: run.stamp}.get(folder, folder.parent / "none.json")
    now = sha256_folder(folder)
    if not stamp.exists():
        return f"sha256 {now}, nothing on record beside it"
    recorded: Mapping[str, Any] = read_json(stamp)
    same = recorded.get("weights_sha256") == now
    return f"sha256 {now}, {'as recorded in' if same else 'NOT that of'} {stamp}"


def _exporter(folder: Path) -> Exporter | None:
    return exporter_of(read_config(folder)) if (folder / CONFIG).is_file() else None


def _file(place: Path) -> Path | None:
    """The TorchSharp or GGUF file that a place is, or that lies in an export to such a file; None: another folder.

    Raises:
        UsageError: it is another file.
    """
    if place.is_file():
        if place.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{place}: found a file, expected a model folder, a {' or a '.join(SUFFIXES)} file")
        return place
    exporter = _exporter(place)
    if isinstance(exporter, Gguf):
        return place / GGUF_FILE
    return place / FILE if isinstance(exporter, Dat) else None


def _inspect_folder(folder: Path) -> list[Inspected]:
    exporter = _exporter(folder)
    stored = read_export(folder, exporter=exporter if isinstance(exporter, Nvfp4) else NVFP4)
    return [inspect_tensor(name, value) for name, value in stored]


def text(place: Path) -> str:
    """A line for each tensor of a master folder, an export (and how it took part in its training), a TorchSharp or
    a GGUF file, and their sum.

    Raises:
        UsageError: the folder or file or its weights are missing, or broken.
    """
    if not place.exists():
        raise UsageError(f"{place}: no such folder or file, expected a model folder, a .gguf or a .dat file")
    file, kind = _file(place), NVFP4.name
    if file and file.suffix.lower() == DAT_SUFFIX:
        found, paths, kind = list(_inspect_dat(read_dat(file))), [file], DAT.name
    elif file:
        found, paths = list(_inspect_gguf(read_gguf(file))), [file]
    else:
        found, paths = _inspect_folder(place), weight_files(place)
    if not found:
        raise UsageError(f"{place}: found no tensors, expected the weights of a model")
    part = _participation(place)
    width = max(len(i.name) for i in found)
    lines = []
    for i in found:
        facts = (i.detail, part.get(i.name, ""), i.faults and f"FAULT: {i.faults}")
        line = (
            f"{i.name:{width}}  {'×'.join(map(str, i.shape)):>12}  {i.stored:8} {i.nbytes:>13,}  |w| ≤ {i.amax:<10.4g}"
        )
        lines.append(f"{line} {' · '.join(filter(None, facts))}".rstrip())
    size = sum(path.stat().st_size for path in paths)
    packed, faults = sum(i.stored == kind for i in found), sum(bool(i.faults) for i in found)
    lines.append(f"{len(found)} tensors, {packed} of them {kind}, {faults} with faults, {size:,} bytes: {place}")
    return "\n".join([*lines, _digest(place) if place.is_dir() else f"sha256 {sha256_file(place)}"])
