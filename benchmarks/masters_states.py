"""Masters × moments on the embedded base, with the two ways in which hand-written trainers fail.

    snakemake                                   # once: the base, its answers, and the mix of the stage below
    python benchmarks/masters_states.py [--stage C-disambiguate --seeds 3]
    python benchmarks/masters_report.py         # the tables and drawings of docs/why-runs-failed.md

Every variant trains from the base on one stage's rows with that stage's batch, warm-up, schedule and gradient clip, is
exported, and its reloaded export answers all probes. Lines are appended as they come, and a line that is there is not
measured again. Losses and updates of the steps that are drawn go to a second file.

The demonstrations are made here and not in the package: `uint8-linear` and `nvfp4-linear` keep v instead of √v, so that
a small v becomes zero. `nvfp4-rtn` packs the weights to nearest after every step; `bf16-rtn` rounds them so. All of it
together (`nvfp4-rtn`, NVFP4 m, linear NVFP4 v, no clip) is the hand-written trainer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgod.chain import Chain
from fgod.chat import ChatSettings
from fgod.config import load
from fgod.data.probes import expected, load_probes, of_split, probe_files
from fgod.data.rows import read_rows
from fgod.data.sources import load_sources
from fgod.data.suites import DEVELOPMENT
from fgod.evaluate.scoring import Standard
from fgod.evaluate.settings import ProbeSettings
from fgod.evaluate.words import load_reply_words
from fgod.exporters.write import export
from fgod.inputs import gather
from fgod.model.chats import ChatFormat
from fgod.models.architecture import tensors_of
from fgod.models.names import projection_group
from fgod.nvfp4.codec import BLOCK
from fgod.nvfp4.folders import open_weights
from fgod.persona import goal_from_config
from fgod.probe.run import Reference, run_probes
from fgod.registry import SQUARE_FORMATS
from fgod.system.table import read_texts
from fgod.train import codecs
from fgod.train.memory import predict
from fgod.train.recipe import TrainRecipe
from fgod.train.stage import Job, run
from fgod.train.storage import Nvfp4Root, Uint8Root

METRICS = ("identity_rate", "disambiguation_rate", "confusion_rate", "retention", "kl_reference", "leak_rate")
KEYS = ("master", "m", "v", "clip", "lr", "eps", "l2_sp", "steps")
COLUMNS = (*KEYS, "seed", "status", *METRICS, "efficiency", "noise", "largest_update", "clamped_share",
           "bytes_per_parameter", "last_loss", "cpu_seconds", "reason")  # fmt: skip
CURVES = (*KEYS, "seed", "step", "loss", "update_efficiency", "largest_update")


class LinearUint8(Uint8Root):
    """v itself in 255 equal steps: what is below half a step of its block's largest is zero."""

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_eight_bits(*parts)

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return codecs._eight_bits(values, codecs.UINT8_MAX, 0, torch.uint8)


class LinearNvfp4(Nvfp4Root):
    """v itself in NVFP4, whose codec rounds small numbers to zero."""

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_nvfp4(*parts)

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_nvfp4(values)


SQUARE_FORMATS.register("uint8-linear", LinearUint8())
SQUARE_FORMATS.register("nvfp4-linear", LinearNvfp4())


@dataclass(frozen=True)
class Variant:
    """One line of the table, before its seed. The defaults are AdamW as everybody writes it."""

    master: str = "fp32"
    m: str = "fp32"
    v: str = "fp32"
    clip: float | None = 4.0
    lr: float = 5e-4
    eps: float = 1e-8
    l2_sp: float = 0.0
    steps: int = 120

    def keys(self, seed: int) -> tuple[str, ...]:
        """What a line is known by, as it is written."""
        return (*(str(value) for value in asdict(self).values()), str(seed))


SHIPPED = {"lr": 3e-3, "eps": 1e-3, "l2_sp": 4.0, "steps": 200}
"""The stage C-disambiguate of config.yaml."""

VARIANTS = (
    Variant(),
    Variant(master="nvfp4-rtn"),
    Variant(m="int8", v="uint8-linear", clip=None),
    Variant(m="nvfp4", v="nvfp4-linear", clip=None),
    Variant(master="bf16"),
    Variant(master="bf16", m="int8", v="uint8"),
    Variant(master="bf16", m="nvfp4", v="uint8"),
    Variant(master="bf16", m="nvfp4", v="nvfp4"),
    Variant(master="bf16-rtn"),
    Variant(master="nvfp4"),
    Variant(master="nvfp4", m="nvfp4", v="nvfp4"),
    Variant(m="int8", v="uint8"),
    Variant(m="int8", v="uint8", clip=None),
    Variant(m="int8", v="uint8-linear"),
    Variant(m="bf16", v="bf16"),
    *(Variant(master=master, lr=1e-4) for master in ("fp32", "bf16", "bf16-rtn", "nvfp4-rtn")),
    *(Variant(master=master, lr=lr) for lr in (1e-3, 3e-3, 1e-2) for master in ("fp32", "nvfp4-rtn")),
    Variant(**SHIPPED),
    Variant(master="bf16", m="int8", v="uint8", **SHIPPED),
    Variant(master="bf16", m="nvfp4", v="uint8", **SHIPPED),
    Variant(master="nvfp4-rtn", **SHIPPED),
    *(Variant(master="nvfp4-rtn", m="nvfp4", v="nvfp4-linear", clip=None, lr=lr) for lr in (1e-5, 1e-4, 5e-4)),
    *(Variant(master=master, lr=1e-4, steps=600) for master in ("fp32", "nvfp4-rtn")),
)

DRAWN = (
    Variant(),
    Variant(m="int8", v="uint8", clip=None),
    Variant(m="int8", v="uint8-linear", clip=None),
    Variant(m="nvfp4", v="nvfp4-linear", clip=None),
)
"""Those whose steps are kept, of the first seed."""


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
        references = [path.parent for path in base.glob("answers/*/harness.json")]
        if not (rows.exists() and references):
            raise SystemExit(f"{rows}, or the base's answers, are not there: run snakemake first")
        return cls(config, base / "master", rows, references[0], json.loads(found.recipe)["train"])


def measure(project: Project, variant: Variant, seed: int) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Train, export, probe. Returns a line of the table, and of each step what train.tsv says."""
    changes = {"steps": variant.steps, "lr": variant.lr, "eps": variant.eps, "l2_sp": variant.l2_sp}
    known = {key: value for key, value in project.train.items() if key in TrainRecipe.__dataclass_fields__}
    with tempfile.TemporaryDirectory() as scratch:
        modes = {"master_dtype": variant.master, "m_dtype": variant.m, "v_dtype": variant.v}
        recipe = replace(
            TrainRecipe.from_dict(known), **changes, **modes, update_clip=variant.clip, min_update_efficiency=None
        )
        folder = Path(scratch)
        begin = time.process_time()
        chat = ChatSettings.from_dict(project.config["chat"])
        rows, master = read_rows(project.rows), folder / "master"
        outcome = run(Job(project.base, rows, recipe, seed, folder / "work", folder, master, chat=chat))
        seconds = time.process_time() - begin
        told = read_texts(folder / "train.tsv")
        metrics = probe(project, folder) if outcome.weights_sha256 else {}
        config = json.loads((project.base / "config.json").read_text())
        predicted = predict(config, recipe, 1, 1)
    count = sum(torch.Size(shape).numel() for shape in tensors_of(config, "config.json").values())

    def mean(column: str) -> float | None:
        values = [float(row[column]) for row in told if row[column]]
        return rounded(sum(values) / len(values) if values else None)

    line = {
        **asdict(variant),
        "seed": seed,
        "status": outcome.status,
        **{name: rounded(metrics.get(name, {}).get("value")) for name in METRICS},
        "efficiency": mean("update_efficiency"),
        "noise": mean("update_noise"),
        "largest_update": rounded(max((float(row["largest_update"]) for row in told), default=None)),
        "clamped_share": mean("clamped_share"),
        "bytes_per_parameter": rounded((predicted.weights + sum(predicted.states.values())) / count),
        "last_loss": rounded(float(told[-1]["loss"]) if told else None),
        "cpu_seconds": round(seconds, 1),
        "reason": outcome.reason,
    }
    return line, told


def median_block(base: Path) -> float:
    """Largest weight of the median block of 16; half a step of NVFP4 is a 24th of it at least."""
    with open_weights(base) as weights:
        blocks = [weights.read(n).float().unflatten(1, (-1, BLOCK)) for n in weights.names if projection_group(n)]
    return torch.cat([block.abs().amax(-1).flatten() for block in blocks]).median().item()


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def probe(project: Project, folder: Path) -> dict[str, Any]:
    """Metrics of the reloaded export on all probes."""
    export(folder / "master", folder / "nvfp4")
    config = project.config
    probes = of_split(load_probes(probe_files(config), Path(config["data"]["folder"])), DEVELOPMENT)
    sources = load_sources(Path(config["data"]["folder"]))
    known = {p.key: expected(sources, p) for p in probes}
    held_out = frozenset(config["data"]["held_out_topics"])
    settings = ProbeSettings.from_dict(config["probe"])
    words = load_reply_words(Path(config["data"]["folder"]), probes)
    standard = Standard(goal_from_config(config), held_out, config["base"]["closed_answers"], settings.chrf, words)
    reference = Reference(project.reference, project.base.parent / "float32/nvfp4")
    chat = ChatFormat.of_folder(folder / "nvfp4", ChatSettings.from_dict(config["chat"]))
    run_probes(folder / "nvfp4", None, reference, probes, known, standard, settings, folder, chat=chat)
    return dict(json.loads((folder / "metrics.json").read_text())["metrics"])


class Table:
    """A TSV file that lines are appended to."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, columns
        if not path.exists():
            path.write_text("\t".join(columns) + "\n", encoding="utf-8")

    def rows(self) -> list[dict[str, str]]:
        return read_texts(self.path)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the table's columns of each row; None is empty, but for `clip`, where it is a value."""
        with self.path.open("a", encoding="utf-8") as stream:
            for row in rows:
                cells = ("" if row[c] is None and c != "clip" else str(row[c]) for c in self.columns)
                stream.write("\t".join(cells) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stage", default="C-disambiguate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/masters_states.tsv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    project = Project.of(args.stage)
    largest = median_block(project.base)
    print(f"largest weight of the median block {largest:.3f}, half a step at least {largest / 24:.4f}", flush=True)
    table = Table(args.out, COLUMNS)
    curves = Table(args.out.with_name(f"{args.out.stem}_steps.tsv"), CURVES)
    done = {tuple(row[key] for key in (*KEYS, "seed")) for row in table.rows()}
    for seed in range(1, args.seeds + 1):
        for variant in VARIANTS:
            if variant.keys(seed) in done:
                continue
            line, steps = measure(project, variant, seed)
            if seed == 1 and variant in DRAWN:
                known = {**asdict(variant), "seed": seed}
                numbers = ("loss", "update_efficiency", "largest_update")
                curves.add([{**step, **{c: rounded(float(step[c])) for c in numbers}, **known} for step in steps])
            table.add([line])
            print({k: v for k, v in line.items() if v not in (None, "")}, flush=True)


if __name__ == "__main__":
    main()
