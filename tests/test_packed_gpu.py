"""Packed rows on a GPU: FlashAttention's kernel for rows of different lengths, and steps as CUDA graphs."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fgod.model.chats import ChatFormat
from fgod.train.device.attention import PackedRows, attention, plain_attention
from fgod.train.device.trainer import DeviceStepper, device_stepper
from fgod.train.recipe import TrainRecipe
from tests.tiny_model import noise, tiny_folder, tiny_rows, tiny_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")]

CUDA = torch.device("cuda")


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (14, 2, 64), (32, 8, 128)])
def test_the_kernel_gives_what_a_mask_gives(heads: int, kv_heads: int, size: int) -> None:
    """No further from float32 than plain BF16 is, outputs and gradients; rows of 0 and 1 tokens among them."""
    lengths = [70, 1, 0, 129, 33, 23]
    total = sum(lengths)
    rows = PackedRows(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=CUDA), 192)
    parts = [noise((1, total, n, size), n + i) for i, n in enumerate((heads, kv_heads, kv_heads))]
    slopes = noise((1, total, heads, size), 7)

    def found(dtype: torch.dtype, kernel: bool) -> list[Tensor]:
        leaves = [part.to(CUDA, dtype).requires_grad_() for part in parts]
        out = (attention if kernel else plain_attention)(*leaves, rows)
        return [out.detach(), *torch.autograd.grad(out, leaves, slopes.to(CUDA, dtype))]

    exact, plain, fast = found(torch.float32, False), found(torch.bfloat16, False), found(torch.bfloat16, True)
    for true, other, ours in zip(exact, plain, fast, strict=True):
        assert ours.isfinite().all()
        assert (ours.float() - true).norm() <= 1.5 * (other.float() - true).norm() + 1e-3 * true.norm()


def test_packed_steps_have_the_losses_of_padded_ones_and_the_same_bits_as_a_graph(tmp_path: Path) -> None:
    """Two batches of one shape whose rows have other lengths take turns: a graph has to read where rows lie."""
    recipe = TrainRecipe(
        steps=6, lr=1e-3, batch=6, seq_len=64, memory="80gb", compute_dtype="bfloat16", device="cuda", length_bucket=64
    )
    folder = tiny_folder(tmp_path / "start")
    samples = ChatFormat(tiny_tokenizer()).rows(tiny_rows(12), 64)
    batches = samples[:6], samples[:5:-1]
    assert [len(one.ids) for one in batches[0]] != [len(one.ids) for one in batches[1]]

    def steps(batching: str, graphs: bool) -> tuple[DeviceStepper, list[list[float]]]:
        one = device_stepper(CUDA, folder, replace(recipe, batching=batching), 7, 0, lambda _: None, print)
        one.graphs = graphs
        for step in range(recipe.steps):
            one.launch(step, batches[step % 2])
        return one, [[float(loss) for loss in row.row_losses.split()] for row, _ in one.completed(wait=True)]

    _, padded = steps("shuffled", False)
    (written, written_losses), (replayed, replayed_losses) = (steps("packed", graphs) for graphs in (False, True))
    assert [key[0] for key in written.shapes] == [1], "both batches have one shape"
    assert [shape.graph is not None for shape in replayed.shapes.values()] == [True]
    assert written_losses == replayed_losses
    for name, tensor in written.network.masters.tensors.items():
        assert torch.equal(tensor, replayed.network.masters.tensors[name]), name
    for ours, theirs in zip(written_losses[:2], padded[:2], strict=True):
        assert ours == pytest.approx(theirs, rel=0.02)
