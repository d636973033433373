"""What AdamW keeps of a tensor between steps, in each number format: master weights, m and v.

A matrix is [N, K]. A vector (a norm's gain) is one row, and is kept in float32 in every format: all vectors together
are under 10⁻⁴ of a model. What is here is stateless but for `Moment.tensors`, and asks the device for nothing.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fgod.nvfp4.codec import BLOCK, device_global_scale, fake_quantise
from fgod.nvfp4.rounding import random_words, stochastic_bf16, stochastic_nvfp4
from fgod.train import codecs

BEGIN_ROWS = 2048
"""Rows of an NVFP4 master that are quantised at once before the first step."""

# ------------------------------------------------------------------------------------------------------------- masters


class Master:
    """How weights are kept: float32, as they are."""

    dtype = torch.float32
    """Of the parameter itself."""

    @staticmethod
    def begin(weight: Tensor) -> None:
        """Make weights [N, K], before the first step, such that the format can hold them."""

    @staticmethod
    def rounded(wanted: Tensor, key: Tensor, first: int, scale: Tensor) -> Tensor:
        """What is kept of float32 weights [R, W].

        Args:
            key: int32 [2], of the random words of this step.
            first: index of the first element within its tensor.
            scale: float32, no dimension: NVFP4's global scale.
        """
        return wanted


class StochasticBf16(Master):
    """BF16, rounded stochastically: every update is realised in expectation."""

    dtype = torch.bfloat16

    @staticmethod
    def rounded(wanted: Tensor, key: Tensor, first: int, scale: Tensor) -> Tensor:
        return stochastic_bf16(wanted, random_words(key, first, wanted.shape))


class NearestBf16(Master):
    """BF16, rounded to nearest: updates below half a step (|w|/512 to |w|/256) vanish. For demonstration only."""

    dtype = torch.bfloat16


class StochasticNvfp4(Master):
    """Weights on NVFP4's grid, rounded stochastically. They are held as BF16, which is exact for a power-of-two scale.

    The global scale is that of the weights before the step: its headroom of 2 is there for what the step adds.
    """

    dtype = torch.bfloat16

    @staticmethod
    def begin(weight: Tensor) -> None:
        low, high = torch.aminmax(weight)
        scale = device_global_scale(torch.maximum(-low, high).float())
        for part in weight.split(BEGIN_ROWS):
            part.copy_(fake_quantise(part.float(), scale))

    @staticmethod
    def rounded(wanted: Tensor, key: Tensor, first: int, scale: Tensor) -> Tensor:
        return stochastic_nvfp4(wanted, scale, random_words(key, first, wanted.shape))


class NearestNvfp4(StochasticNvfp4):
    """The same, rounded to nearest: updates below half a quantisation step vanish. For demonstration only."""

    @staticmethod
    def rounded(wanted: Tensor, key: Tensor, first: int, scale: Tensor) -> Tensor:
        return fake_quantise(wanted, scale)


MASTERS: dict[str, type[Master]] = {
    "fp32": Master,
    "bf16": StochasticBf16,
    "nvfp4": StochasticNvfp4,
    "bf16-rtn": NearestBf16,
    "nvfp4-rtn": NearestNvfp4,
}
"""By the name in a recipe."""


def master_format(name: str, shape: torch.Size | tuple[int, ...]) -> str:
    """The format of a tensor of this shape: float32 for vectors, BF16 for matrices that NVFP4 cannot block."""
    if len(shape) == 1:
        return "fp32"
    return name.replace("nvfp4", "bf16") if name.startswith("nvfp4") and shape[1] % BLOCK else name


def master_kind(name: str, shape: torch.Size | tuple[int, ...]) -> type[Master]:
    """How a tensor of this shape is kept."""
    return MASTERS[master_format(name, shape)]


# ------------------------------------------------------------------------------------------------------------- moments


class Moment:
    """A running mean [N, K], float32: `decode` gives the memory itself, so that nothing is left to be copied back."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.tensors = self.allocate(shape, device)

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """All that is kept, holding zeros; each has N rows."""
        return (torch.zeros(shape, device=device),)

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        """float32 of some rows of what is kept, which may be changed and handed to `encode`."""
        return parts[0]

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        """What is kept of float32 values, which may be changed by this."""
        return (values,)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def pinned(self) -> Self:
        """The same in page-locked host memory, which kernels on a GPU read and write in place."""
        self.tensors = tuple(tensor.pin_memory() for tensor in self.tensors)
        return self


class Bf16Moment(Moment):
    """BF16, to nearest."""

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        return (torch.zeros(shape, dtype=torch.bfloat16, device=device),)

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float()

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        return (values.bfloat16(),)


class Int8Moment(Moment):
    """int8 codes and float32 scales."""

    codes = torch.int8

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        rows, columns = shape
        scales = torch.zeros(rows, columns // codecs.block_width(columns), device=device)
        return torch.zeros(shape, dtype=self.codes, device=device), scales

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_eight_bits(*parts)

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_int8(values)


class Nvfp4Moment(Moment):
    """E2M1 codes, E4M3 block scales, float32 segment scales. Columns must be divisible by 16."""

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        rows, columns = shape
        return (
            torch.zeros(rows, columns // 2, dtype=torch.uint8, device=device),
            torch.ones(rows, columns // BLOCK, device=device).to(torch.float8_e4m3fn),
            torch.zeros(rows, columns // codecs.segment_width(columns), device=device),
        )

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_nvfp4(*parts)

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_nvfp4(values)


class Bf16Root(Bf16Moment):
    """√v in BF16. Both directions speak of v, here and below."""

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float().square_()

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        return (values.sqrt_().bfloat16(),)


class Uint8Root(Int8Moment):
    """√v as uint8 codes, 1 to 255, and float32 scales."""

    codes = torch.uint8

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_eight_bits(*parts).square_()

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_root_uint8(values.sqrt_())


class Nvfp4Root(Nvfp4Moment):
    """√v as E2M1 codes 1 to 7 with NVFP4's scales."""

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_nvfp4(*parts).square_()

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_root_nvfp4(values.sqrt_())


M_KINDS: dict[str, type[Moment]] = {"fp32": Moment, "bf16": Bf16Moment, "int8": Int8Moment, "nvfp4": Nvfp4Moment}
V_KINDS: dict[str, type[Moment]] = {"fp32": Moment, "bf16": Bf16Root, "uint8": Uint8Root, "nvfp4": Nvfp4Root}
"""By the name in a recipe. Float32 reaches down to 10⁻³⁸ and keeps v itself, all others √v."""


def moment_format(kinds: dict[str, type[Moment]], name: str, shape: torch.Size | tuple[int, ...]) -> str:
    """The format of a moment of a tensor of this shape: float32 for vectors, 8 bits where NVFP4 cannot block."""
    if len(shape) == 1:
        return "fp32"
    if name == "nvfp4" and shape[1] % BLOCK:
        return "int8" if "int8" in kinds else "uint8"
    return name


def moment_kind(kinds: dict[str, type[Moment]], name: str, shape: torch.Size | tuple[int, ...]) -> type[Moment]:
    """How a moment of a tensor of this shape is kept."""
    return kinds[moment_format(kinds, name, shape)]
