"""Does the GPU reach what the CPU reaches? The accepted stages of a finished run, trained and probed again on the GPU.

    python benchmarks/gpu_chain.py RUN --out FOLDER [--memory cpu|80gb|24gb] [--compute-dtype bfloat16]

RUN is a project folder in which `snakemake` has finished with an embedded base (its artifacts/ and results/ are read,
never written). Each stage of the last fit starts from the one before it, with its own recipe and rows, on the GPU;
`--memory` and `--compute-dtype` change how weights and moments are kept. Every stage is judged by the config's gate.
Prints a line a stage, the CPU's numbers beside, and writes gpu_chain.json; exit code 1 if a verdict is another one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from fgod import documents, layout
from fgod.chat import ChatSettings
from fgod.config import load
from fgod.data.probes import expected, load_probes, of_split, probe_files
from fgod.data.rows import read_rows
from fgod.data.sources import load_sources
from fgod.data.suites import DEVELOPMENT
from fgod.evaluate.requirements import gate_limits
from fgod.evaluate.scoring import Standard
from fgod.evaluate.settings import ProbeSettings
from fgod.evaluate.words import load_reply_words
from fgod.exporters.write import export
from fgod.gate import judge_run
from fgod.layout import Base, Mix, RunRecords, RunWeights
from fgod.model.chats import ChatFormat
from fgod.persona import goal_from_config
from fgod.probe.run import Reference, run_probes
from fgod.system.files import digest, read_json
from fgod.train.recipe import MEMORY, TrainRecipe
from fgod.train.stage import Job, run

SHOWN = ("identity_rate", "confusion_rate", "disambiguation_rate", "leak_rate", "leak_talk", "retention",
         "retention_held_out", "kl_reference")  # fmt: skip


def line(metrics: dict[str, Any]) -> str:
    return " ".join(f"{name} {metrics[name]['value']:.3f}" for name in SHOWN)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--memory", choices=["as-is", *MEMORY], default="as-is")
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = load(args.run / "config.yaml")
    goal, sources = goal_from_config(config), load_sources(args.run / config["data"]["folder"])
    files = [args.run / file for file in probe_files(config)]
    probes = of_split(load_probes(files, args.run / config["data"]["folder"]), DEVELOPMENT)
    known = {probe.key: expected(sources, probe) for probe in probes}
    settings = ProbeSettings.from_dict(config["probe"] | {"device": device})
    held_out, chat = frozenset(config["data"]["held_out_topics"]), ChatSettings.from_dict(config["chat"])
    words = load_reply_words(args.run / config["data"]["folder"], probes)
    standard = Standard(goal, held_out, config["base"]["closed_answers"], settings.chrf, words)
    visits = read_json(args.run / layout.view().walk)["walk"]["visits"]
    last = [visit for visit in visits if visit["fit"] == visits[-1]["fit"]]
    base = Base(args.run / layout.base(last[0]["starts_from"]).folder)
    [answers] = [answers.folder for answers in base.all_answers() if answers.harness.exists()]
    reference = Reference(answers, base.export(config["stages"][0]["train"]["compute_dtype"]).exported)
    start, found, same = base.master, [], True
    for visit in last:
        records = layout.run_records(visit["stage"], visit["lineage"], args.run / layout.RESULTS)
        recipe = documents.Recipe.read(records.recipe)
        rows = read_rows(Mix(args.run / layout.mix(digest(recipe.mix)).folder).rows)
        train = TrainRecipe.from_dict(recipe.train | {"device": device})
        modes = {} if args.memory == "as-is" else {"memory": args.memory, **vars(MEMORY[args.memory])}
        train = replace(train, compute_dtype=args.compute_dtype, **modes)
        out = args.out / visit["stage"]
        weights = RunWeights(out)
        begin = time.perf_counter()
        job = Job(start, rows, train, recipe.seed, out / "work", out, weights.master, visit["stage"], chat=chat)
        outcome = run(job)
        trained = time.perf_counter() - begin
        outcome.write(RunRecords(out).outcome)
        export(weights.master, weights.exported, args.compute_dtype, device=torch.device(device))
        begin = time.perf_counter()
        asked = ChatFormat.of_folder(weights.exported, chat)
        run_probes(weights.exported, weights.master, reference, probes, known, standard, settings, out, chat=asked)
        probed = time.perf_counter() - begin
        [stage] = [stage for stage in config["stages"] if stage["name"] == visit["stage"]]
        verdict = judge_run(out, gate_limits(config["gate"]), stage["require"])
        metrics, theirs = (documents.Metrics.read(r.metrics).content()["metrics"] for r in (RunRecords(out), records))
        stage_facts = {
            "stage": visit["stage"], "decision": verdict.decision, "record": visit["state"],
            "trained_s": round(trained, 1), "probed_s": round(probed, 1), "metrics": metrics, "of_record": theirs,
        }  # fmt: skip
        print("{stage}: {decision}, {record} on record; {trained_s} s of training, {probed_s} s of probing".format(
            **stage_facts))  # fmt: skip
        print(f"  {device:6} {line(metrics)}\n  record {line(theirs)}", flush=True)
        same &= verdict.decision == visit["state"]
        found.append(stage_facts)
        start = weights.master
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    text = json.dumps({**facts, "memory": args.memory, "compute_dtype": args.compute_dtype, "stages": found}, indent=1)
    (args.out / "gpu_chain.json").write_text(text, encoding="utf-8")
    sys.exit(not same)


if __name__ == "__main__":
    main()
