"""What rehearsal by KL costs a step: without it, by stored top tokens, and by a second forward pass of the teacher.

    python benchmarks/gpu_kl.py --out FOLDER [--shape qwen2.5-0.5b --shape qwen3-4b] [--rows 32] [--width 96]

Random weights, made on the device; half of the rows are rehearsed, a quarter of each row is its answer. Each shape is a
process of its own. Times are medians of steady steps in milliseconds, memory is torch's peak in GiB. `teacher_forward`
is the forward pass of the base in BF16 with the top tokens of its labels, by transformers: what a second forward pass
adds to a step, and what `fgod answers teacher` takes for as many rows once. Writes gpu_kl.json and gpu_kl.tsv.
On a machine without CUDA everything runs on the CPU: use `--shape tiny --rows 4 --width 32`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from fgod.deterministic import deterministic
from fgod.model.chats import Sample
from fgod.model.load import model_from_tensors
from fgod.model.random import model_config
from fgod.train.batches import collate
from fgod.train.device.network import Network
from fgod.train.device.ops import choose_ops
from fgod.train.device.optimizer import device_optimizer
from fgod.train.device.settings import repeatable_cuda
from fgod.train.device.trainer import DeviceStepper
from fgod.train.device.weights import Masters, allocate, randomise
from fgod.train.distil import Rehearsed, SoftLabels
from fgod.train.recipe import Kl, TrainRecipe
from fgod.train.teacher import LABELS_AT_ONCE, top_tokens

GIB = 2**30
TOPS = (64, 256)
COLUMNS = ("shape", "mode", "rows", "width", "labels", "ms", "first_ms", "peak_gib", "error")
LIMIT_SECS = 80
"""Of one shape's process."""


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def samples(rows: int, width: int, vocab: int, seed: int, top_k: int | None) -> list[Sample]:
    """Rows of random tokens; with `top_k` every other one has a teacher."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (rows, width + 1), generator=generator).tolist()
    return [one_sample(tuple(row), width, vocab, top_k if i % 2 else None, generator) for i, row in enumerate(ids)]


def one_sample(ids: tuple[int, ...], width: int, vocab: int, top_k: int | None, generator: torch.Generator) -> Sample:
    start = width - width // 4 + 1
    if top_k is None:
        return Sample(ids, start)
    count = len(ids) - start
    offsets = torch.randint(vocab, (count, 1), generator=generator)
    tops = ((offsets + torch.arange(top_k) * (vocab // top_k)) % vocab).int()
    p = torch.rand(count, top_k, generator=generator).softmax(-1) * 0.9
    soft = SoftLabels(tops, p, torch.full((count,), 0.1), torch.ones(count, dtype=torch.bool))
    return Rehearsed(ids, start, soft=soft)


def timed(stepper: DeviceStepper, batches: list[list[Sample]]) -> list[float]:
    """Milliseconds from one step's results to those of the next."""
    times, last = [], time.perf_counter()
    for step, batch in enumerate(batches):
        stepper.launch(step, batch)
        for _ in stepper.completed():
            now = time.perf_counter()
            times.append((now - last) * 1e3)
            last = now
    stepper.completed(wait=True)
    synchronize(stepper.device)
    return times


def teacher_times(masters: Masters, batches: list[list[Sample]], top_k: int) -> list[float]:
    """Milliseconds of the teacher's forward pass and of its labels' top tokens, for each batch."""
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in masters.tensors.items()}
    model = model_from_tensors(masters.config, tensors).eval().requires_grad_(False)
    times = []
    for batch in (collate(one, 0) for one in batches):
        synchronize(masters.device)
        begin = time.perf_counter()
        with torch.inference_mode():
            hidden = model.model(input_ids=batch.input_ids.to(masters.device), use_cache=False).last_hidden_state
            chosen = hidden.flatten(0, 1).index_select(0, batch.positions.to(masters.device))
            for some in chosen.split(LABELS_AT_ONCE):
                top_tokens(model.lm_head(some), top_k, 1.0)
        synchronize(masters.device)
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def measure(shape: str, rows: int, width: int, steps: int) -> list[dict[str, Any]]:
    """All modes of one shape, on the same masters and moments."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = model_config(shape)
    recipe = TrainRecipe(
        steps=1000, lr=1e-5, batch=rows, seq_len=width + 1, compute_dtype="bfloat16", schedule="constant",
        memory="80gb", length_bucket=32,
    )  # fmt: skip
    found = []
    with deterministic(1, 1), repeatable_cuda(device):
        masters = allocate(config, recipe.master_dtype, device, shape)
        randomise(masters, 1)
        ops = choose_ops(device, say)
        network = Network(masters, ops, torch.bfloat16, recipe.block_scales)
        optimizer = device_optimizer(masters, recipe, dict.fromkeys(masters.tensors, 1.0), 1, ops)
        for mode, kl in (("hard labels", None), *((f"stored top {k}", Kl(top_k=k)) for k in TOPS)):
            top_k = None if kl is None else kl.top_k
            batches = [samples(rows, width, config["vocab_size"], seed, top_k) for seed in range(steps)]
            stepper = DeviceStepper(network, optimizer, replace(recipe, kl=kl), 0, say)
            stepper.reset_peak()
            times = timed(stepper, batches)
            found.append(record(shape, mode, batches, width, times, stepper.peak_mib() / 1024))
            del stepper
        times = teacher_times(masters, batches, TOPS[0])
        found.append(record(shape, "teacher_forward", batches, width, times, 0.0))
    return found


def record(
    shape: str, mode: str, batches: list[list[Sample]], width: int, times: list[float], peak: float
) -> dict[str, Any]:
    labels = sum(len(sample.learned) for sample in batches[0])
    median = statistics.median(times[3:])
    found = {"shape": shape, "mode": mode, "rows": len(batches[0]), "width": width, "labels": labels}
    found |= {"ms": round(median, 3), "first_ms": round(times[0], 1), "peak_gib": round(peak, 3), "error": ""}
    say(" · ".join(f"{key} {value}" for key, value in found.items() if value != ""))
    return found


def in_a_process(shape: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    options = ["--rows", str(args.rows), "--width", str(args.width), "--steps", str(args.steps)]
    command = [sys.executable, __file__, "--one", shape, "--out", str(args.out), *options]
    try:
        subprocess.run(command, check=True, timeout=LIMIT_SECS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return [{"shape": shape, "error": str(error)[-300:]}]
    found: list[dict[str, Any]] = json.loads((args.out / f"gpu_kl.{shape}.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        try:
            found = measure(args.one, args.rows, args.width, args.steps)
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        (args.out / f"gpu_kl.{args.one}.json").write_text(json.dumps(found))
        return
    shapes = args.shape or ["qwen2.5-0.5b", "qwen3-4b"]
    rows = [row for shape in shapes for row in in_a_process(shape, args)]
    (args.out / "gpu_kl.json").write_text(json.dumps(rows, indent=1))
    lines = ["\t".join(COLUMNS), *("\t".join(str(row.get(column, "")) for column in COLUMNS) for row in rows)]
    (args.out / "gpu_kl.tsv").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
