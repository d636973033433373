"""Full-parameter NVFP4 steps of a 4 B Qwen3 on one GPU: time, memory, where they go. Random weights, made on the GPU.

    python benchmarks/gpu_step.py --out FOLDER [--shape qwen3-4b] [--only step,profile]

Each measurement is a process of its own (graphs and hooks of one would keep memory from the next), under a time limit;
one that fails prints its traceback and the next goes on. Writes gpu_step.json and gpu_step.tsv to the folder.
Times are medians of steady steps, from one step's end to the next, in milliseconds; memory is torch's peak in GiB.
`floor` is the larger of the bytes that a step must move over the measured copy bandwidth and its operations over the
measured rate of BF16 products. On a machine without CUDA everything runs on the CPU: use `--shape tiny`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from fgod.deterministic import deterministic
from fgod.model.chats import Sample
from fgod.model.random import model_config
from fgod.models.architecture import tensors_of
from fgod.train.device.module import ModuleNetwork
from fgod.train.device.network import Network
from fgod.train.device.ops import choose_ops
from fgod.train.device.optimizer import device_optimizer
from fgod.train.device.plan import layer_plan, predict_on_device
from fgod.train.device.settings import repeatable_cuda
from fgod.train.device.trainer import DeviceStepper
from fgod.train.device.weights import allocate, randomise
from fgod.train.recipe import TrainRecipe
from fgod.train.update import Factors

GIB = 2**30
MODES: dict[str, dict[str, Any]] = {
    "int8 m": {"memory": "80gb"},
    "NVFP4 m": {"memory": "24gb"},
    "offloaded": {"memory": "24gb", "offload_moments": True},
}
LIMIT_SECS = 110
"""Of one measurement's process: start, compiling, warm-up and steps."""


@dataclass(frozen=True)
class Case:
    """One measurement. `cap_gib`: torch's allocator may take no more."""

    kind: str
    mode: str
    rows: int
    width: int
    steps: int = 12
    cap_gib: float = 0.0
    clip: float | None = 1.0
    repeatable: bool = True

    @property
    def name(self) -> str:
        return f"{self.kind} {self.mode} {self.rows}x{self.width}"


def cases(only: list[str], steps: int) -> list[Case]:
    found = []
    for mode in ("int8 m", "NVFP4 m"):
        found += [Case("step", mode, 1, 96, steps), Case("step", mode, 8, 512, steps)]
    found += [Case("offload", "offloaded", rows, width, steps, 22.35) for rows, width in ((1, 96), (32, 96), (8, 512))]
    found.append(Case("free", "int8 m", 1, 96, steps, clip=None, repeatable=False))
    found.append(Case("free", "int8 m", 8, 512, steps, clip=None, repeatable=False))
    found.append(Case("cap", "NVFP4 m", 1, 512, steps, cap_gib=22.35))
    found.append(Case("cap", "NVFP4 m", 4, 512, steps, cap_gib=22.35))
    found += [Case("generic", "int8 m", rows, width, steps) for rows, width in ((1, 96), (8, 512))]
    found += [Case("split", "int8 m", rows, width, steps) for rows, width in ((1, 96), (8, 512))]
    found += [Case("profile", "int8 m", rows, width, steps) for rows, width in ((1, 96), (8, 512))]
    found += [
        Case("tokens", "int8 m", rows, width, steps)
        for rows, width in ((1, 512), (4, 128), (4, 512), (16, 96), (16, 512), (4, 2048))
    ]
    return [case for case in found if case.kind in only]


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(case: Case, shape: str, device: torch.device) -> tuple[DeviceStepper, TrainRecipe]:
    recipe = TrainRecipe(
        steps=1000, lr=1e-5, batch=case.rows, seq_len=case.width + 1, compute_dtype="bfloat16", schedule="constant",
        grad_clip=case.clip, length_bucket=32, **MODES[case.mode],
    )  # fmt: skip
    config = model_config(shape)
    masters = allocate(config, recipe.master_dtype, device, shape)
    randomise(masters, 1)
    ops = choose_ops(device, say)
    network: Network | ModuleNetwork = Network(masters, ops, torch.bfloat16, recipe.block_scales)
    if case.kind == "generic":
        network = ModuleNetwork(masters, torch.bfloat16, recipe.block_scales)
    optimizer = device_optimizer(masters, recipe, dict.fromkeys(masters.tensors, 1.0), 1, ops)
    return DeviceStepper(network, optimizer, recipe, 0, say), recipe


def samples(case: Case, vocab: int, seed: int) -> list[Sample]:
    """Rows of random tokens, half of each an answer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (case.rows, case.width + 1), generator=generator).tolist()
    return [Sample(tuple(row), case.width // 2 + 1) for row in ids]


def parameters(shape: str) -> tuple[int, int]:
    """Of all matrices of the layers, and of the embedding."""
    sizes = {name: torch.Size(s).numel() for name, s in tensors_of(model_config(shape), shape).items()}
    embedding = sizes["model.embed_tokens.weight"]
    return sum(sizes.values()) - embedding, embedding


def floors(case: Case, shape: str, rates: dict[str, float]) -> dict[str, float]:
    """Bytes, operations and the times that they take at least.

    Bytes: each layer's weight is read and its quantised form written and read, forward and backward (2·(2+2+2)); its
    gradient is written and read (4), and the optimizer reads and writes master and moments. Operations: 6 a weight and
    token, 2 more where the layer is computed again, and the head at its labels.
    """
    layers, embedding = parameters(shape)
    recipe = TrainRecipe(steps=1, lr=1e-5, batch=case.rows, compute_dtype="bfloat16", **MODES[case.mode])
    tokens, labels = case.rows * case.width, case.rows * (case.width - case.width // 2)
    m, v = (1 + 4 / 64 if recipe.m_dtype == "int8" else 0.5 + 1 / 16 + 4 / 512), 1 + 4 / 64
    optimizer = (layers + embedding) * (2 * (2 + m + v) + 2)
    moved = layers * (12 + 2) + embedding * (2 * 3 + 2) + optimizer
    again = not all(keep.mlp for keep in layer_plan(model_config(shape), recipe, tokens))
    operations = layers * tokens * (6 + 1.3 * again) + embedding * labels * (6 + 2 * (labels > 220))
    return {
        "bytes_gb": moved / 1e9,
        "tflop": operations / 1e12,
        "floor_bytes_ms": moved / rates["copy"] * 1e3,
        "floor_flop_ms": operations / rates["matmul"] * 1e3,
        "floor_optimizer_ms": optimizer / rates["copy"] * 1e3,
    }


def measured_rates(device: torch.device) -> dict[str, float]:
    """Bytes a second of a copy (read and written), operations a second of a BF16 product."""
    if device.type != "cuda":
        return {"copy": 1e10, "matmul": 1e11}

    def median(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(15):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times[5:])

    source = torch.randn(2**29, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {
        "copy": 2 * source.nbytes / median(lambda: target.copy_(source)),
        "matmul": 2 * 8192**3 / median(lambda: left @ right),
    }


def timed_steps(trainer: DeviceStepper, case: Case, vocab: int, count: int, first: int = 0) -> list[float]:
    """Milliseconds of each step, from one's results to those of the next, and of the first to its own."""
    device, times, last = trainer.device, [], 0.0
    synchronize(device)
    last = time.perf_counter()
    for step in range(first, first + count):
        trainer.launch(step, samples(case, vocab, step))
        for _ in trainer.completed():
            now = time.perf_counter()
            times.append((now - last) * 1e3)
            last = now
    trainer.completed(wait=True)
    synchronize(device)
    return times


def measure(case: Case, shape: str) -> dict[str, Any]:
    """One case, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocab = model_config(shape)["vocab_size"]
    if case.cap_gib and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(case.cap_gib * GIB / total, 0)
    begin = time.perf_counter()
    trainer, recipe = build(case, shape, device)
    synchronize(device)
    built = time.perf_counter() - begin
    resident = torch.cuda.memory_allocated() / GIB if device.type == "cuda" else 0.0
    first = timed_steps(trainer, case, vocab, 4)
    warm = time.perf_counter() - begin - built
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    graph_peak = torch.cuda.memory_reserved() / GIB if device.type == "cuda" else 0.0
    labels = case.rows * (case.width - case.width // 2)
    predicted = predict_on_device(trainer.network.masters.config, recipe, case.rows, case.width, labels)
    out: dict[str, Any] = {
        "case": case.name, "mode": case.mode, "rows": case.rows, "width": case.width, "build_s": round(built, 2),
        "warm_s": round(warm, 2), "resident_gib": round(resident, 3), "predicted_gib": round(predicted.total / GIB, 3),
        "reserved_gib": round(graph_peak, 3), "graph": any(s.graph is not None for s in trainer.shapes.values()),
        "first_ms": [round(t, 1) for t in first],
        "predicted_parts_mib": predicted.to_mib(),
    }  # fmt: skip
    if case.kind == "split":
        out |= split(trainer, case, vocab)
    elif case.kind == "profile":
        out |= profiled(trainer, case, vocab)
    else:
        times = timed_steps(trainer, case, vocab, case.steps + 2, 4)[1:]
        out |= {
            "step_ms": round(statistics.median(times), 2), "min_ms": round(min(times), 2),
            "max_ms": round(max(times), 2), "steps": len(times),
            "tokens_per_s": round(case.rows * case.width / statistics.median(times) * 1e3, 1),
        }  # fmt: skip
    trainer.graphs = False
    for known in trainer.shapes.values():
        known.graph = None
    if device.type == "cuda":  # a step as it is written tells what is alive at its widest moment
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer.launch(100, samples(case, vocab, 100))
        trainer.completed(wait=True)
        out["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        out["predicted_over_measured"] = round(out["predicted_gib"] / out["peak_gib"], 3)
    facts = trainer.optimizer.facts(trainer.optimizer.step_stats.cpu())
    out["update_efficiency"] = facts.update_efficiency
    out["unchanged_tensors"] = len(trainer.optimizer.unchanged())
    return out | floors(case, shape, measured_rates(device))


def split(trainer: DeviceStepper, case: Case, vocab: int) -> dict[str, float]:
    """Forward and backward without the optimizer, as a graph; and the optimizer alone on fixed gradients."""
    device, optimizer, network = trainer.device, trainer.optimizer, trainer.network
    inputs = next(iter(trainer.shapes.values())).inputs
    plan = trainer.plan(inputs.ids.numel())

    def both() -> None:
        trainer.measure()
        network.label_losses(inputs, plan, lambda _, grad: grad.product() if isinstance(grad, Factors) else grad)

    grads = {g: torch.randn_like(t, dtype=torch.bfloat16) * 1e-4 for g, t in network.masters.groups.items()}
    vectors = {str(w): torch.randn_like(b.rows) for w, b in network.masters.banks.items()}

    def steps() -> None:
        optimizer.begin_step()
        for group, grad in (grads | vectors).items():
            trainer.gradients.on_grad(group, grad)
        trainer.gradients.finish_step()

    return {
        "forward_backward_ms": repeated(both, case.steps, device),
        "optimizer_ms": repeated(steps, case.steps, device),
    }


def repeated(work: Callable[[], None], count: int, device: torch.device) -> float:
    """Median milliseconds of replays of `work` as a CUDA graph, or of calls on a CPU."""
    if device.type != "cuda":
        begin = time.perf_counter()
        work()
        return round((time.perf_counter() - begin) * 1e3, 2)
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(count + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times[3:]), 2)


def profiled(trainer: DeviceStepper, case: Case, vocab: int) -> dict[str, Any]:
    """GPU time by kernel of three steps, milliseconds a step."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (trainer.device.type == "cuda")
    with profile(activities=kinds) as seen:
        timed_steps(trainer, case, vocab, 3, 4)
    rows = [
        (event.key[:110], event.self_device_time_total / 3e3, event.count // 3)
        for event in seen.key_averages()
        if event.self_device_time_total > 0
    ]
    rows.sort(key=lambda row: -row[1])
    for name, milliseconds, count in rows[:25]:
        print(f"  {milliseconds:9.3f} ms  {count:5d} x  {name}", flush=True)
    return {"kernels": [[n, round(t, 4), c] for n, t, c in rows[:40]], "kernel_ms": round(sum(r[1] for r in rows), 2)}


SHOWN = ("case", "step_ms", "forward_backward_ms", "optimizer_ms", "peak_gib", "reserved_gib", "resident_gib",
         "predicted_over_measured", "tokens_per_s", "floor_bytes_ms", "floor_flop_ms", "graph", "warm_s")  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    def shown(value: Any) -> str:
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    return "\n".join("\t".join(shown(row.get(key, "")) for key in SHOWN) for row in ({k: k for k in SHOWN}, *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="qwen3-4b")
    parser.add_argument("--only", default="step,split,profile,cap,free,tokens")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=540, help="no measurement is begun after so many")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        case = Case(**json.loads(args.one))
        with repeatable_cuda(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
            if case.repeatable:
                with deterministic(1, torch.get_num_threads()):
                    result = measure(case, args.shape)
            else:
                result = measure(case, args.shape)
        (args.out / "one.json").write_text(json.dumps(result))
        return
    end, rows = time.monotonic() + args.seconds, []
    for case in cases(args.only.split(","), args.steps):
        if time.monotonic() > end:
            print(f"{case.name}: not begun, the time is over", flush=True)
            continue
        print(f"== {case.name}", flush=True)
        (args.out / "one.json").unlink(missing_ok=True)
        words = [sys.executable, __file__, "--out", str(args.out), "--shape", args.shape]
        try:
            one = json.dumps(vars(replace(case)))
            subprocess.run([*words, "--one", one], check=True, timeout=LIMIT_SECS)
            rows.append(json.loads((args.out / "one.json").read_text()))
            print(table(rows[-1:]), flush=True)
        except Exception:
            traceback.print_exc()
        facts = {"torch": torch.__version__, "device": gpu_words(), "rows": rows}
        (args.out / "gpu_step.json").write_text(json.dumps(facts, indent=1))
        (args.out / "gpu_step.tsv").write_text(table(rows) + "\n")
    (args.out / "one.json").unlink(missing_ok=True)
    print(table(rows), flush=True)


def gpu_words() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
