"""Steps of rows that are padded or packed (`train.batching`), on one GPU: time, memory, share of real tokens.

    python benchmarks/gpu_packed.py --shape qwen2.5-0.5b --rows 64

Random weights and tokens; lengths as of the rows of a real model's mix: half are taught (20 to 60 tokens), half are
rehearsed with a teacher's top 64 (40 to 120). Times are of steps that are replayed as CUDA graphs, from the results of
one to those of the next. On a machine without CUDA everything runs on the CPU: use `--shape tiny --rows 8`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from benchmarks.gpu_kl import one_sample, say
from fgod.deterministic import deterministic
from fgod.model.chats import Sample
from fgod.model.random import model_config
from fgod.train.device.network import Network
from fgod.train.device.ops import choose_ops
from fgod.train.device.optimizer import device_optimizer
from fgod.train.device.settings import repeatable_cuda
from fgod.train.device.trainer import DeviceStepper
from fgod.train.device.weights import Masters, allocate, randomise
from fgod.train.recipe import Kl, TrainRecipe

TOP_K = 64


def batch(rows: int, vocab: int, seed: int) -> list[Sample]:
    chosen, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    samples = []
    for number in range(rows):
        rehearsed = number % 2 == 1
        width = chosen.randint(40, 120) if rehearsed else chosen.randint(20, 60)
        ids = torch.randint(3, vocab, (width + 1,), generator=generator).tolist()
        samples.append(one_sample(tuple(ids), width, vocab, TOP_K if rehearsed else None, generator))
    return samples


def timed(stepper: DeviceStepper, batches: list[list[Sample]]) -> list[float]:
    """Milliseconds of the steps that were replayed, from one step's results to those of the next. The first ones after
    steps that were not may have the end of those in them: medians do not see it."""
    times, last, replayed = [], time.perf_counter(), []
    for step, one in enumerate(batches):
        captured = {key for key, shape in stepper.shapes.items() if shape.graph is not None}
        stepper.launch(step, one)
        now_captured = {key for key, shape in stepper.shapes.items() if shape.graph is not None}
        replayed.append(captured == now_captured and len(now_captured) == len(stepper.shapes))
        for _ in stepper.completed():
            now = time.perf_counter()
            times.append((now - last) * 1e3)
            last = now
    stepper.completed(wait=True)
    return [took for took, known in zip(times, replayed[1:], strict=False) if known]


def measure(masters: Masters, recipe: TrainRecipe, batches: list[list[Sample]], device: torch.device) -> None:
    ops = choose_ops(device, say)
    network = Network(masters, ops, torch.bfloat16, recipe.block_scales)
    optimizer = device_optimizer(masters, recipe, dict.fromkeys(masters.tensors, 1.0), 1, ops)
    stepper = DeviceStepper(network, optimizer, recipe, 0, say)
    stepper.reset_peak()
    times = timed(stepper, batches)
    real = sum(len(sample.ids) - 1 for one in batches for sample in one)
    computed = sum(shape.seen * shape.inputs.ids.numel() for shape in stepper.shapes.values())
    median = statistics.median(times) if times else float("nan")
    say(
        f"{recipe.batching:9} {recipe.batch} rows  {median:7.2f} ms (median of {len(times)} steps)  "
        f"real tokens {real / computed:.3f}  {len(stepper.shapes)} shapes  "
        f"{real / len(batches) / median * 1e3:.0f} real tokens/s  peak {stepper.peak_mib() / 1024:.2f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=160)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = model_config(args.shape)
    recipe = TrainRecipe(
        steps=1000, lr=1e-5, batch=args.rows, seq_len=192, compute_dtype="bfloat16", schedule="constant", memory="80gb",
        length_bucket=32, kl=Kl(top_k=TOP_K),
    )  # fmt: skip
    batches = [batch(args.rows, config["vocab_size"], seed) for seed in range(args.steps)]
    with deterministic(1, 1), repeatable_cuda(device):
        masters = allocate(config, recipe.master_dtype, device, args.shape)
        randomise(masters, 1)
        for batching in ("shuffled", "packed"):
            measure(masters, replace(recipe, batching=batching), batches, device)


if __name__ == "__main__":
    main()
