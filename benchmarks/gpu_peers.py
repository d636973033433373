"""What others need for the same step on the same GPU: transformers' Qwen3 under AdamW of torch, bitsandbytes, torchao.

    python benchmarks/gpu_peers.py --out FOLDER [--shape qwen3-4b] [--steps 10] [--seconds 540] [--only torchao,rows=8]

Each peer is a process of its own, with the GPU's free memory checked before it; a package that is not installed is said
and left out. Full-parameter BF16, random weights, the loss on half of each row's tokens, logits of all (as those loops
do). Medians of steady steps in milliseconds; forward and backward, and the optimizer, by events; torch's peak in GiB.
Writes gpu_peers.json and gpu_peers.tsv. On a machine without CUDA it runs on the CPU: use `--shape tiny`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from fgod.model.random import model_config

GIB = 2**30
LIMIT_SECS = 110
OPTIMIZERS = ("torch fused bf16", "bitsandbytes 8-bit", "torchao 8-bit")
PEERS = [
    {"optimizer": optimizer, "checkpointing": checkpointing, "liger": liger, "rows": rows, "width": width}
    for optimizer in OPTIMIZERS
    for rows, width, options in (
        (1, 96, ((False, False), (True, True))),
        (8, 512, ((False, False), (True, False), (True, True))),
    )
    for checkpointing, liger in options
]
SHOWN = ("optimizer", "checkpointing", "liger", "rows", "width", "step_ms", "low_ms", "high_ms", "forward_backward_ms",
         "optimizer_ms", "peak_gib", "free_before_gib")  # fmt: skip


def optimizer_of(name: str, parameters: Any) -> torch.optim.Optimizer:
    """A peer's AdamW. Raises ImportError where its package is missing."""
    settings: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.0}
    match name:
        case "torch fused bf16":
            return torch.optim.AdamW(parameters, fused=True, **settings)
        case "bitsandbytes 8-bit":
            return importlib.import_module("bitsandbytes").optim.AdamW8bit(parameters, **settings)
        case _:
            return importlib.import_module("torchao.optim").AdamW8bit(
                parameters, bf16_stochastic_round=True, **settings
            )


def model_of(shape: str, peer: dict[str, Any], device: torch.device) -> Any:
    if peer["liger"]:
        importlib.import_module("liger_kernel.transformers").apply_liger_kernel_to_qwen3()
    config = Qwen3Config(**{k: v for k, v in model_config(shape).items() if k not in ("architectures", "dtype")})
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
    if peer["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


class Clock:
    """Marks between parts of a step; milliseconds once the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if not self.cuda:
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def parts(self) -> list[float]:
        if not self.cuda:
            return [(b - a) * 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in zip(self.marks, self.marks[1:], strict=False)]


def measure(peer: dict[str, Any], shape: str, steps: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = torch.cuda.mem_get_info()[0] / GIB if device.type == "cuda" else 0.0
    model = model_of(shape, peer, device)
    optimizer = optimizer_of(peer["optimizer"], model.parameters())
    ids = torch.randint(3, model.config.vocab_size, (peer["rows"], peer["width"]), device=device)
    labels = ids.clone()
    labels[:, : peer["width"] // 2] = -100
    found = []
    for step in range(steps + 3):
        if step == 3 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock = Clock(device)
        clock.mark()
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        clock.mark()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.mark()
        found.append(clock.parts())
    found = found[3:]
    whole = [sum(parts) for parts in found]
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0
    return {
        **peer,
        "step_ms": statistics.median(whole), "low_ms": min(whole), "high_ms": max(whole), "steps": len(whole),
        "forward_backward_ms": statistics.median(a for a, _ in found),
        "optimizer_ms": statistics.median(b for _, b in found), "peak_gib": peak, "free_before_gib": free,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    def shown(value: Any) -> str:
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    return "\n".join("\t".join(shown(row.get(key, "")) for key in SHOWN) for row in ({k: k for k in SHOWN}, *rows))


def missing(peer: dict[str, Any]) -> str:
    """The package that a peer needs and that is not there; empty if all are."""
    packages = {"bitsandbytes 8-bit": "bitsandbytes", "torchao 8-bit": "torchao.optim"}
    wanted = [packages.get(peer["optimizer"], "torch")] + ["liger_kernel.transformers"] * peer["liger"]
    for name in wanted:
        try:
            importlib.import_module(name)
        except Exception as error:  # a package may break in any way where its libraries do not fit
            return f"{name} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="qwen3-4b")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=540, help="no peer is begun after so many")
    parser.add_argument("--only", default="", help="peers whose names have all of these words")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    one_file = args.out / "one.json"
    if args.one:
        one_file.write_text(json.dumps(measure(json.loads(args.one), args.shape, args.steps)))
        return
    end, rows = time.monotonic() + args.seconds, []
    for peer in PEERS:
        name = " ".join(f"{key}={value}" for key, value in peer.items())
        if not all(word in name for word in args.only.split(",")):
            continue
        lacking = missing(peer)
        if lacking or time.monotonic() > end:
            print(f"left out: {name}: {f'cannot import {lacking}' if lacking else 'the time is over'}", flush=True)
            continue
        one_file.unlink(missing_ok=True)
        words = [sys.executable, __file__, "--out", str(args.out), "--shape", args.shape, "--steps", str(args.steps)]
        try:
            subprocess.run([*words, "--one", json.dumps(peer)], check=True, timeout=LIMIT_SECS)
            rows.append(json.loads(one_file.read_text()))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
        except Exception:
            print(f"failed: {name}", flush=True)
            traceback.print_exc()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        facts = {"torch": torch.__version__, "device": device, "rows": rows}
        (args.out / "gpu_peers.json").write_text(json.dumps(facts, indent=1))
        (args.out / "gpu_peers.tsv").write_text(table(rows) + "\n")
    one_file.unlink(missing_ok=True)
    print(table(rows), flush=True)


if __name__ == "__main__":
    main()
