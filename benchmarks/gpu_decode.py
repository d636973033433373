"""Tokens a second of replies on one GPU, beside transformers' `generate`: random weights in a model's shape.

    python benchmarks/gpu_decode.py --out FOLDER [--shapes qwen3-4b,qwen2.5-0.5b] [--batches 1,64] [--compiled]

The weights are BF16, as they are decoded once of an export. `fgod`: a chat's session at batch 1, `fgod.model.decode`
for batches. `generate, dynamic` and `generate, static`: transformers, with its default cache and with a static one, not
compiled; `--compiled` measures the static one as transformers compiles it instead, which takes a minute or two.
A token's time is the difference of two runs, of 16 and of 144 tokens, so that prompts, warm-up and graph capture count
for none; the least of three. `of bound` is the share of what reading weights and cache once at 3.35 TB/s (H100 SXM)
allows. Writes gpu_decode.json and gpu_decode.tsv. Without CUDA it runs on the CPU: `--shapes tiny --batches 1`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from transformers import GenerationConfig, PreTrainedModel

from fgod.model.decode import decode
from fgod.model.load import model_from_tensors, quiet
from fgod.model.random import model_config
from fgod.talk.opening import bytes_a_token
from fgod.talk.session import Session, cut
from fgod.train.device.weights import allocate, randomise

BANDWIDTH = 3.35e12
"""Bytes a second of an H100 SXM's memory, by its data sheet."""

PROMPT, FEW, MANY = 64, 16, 144
"""Tokens of a prompt, and of the two runs."""

TIMES = 3
SHOWN = ("shape", "batch", "who", "ms_a_token", "tokens_a_second", "of_bound", "first_token_ms", "same_tokens")

Run = Callable[[int], list[list[int]]]
"""The next so many tokens of each prompt."""


@dataclass(frozen=True)
class Line:
    """One measurement. `same_tokens`: how many of the first 16 of row 0 are those of `generate, dynamic`."""

    shape: str
    batch: int
    who: str
    ms_a_token: float
    tokens_a_second: float
    of_bound: float
    first_token_ms: float
    gigabytes_a_token: float
    same_tokens: int


def random_model(shape: str, device: torch.device) -> PreTrainedModel:
    """BF16, made on the device."""
    masters = allocate(model_config(shape), "bf16", device, shape)
    randomise(masters, 1)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in masters.tensors.items()}
    return model_from_tensors(masters.config, tensors).eval().requires_grad_(False)


def session_run(model: PreTrainedModel, prompts: list[list[int]]) -> Run:
    """As `fgod ask` and `fgod chat` do: each token comes to the host before the next is asked for."""

    def run(count: int) -> list[list[int]]:
        session = Session(model, 4096)
        logits, _ = session.read(cut(prompts[0]))
        found = [int(logits.argmax())]
        while len(found) < count:
            found.append(int(session.feed((found[-1],)).argmax()))
        return [found]

    return run


def batch_run(model: PreTrainedModel, prompts: list[list[int]]) -> Run:
    """As answers to probes are decoded."""
    ids = torch.tensor(prompts, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return lambda count: decode(model, inputs, count, (), 0)


def generate_run(model: PreTrainedModel, prompts: list[list[int]], cache: str | None, compiled: bool) -> Run:
    """transformers' own; random weights never end."""
    ids = torch.tensor(prompts, device=model.device)
    whole: Any = model

    def run(count: int) -> list[list[int]]:
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0, disable_compile=not compiled,
            cache_implementation=cache,
        )  # fmt: skip
        model.set_attn_implementation("sdpa")
        with torch.inference_mode(), quiet():
            made = whole.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return list(made[:, ids.shape[1] :].tolist())

    return run


def timed(run: Run, count: int) -> float:
    """Seconds; the tokens come to the host, so that the device is done."""
    begun = time.perf_counter()
    run(count)
    return time.perf_counter() - begun


def runs_of(model: PreTrainedModel, prompts: list[list[int]], compiled: bool) -> dict[str, Run]:
    """What is measured, by who."""
    ours = session_run(model, prompts) if len(prompts) == 1 else batch_run(model, prompts)
    if compiled:
        return {"fgod": ours, "generate, static, compiled": generate_run(model, prompts, "static", True)}
    return {
        "fgod": ours,
        "generate, dynamic": generate_run(model, prompts, None, False),
        "generate, static": generate_run(model, prompts, "static", False),
    }


def measure(model: PreTrainedModel, shape: str, batch: int, compiled: bool, end: float) -> list[Line]:
    """One line for each who is begun before `end`."""
    generator = torch.Generator().manual_seed(batch)
    vocab = model.config.vocab_size
    prompts = torch.randint(10, vocab, (batch, PROMPT), generator=generator).tolist()
    read = bytes_a_token(model, PROMPT + (FEW + MANY) // 2, batch)
    expected = generate_run(model, prompts[:1], None, False)(FEW)[0]
    lines = []
    for who, run in runs_of(model, prompts, compiled).items():
        if time.monotonic() > end:
            print(f"left out: {shape}, batch {batch}, {who}: the time is over", flush=True)
            continue
        found = run(FEW)[0]
        run(MANY)
        few, many = (min(timed(run, count) for _ in range(TIMES)) for count in (FEW, MANY))
        token = (many - few) / (MANY - FEW)
        same = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), FEW)
        lines.append(
            Line(shape, batch, who, token * 1e3, batch / token, read / BANDWIDTH / token, timed(run, 1) * 1e3,
                 read / 1e9, same)
        )  # fmt: skip
        print(table(lines[-1:]).splitlines()[-1], flush=True)
    return lines


def table(lines: list[Line]) -> str:
    """Tab-separated, with a header."""

    def shown(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = [[shown(getattr(line, key)) for key in SHOWN] for line in lines]
    return "\n".join("\t".join(row) for row in [list(SHOWN), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="qwen3-4b,qwen2.5-0.5b")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--seconds", type=float, default=95, help="nothing is begun after so many")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines: list[Line] = []
    for shape in args.shapes.split(","):
        model = random_model(shape, device)
        for batch in map(int, args.batches.split(",")):
            lines += measure(model, shape, batch, args.compiled, end)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    facts = {"torch": torch.__version__, "device": name, "lines": [asdict(line) for line in lines]}
    args.out.mkdir(parents=True, exist_ok=True)
    suffix = "_compiled" if args.compiled else ""
    (args.out / f"gpu_decode{suffix}.json").write_text(json.dumps(facts, indent=1))
    (args.out / f"gpu_decode{suffix}.tsv").write_text(table(lines) + "\n")
    print(table(lines), flush=True)


if __name__ == "__main__":
    main()
