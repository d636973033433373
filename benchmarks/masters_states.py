"""Masters × moments on the embedded base, with the two ways in which hand-written trainers fail.

    snakemake                                   # once: the base, its answers, and the mix of the stage below
    python benchmarks/masters_states.py [--stage C-disambiguate --steps 120 --seeds 3]

Every variant trains from the base on one stage's rows, is exported, and its reloaded export answers all probes. Lines
are appended as they come, and a line that is there is not measured again.

The demonstrations are made here and not in the package: `uint8-linear` and `nvfp4-linear` keep v instead of √v, without
the clip of |u|; `nvfp4-rtn` packs the weights to nearest after every step.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgod.chain import Chain
from fgod.config import load
from fgod.data.probes import expected, load_probes
from fgod.data.rows import read_rows
from fgod.data.sources import load_sources
from fgod.inputs import gather
from fgod.nvfp4 import export
from fgod.persona import goal_from_config
from fgod.probe.run import ProbeSettings, run_probes
from fgod.train import TrainRecipe, codecs, run
from fgod.train.memory import predict, shapes
from fgod.train.storage import V_KINDS, Int8Moment, Nvfp4Moment

METRICS = ("identity_rate", "disambiguation_rate", "confusion_rate", "retention", "kl_reference", "leak_rate")
COLUMNS = ("master", "m", "v", "clip", "lr", "seed", "status", *METRICS, "efficiency", "noise", "largest_update",
           "bytes_per_parameter", "last_loss", "train_seconds", "reason")  # fmt: skip


class LinearUint8(Int8Moment):
    """v itself in 255 equal steps: what is below half a step of its block's largest is zero."""

    codes = torch.uint8

    def write(self, rows: slice, values: Tensor) -> None:
        self.store(rows, codecs._eight_bits(values, codecs.UINT8_MAX, 0, torch.uint8))


class LinearNvfp4(Nvfp4Moment):
    """v itself in NVFP4: the inherited codec, which rounds small numbers to zero."""


LINEAR = {"uint8-linear": ("uint8", LinearUint8), "nvfp4-linear": ("nvfp4", LinearNvfp4)}


@dataclass(frozen=True)
class Variant:
    """One line of the table, before its seed."""

    master: str = "fp32"
    m: str = "fp32"
    v: str = "fp32"
    lr: float = 5e-4
    clip: float | None = 4.0


VARIANTS = (
    Variant(),
    Variant(master="bf16"),
    Variant(master="bf16", m="int8", v="uint8"),
    Variant(master="nvfp4-rtn"),
    Variant(m="int8", v="uint8-linear", clip=None),
    Variant(master="bf16", m="nvfp4", v="uint8"),
    Variant(master="bf16-rtn"),
    Variant(m="nvfp4", v="nvfp4-linear", clip=None),
    Variant(master="nvfp4"),
    Variant(master="bf16", m="nvfp4", v="nvfp4"),
    Variant(master="nvfp4", m="nvfp4", v="nvfp4"),
    Variant(m="int8", v="uint8"),
    Variant(m="bf16", v="bf16"),
    Variant(lr=1e-4),
    Variant(master="bf16", lr=1e-4),
    Variant(master="bf16-rtn", lr=1e-4),
    Variant(master="nvfp4-rtn", lr=1e-4),
)


@contextmanager
def linear_v(v: str) -> Iterator[str]:
    """Inside, the mode that is returned keeps a linear v if `v` is one of `LINEAR`."""
    mode, kind = LINEAR.get(v, (v, V_KINDS.get(v)))
    before = V_KINDS[mode]
    V_KINDS[mode] = kind or before
    try:
        yield mode
    finally:
        V_KINDS[mode] = before


@dataclass(frozen=True)
class Project:
    """What a project folder has after its pipeline ran: base, mix of a stage, config."""

    config: dict[str, Any]
    base: Path
    rows: Path
    reference: Path
    train: dict[str, Any]

    @classmethod
    def of(cls, stage: str) -> Project:
        config = load(Path("config.yaml"))
        chain = Chain(config, gather(config))
        [found] = [run for run in chain.fit(()).runs if run.stage == stage]
        rows = Path("artifacts/mixes", found.mix_id, "rows.tsv")
        base = Path("artifacts/base", chain.inputs.base_id)
        references = [path.parent for path in base.glob("answers/*/logprobs.safetensors")]
        if not (rows.exists() and references):
            raise SystemExit(f"{rows}, or the base's answers, are not there: run snakemake first")
        return cls(config, base / "master", rows, references[0], json.loads(found.recipe)["train"])


def measure(project: Project, variant: Variant, seed: int, steps: int) -> dict[str, Any]:
    """Train, export, probe."""
    changes = {"steps": steps, "lr": variant.lr, "pull": 0.0, "update_clip": variant.clip}
    known = {key: value for key, value in project.train.items() if key in TrainRecipe.__dataclass_fields__}
    with linear_v(variant.v) as v, tempfile.TemporaryDirectory() as scratch:
        modes = {"master_dtype": variant.master, "m_dtype": variant.m, "v_dtype": v}
        recipe = replace(TrainRecipe.from_dict(known), **changes, **modes, min_update_efficiency=None)
        folder = Path(scratch)
        begin = time.perf_counter()
        outcome = run(project.base, read_rows(project.rows), recipe, seed, folder / "work", folder, folder / "master")
        seconds = time.perf_counter() - begin
        with (folder / "train.tsv").open(encoding="utf-8", newline="") as stream:
            told = list(csv.DictReader(stream, delimiter="\t"))
        metrics = probe(project, folder) if outcome.weights_sha256 else {}
        config = json.loads((project.base / "config.json").read_text())
        states = predict(config, recipe, 1, 1)
    count = sum(torch.Size(shape).numel() for shape in shapes(config, "config.json").values())
    efficiency, noise = ([float(row[key]) for row in told if row[key]] for key in ("update_efficiency", "update_noise"))
    return {
        "master": variant.master,
        "m": variant.m,
        "v": variant.v,
        "clip": variant.clip,
        "lr": variant.lr,
        "seed": seed,
        "status": outcome.status,
        **{name: rounded(metrics.get(name, {}).get("value")) for name in METRICS},
        "efficiency": rounded(sum(efficiency) / max(1, len(efficiency))),
        "noise": rounded(sum(noise) / max(1, len(noise))),
        "largest_update": rounded(max((float(row["largest_update"]) for row in told), default=None)),
        "bytes_per_parameter": rounded((states.weights + states.m + states.v) / count),
        "last_loss": rounded(float(told[-1]["loss"]) if told else None),
        "train_seconds": round(seconds, 1),
        "reason": outcome.reason,
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def probe(project: Project, folder: Path) -> dict[str, Any]:
    """Metrics of the reloaded export on all probes."""
    export(folder / "master", folder / "nvfp4")
    config = project.config
    probes = load_probes(Path(config["data"]["probes"]))
    sources = load_sources(Path(config["data"]["folder"]))
    known = {p.prompt: expected(sources, p) for p in probes}
    held_out = frozenset(config["data"]["held_out_topics"])
    settings = ProbeSettings.from_dict(config["probe"])
    goal = goal_from_config(config)
    run_probes(folder / "nvfp4", None, project.reference, probes, known, goal, held_out, settings, folder)
    return dict(json.loads((folder / "metrics.json").read_text())["metrics"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stage", default="C-disambiguate")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/masters_states.tsv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    project = Project.of(args.stage)
    done = set()
    if args.out.exists():
        with args.out.open(encoding="utf-8", newline="") as stream:
            done = {tuple(row[c] for c in COLUMNS[:6]) for row in csv.DictReader(stream, delimiter="\t")}
    else:
        args.out.write_text("\t".join(COLUMNS) + "\n", encoding="utf-8")
    for seed in range(1, args.seeds + 1):
        for variant in VARIANTS:
            key = (variant.master, variant.m, variant.v, str(variant.clip), str(variant.lr), str(seed))
            if key in done:
                continue
            line = measure(project, variant, seed, args.steps)
            with args.out.open("a", encoding="utf-8") as stream:
                stream.write("\t".join("" if v is None and k != "clip" else str(v) for k, v in line.items()) + "\n")
            print({k: v for k, v in line.items() if v not in (None, "")}, flush=True)


if __name__ == "__main__":
    main()
