"""The optimizer beside those of torch, bitsandbytes and torchao: the same gradients, then the same training curve.

    pip install bitsandbytes torchao            # optional: what is missing is left out, and said
    python benchmarks/optimizer_peers.py --weights artifacts/base/ID/master --rows artifacts/mixes/ID/rows.tsv

First: gradients of a real training are fed to torch's AdamW and to ours in float32, which mean the same. Printed: how
many weights differ, and by how many ulps at most, after the first step and after all.

Then every optimizer trains from the same weights on the same batches in the same order at the same constant learning
rate, without clipping or decay, through the same NVFP4 forward. Printed: the mean loss of the last steps, and how far
the weights are from those of torch's AdamW in float32, relative to how far those went, mean and range over orders of
batches; and the largest change of any weight in one step. One more torch run starts from weights nudged by 1 ulp: that
far apart end two trainings that mean the same.

bitsandbytes keeps tensors below 4096 elements in float32, torchao too; ours keep vectors in float32. On a GPU
(--device cuda) all of them run there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgod.data.rows import read_rows
from fgod.model.chats import ChatFormat
from fgod.model.load import load_tokenizer
from fgod.model.masters import load_masters
from fgod.train.autograd import answer_loss
from fgod.train.batches import Batch, batches, collate
from fgod.train.optimizer import TensorOptimizer
from fgod.train.recipe import TrainRecipe

Step = Callable[[], None]
Maker = Callable[[dict[str, nn.Parameter]], Step]
LAST = 20
"""Steps whose mean loss is told."""

NUDGED = "torch AdamW, weights nudged by 1 ulp"


def ours(parameters: dict[str, nn.Parameter], recipe: TrainRecipe) -> Step:
    optimizer = TensorOptimizer(parameters, recipe, dict.fromkeys(parameters, 1.0), seed=1)

    def step() -> None:
        optimizer.step(recipe.lr)
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
    folder: Path,
    data: list[Batch],
    make: Maker,
    device: str,
    nudge: bool = False,
    grads: list[list[Tensor]] | None = None,
) -> tuple[list[float], Tensor, float]:
    """Losses of all steps, the float32 weights at the end as one vector, and the largest change of a weight in a step.

    Gradients go to `grads`.
    """
    model = load_masters(folder).to(device)
    if nudge:
        for parameter in model.parameters():
            parameter.data = torch.nextafter(parameter.data, torch.full_like(parameter.data, torch.inf))
    step = make(dict(model.named_parameters()))
    losses, largest, before = [], 0.0, vector(model)
    for batch in data:
        loss = answer_loss(model, batch) / len(batch.labels)
        loss.backward()
        if grads is not None:
            grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        step()
        losses.append(loss.item())
        after = vector(model)
        largest, before = max(largest, (after - before).abs().max().item()), after
    return losses, before, largest


def vector(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def ulps(ours: Tensor, theirs: Tensor, least: float) -> Tensor:
    """Distance of two in float32 steps of that size, but of no smaller size than `least`, element by element."""
    size = theirs.abs().clamp(min=least)
    return (ours - theirs).abs() / (torch.nextafter(size, torch.full_like(size, torch.inf)) - size)


def fed(folder: Path, grads: list[list[Tensor]], make: Maker, device: str) -> list[Tensor]:
    """Weights after each step, by gradients that are given."""
    model = load_masters(folder).to(device)
    step = make(dict(model.named_parameters()))
    out = []
    for each in grads:
        for parameter, grad in zip(model.parameters(), each, strict=True):
            parameter.grad = grad.clone()
        step()
        out.append(vector(model))
    return out


def same_gradients(
    folder: Path, grads: list[list[Tensor]], makers: Mapping[str, Maker], device: str, lr: float
) -> None:
    """torch's AdamW and ours, float32, on the same gradients. A weight near zero is rounded as `lr` is."""
    theirs, ours = (fed(folder, grads, make, device) for make in makers.values())
    went = (theirs[-1] - vector(load_masters(folder).to(device))).norm()
    for step in (0, len(grads) - 1):
        apart = ulps(ours[step], theirs[step], lr)
        print(
            f"{' and '.join(makers)}, same gradients, after step {step + 1}: {(apart > 0).double().mean():.4%} of "
            f"{apart.numel():,} weights differ, {(apart > 1).double().mean():.4%} by more than 1 ulp, most "
            f"{apart.max():.1f}; distance {((ours[step] - theirs[step]).norm() / went).item():.1e}",
            flush=True,
        )


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range."""
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def recipe(**modes: str) -> TrainRecipe:
        return TrainRecipe(args.steps, args.lr, schedule="constant", grad_clip=None, **modes)  # type: ignore[arg-type]

    rows, tokenizer, plain = read_rows(args.rows), load_tokenizer(args.weights), recipe()
    samples = ChatFormat(tokenizer).rows(rows, 512)
    makers: dict[str, Maker] = {}
    for name, kind in packages():
        settings = {"lr": args.lr, "betas": plain.betas, "eps": plain.eps, "weight_decay": 0.0}
        makers[name] = lambda p, kind=kind, settings=settings: theirs(kind(list(p.values()), **settings))
    first = next(iter(makers))
    makers[NUDGED] = makers[first]
    for m, v in (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "uint8"), ("nvfp4", "uint8"), ("nvfp4", "nvfp4")):
        modes = recipe(m_dtype=m, v_dtype=v)
        makers[f"fgod, m {m}, √v {v}"] = lambda p, modes=modes: ours(p, modes)
    exact = {first: makers[first], "fgod": makers["fgod, m fp32, √v fp32"]}

    begun = vector(load_masters(args.weights).to(args.device))
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in makers}
    for seed in range(1, args.seeds + 1):
        data = [collate([samples[i] for i in chosen], 0) for chosen in batches(rows, plain, seed)]
        reference: Tensor | None = None
        grads: list[list[Tensor]] = []
        for name, make in makers.items():
            keep = grads if seed == 1 and name == first else None
            try:
                losses, weights, largest = curve(args.weights, data, make, args.device, name == NUDGED, keep)
            except Exception as error:  # a peer that cannot run here is no reason to lose the others
                print(f"{name}: did not run: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
                continue
            reference = weights if reference is None else reference
            apart = ((weights - reference).norm() / (reference - begun).norm()).item()
            found[name].append((losses[0], sum(losses[-LAST:]) / LAST, apart, largest / args.lr))
        if grads:
            same_gradients(args.weights, grads, exact, args.device, args.lr)
    print(f"{args.seeds} orders of batches, {args.steps} steps on {args.device}: mean (range)")
    for name, lines in found.items():
        if lines:
            begins, ends, distances, steps = zip(*lines, strict=True)
            told = f"first loss {sum(begins) / len(begins):.4f}  last {LAST} {spread(ends, 4)}"
            print(f"{name:38} {told}  distance {spread(distances, 3)}  largest step {max(steps):.1f} lr")


if __name__ == "__main__":
    main()
