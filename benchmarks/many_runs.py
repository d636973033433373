"""How long `snakemake -n` takes, and how many files there are, at 100, 1,000 and 10,000 runs.

    .venv/bin/python -m benchmarks.many_runs --runs 100 1000 --out FOLDER
    .venv/bin/python -m benchmarks.many_runs --runs 1000 --profile          # where the time goes (cProfile)

A project of miniature probes, whose experiments have four stages each and differ by their seed. Nothing is trained:
records are those of tests/made_runs.py, at the paths that the walk says. Two states: `fresh`, where the base and its
answers are there and everything else would run; and `done`, where every run is on record and accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from fgod import experiments, inputs, layout
from fgod.chain import Run
from fgod.decisions import ACCEPTED
from fgod.documents import Stamp
from fgod.stamps import digests_of
from fgod.system.files import write_text
from tests.made_runs import write_run
from tests.mini import BIN, Mini, job_counts, stage

STAGES = ("A", "B", "C", "D")


def project(folder: Path, runs: int) -> Mini:
    """A project whose campaign has so many runs."""
    mini = Mini.create(folder)
    mini.config["stages"] = [stage(name) for name in STAGES]
    count = -(-runs // len(STAGES))
    mini.config["experiments"] = {f"seed{seed}": {"seed": seed} for seed in range(1, count + 1)}
    mini.write()
    return mini


def chains(mini: Mini) -> list[experiments.Experiment]:
    from fgod.config import read_yaml

    return [
        one for one in experiments.experiments_of(read_yaml(Path("config.yaml")), "config.yaml").values() if one.name
    ]


def runs_of(mini: Mini) -> Iterator[Run]:
    for chain in chains(mini):
        yield from chain.chain.walk(lambda run: ACCEPTED).runs


def make_base(mini: Mini) -> None:
    """Files that look like the base and its answers."""
    first = chains(mini)[0]
    base = layout.base(first.inputs.base_id)
    export = base.export(first.config["stages"][0]["train"]["compute_dtype"])
    reference = base.answers(inputs.reference_id(first.config))
    for path in (base.stamp, export.stamp, reference.table, reference.harness):
        write_text(path, "{}\n")
    for chain in chains(mini):
        write_text(base.answers(chain.inputs.rehearsal_id).table, "\n")


def make_runs(mini: Mini) -> None:
    """Records of every run of the campaign: one is written, the others are copies with their own recipe."""
    template = Path("template")
    assert write_run(template, "A", "0" * 12, "good") == ACCEPTED
    records = layout.run_records("A", "0" * 12, template / "results").folder
    weights = template / "artifacts" / "A" / ("0" * 12)
    stamp = Stamp(status="trained", **digests_of(weights / "master"))
    stamp.write(layout.RunWeights(weights).trained)
    Stamp(status="exported", source_sha256=stamp.weights_sha256, **digests_of(weights / "nvfp4")).write(
        layout.RunWeights(weights).stamp
    )
    for run in runs_of(mini):
        made = layout.run_records(run.stage, run.lineage)
        mix = layout.mix(run.mix_id)
        if not mix.rows.exists():
            seq_len = json.loads(run.recipe)["train"]["seq_len"]
            for path in (mix.rows, mix.stamp, mix.audit(seq_len)):
                write_text(path, "{}\n")
        target = layout.run_weights(run.stage, run.lineage).trained.parent
        shutil.copytree(weights, target)
        shutil.copytree(records, made.folder)
        write_text(made.recipe, run.recipe)
        for name in made.folder.iterdir():  # newer than the weights, the verdict last
            os.utime(name)
        os.utime(made.metrics)
        os.utime(made.verdict)
    shutil.rmtree(template)


def timed(mini: Mini, *options: str) -> dict[str, object]:
    """A dry-run of the campaign: seconds, memory and jobs."""
    words = [str(BIN / "snakemake"), "campaign", "-n", "--quiet", "host", *options]
    begin = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begin
    said = done.stderr + done.stdout
    assert done.returncode == 0, said[-4000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": round(seconds, 1), "peak_mib": round(peak), "jobs": sum(job_counts(said).values())}


def profiled(mini: Mini) -> None:
    code = "import sys; from snakemake.cli import main; sys.argv[0] = 'snakemake'; main()"
    words = ["-m", "cProfile", "-o", "profile.out", "-c", code]
    Path("profiled.py").write_text(code)
    words = ["-m", "cProfile", "-o", "profile.out", "profiled.py", "campaign", "-n", "--quiet", "all"]
    subprocess.run([sys.executable, *words], check=False, stdout=subprocess.DEVNULL)
    import pstats

    pstats.Stats("profile.out").sort_stats("cumulative").print_stats(70)
    pstats.Stats("profile.out").sort_stats("tottime").print_stats(30)


def files_below(*folders: str) -> int:
    return sum(1 for folder in folders for _ in Path(folder).rglob("*"))


def measure(folder: Path, runs: int, profile: str) -> Iterator[dict[str, object]]:
    mini = project(folder, runs)
    with chdir(folder):
        make_base(mini)
        if profile != "done":
            yield {"runs": runs, "state": "fresh", **timed(mini)}
        if profile == "fresh":
            profiled(mini)
        before = files_below("results"), files_below("artifacts")
        make_runs(mini)
        after = files_below("results"), files_below("artifacts")
        inodes = {"results_inodes": after[0] - before[0], "artifacts_inodes": after[1] - before[1]}
        if profile == "fresh":
            return
        yield {"runs": runs, "state": "done", **timed(mini), **inodes}
        if profile == "done":
            profiled(mini)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--out", type=Path, help="keep the projects here (default: a folder that is removed)")
    parser.add_argument("--profile", choices=("fresh", "done"), default="", help="say where the time goes in a state")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fgod-many-") as scratch:
        for runs in args.runs:
            for found in measure((args.out or Path(scratch)) / str(runs), runs, args.profile):
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
