"""Export random weights in a real model's shape to each format: size, time, memory of the host, and what is read back.

    .venv/bin/python -m benchmarks.formats --shape qwen3-4b --out FOLDER [--gpus 1] [--formats nvfp4 dat …]

Each export runs in a process of its own, from BF16 weights in shards of 1 GB that are in no cache. `before` is what the
process has in memory when it begins, `peak` the most that it ever had resident (VmHWM), with what it maps of a file
that it reads. Another process reads the export again, each weight in float32 with the package's reader; a third one
compares what it reads to the bit with what the format's quantiser makes of the weights. FOLDER gets `master` and one
folder for each format, which are made anew. Exit code 1 if any weight differs. docs/formats.md has the numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torch import Tensor

from fgod.dat import codec as dat
from fgod.dat.exporter import Dat
from fgod.exporters.nvfp4 import Nvfp4
from fgod.model.load import read_config
from fgod.model.random import write_shape
from fgod.model.spec import SHAPES
from fgod.models.architecture import Architecture, architecture_of
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.codec import fake_quantise, largest_magnitude, power_of_two_global_scale
from fgod.nvfp4.folders import open_weights, weight_files
from fgod.registry import EXPORTERS
from fgod.system.files import drop_cached, folder_files
from fgod.system.procfs import forget_peak, peak_mib, resident_mib
from tests.byte_level_tokenizers import PEERS

DTYPE = "bfloat16"
MB = 10**6
MIB = 2**20


@dataclass(frozen=True)
class Taken:
    """What some work took. Memory in MiB; `cpu` are seconds of all its threads."""

    seconds: float
    cpu: float
    before: float
    peak: float


def taken(work: Callable[[torch.device], None], gpus: int) -> Taken:
    """Work in this process, which has done nothing else."""
    device = torch.device("cuda" if gpus else "cpu")
    torch.zeros(1, device=device)  # a CUDA context takes seconds and memory of its own
    forget_peak()
    before, begin, cpu = resident_mib(), time.perf_counter(), time.process_time()
    work(device)
    return Taken(time.perf_counter() - begin, time.process_time() - cpu, before, peak_mib())


def export(name: str, master: Path, out: Path, gpus: int) -> Taken:
    """Export weights that are in no cache."""
    for file in weight_files(master):
        drop_cached(file)
    return taken(lambda device: EXPORTERS[name].write(master, out, DTYPE, device), gpus)


def read(name: str, out: Path, gpus: int) -> Taken:
    """Read each weight of an export in float32."""

    def work(device: torch.device) -> None:
        with EXPORTERS[name].open(out) as weights:
            for tensor in EXPORTERS[name].names(weights):
                EXPORTERS[name].read(weights, tensor, device)

    return taken(work, gpus)


def differing(name: str, master: Path, out: Path, gpus: int) -> tuple[int, list[str]]:
    """How many tensors an export has, and those that are not what the format's quantiser makes of the master's."""
    exporter, device = EXPORTERS[name], torch.device("cuda" if gpus else "cpu")
    wrong, count = [], 0
    with exporter.open(out) as weights:
        left = {*exporter.names(weights)}
        for tensor, expected in expectations(name, master, device, TIED_HEAD in left):
            count += 1
            if tensor not in left or not torch.equal(exporter.read(weights, tensor, device), expected):
                wrong.append(tensor)
            left.discard(tensor)
    return count, [*wrong, *sorted(left)]


def expectations(name: str, master: Path, device: torch.device, head: bool) -> Iterator[tuple[str, Tensor]]:
    """The float32 weights that a format is to hold, by name. `head`: it has one of its own."""
    config = read_config(master)
    family, rounded = architecture_of(config, master / "config.json"), rounding(name)
    with open_weights(master) as weights:
        sources = {one: one for one in weights.names} | ({TIED_HEAD: EMBEDDING} if head else {})
        largest = group_maxima(sources, family, lambda one: weights.read(one).to(device))
        for tensor, source in sources.items():
            value = weights.read(source).to(device).float()
            yield tensor, rounded(tensor, value, largest.get(family.scale_group(tensor) or tensor))


def group_maxima(sources: dict[str, str], family: Architecture, read: Callable[[str], Tensor]) -> dict[str, float]:
    """The largest magnitude of each scale group, and of the head by its name."""
    found: dict[str, float] = {}
    for tensor, source in sources.items():
        group = family.scale_group(tensor) or (tensor if tensor == TIED_HEAD else None)
        if group:
            found[group] = max(found.get(group, 0.0), largest_magnitude(read(source)))
    return found


def rounding(name: str) -> Callable[[str, Tensor, float | None], Tensor]:
    """What a format makes of a tensor: its name, its values, the largest magnitude of its scale group."""
    exporter: Any = EXPORTERS[name]
    heads = isinstance(exporter, Dat) or getattr(exporter, "head", False)

    def as_dat(tensor: str, value: Tensor, amax: float | None) -> Tensor:
        if amax is None:
            return value.half().float()
        return dat.dequantise(dat.quantise(value, exporter.scales, amax, rounded=tensor != TIED_HEAD))

    def as_nvfp4(tensor: str, value: Tensor, amax: float | None) -> Tensor:
        if amax is None or (tensor == TIED_HEAD and not heads):
            return value
        return fake_quantise(value, power_of_two_global_scale(amax))

    if isinstance(exporter, Dat):
        return as_dat
    quantises = isinstance(exporter, Nvfp4) or getattr(exporter, "kind", None) == "NVFP4"
    return as_nvfp4 if quantises else lambda tensor, value, amax: value


def largest(master: Path) -> tuple[int, int]:
    """Bytes of the largest file of weights, and of the largest tensor."""
    with open_weights(master) as weights:
        tensors = max(weights.read(name).nbytes for name in weights.names)
    return max(file.stat().st_size for file in weight_files(master)), tensors


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def write_master(shape: str, out: Path) -> int:
    """Random weights with a tokenizer that GGUF can describe."""
    tokenizer = PEERS["qwen2"]()
    tokenizer.chat_template = (
        "{% for message in messages %}<|begin|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
    )
    return write_shape(shape, 1, tokenizer, out)


def main() -> None:
    names = [name for name, _ in EXPORTERS.items()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--formats", choices=names, nargs="+", default=names)
    parser.add_argument("--gpus", type=int, choices=(0, 1), default=0)
    args = parser.parse_args()
    begin, master = time.perf_counter(), args.out / "master"
    parameters = apart(write_master, args.shape, master)
    device = torch.cuda.get_device_name() if args.gpus else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.shape}: {parameters:,} parameters, written in {time.perf_counter() - begin:.0f} s; {device}")
    file, tensor = (size / MIB for size in largest(master))
    print(f"largest file of weights {file:.0f} MiB, largest tensor {tensor:.0f} MiB")
    print("| format | MB | s | CPU s | before, MiB | peak, MiB | above | read, s | above, MiB | read back |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    same = True
    for name in args.formats:
        out = args.out / name
        made: Taken = apart(export, name, master, out, args.gpus)
        back: Taken = apart(read, name, out, args.gpus)
        count, wrong = apart(differing, name, master, out, args.gpus)
        same &= not wrong
        size = sum(file.stat().st_size for file in folder_files(out)) / MB
        told = f"{len(wrong)} of {count} tensors DIFFER, first {wrong[0]}" if wrong else f"{count} tensors, equal"
        print(
            f"| `{name}` | {size:.0f} | {made.seconds:.1f} | {made.cpu:.1f} | {made.before:.0f} | {made.peak:.0f} "
            f"| {made.peak - made.before:.0f} | {back.seconds:.1f} | {back.peak - back.before:.0f} | {told} |",
            flush=True,
        )
    sys.exit(not same)


if __name__ == "__main__":
    main()
