"""Kill a training with SIGKILL at random moments, again and again, and compare its bits with an undisturbed one's.

    python benchmarks/resume.py [--kills 20 --steps 400 --seed 1]

A tiny model, packed states, a checkpoint after every third step. Three kills of four come within 0.3 s after a
checkpoint that is new, so that the run gets on; the fourth within the time that loading takes. So they fall into
loading, steps and the writing of checkpoints alike; each kill's phase is printed, and whether a checkpoint was half
written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fgod.data.rows import write_rows
from fgod.guard.phases import read_phase
from fgod.train import checkpoint
from fgod.train.recipe import TrainRecipe
from tests.tiny_model import tiny_folder, tiny_rows


def command(folder: Path, start: Path, recipe: TrainRecipe) -> list[str]:
    """The command of a run whose files are in a folder of its own."""
    folder.mkdir()
    write_rows(folder / "rows.tsv", tiny_rows())
    (folder / "recipe.json").write_text(json.dumps({"train": asdict(recipe), "seed": 7, "stage": "A"}))
    paths = {"recipe": "recipe.json", "rows": "rows.tsv", "work": "work", "run": "run", "master": "master",
             "phase-file": "phase", "result": "outcome.json"}  # fmt: skip
    parts = [sys.executable, "-m", "fgod.train", "--weights", str(start), "--checkpoint-steps", "3"]
    return parts + [part for name, path in paths.items() for part in (f"--{name}", str(folder / path))]


def newest(folder: Path) -> int:
    """Step of the newest whole checkpoint, 0 without one."""
    return max((int(f.name[-8:]) for f in checkpoint.folders(folder / "work")), default=0)


def half_written(folder: Path) -> set[Path]:
    return set((folder / "work").glob(".checkpoint-*.tmp"))


def outcome(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "outcome.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for key, default in (("kills", 20), ("steps", 400), ("seed", 1)):
        parser.add_argument(f"--{key}", type=int, default=default)
    args = parser.parse_args()
    chosen = random.Random(args.seed)
    recipe = TrainRecipe(steps=args.steps, lr=1e-3, batch=4, seq_len=64, l2_sp=2.0, master_dtype="bf16", m_dtype="int8",
                         v_dtype="uint8", step_in_backward=True)  # fmt: skip
    environment: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        start = tiny_folder(root / "start")
        whole, cut = root / "whole", root / "cut"
        subprocess.run(command(whole, start, recipe), check=True, **environment)
        parts, kills, loading = command(cut, start, recipe), 0, 0.0
        while kills < args.kills:
            (cut / "phase").unlink(missing_ok=True)
            begin, left = time.monotonic(), half_written(cut)
            process = subprocess.Popen(parts, **environment)
            begun = newest(cut)
            if kills % 4 == 3:
                time.sleep(chosen.uniform(0, loading))
            else:
                while process.poll() is None and newest(cut) == begun:
                    time.sleep(0.01)
                loading = loading or time.monotonic() - begin
                time.sleep(chosen.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                break
            kills += 1
            half = " and a checkpoint half written" if half_written(cut) - left else ""
            after = time.monotonic() - begin
            print(
                f"kill {kills} after {after:.1f} s: {read_phase(cut / 'phase')}, checkpoint {newest(cut)}{half}",
                flush=True,
            )
        subprocess.run(parts, check=True, **environment)
        ours, theirs = outcome(cut), outcome(whole)
        same = ours["weights_sha256"] == theirs["weights_sha256"]
        print(f"{kills} kills; resumed after {ours['resumed_at']}")
        print(
            f"weights {'equal to the bit' if same else 'DIFFER'}: {ours['weights_sha256']} {theirs['weights_sha256']}"
        )
        sys.exit(0 if same and kills == args.kills else 1)


if __name__ == "__main__":
    main()
