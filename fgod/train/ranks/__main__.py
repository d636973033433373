"""One rank of a training, started by `fgod.train.ranks.launch`: `python -m fgod.train` among several."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from fgod.documents import Outcome
from fgod.errors import FgodError
from fgod.guard import write_phase
from fgod.guard.cap import refusal, room_mib
from fgod.guard.limits import KILLED_EXIT
from fgod.system.files import read_json
from fgod.train.__main__ import arguments, trained
from fgod.train.ranks.beats import Beats
from fgod.train.ranks.group import Ranks
from fgod.train.ranks.launch import RANKS, leave_error
from fgod.train.trainer import Trainer

PATIENCE_SECS = 3.0
"""A rank that misses another waits so long before it fails: the launcher is to see the other one first."""


def main() -> None:
    """Train one stage together with the other ranks; the first one writes the outcome to --result."""
    args = arguments(main.__doc__)
    recipe = read_json(args.recipe)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with ended_for_a_reason(args, rank, count):
        device = torch.device("cpu")
        if recipe["train"].get("device", "cpu") == "cuda":
            device = own_gpu(int(os.environ["LOCAL_RANK"]), count)
        beats = Beats(args.work / RANKS, rank)
        ranks = Ranks.from_environment(device, args.rank_secs, beats)
        own = args if ranks.first else scratch(args, rank)

        def tell(phase: str) -> None:
            beats()
            if ranks.first:
                write_phase(args.phase_file, phase)

        outcome = trained(own, recipe, ranks, args.work, tell)
        ranks.all_here()
        if ranks.first:
            outcome.write(args.result)
        ranks.leave()


def scratch(args: Trainer, rank: int) -> Trainer:
    """The arguments of a rank that writes nothing for people: with a folder of its own."""
    folder = args.work / RANKS / f"{rank}"
    return replace(args, work=folder, run=folder / "records", memory_report=None)


def own_gpu(place: int, count: int) -> torch.device:
    """The GPU of a rank.

    Raises:
        FgodError: there are fewer.
    """
    seen = torch.cuda.device_count()
    if seen < count:
        raise FgodError(f"train.gpus: {count}, but torch sees {seen} CUDA devices; expected as many, or fewer gpus")
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


@contextmanager
def ended_for_a_reason(args: Trainer, rank: int, count: int) -> Iterator[None]:
    """Leave for the launcher why this rank ends, where that can be said in words.

    The process ends at once then: what is under way with other ranks may never be done, and would be waited for.
    """
    try:
        yield
        return
    except FgodError as error:
        leave_error(args.work / RANKS, rank, error)
        code = error.exit_code
    except torch.OutOfMemoryError:
        refused, code = refusal(room_mib()), 1
        if refused:
            Outcome(status="killed", reason=f"Rank {rank} of {count} stopped: {refused}.").write(args.result)
            code = KILLED_EXIT
        else:
            traceback.print_exc()
    except BaseException as error:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            time.sleep(PATIENCE_SECS)
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
