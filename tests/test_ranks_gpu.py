"""Two ranks on two GPUs: one is killed, stands still, or loses its GPU; all end, and one GPU goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from fgod.checkpoints import saved_step
from fgod.train.recipe import TrainRecipe
from fgod.train.stage import TRAINED, Job, run
from tests.running_ranks import pids_of_ranks, start_ranks
from tests.tiny_model import tiny_folder, tiny_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
TRAIN = {"steps": 2000, "lr": 1e-4, "batch": 4, "memory": "80gb", "device": "cuda", "gpus": 2}
LOST = '''
import os, threading, time
from pathlib import Path

import torch

def lose() -> None:
    """An error that no later call of CUDA in this process survives, as after a GPU fell off the bus."""
    while not Path({there!r}).exists():
        time.sleep(0.05)
    torch._assert_async(torch.zeros(1, device="cuda:1"))

if os.environ.get("RANK") == "1":
    threading.Thread(target=lose, daemon=True).start()
'''
"""A plugin that makes the second rank's GPU useless once a file is there."""
FAULTS = {
    "killed": "rank 1 of 2 was ended by SIGKILL; all ranks were ended",
    "stopped": "rank 1 of 2 hung: the others waited 30 s for it",
    "lost": "rank 1 of 2 (failed with exit code 1, see above|was ended by SIGABRT); all ranks were ended",
}
"""What is said, as a pattern. CUDA's errors may end a process where memory is freed, which may not fail."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_fails_on_its_gpu_ends_all_and_one_gpu_goes_on(fault: str, tmp_path: Path) -> None:
    plugin, there, work = tmp_path / "lose.py", tmp_path / "now", tmp_path / "work"
    plugin.write_text(LOST.format(there=str(there)))
    words = ["--plugins", str(plugin)] if fault == "lost" else []
    process = start_ranks(tmp_path, tiny_folder(tmp_path / "base"), TRAIN, "--rank-secs", "30", *words)
    pids = pids_of_ranks(work)
    begin = time.monotonic()
    if fault == "lost":
        there.touch()
    else:
        os.kill(pids[1], signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    said = process.communicate()[1]
    took = time.monotonic() - begin
    print(f"{fault}: all ended after {took:.1f} s")
    assert process.returncode == 1 and re.search(FAULTS[fault], said), said
    assert took < 45 and not any(Path(f"/proc/{pid}").exists() for pid in pids)

    done, out = saved_step(work), tmp_path / "out"
    recipe = TrainRecipe.from_dict(TRAIN)
    job = Job(tmp_path / "base", tiny_rows(), recipe, 1, work, out / "run", out / "master", "A", "abc")
    ended = run(job)
    assert (ended.status, ended.steps_done, ended.resumed_at, ended.gpus) == (TRAINED, 2000, (done,), (2, 1))
