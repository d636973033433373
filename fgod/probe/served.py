"""Does transformers alone compute from an export what this package does? Compared to the bit, before it is released."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fgod.errors import FgodError
from fgod.model.load import Beat, beat_at_each_forward, load_model, load_stock, silent
from fgod.probe.parity import compare, logits_of


def compare_served(export: Path, chats: Sequence[Sequence[int]], beat: Beat = silent) -> dict[str, Any]:
    """The fields of `fgod.documents.Served` but for the digest. One of two models is in memory at a time, on the CPU.

    Args:
        chats: token ids of each.

    Raises:
        UsageError: the folder does not load, by transformers or here.
        FgodError: the logits differ; says by how much.
    """
    ours = logits_of(_watched(load_model(export), beat), chats)  # gone before the other is loaded
    stock = load_stock(export)
    theirs = logits_of(_watched(stock.model, beat), chats)
    version = importlib.metadata.version("transformers")
    if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        apart = compare(ours, theirs, [len(chat) for chat in chats])
        found = "they are not finite" if apart["max_abs"] is None else f"up to {apart['max_abs']:.3g} apart"
        raise FgodError(
            f"{export}: transformers {version} computes other logits from these files than fgod: {found} on "
            f"{len(chats)} prompts. Nothing is released"
        )
    return {
        "transformers": version,
        "torch": torch.__version__,
        "dtype": str(stock.model.dtype).removeprefix("torch."),
        "prompts": len(chats),
        "tokens": sum(map(len, chats)),
        "cast": stock.cast,
    }


def _watched(model: Any, beat: Beat) -> Any:
    beat_at_each_forward(model, beat)
    beat("model_loaded")
    return model
