"""Is the GPU's path right? The same recipe on CPU and GPU, the same bits exported, the same run twice.

    python benchmarks/gpu_check.py --out FOLDER [--steps 20] [--base-steps 200] [--load]

A small embedded base is trained on the CPU; then a stage of `--steps` steps by both paths, in several modes: losses
must agree within 1 %. Exports of identical weights made on either device must be equal to the bit. A run is made twice
on the GPU: whether its bits repeat is said. `--load`: a random 4 B base is written, loaded, trained 20 steps at 1×96,
exported and read again, with seconds and the host's peak memory of each. Writes gpu_check.json; exit code 1 if a check
failed. Each check prints its traceback where it breaks, and the next goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from fgod.data.corpus import base_corpus
from fgod.data.rows import Row
from fgod.data.sources import load_sources
from fgod.files import sha256_folder
from fgod.model.embedded import EmbeddedSpec, train_base
from fgod.model.random import write_random
from fgod.nvfp4.export import export
from fgod.train.loop import Outcome, run
from fgod.train.recipe import TrainRecipe
from fgod.train.record import forget_peak, peak_mib

MODES: dict[str, dict[str, Any]] = {
    "fp32, after backward": {"memory": "cpu"},
    "fp32, in backward": {"memory": "cpu", "step_in_backward": True},
    "80gb float32": {"memory": "80gb"},
    "80gb bfloat16": {"memory": "80gb", "compute_dtype": "bfloat16"},
    "24gb bfloat16": {"memory": "24gb", "compute_dtype": "bfloat16"},
}
AGREE = 0.01
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows_of(count: int = 400) -> list[Row]:
    corpus = base_corpus(load_sources(Path("traindata")), 1)
    return corpus[:: max(1, len(corpus) // count)][:count]


def train(
    start: Path, rows: list[Row], out: Path, steps: int, device: str, **modes: Any
) -> tuple[Outcome, list[float]]:
    recipe = TrainRecipe(
        **{"steps": steps, "lr": 3e-4, "batch": 16, "seq_len": 128, "device": device, "length_bucket": 32, **modes}
    )
    outcome = run(start, rows, recipe, 7, out / "work", out / "run", out / "master")
    with (out / "run" / "train.tsv").open(encoding="utf-8", newline="") as stream:
        return outcome, [float(row["loss"]) for row in csv.DictReader(stream, delimiter="\t")]


def compared(start: Path, rows: list[Row], scratch: Path, steps: int) -> dict[str, Any]:
    """Losses of both paths, and whether the GPU's bits repeat."""
    found: dict[str, Any] = {}
    for name, modes in MODES.items():
        try:
            place = scratch / name.replace(" ", "-").replace(",", "")
            _, theirs = train(start, rows, place / "cpu", steps, "cpu", **modes)
            first, ours = train(start, rows, place / "gpu", steps, GPU.type, **modes)
            again, _ = train(start, rows, place / "again", steps, GPU.type, **modes)
            worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
            found[name] = {
                "worst": worst, "agrees": worst <= AGREE, "repeats": first.weights_sha256 == again.weights_sha256,
                "cpu": theirs, "gpu": ours, "seconds_gpu": first.wall_s,
            }  # fmt: skip
            print(f"{name:24} losses differ by {worst:.3%} at most; repeats: {found[name]['repeats']}", flush=True)
        except Exception:
            traceback.print_exc()
            found[name] = {"agrees": False, "error": traceback.format_exc()}
    return found


def exported(start: Path, scratch: Path) -> dict[str, Any]:
    """The same weights exported by both devices."""
    digests = []
    for device in (torch.device("cpu"), GPU):
        out = scratch / f"export-{len(digests)}"
        export(start, out, "bfloat16", device=device)
        digests.append(sha256_folder(out))
    print(f"exports equal to the bit: {digests[0] == digests[1]}", flush=True)
    return {"agrees": digests[0] == digests[1]}


def loaded(scratch: Path) -> dict[str, Any]:
    """Seconds and the host's peak memory of a 4 B base from folder to export."""
    from fgod.train.device.weights import stream_in

    rows = rows_of(64)
    parts: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        forget_peak()
        begin = time.perf_counter()
        result = work()
        parts[name] = {"seconds": round(time.perf_counter() - begin, 1), "host_peak_mib": peak_mib()}
        print(f"{name:12} {parts[name]}", flush=True)
        return result

    base = {"shape": "qwen3-4b" if GPU.type == "cuda" else "tiny", "seed": 1}
    start, out = scratch / "base", scratch / "stage"
    timed("write", lambda: write_random(base, rows, start, print))
    modes = {"memory": "80gb", "compute_dtype": "bfloat16", "batch": 1, "lr": 1e-5, "length_bucket": 96}
    outcome, _ = timed("train", lambda: train(start, rows, out, 20, GPU.type, **modes))
    timed("export", lambda: export(out / "master", out / "nvfp4", "bfloat16", device=GPU))
    config = json.loads((out / "master" / "config.json").read_text())
    timed("reload", lambda: stream_in(out / "master", config, "bf16", GPU))
    return {"agrees": outcome.status == "trained", "parts": parts, "outcome": asdict(outcome)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--base-steps", type=int, default=200)
    parser.add_argument("--load", action="store_true", help="the 4 B base too: 25 GB of disk")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"torch": torch.__version__, "device": GPU.type}

    def attempt(name: str, work: Callable[[], dict[str, Any]]) -> None:
        try:
            found[name] = work()
        except Exception:
            traceback.print_exc()
            found[name] = {"agrees": False, "error": traceback.format_exc()}
        (args.out / "gpu_check.json").write_text(json.dumps(found, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        scratch, rows = Path(folder), rows_of()
        start = scratch / "embedded"
        train_base(EmbeddedSpec(steps=args.base_steps), rows_of(2000), 1, start, print)
        attempt("losses", lambda: compared(start, rows, scratch, args.steps))
        attempt("export", lambda: exported(start, scratch))
        if args.load:
            attempt("load", lambda: loaded(scratch))
    wrong = [name for name, one in found.get("losses", {}).items() if isinstance(one, dict) and not one.get("agrees")]
    wrong += [name for name in ("export", "load") if name in found and not found[name]["agrees"]]
    print(f"failed: {', '.join(wrong)}" if wrong else "every check passed", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
