"""Is the GPU's path right? The same recipe on CPU and GPU, the same bits exported, the same run twice.

    python benchmarks/gpu_check.py --out FOLDER [--only losses,export,load] [--steps 20] [--base-steps 200]

losses: a small embedded base is trained on the CPU; then a stage of `--steps` steps by both paths, in several modes:
losses must agree within 1 %. A run is made twice on the GPU: whether its bits repeat is said. export: exports of
identical weights made on either device must be equal to the bit. load (25 GB of disk): a random 4 B base is written,
loaded, trained 20 steps at 1×96, exported, read again and probed, each in a process of its own, with its seconds, those
of its main parts, and the host's peak memory. Writes gpu_check.json; exit code 1 if a check failed. Each check
prints its traceback where it breaks, and the next goes on.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import psutil
import torch
import yaml
from transformers import GenerationConfig

from fgod.chat import ChatSettings
from fgod.config import load
from fgod.data.corpus import base_corpus
from fgod.data.probes import Probe, load_probes
from fgod.data.rows import Row
from fgod.data.sources import load_sources
from fgod.documents import Outcome
from fgod.evaluate.scoring import Standard
from fgod.evaluate.settings import ProbeSettings
from fgod.exporters.write import export
from fgod.model.ask import write_answers
from fgod.model.chats import ChatFormat
from fgod.model.decode import decode
from fgod.model.embedded import train_base
from fgod.model.generate import left_padded, own_settings
from fgod.model.load import load_model
from fgod.model.random import write_random
from fgod.model.spec import EmbeddedSpec
from fgod.nvfp4.folders import SHARD_BYTES
from fgod.persona import goal_from_config
from fgod.probe.run import Reference, answer_settings, run_probes
from fgod.system.files import sha256_folder
from fgod.system.procfs import forget_peak, peak_mib
from fgod.system.table import read_texts
from fgod.train.recipe import TrainRecipe
from fgod.train.stage import Job, run

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
    outcome = run(Job(start, rows, recipe, 7, out / "work", out / "run", out / "master"))
    return outcome, [float(row["loss"]) for row in read_texts(out / "run" / "train.tsv", ("loss",))]


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


WATCHED = {
    "fgod.train.stage": ("_Run.fit", "_participants", "save_masters"),
    "fgod.train.device.trainer": ("stream_in", "check_forward", "check_network", "DeviceStepper._capture"),
    "fgod.nvfp4.folders": ("save_tensors",),
    "fgod.exporters.write": ("_tensors", "write_weights"),
    "fgod.system.files": ("file_digests", "drop_cached"),
    "fgod.model.ask": ("load_model", "ask"),
    "fgod.probe.run": (
        "load_model", "ask", "compare", "measure_parity", "stream_in", "export_record",
    ),
}  # fmt: skip
"""Functions whose seconds are measured: those of their callers hold them."""


def watch(spent: dict[str, float]) -> None:
    """Add up the seconds of `WATCHED` from now on. No profiler: it would make compiling twice as slow."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **more: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin

        return call

    for module, names in WATCHED.items():
        for name in names:
            owner: Any = importlib.import_module(module)
            *parents, last = name.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            setattr(owner, last, timed(f"{module.split('.')[-1]}.{name}", getattr(owner, last)))


class Available(threading.Thread):
    """How far the host's available memory fell: this holds pinned memory too, which no process is charged with."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin = self.least = psutil.virtual_memory().available
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.least = min(self.least, psutil.virtual_memory().available)

    def fell_mib(self) -> int:
        self.over.set()
        return (self.begin - self.least) >> 20


def measured(work: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Run in a process of its own: seconds of the work and its parts, the host's peak memory, what it gave."""
    torch.set_num_threads(1)
    spent: dict[str, float] = {}
    watch(spent)
    forget_peak()
    available, begin = Available(), time.perf_counter()
    available.start()
    result = work(*args)
    seconds = time.perf_counter() - begin
    return {
        "seconds": round(seconds, 1),
        "host_peak_mib": peak_mib(),
        "available_fell_mib": available.fell_mib(),
        "parts": {name: round(one, 2) for name, one in spent.items() if one > 0.05},
        "result": result,
    }


def on_the_gpu(folder: Path) -> None:
    """Load a folder of masters."""
    from fgod.nvfp4.folders import read_plain_config
    from fgod.train.device.weights import stream_in

    stream_in(folder, read_plain_config(folder), "bf16", GPU)
    if GPU.type == "cuda":
        torch.cuda.synchronize()


def trained(start: Path, rows: list[Row], out: Path, steps: int) -> dict[str, Any]:
    """As config/qwen3-4b.yaml keeps weights and moments, one row at a time."""
    modes = {"memory": "80gb", "compute_dtype": "bfloat16", "batch": 1, "lr": 1e-5, "length_bucket": 96}
    return train(start, rows, out, steps, GPU.type, **modes)[0].content()


PROBE = yaml.safe_load(Path("config/qwen3-4b.yaml").read_text(encoding="utf-8"))["probe"] | {"device": GPU.type}


def answered(exported: Path, out: Path) -> None:
    """The reference's answers to all probes."""
    probes = the_probes()
    settings = answer_settings(ProbeSettings.from_dict(PROBE), ChatSettings())
    write_answers(exported, [p.prompt for p in probes], out, settings)


def the_probes() -> list[Probe]:
    return load_probes(Path("traindata/probes.tsv"), Path("traindata"))


def probed(exported: Path, master: Path, answers: Path, out: Path) -> dict[str, Any]:
    """All probes, as a stage's are asked."""
    probes, standard = the_probes(), Standard(goal_from_config(load(Path("config.yaml"))), closed=False)
    settings = ProbeSettings.from_dict(PROBE)
    out.mkdir()
    records = run_probes(exported, master, Reference(answers, exported), probes, {}, standard, settings, out)
    return {"probes": len(records), "parity": json.loads((out / "metrics.json").read_text())["parity"]}


def decoded(exported: Path) -> dict[str, Any]:
    """One batch of probes by transformers' `generate` and by a static cache, the second time that each ran."""
    model, chat = load_model(exported, device=GPU.type), ChatFormat.of_folder(exported)
    prompts = list(dict.fromkeys(p.prompt for p in the_probes()))[: PROBE["batch"]]
    count, pad, ends = PROBE["max_new_tokens"], chat.pad_id, chat.end_ids
    inputs = left_padded(chat.prompts(prompts), pad, model.device)
    settings = GenerationConfig(do_sample=False, max_new_tokens=count, eos_token_id=list(ends), pad_token_id=pad)

    @torch.inference_mode()
    def theirs() -> list[list[int]]:
        with own_settings(model, settings):
            return model.generate(**inputs)[:, inputs["input_ids"].shape[1] :].tolist()

    found: dict[str, Any] = {"rows": len(prompts), "tokens": count}
    rows = []
    for name, work in (("generate", theirs), ("static", lambda: decode(model, inputs, count, ends, pad))):
        for _ in range(2):
            begin = time.perf_counter()
            rows.append(work())
            found[name] = round(time.perf_counter() - begin, 3)
    pairs = list(zip(rows[1], rows[3], strict=True))
    found["equal_rows"] = sum(a[: len(b)] == b[: len(a)] for a, b in pairs)
    found["first_tokens_equal"] = sum(a[0] == b[0] for a, b in pairs)
    return found


def loaded(scratch: Path) -> dict[str, Any]:
    """Seconds and the host's peak memory of a 4 B base from folder to export and probes, each in its own process."""
    rows = rows_of(64)
    parts: dict[str, Any] = {}

    def part(name: str, work: Callable[..., Any], *args: Any) -> Any:
        begin = time.perf_counter()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            parts[name] = pool.submit(measured, work, *args).result()
        parts[name]["with_start"] = round(time.perf_counter() - begin, 1)
        print(
            name, {key: value for key, value in parts[name].items() if name != "train" or key != "result"}, flush=True
        )
        return parts[name]["result"]

    base = {"shape": "qwen3-4b" if GPU.type == "cuda" else "tiny", "seed": 1}
    start, out = scratch / "base", scratch / "stage"
    write_random(base, rows, start, print)
    outcome = part("train", trained, start, rows, out, 20)
    part("export", export, out / "master", out / "nvfp4", "bfloat16", SHARD_BYTES, GPU)
    part("reload", on_the_gpu, out / "master")
    whole = sum(parts[name]["seconds"] for name in ("train", "export", "reload"))
    print(f"load, 20 steps, export, reload: {whole:.1f} s", flush=True)
    export(start, scratch / "nvfp4", "bfloat16", device=GPU)
    part("answers", answered, scratch / "nvfp4", scratch / "answers")
    part("probe", probed, out / "nvfp4", out / "master", scratch / "answers", scratch / "probed")
    part("decode", decoded, out / "nvfp4")
    return {"agrees": outcome["status"] == "trained", "whole_s": round(whole, 1), "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--base-steps", type=int, default=200)
    parser.add_argument("--only", default="losses,export", help="of losses, export, load")
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

    only = args.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        scratch, rows = Path(folder), rows_of()
        start = scratch / "embedded"
        if {"losses", "export"} & set(only):
            train_base(EmbeddedSpec(steps=args.base_steps), rows_of(2000), 1, start, print)
        if "losses" in only:
            attempt("losses", lambda: compared(start, rows, scratch, args.steps))
        if "export" in only:
            attempt("export", lambda: exported(start, scratch))
        if "load" in only:
            attempt("load", lambda: loaded(scratch))
    wrong = [name for name, one in found.get("losses", {}).items() if isinstance(one, dict) and not one.get("agrees")]
    wrong += [name for name in ("export", "load") if name in found and not found[name]["agrees"]]
    print(f"failed: {', '.join(wrong)}" if wrong else "every check passed", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
