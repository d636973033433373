"""The work of commands that make weights of weights (`fgod export`, `fgod interpolate`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgod.cli.work.worker import Worker, use_device
from fgod.documents import Recipe
from fgod.errors import FgodError, StorageError, UsageError
from fgod.exporters.exporter import EXPORTERS
from fgod.imports import lasting_imports
from fgod.progress.followed import follow

with lasting_imports():
    import torch

    from fgod.model import memory

if TYPE_CHECKING:
    from fgod.cli.base import Export
    from fgod.cli.training import Interpolate


def export(args: Export, worker: Worker) -> None:
    """Write the export of trained weights.

    Raises:
        UsageError: the format cannot hold them; names it, and why.
    """
    exporter = EXPORTERS[args.format]
    gpu = args.gpus > 0 and use_device("cuda", "--gpus")
    master = memory.stored(args.source)
    worker.fit(lambda _: memory.predict_export(master, worker.process(gpu), gpu), 1, gpu)
    device = torch.device("cuda" if gpu else "cpu")
    try:
        with follow("", master.tensors, "tensor") as progress:
            exporter.write(args.source, args.exported, args.dtype, device, worker.counted(progress))
    except StorageError:
        raise
    except FgodError as error:
        raise UsageError(f"there is no export as {args.format}: {error}") from error


def interpolate(args: Interpolate, worker: Worker) -> None:
    """Write weights between the start and the end of a training. The report has the share that changed, by tensor."""
    from fgod.train.interpolate import Line
    from fgod.train.interpolate import interpolate as write_between

    recipe = Recipe.read(args.recipe)
    assert recipe.alpha is not None  # the command has checked the recipe
    gpu = args.gpus > 0 and use_device("cuda", "--gpus")
    sizes = memory.stored(args.end_master)
    worker.fit(lambda _: memory.predict_interpolation(sizes, worker.process(gpu), gpu), 1, gpu)
    line = Line(recipe.alpha, recipe.train["master_dtype"], recipe.seed)
    device = torch.device("cuda" if gpu else "cpu")
    with follow("", sizes.tensors, "tensor") as progress:
        changed = write_between(args.weights, args.end_master, line, args.master, device, worker.counted(progress))
    worker.report(facts={"changed": changed})
