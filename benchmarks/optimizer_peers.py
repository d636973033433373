"""Training curves of the packed optimizer beside those of torch, bitsandbytes and torchao, on the same batches.

    pip install bitsandbytes torchao            # optional: what is missing is left out, and said
    python benchmarks/optimizer_peers.py --weights artifacts/base/ID/master --rows artifacts/mixes/ID/rows.tsv

Every optimizer starts from the same weights and takes the same batches in the same order at the same constant learning
rate, without clipping or decay, through the same NVFP4 forward. Printed: the mean loss of the last steps, and how far
the weights are from those of torch's AdamW in float32, relative to how far those went.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgod.data.rows import read_rows
from fgod.model.load import load_tokenizer
from fgod.nvfp4 import load_masters
from fgod.train import TrainRecipe
from fgod.train.batches import Batch, batches, collate, encode
from fgod.train.loop import answer_loss
from fgod.train.optimizer import AdamW

Step = Callable[[], None]
Maker = Callable[[dict[str, nn.Parameter]], Step]
LAST = 20
"""Steps whose mean loss is told."""


def ours(parameters: dict[str, nn.Parameter], recipe: TrainRecipe) -> Step:
    optimizer = AdamW(parameters, recipe, dict.fromkeys(parameters, 1.0), seed=1)

    def step() -> None:
        optimizer.step(recipe.lr, optimizer.grad_norm())
        optimizer.zero_grad()

    return step


def theirs(optimizer: Any) -> Step:
    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def packages() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Name and constructor of each peer that is installed."""
    yield "torch AdamW, float32", torch.optim.AdamW
    try:
        import bitsandbytes

        yield f"bitsandbytes {bitsandbytes.__version__} AdamW8bit", bitsandbytes.optim.AdamW8bit
    except ImportError as error:
        print(f"bitsandbytes is left out: {error}")
    try:
        import torchao
        from torchao.optim import AdamW8bit

        yield f"torchao {torchao.__version__} AdamW8bit", AdamW8bit
    except ImportError as error:
        print(f"torchao is left out: {error}")


def curve(
    folder: Path, data: list[Batch], make: Callable[[dict[str, nn.Parameter]], Step]
) -> tuple[list[float], Tensor]:
    """Losses of all steps, and the float32 weights at the end as one vector."""
    model = load_masters(folder)
    step = make(dict(model.named_parameters()))
    losses = []
    for batch in data:
        loss = answer_loss(model, batch) / len(batch.labels)
        loss.backward()
        step()
        losses.append(loss.item())
    return losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = TrainRecipe(args.steps, args.lr, schedule="constant", grad_clip=None)
    rows, tokenizer = read_rows(args.rows), load_tokenizer(args.weights)
    samples = encode(tokenizer, rows, 512)
    data = [collate([samples[i] for i in chosen], 0) for chosen in batches(rows, recipe, 1)]
    makers: dict[str, Maker] = {}
    for name, kind in packages():
        settings = {"lr": args.lr, "betas": recipe.betas, "eps": recipe.eps, "weight_decay": 0.0}
        makers[name] = lambda p, kind=kind, settings=settings: theirs(kind(list(p.values()), **settings))
    for m, v in (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "uint8"), ("nvfp4", "uint8"), ("nvfp4", "nvfp4")):
        modes = TrainRecipe(args.steps, args.lr, schedule="constant", grad_clip=None, m_dtype=m, v_dtype=v)
        makers[f"fgod, m {m}, √v {v}"] = lambda p, modes=modes: ours(p, modes)
    begun = torch.cat([parameter.detach().flatten() for parameter in load_masters(args.weights).parameters()])
    reference: Tensor | None = None
    for name, make in makers.items():
        try:
            losses, weights = curve(args.weights, data, make)
        except Exception as error:  # a peer that cannot run here is no reason to lose the others
            print(f"{name}: did not run: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        reference = weights if reference is None else reference
        apart = ((weights - reference).norm() / (reference - begun).norm()).item()
        last = sum(losses[-LAST:]) / LAST
        print(f"{name:36} first loss {losses[0]:.4f}  last {LAST} {last:.4f}  distance {apart:.3f}", flush=True)


if __name__ == "__main__":
    main()
