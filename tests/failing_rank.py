"""One of two ranks, of which the second fails in the way that is said: python -m tests.failing_rank HOW FOLDER."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from fgod.train.ranks.beats import Beats
from fgod.train.ranks.group import Ranks


def main() -> None:
    how, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    ranks = Ranks.from_environment(torch.device("cpu"), 60, Beats(folder, rank))
    ranks.all_here()
    if rank == 1:
        if how == "hang":
            time.sleep(3600)
        os._exit(3)
    ranks.all_here()


if __name__ == "__main__":
    main()
