"""What block scales cost: squared error of weights in NVFP4 with each kind of scale, relative to the squared weights.

    .venv/bin/python -m benchmarks.scale_errors

Normal weights of several sizes, three seeds each. docs/formats.md has the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fgod.dat.codec import Packed, dequantise, quantise
from fgod.dat.file import Element
from fgod.models.names import BLOCK
from fgod.nvfp4 import codec

SHAPE = (2048, 2560)
SEEDS = (1, 2, 3)
SIGMAS = (0.01, 0.02, 0.04)


def dat(weight: Tensor, element: Element, rounded: bool = True) -> Tensor:
    """As the formats dat and dat-float16 hold it, a projection or (not rounded) a head."""
    return dequantise(quantise(weight, element, codec.largest_magnitude(weight), rounded=rounded))


def nearest(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """With scales amax/6 rounded to a type, which no export writes."""
    blocks = codec.block_view(weight, "weight")
    scales = (codec.block_amax(blocks) / codec.E2M1_MAX).to(dtype)
    codes = codec.encode_e2m1(blocks / scales.float().unsqueeze(-1))
    return dequantise(Packed(codec.pack(codes.flatten(1)), scales))


def nvfp4(weight: Tensor) -> Tensor:
    """As the NVFP4 export holds it, and training computes with it: E4M3 scales and a global one."""
    return codec.dequantise(codec.quantise(weight))


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "amax/6 in E4M3": lambda weight: nearest(weight, torch.float8_e4m3fn),
    "amax/6 in float16": lambda weight: nearest(weight, torch.float16),
    "nvfp4": nvfp4,
    "dat-float16": lambda weight: dat(weight, Element.FLOAT16),
    "dat, a projection": lambda weight: dat(weight, Element.FP8_E4M3),
    "dat, a head": lambda weight: dat(weight, Element.FP8_E4M3, rounded=False),
}


def error(made: Tensor, weight: Tensor) -> float:
    """Σ(made - weight)² / Σ weight²."""
    return float((made - weight).double().square().sum() / weight.double().square().sum())


def below(weight: Tensor) -> float:
    """Share of the blocks with amax/6 below 2⁻⁶, where E4M3 has eight numbers."""
    return float((weight.abs().unflatten(1, (-1, BLOCK)).amax(-1) / codec.E2M1_MAX < codec.SCALE_MIN).float().mean())


def main() -> None:
    """Print, for each size of weights, how far each way is from the weights, from NVFP4, and from itself once more."""
    for sigma in SIGMAS:
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
        shares = []
        for seed in SEEDS:
            weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * sigma
            trained = nvfp4(weight)
            shares.append(below(weight))
            for name, way in WAYS.items():
                made = way(weight)
                found[name].append((error(made, weight), error(made, trained), error(nvfp4(made), made)))
        print(f"sigma {sigma:g}: amax/6 below 2^-6 in {sum(shares) / len(shares):.2%} of the blocks")
        print(f"  {'':20} from the weights  from nvfp4  rounded to nvfp4 again")
        for name, values in found.items():
            means = [sum(column) / len(column) for column in zip(*values, strict=True)]
            spread = max(max(column) - min(column) for column in zip(*values, strict=True))
            print(f"  {name:20} {means[0]:.5f} {means[1]:.5f} {means[2]:.5f} (seeds differ by {spread:.5f})")


if __name__ == "__main__":
    main()
