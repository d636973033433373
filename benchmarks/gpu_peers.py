"""A training step of fgod beside the same step by transformers' Qwen3, as fast as others make it, on the same GPU.

    python benchmarks/gpu_peers.py --out FOLDER [--variants fgod,liger] [--tokens 1x96,8x512] [--shape qwen3-4b]
                                   [--steps 20] [--seconds 262] [--limit 100]

`--list` prints the variants. Each is measured at each size in a process of its own. What all have in common: every
parameter is trained, BF16 weights, random weights and tokens, new tokens copied to the device for each step, labels on
the last half of each row, no clipping, no padding, attention by torch's SDPA (flash on a GPU). `eager` computes logits
of all tokens, as training loops usually do; every other variant those of the labels alone, as fgod does. 8-bit
optimizers are run after a graph of forward and backward, since their steps count on the host.

Times are from the end of a step to the end of the next, while the host may run ahead; the median, quartiles, lowest
and highest of the steps after the warm-up. Memory is torch's peak from the second step on, and what its allocator holds
at the end. A variant that fails, whose package is missing or that takes longer than `--limit` has a line with the
error, and the next goes on. None runs past `--seconds`. peers.tsv and peers.json are written anew after each.
On a machine without CUDA all but CUDA graphs run on the CPU: use `--shape tiny`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torch import Tensor
from torch.nn import functional

GIB = 2**30
WARM = 5
"""Steps before those that count."""
FEEDS = 8
"""Batches that steps take in turn."""
PACKAGES = ("torch", "transformers", "triton", "liger-kernel", "torchao", "bitsandbytes")
PRELOADED = ("torch._dynamo", "torch._inductor.compile_fx", "transformers.models.qwen3.modeling_qwen3")
"""What the server of processes imports once."""


@dataclass(frozen=True)
class Variant:
    """One way to make a step.

    `head`: logits of `all` tokens by transformers; those of the `labels`; those `fused` with the loss by Liger.
    `compiled`: each of the `layers`; forward and loss as one (`model`), or so with torch's own CUDA graphs
    (`reduce-overhead`). `graph`: one CUDA graph of the whole `step`, or of forward and backward (`gradients`).
    """

    name: str
    optimizer: str = "torch fused"
    head: str = "labels"
    liger: bool = False
    compiled: str = ""
    graph: str = ""
    checkpointing: bool = False


FGOD = Variant("fgod", "int8 m")
LAYERS = Variant("layers-graph", compiled="layers", graph="step")
LIGER = Variant("liger", head="fused", liger=True)
EIGHT_BIT = replace(LAYERS, graph="gradients")
ORDER: tuple[tuple[Variant, tuple[str, ...]], ...] = (
    (FGOD, ("1x96", "8x512")),
    (LAYERS, ("1x96", "8x512")),
    (Variant("liger-graph", liger=True, graph="step"), ("1x96", "8x512")),
    (LIGER, ("8x512", "1x96")),
    (replace(LAYERS, name="layers-graph-checkpointing", checkpointing=True), ("8x512",)),
    (replace(EIGHT_BIT, name="bitsandbytes", optimizer="bitsandbytes 8-bit"), ("1x96", "8x512")),
    (replace(LIGER, name="liger-checkpointing", checkpointing=True), ("8x512",)),
    (Variant("labels-graph", graph="step"), ("1x96", "8x512")),
    (Variant("eager", head="all"), ("1x96", "8x512")),
    (Variant("reduce-overhead", compiled="reduce-overhead"), ("1x96", "8x512")),
    (replace(EIGHT_BIT, name="torchao", optimizer="torchao 8-bit"), ("1x96", "8x512")),
    (Variant("layers", compiled="layers"), ("8x512", "1x96")),
    (Variant("model", compiled="model"), ("8x512", "1x96")),
    (Variant("labels"), ("8x512", "1x96")),
    (replace(LAYERS, name="liger-layers-graph", liger=True), ("1x96", "8x512")),
    (
        replace(EIGHT_BIT, name="bitsandbytes-checkpointing", optimizer="bitsandbytes 8-bit", checkpointing=True),
        ("8x512",),
    ),
)
"""The most telling first: a run may be cut off."""
VARIANTS = {variant.name: variant for variant, _ in ORDER}
SHOWN = ("name", "rows", "width", "status", "step_ms", "q1_ms", "q3_ms", "low_ms", "high_ms", "steps",
         "forward_backward_ms", "optimizer_ms", "peak_gib", "reserved_gib", "first_loss", "last_loss", "finite",
         "warm_s", "compiled_graphs", "optimizer", "head", "liger", "compiled", "graph", "checkpointing")  # fmt: skip


def optimizer_of(variant: Variant, parameters: Any) -> torch.optim.Optimizer:
    """AdamW. Raises ImportError where its package is missing."""
    settings: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.0}
    match variant.optimizer:
        case "torch fused":
            return torch.optim.AdamW(parameters, fused=True, capturable=variant.graph == "step", **settings)
        case "bitsandbytes 8-bit":
            return importlib.import_module("bitsandbytes").optim.AdamW8bit(parameters, **settings)
        case _:
            return importlib.import_module("torchao.optim").AdamW8bit(
                parameters, bf16_stochastic_round=True, **settings
            )


def model_of(shape: str, variant: Variant, device: torch.device) -> Any:
    """transformers' Qwen3 with random weights, patched by Liger and compiled in layers as the variant wants it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from fgod.model.random import model_config

    if variant.liger:
        liger = importlib.import_module("liger_kernel.transformers")
        liger.apply_liger_kernel_to_qwen3(fused_linear_cross_entropy=False)
    config = Qwen3Config(**{k: v for k, v in model_config(shape).items() if k not in ("architectures", "dtype")})
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.compute_default_rope_parameters(config)[0].to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
    if variant.checkpointing:  # nothing here is random, and a graph cannot keep the generator's state
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    if variant.compiled == "layers":
        for layer in (*model.model.layers, model.model.norm):
            layer.compile(dynamic=False)
    return model.train()


class Feed:
    """Random batches in host memory, and where on the device steps read them."""

    def __init__(self, rows: int, width: int, vocab: int, device: torch.device) -> None:
        self.labels = width - width // 2
        self.ids, self.targets = (torch.zeros(rows, width, dtype=torch.int64, device=device) for _ in range(2))
        generator = torch.Generator().manual_seed(1)
        self.batches = []
        for _ in range(FEEDS):
            tokens = torch.randint(3, vocab, (rows, width + 1), generator=generator)
            ids, targets = tokens[:, :-1].clone(), tokens[:, 1:].clone()  # one row's slices would share memory
            targets[:, : -self.labels] = -100
            self.batches.append([t.pin_memory() if device.type == "cuda" else t for t in (ids, targets)])

    def load(self, step: int) -> None:
        ids, targets = self.batches[step % FEEDS]
        self.ids.copy_(ids, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)


def loss_of(model: Any, variant: Variant, labels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss of a batch's labels, from its ids and targets."""
    if variant.head == "all":
        return lambda ids, targets: model(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False).loss

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(functional.linear(hidden, weight).float(), targets)

    def fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return liger(weight, hidden, targets)

    head = plain
    if variant.head == "fused":
        liger = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        head = fused
    elif variant.compiled == "layers" or variant.liger:  # Liger's own loss waits for the device: no graph can hold it
        head = torch.compile(plain, dynamic=False)

    def whole(ids: Tensor, targets: Tensor) -> Tensor:
        # a mask of None for each kind of layer: causal attention without one, also where the model is traced
        states = model.model(input_ids=ids, attention_mask={"full_attention": None}, use_cache=False)
        hidden = states.last_hidden_state[:, -labels:].flatten(0, 1)
        return head(hidden, model.lm_head.weight, targets[:, -labels:].flatten())

    if variant.compiled in ("model", "reduce-overhead"):
        mode = "reduce-overhead" if variant.compiled == "reduce-overhead" else None
        return torch.compile(whole, dynamic=False, mode=mode)
    return whole


class Marks:
    """Moments on the device, read when all is done."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.moments: dict[str, list[Any]] = {"gradients": [], "step": []}

    def mark(self, name: str) -> None:
        moment: Any = time.perf_counter()
        if self.cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self.moments[name].append(moment)

    def between(self, first: Sequence[Any], second: Sequence[Any]) -> list[float]:
        """Milliseconds."""
        if self.cuda:
            return [a.elapsed_time(b) for a, b in zip(first, second, strict=True)]
        return [(b - a) * 1e3 for a, b in zip(first, second, strict=True)]


def captured(work: Callable[[], Tensor], warm: Callable[[], Any], zero: Callable[[], Any]) -> Callable[[], Tensor]:
    """`work` as a CUDA graph, after `warm` ran on the stream that captures it; `zero` drops gradients."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warm()
    torch.cuda.synchronize()
    zero()  # backward then writes new gradients instead of adding to those that are there
    torch.cuda.empty_cache()
    with torch.cuda.graph(graph, stream=stream):
        loss = work()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def measure(variant: Variant, shape: str, rows: int, width: int, steps: int) -> dict[str, Any]:
    """A peer's step, in this process."""
    begin = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if variant.graph and device.type != "cuda":
        raise RuntimeError("CUDA graphs need CUDA")
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = model_of(shape, variant, device)
    optimizer = optimizer_of(variant, model.parameters())
    feed = Feed(rows, width, model.config.vocab_size, device)
    loss_fn = loss_of(model, variant, feed.labels)

    def gradients() -> Tensor:
        loss = loss_fn(feed.ids, feed.targets)
        loss.backward()
        return loss.detach()

    def both() -> Tensor:
        loss = gradients()
        optimizer.step()
        return loss

    def warm() -> None:
        for step in range(3):
            feed.load(step)
            both()
            optimizer.zero_grad(set_to_none=True)
            if step == 0:
                torch.cuda.reset_peak_memory_stats()

    work = gradients
    if variant.graph:
        work = captured(both if variant.graph == "step" else gradients, warm, optimizer.zero_grad)
    marks, losses, warm_s = Marks(device), [], 0.0
    for step in range(WARM + steps):
        if step == 1 and not variant.graph and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if step == WARM:
            wait(device)
            warm_s = time.perf_counter() - begin
            marks.mark("step")
        feed.load(step)
        if variant.compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        losses.append(work().clone())
        if variant.graph != "step":
            if step >= WARM:
                marks.mark("gradients")
            optimizer.step()
        if not variant.graph:
            optimizer.zero_grad(set_to_none=True)
        if step >= WARM:
            marks.mark("step")
    wait(device)
    ends, middles = marks.moments["step"], marks.moments["gradients"]
    found = summary(marks.between(ends[:-1], ends[1:]), [loss.item() for loss in losses])
    if middles:
        found["forward_backward_ms"] = statistics.median(marks.between(ends[:-1], middles))
        found["optimizer_ms"] = statistics.median(marks.between(middles, ends[1:]))
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        found["reserved_gib"] = torch.cuda.memory_reserved() / GIB
    if variant.compiled or (variant.liger and variant.head == "labels"):
        found["compiled_graphs"] = importlib.import_module("torch._dynamo.utils").counters["stats"]["unique_graphs"]
    return found | {"warm_s": warm_s}


def measure_fgod(shape: str, rows: int, width: int, steps: int) -> dict[str, Any]:
    """fgod's own step, not clipped; its peak is that of a step without the graph, in which all that is alive counts."""
    from gpu_step import Case, build, samples

    from fgod.model.random import model_config
    from fgod.train.device.settings import repeatable_cuda

    begin = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = Case("free", "int8 m", rows, width, clip=None, repeatable=False)
    batches = [samples(case, model_config(shape)["vocab_size"], seed) for seed in range(FEEDS)]
    found: dict[str, Any] = {}
    with repeatable_cuda(device):
        trainer, _ = build(case, shape, device)
        times, losses, last, warm_s = [], [], 0.0, 0.0
        for step in range(WARM + steps + 1):  # results come a step later
            if step == WARM:
                losses += [row.loss for row, _ in trainer.completed(wait=True)]
                wait(device)
                last = time.perf_counter()
                warm_s = last - begin
            trainer.launch(step, batches[step % FEEDS])
            for row, _ in trainer.completed():
                losses.append(row.loss)
                if step >= WARM:
                    now = time.perf_counter()
                    times.append((now - last) * 1e3)
                    last = now
        for row, _ in trainer.completed(wait=True):
            losses.append(row.loss)
        wait(device)
        if device.type == "cuda":
            found["reserved_gib"] = torch.cuda.memory_reserved() / GIB
            trainer.graphs = False
            for known in trainer.shapes.values():
                known.graph = None
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            trainer.launch(WARM + steps + 1, batches[0])
            trainer.completed(wait=True)
            found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return summary(times, losses) | found | {"warm_s": warm_s}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(times: list[float], losses: list[float]) -> dict[str, Any]:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "step_ms": median, "q1_ms": q1, "q3_ms": q3, "low_ms": min(times), "high_ms": max(times), "steps": len(times),
        "first_loss": losses[0], "last_loss": losses[-1], "finite": all(map(math.isfinite, losses)), "times_ms": times,
    }  # fmt: skip


def work(variant: Variant, shape: str, rows: int, width: int, steps: int, out: Path) -> None:
    """What a variant's process does: its figures, or its error, as JSON in `out`."""
    try:
        if variant.name == "fgod":
            found = measure_fgod(shape, rows, width, steps)
        else:
            found = measure(variant, shape, rows, width, steps)
        found["status"] = "ok" if found["finite"] else "losses are not finite"
    except Exception as error:
        traceback.print_exc()
        found = {"status": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    out.write_text(json.dumps(found))
    sys.stdout.flush()
    sys.stderr.flush()


def probe(out: Path) -> None:
    """The device's name in `out`, once something ran on it."""
    if torch.cuda.is_available():
        torch.ones(8, device="cuda").sum().item()
    out.write_text(torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")


def run(context: Any, target: Callable[..., None], arguments: tuple[Any, ...], out: Path, limit: float) -> str:
    """What a process wrote to `out`.

    Raises:
        TimeoutError: it took longer than `limit` seconds.
        ChildProcessError: it ended and wrote nothing.
    """
    out.unlink(missing_ok=True)
    process = context.Process(target=target, args=(*arguments, out))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"stopped after {limit:.0f} s")
    if not out.exists():
        raise ChildProcessError(f"its process ended with {process.exitcode} and wrote nothing")
    return out.read_text()


def processes(out: Path) -> tuple[Any, str]:
    """How processes are started, and the device's name: from a server that imported torch once, which spares each its
    imports; where CUDA does not start in those, each from nothing."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else asking for a device may start CUDA in the server
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    try:
        return context, run(context, probe, (), out, 60)
    except (TimeoutError, ChildProcessError) as error:
        print(f"a forked process has no device ({error}): each starts from nothing", flush=True)
    context = multiprocessing.get_context("spawn")
    return context, run(context, probe, (), out, 60)


def table(rows: list[dict[str, Any]]) -> str:
    def shown(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = ({k: k for k in SHOWN}, *rows)
    return "".join("\t".join(shown(row.get(key, "")) for key in SHOWN) + "\n" for row in lines)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def chosen(variants: str, tokens: str) -> list[tuple[Variant, str]]:
    """What is measured, in order. Raises SystemExit at a name that there is not."""
    names, sizes = ([word for word in words.split(",") if word] for words in (variants, tokens))
    for name in names:
        if name not in VARIANTS:
            sys.exit(f"--variants: found {name!r}, expected some of {', '.join(VARIANTS)}")
    if tokens == "":
        return [(v, size) for v, usual in ORDER for size in usual if not names or v.name in names]
    return [(v, size) for v in VARIANTS.values() for size in sizes if not names or v.name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of peers.tsv and peers.json")
    parser.add_argument("--variants", default="", help="names with commas between; all if left out")
    parser.add_argument("--tokens", default="", help="rows x tokens, such as 1x96,8x512; the usual ones if left out")
    parser.add_argument("--shape", default="qwen3-4b")
    parser.add_argument("--steps", type=int, default=20, help="steps that count, after the warm-up")
    parser.add_argument("--seconds", type=float, default=262, help="of all; what runs then is stopped")
    parser.add_argument("--limit", type=float, default=100, help="seconds of one variant at one size")
    parser.add_argument("--list", action="store_true", help="print the variants, and measure nothing")
    args = parser.parse_args()
    wanted = chosen(args.variants, args.tokens)
    if args.list:
        for variant, size in wanted:
            print(size, *(f"{key}={value}" for key, value in asdict(variant).items()), sep="\t")
        return
    if args.out is None:
        parser.error("--out is needed")
    args.out.mkdir(parents=True, exist_ok=True)
    one, end, rows = args.out / "one.json", time.monotonic() + args.seconds, []
    context, device = processes(one)
    facts = {"device": device, "shape": args.shape, "python": sys.version.split()[0], **versions()}
    print(facts, flush=True)
    for variant, size in wanted:
        count, width = map(int, size.split("x"))
        row: dict[str, Any] = {**asdict(variant), "rows": count, "width": width}
        limit = min(args.limit, end - time.monotonic())
        if limit < 5:
            row["status"] = "not begun: the time is over"
        else:
            try:
                arguments = (variant, args.shape, count, width, args.steps)
                row |= json.loads(run(context, work, arguments, one, limit))
            except (TimeoutError, ChildProcessError) as error:
                row["status"] = str(error)
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
        (args.out / "peers.tsv").write_text(table(rows))
        (args.out / "peers.json").write_text(json.dumps(facts | {"results": rows}, indent=1))
    one.unlink(missing_ok=True)
    print(table(rows), flush=True)


if __name__ == "__main__":
    main()
