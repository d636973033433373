"""One run on 1, 2, 4, 8 GPUs of a host: tokens a second, memory a GPU, share of time in communication, weak and strong.

    python benchmarks/gpu_scale.py --out FOLDER [--gpus 1,2] [--shapes qwen3-4b,qwen3-14b] [--seconds 340]

Random weights, made on the GPUs. Each measurement is a process (or a group of ranks) of its own under a time limit; one
that fails says why and the next goes on; what matters most comes first, and the tables are written after each. Without
CUDA it runs on the CPU over gloo: `--shapes tiny --rows 4x16,2x8`.

A case is GPUs × rows × tokens a row; rows are those of the whole batch. Times are medians of steady steps in
milliseconds. peak_gib: torch's on the fullest GPU; device_gib: what the driver says is in use there, with NCCL and the
context. nccl_ms: NCCL's kernels of a step, which wait for the slowest rank; exposed_ms: of that, while no other kernel
runs; share: exposed over the step. received_gb: bytes of a step that come from other ranks, as they were asked for.
Losses: 20 steps of one batch size on one and on two GPUs, from the same weights. fsdp2: transformers' model in BF16
with `fully_shard` by layer and checkpointed layers, for comparison: with torch's fused AdamW (BF16 states), or `8-bit`:
torchao's AdamW with 8-bit states and stochastic rounding.

Cases of one, two and four GPUs can be measured side by side on GPUs of their own (CUDA_VISIBLE_DEVICES), each with a
folder of its own; `--join FOLDER FOLDER…` writes one table of them, with the ratios, to `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
LIMIT_SECS = 100
"""Of one measurement: start, compiling, warm-up and steps."""

LISTED, NAME = 40, 120
"""Kernels that are listed, and letters of a name."""

SMALLEST_SECS = 25
"""With less time left no measurement is begun."""


@dataclass(frozen=True)
class Case:
    """kind: steps, losses, fsdp2 or fsdp2-8bit. `rows` of `width` tokens in all."""

    kind: str
    shape: str
    gpus: int
    rows: int
    width: int
    graphs: bool = True
    steps: int = 10

    @property
    def name(self) -> str:
        return f"{self.kind} {self.shape} {self.gpus} GPU {self.rows}x{self.width}{'' if self.graphs else ' no graphs'}"


def cases(gpus: list[int], shapes: list[str], sizes: list[tuple[int, int]]) -> list[Case]:
    """What is measured, the most important first. `sizes`: rows and tokens of one GPU."""
    small, large = shapes[0], shapes[1:]
    rows, width = sizes[0]
    several = [count for count in gpus if count > 1]
    found = [Case("steps", small, count, size[0] * count, size[1]) for size in sizes for count in gpus]  # weak scaling
    found += [Case("steps", small, count, rows, width) for count in several if rows >= count]  # strong
    found += [Case("losses", small, count, 4, sizes[-1][1], steps=20) for count in gpus if count <= 2]
    for shape in large:
        found += [Case("steps", shape, count, rows, width) for count in gpus]
        found += [Case("fsdp2", shape, count, rows, width) for count in several]
        found += [Case("fsdp2-8bit", shape, count, rows, width) for count in several]
        found += [Case("steps", shape, count, size[0] * count, size[1]) for size in sizes for count in gpus]
    found += [Case("fsdp2", small, count, rows * count, width) for count in several]
    return list(dict.fromkeys(found))


def say(text: str) -> None:
    print(f"  {text}", flush=True)


# ------------------------------------------------------------------------------------------------- in a measurement


def measure(case: Case) -> dict[str, Any] | None:
    """One case in this process, which may be one of several ranks; what it came to, None but on the first rank."""
    from fgod.train.ranks.group import Ranks

    count, place = case.gpus, int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        torch.cuda.set_device(place)
        device = torch.device("cuda", place)
    ranks = Ranks.from_environment(device, 60) if count > 1 else None
    found = fsdp2(case, ranks, device) if case.kind.startswith("fsdp2") else steps(case, ranks, device)
    if ranks is not None:
        ranks.leave()
    return found if ranks is None or ranks.first else None


def built(case: Case, ranks: Any, device: torch.device) -> Any:
    """The stepper of a case: one GPU's, or a rank's. The same weights whatever the number of GPUs."""
    from fgod.model.random import model_config
    from fgod.train.device.ops import choose_ops
    from fgod.train.device.optimizer import device_optimizer
    from fgod.train.device.trainer import DeviceStepper, choose_network
    from fgod.train.device.weights import allocate
    from fgod.train.ranks.shards import split
    from fgod.train.ranks.trainer import Asked, stepper_of
    from fgod.train.recipe import TrainRecipe

    recipe = TrainRecipe(
        steps=1000, lr=1e-4 if case.kind == "losses" else 1e-5, batch=case.rows, seq_len=case.width + 1, memory="80gb",
        compute_dtype="bfloat16", schedule="constant", length_bucket=32,
    )  # fmt: skip
    config, told = model_config(case.shape), say if ranks is None or ranks.first else (lambda _: None)
    if ranks is None:
        masters = allocate(config, recipe.master_dtype, device, case.shape)
        fill(masters, {name: slice(None) for name in masters.tensors}, masters)
        ops = choose_ops(device, told)
        optimizer = device_optimizer(masters, recipe, dict.fromkeys(masters.tensors, 1.0), 1, ops)
        return DeviceStepper(choose_network(masters, recipe, ops), optimizer, recipe, 0, told, case.graphs)
    shards = split(config, recipe.master_dtype, ranks.count, case.shape)
    masters = shards.own(ranks.rank, device)
    fill(masters, {name: shards.rows(name, ranks.rank) for name in masters.tensors}, shards.whole)
    asked = Asked(Path(case.shape), recipe, 1, 0, lambda _: None, told, case.graphs)
    return stepper_of(ranks, shards, masters, asked)


def fill(masters: Any, rows: dict[str, slice], whole: Any) -> None:
    """Random matrices, each tensor from a seed of its own; gains of one."""
    from fgod.train.device.weights import RANDOM_STD

    for number, (name, shape) in enumerate((name, tensor.shape) for name, tensor in whole.tensors.items()):
        if name not in masters.tensors:
            continue
        target = masters.tensors[name]
        if target.ndim == 1:
            target.fill_(0.0 if name.endswith(".bias") else 1.0)
            continue
        generator = torch.Generator(target.device).manual_seed(number)
        made = torch.empty(tuple(shape), dtype=torch.bfloat16, device=target.device)
        target.copy_(made.normal_(0, RANDOM_STD, generator=generator)[rows[name]])


def samples(case: Case, vocab: int, seed: int) -> list[Any]:
    """Rows of random tokens, half of each an answer; for losses the same few rows again and again."""
    from fgod.model.chats import Sample

    generator = torch.Generator().manual_seed(seed % 4 if case.kind == "losses" else seed)
    ids = torch.randint(3, vocab, (case.rows, case.width + 1), generator=generator).tolist()
    return [Sample(tuple(row), case.width // 2 + 1) for row in ids]


def steps(case: Case, ranks: Any, device: torch.device) -> dict[str, Any]:
    """Steps of fgod: their time, memory and communication, or their losses."""
    from fgod.deterministic import deterministic
    from fgod.model.random import model_config
    from fgod.train.device.plan import predict_on_device
    from fgod.train.device.settings import repeatable_cuda
    from fgod.train.ranks.plan import predict_on_ranks

    config = model_config(case.shape)
    vocab = config["vocab_size"]
    with repeatable_cuda(device), deterministic(1, 1):
        begin = time.perf_counter()
        stepper = built(case, ranks, device)

        def made(first: int, number: int) -> tuple[list[float], list[float]]:
            wait(device)
            times, losses, last = [], [], time.perf_counter()
            for step in range(first, first + number):
                stepper.launch(step, samples(case, vocab, step))
                for row, _ in stepper.completed(False):
                    losses.append(row.loss)
                    now = time.perf_counter()
                    times.append((now - last) * 1e3)
                    last = now
            losses += [row.loss for row, _ in stepper.completed(True)]
            wait(device)
            return times, losses

        if case.kind == "losses":
            _, losses = made(0, case.steps)
            return {"losses": losses, "build_s": round(time.perf_counter() - begin, 1)}
        before = 0 if ranks is None else ranks.received
        made(0, 1)
        received = 0 if ranks is None else ranks.received - before
        made(1, 3)
        times, _ = made(4, case.steps + 2)
        label_count = case.rows * (case.width - case.width // 2)
        sizes = (case.rows, case.width, label_count)
        predicted = (
            predict_on_device(config, stepper.recipe, *sizes) if ranks is None
            else predict_on_ranks(config, stepper.recipe, case.gpus, *sizes)
        )  # fmt: skip
        step_ms = statistics.median(times[1:])
        out: dict[str, Any] = {
            "step_ms": round(step_ms, 2), "min_ms": round(min(times[1:]), 2), "max_ms": round(max(times[1:]), 2),
            "tokens_per_s": round(case.rows * case.width / step_ms * 1e3, 1),
            "predicted_gib": round(predicted.total / GIB, 3), "reserved_gib": reserved(device),
            "device_gib": device_used(device), "received_gb": round(received / 1e9, 4),
            "graph": any(shape.graph is not None for shape in stepper.shapes.values()),
            "warm_s": round(time.perf_counter() - begin, 1),
        }  # fmt: skip
        if device.type == "cuda":
            try:
                out |= communication(lambda: made(100, 3), 3)
                out["share"] = round(out["exposed_ms"] / step_ms, 4)
            except Exception:  # times and memory are there, and are not lost for want of a profile
                traceback.print_exc()
        stepper.graphs = False
        for shape in stepper.shapes.values():
            shape.graph = None
        reset_peak(device)
        made(200, 1)  # as it is written: what is alive at its widest moment, without what graphs keep
        out["peak_gib"] = peak(device)
    return largest_of_all(out, ranks, device, ("peak_gib", "reserved_gib", "device_gib"))


def largest_of_all(out: dict[str, Any], ranks: Any, device: torch.device, keys: tuple[str, ...]) -> dict[str, Any]:
    """With these values of the rank that has most."""
    if ranks is not None:
        most = ranks.largest(torch.tensor([out[key] for key in keys], device=device)).tolist()
        out |= {key: round(value, 3) for key, value in zip(keys, most, strict=True)}
    return out


def communication(work: Callable[[], Any], count: int) -> dict[str, Any]:
    """Milliseconds a step of NCCL's kernels, of those while no other kernel runs, and of all kernels.

    longest: milliseconds a step of the kernels of each name, those that take most.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
    nccl, others, by_name = [], [], Counter[str]()
    for event in seen.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            span = (event.time_range.start, event.time_range.end)
            (nccl if "nccl" in event.name.lower() else others).append(span)
            by_name[event.name[:NAME]] += (span[1] - span[0]) / count / 1e3
    covered, busy = merged(others), merged(nccl)
    total = sum(end - start for start, end in busy)
    hidden = sum(overlap(span, covered) for span in busy)
    kernels = sum(end - start for start, end in covered)
    return {
        "nccl_ms": round(total / count / 1e3, 3),
        "exposed_ms": round((total - hidden) / count / 1e3, 3),
        "kernels_ms": round(kernels / count / 1e3, 3),
        "longest": {name: round(ms, 3) for name, ms in by_name.most_common(LISTED)},
    }


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans of time in order, those that touch together."""
    out: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        else:
            out.append((start, end))
    return out


def overlap(span: tuple[float, float], covered: list[tuple[float, float]]) -> float:
    """How much of a span others cover, which are in order."""
    from bisect import bisect_left

    total, place = 0.0, max(bisect_left(covered, span) - 1, 0)
    while place < len(covered) and covered[place][0] < span[1]:
        total += max(0.0, min(span[1], covered[place][1]) - max(span[0], covered[place][0]))
        place += 1
    return total


def fsdp2(case: Case, ranks: Any, device: torch.device) -> dict[str, Any]:
    """transformers' model of the same shape under FSDP2, all in BF16."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn import functional as F
    from transformers import AutoConfig, AutoModelForCausalLM

    from fgod.model.random import model_config

    config = dict(model_config(case.shape))
    kind = config.pop("model_type")
    settings = AutoConfig.for_model(kind, **config)

    class Loss(torch.nn.Module):
        """The mean loss of the second halves of rows."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, half: int) -> torch.Tensor:
            hidden = self.model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[:, half:]
            logits = self.model.lm_head(hidden.flatten(0, 1)).float()
            return F.cross_entropy(logits, ids[:, 1:][:, half:].flatten())

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.model.layers:
        fully_shard(layer)
    loss_of = fully_shard(Loss(model))
    model.to_empty(device=device)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(0, 0.02)
        rotary = model.model.rotary_emb
        rotary.inv_freq, _ = rotary.rope_init_fn(settings, device) if hasattr(rotary, "rope_init_fn") else (
            1.0 / (settings.rope_parameters["rope_theta"] ** (
                torch.arange(0, settings.head_dim, 2, device=device).float() / settings.head_dim)), 1.0)  # fmt: skip
    model.train()
    optimizer = peer_optimizer(case, model.parameters(), device)
    own, half = case.rows // ranks.count, case.width // 2
    times = []
    for step in range(6):
        rows = samples(case, settings.vocab_size, step)[ranks.rank * own : (ranks.rank + 1) * own]
        ids = torch.tensor([row.ids for row in rows], device=device)
        wait(device)
        if step == 2:
            reset_peak(device)
        begin = time.perf_counter()
        loss_of(ids, half).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        times.append((time.perf_counter() - begin) * 1e3)
    step_ms = statistics.median(times[2:])
    out = {
        "step_ms": round(step_ms, 2), "tokens_per_s": round(case.rows * case.width / step_ms * 1e3, 1),
        "peak_gib": peak(device), "reserved_gib": reserved(device), "device_gib": device_used(device),
    }  # fmt: skip
    return largest_of_all(out, ranks, device, ("peak_gib", "reserved_gib", "device_gib"))


class OnShards:
    """torchao's 8-bit AdamW on each rank's own shards, as it does not compile on DTensors."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        from torchao.optim import AdamW8bit

        self.parameters: list[Any] = list(parameters)
        self.shards = [torch.nn.Parameter(parameter.detach().to_local()) for parameter in self.parameters]
        self.adamw = AdamW8bit(self.shards, lr=1e-5, bf16_stochastic_round=True)

    def step(self) -> None:
        for parameter, shard in zip(self.parameters, self.shards, strict=True):
            shard.grad = parameter.grad.to_local()
        self.adamw.step()
        self.adamw.zero_grad()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def peer_optimizer(case: Case, parameters: Iterable[torch.nn.Parameter], device: torch.device) -> Any:
    if case.kind == "fsdp2-8bit":
        return OnShards(parameters)
    return torch.optim.AdamW(parameters, lr=1e-5, fused=device.type == "cuda")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    return round(torch.cuda.max_memory_allocated(device) / GIB, 3) if device.type == "cuda" else 0.0


def reserved(device: torch.device) -> float:
    return round(torch.cuda.memory_reserved(device) / GIB, 3) if device.type == "cuda" else 0.0


def device_used(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return round((total - free) / GIB, 3)


def child(case: Case, result: Path) -> None:
    """A measurement: in this process, or as ranks that this one starts."""
    if case.gpus > 1 and "RANK" not in os.environ:
        from fgod.train.ranks.launch import run_ranks

        words = ["--one", json.dumps(asdict(case)), "--result", str(result)]
        run_ranks("benchmarks.gpu_scale", words, case.gpus, result.parent / "ranks", 0)
        return
    try:
        found = measure(case)
    except BaseException:  # said, and out: what is under way with other ranks would be waited for
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if found is not None:
        result.write_text(json.dumps(found))


# ------------------------------------------------------------------------------------------------------ all of them


def run_one(case: Case, result: Path, limit: float) -> dict[str, Any]:
    """A case in processes of their own, all of which end in time; what it came to, or why it did not."""
    result.unlink(missing_ok=True)
    words = [sys.executable, "-m", "benchmarks.gpu_scale", "--one", json.dumps(asdict(case)), "--result", str(result)]
    begin = time.monotonic()
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        code = process.wait(limit)
        failed = "" if code == 0 and result.exists() else f"exit code {code}"
    except subprocess.TimeoutExpired:
        failed = f"not done after {limit:.0f} s"
        end_all(process)
    found = {} if failed else json.loads(result.read_text())
    return {"case": case.name, **asdict(case), **found, "failed": failed, "s": round(time.monotonic() - begin, 1)}


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a measurement that goes on: its launcher is asked first, which ends the ranks; then all that is left."""
    from fgod.system.process import ProcessTree

    tree = ProcessTree(process.pid)
    tree.members()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        print("  its launcher does not end: all is killed", flush=True)
    tree.kill()
    process.wait()


def scaling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With tokens a second over those of one GPU: of as many rows a GPU (weak), of as many rows (strong)."""
    alone = {
        (row["shape"], row["rows"], row["width"]): row["tokens_per_s"]
        for row in rows
        if row["kind"] == "steps" and row["gpus"] == 1 and not row["failed"]
    }
    for row in rows:
        if row["kind"] == "steps" and not row["failed"] and row["gpus"] > 1:
            shares = {"weak": row["rows"] // row["gpus"], "strong": row["rows"]}
            for name, count in shares.items():
                one = alone.get((row["shape"], count, row["width"]))
                row[name] = round(row["tokens_per_s"] / one, 3) if one else None
    return rows


def losses_apart(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest relative difference of losses on one and on two GPUs."""
    found = [row["losses"] for row in rows if row["kind"] == "losses" and not row["failed"]]
    if len(found) < 2:
        return {}
    apart = [abs(a - b) / abs(a) for a, b in zip(found[0], found[1], strict=True)]
    return {"steps": len(apart), "largest": max(apart), "first": found[0][0], "last": [one[-1] for one in found]}


SHOWN = ("case", "step_ms", "tokens_per_s", "weak", "strong", "peak_gib", "predicted_gib", "device_gib", "share",
         "nccl_ms", "exposed_ms", "received_gb", "graph", "warm_s", "s", "failed")  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    return "\n".join("\t".join(str(row.get(key, "")) for key in SHOWN) for row in ({k: k for k in SHOWN}, *rows))


def versions(count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "gpus": count, "device": "cpu"}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return found | {"env": {k: v for k, v in os.environ.items() if k.startswith("NCCL")}}


def write(out: Path, of: dict[str, Any], rows: list[dict[str, Any]], told: bool = True) -> None:
    """Both tables, and their lines to the terminal. `of`: versions and machine."""
    facts = {**of, "losses": losses_apart(rows), "rows": scaling(rows)}
    (out / "gpu_scale.json").write_text(json.dumps(facts, indent=1))
    (out / "gpu_scale.tsv").write_text(table(rows) + "\n")
    if told:
        print(table(rows), flush=True)
        print(f"losses on 1 and 2: {facts['losses']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--gpus", help="comma-separated (default: 1, 2, 4, 8, as many as there are)")
    parser.add_argument("--shapes", default="qwen3-4b,qwen3-14b", help="the first one is measured most")
    parser.add_argument("--rows", default="8x512,1x96", help="rows and tokens of one GPU")
    parser.add_argument("--only", default="steps,losses,fsdp2,fsdp2-8bit")
    parser.add_argument("--join", nargs="+", type=Path, metavar="FOLDER", help="measure nothing: one table of these")
    parser.add_argument("--seconds", type=float, default=340, help="no measurement goes on for longer")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        child(Case(**json.loads(args.one)), args.result)
        return
    if args.out is None:
        parser.error("--out: expected a folder")
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if args.join:
        found = [json.loads((folder / "gpu_scale.json").read_text()) for folder in args.join]
        write(out, found[0], [row for one in found for row in one["rows"]])
        return
    there = torch.cuda.device_count() if torch.cuda.is_available() else 2
    counts = [int(n) for n in args.gpus.split(",")] if args.gpus else [n for n in (1, 2, 4, 8) if n <= there]
    sizes = [(int(size.split("x")[0]), int(size.split("x")[1])) for size in args.rows.split(",")]
    end, rows, graphs = time.monotonic() + args.seconds, [], True
    for case in cases(counts, args.shapes.split(","), sizes):
        left = end - time.monotonic()
        if case.kind not in args.only.split(","):
            continue
        if left < SMALLEST_SECS:
            print(f"{case.name}: not begun, the time is over", flush=True)
            continue
        if case.kind == "steps" and case.gpus > 1:
            case = replace(case, graphs=graphs)
        print(f"== {case.name}", flush=True)
        try:
            row = run_one(case, out / "one.json", min(LIMIT_SECS, left))
            rows.append(row)
            left = end - time.monotonic()
            if row["failed"] and case.kind == "steps" and case.gpus > 1 and graphs and left > LIMIT_SECS / 2:
                again = replace(case, graphs=False)
                print(f"== {again.name}", flush=True)
                rows.append(run_one(again, out / "one.json", min(LIMIT_SECS, left)))
                graphs = bool(rows[-1]["failed"])  # graphs were at fault, and would cost each case its time
            print(table(scaling(rows)[-1:]), flush=True)
        except Exception:
            traceback.print_exc()
        write(out, versions(there), rows, told=False)
    (out / "one.json").unlink(missing_ok=True)
    write(out, versions(there), rows)


if __name__ == "__main__":
    main()
