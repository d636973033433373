"""What AdamW keeps of a tensor between steps, in each number format: master weights, m and v.

Everything is read and written by rows of a matrix [N, K]; what is read is float32 and may be changed. A vector (a
norm's gain) is one row, and is kept in float32 in every mode: all vectors together are under 10⁻⁴ of a model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgod.nvfp4.codec import BLOCK, fake_quantise, shared_global_scale
from fgod.nvfp4.rounding import Key, random_bits, step_key, stochastic_bf16, stochastic_nvfp4
from fgod.train import codecs

# ------------------------------------------------------------------------------------------------------------- masters


class Master:
    """A parameter's weights, float32: `write` keeps what is wanted as it is."""

    dtype = torch.float32
    """Of the parameter itself."""

    def __init__(self, weight: Tensor, stream: Key) -> None:
        """`weight` [N, K] is the parameter's own memory, in `dtype`; what it holds is the start."""
        self.weight, self.stream = weight, stream
        self.key = stream

    def begin(self, step: int) -> None:
        """Before the first row of a step (from 1)."""
        self.key = step_key(self.stream, step)

    def read(self, rows: slice) -> Tensor:
        """float32 of rows, in memory of their own."""
        return self.weight[rows].to(torch.float32, copy=True)

    def write(self, rows: slice, wanted: Tensor) -> None:
        self.weight[rows].copy_(wanted)

    def bits(self, rows: slice) -> Tensor:
        """Random words of rows: those of their elements in this step, however the rows are cut."""
        part = self.weight[rows]
        return random_bits(self.key, rows.start * self.weight.shape[1], part.shape, part.device)


class StochasticBf16(Master):
    """BF16, rounded stochastically: every update lands in expectation."""

    dtype = torch.bfloat16

    def write(self, rows: slice, wanted: Tensor) -> None:
        self.weight[rows].copy_(stochastic_bf16(wanted, self.bits(rows)))


class NearestBf16(Master):
    """BF16, rounded to nearest: updates below half a step (|w|/512 to |w|/256) vanish. For demonstration only."""

    dtype = torch.bfloat16


class StochasticNvfp4(Master):
    """Weights on NVFP4's grid, rounded stochastically. They are held as BF16, which is exact for a power-of-two scale.

    The global scale is that of the weights before the step: its headroom of 2 is there for what the step adds.
    """

    dtype = torch.bfloat16

    def __init__(self, weight: Tensor, stream: Key) -> None:
        super().__init__(weight, stream)
        self.begin(0)
        for row in range(len(weight)):
            rows = slice(row, row + 1)
            weight[rows].copy_(fake_quantise(weight[rows].float(), self.global_scale))

    def begin(self, step: int) -> None:
        super().begin(step)
        self.global_scale = shared_global_scale([self.weight], "an NVFP4 master")

    def write(self, rows: slice, wanted: Tensor) -> None:
        self.weight[rows].copy_(stochastic_nvfp4(wanted, self.global_scale, self.bits(rows)))


class NearestNvfp4(StochasticNvfp4):
    """The same, packed to nearest every step: updates below half a quantisation step vanish. For demonstration only."""

    def write(self, rows: slice, wanted: Tensor) -> None:
        self.weight[rows].copy_(fake_quantise(wanted, self.global_scale))


MASTERS: dict[str, type[Master]] = {
    "fp32": Master,
    "bf16": StochasticBf16,
    "nvfp4": StochasticNvfp4,
    "bf16-rtn": NearestBf16,
    "nvfp4-rtn": NearestNvfp4,
}
"""By the name in a recipe."""


def master_kind(name: str, shape: torch.Size | tuple[int, ...]) -> type[Master]:
    """How a tensor of this shape is kept: vectors in float32, matrices that NVFP4 cannot block in BF16."""
    if len(shape) == 1:
        return Master
    if name.startswith("nvfp4") and shape[1] % BLOCK:
        return MASTERS[name.replace("nvfp4", "bf16")]
    return MASTERS[name]


# ------------------------------------------------------------------------------------------------------------- moments


class Moment:
    """A running mean [N, K], float32: `read` gives the memory itself, so that nothing is left for `write` to do."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.tensors = self.allocate(shape, device)

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """All that is kept, holding zeros; each has N rows."""
        return (torch.zeros(shape, device=device),)

    @staticmethod
    def decode(parts: tuple[Tensor, ...]) -> Tensor:
        """float32 of some rows of what is kept."""
        return parts[0]

    @staticmethod
    def encode(values: Tensor) -> tuple[Tensor, ...]:
        """What is kept of float32 values, which may be changed by this."""
        return (values,)

    def read(self, rows: slice) -> Tensor:
        """float32 of rows, free to be changed and handed to `write`."""
        return self.decode(self.load(rows))

    def write(self, rows: slice, values: Tensor) -> None:
        """Keep float32 values, which may be changed by this."""
        self.store(rows, self.encode(values))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def store(self, rows: slice, parts: tuple[Tensor, ...]) -> None:
        for tensor, part in zip(self.tensors, parts, strict=True):
            if tensor[rows].data_ptr() != part.data_ptr():
                tensor[rows].copy_(part)

    def load(self, rows: slice) -> tuple[Tensor, ...]:
        return tuple(tensor[rows] for tensor in self.tensors)


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


def moment_kind(kinds: dict[str, type[Moment]], name: str, shape: torch.Size | tuple[int, ...]) -> type[Moment]:
    """How a moment of a tensor of this shape is kept: as the recipe says, but float32 for vectors."""
    if len(shape) == 1:
        return Moment
    if name == "nvfp4" and shape[1] % BLOCK:
        return kinds["int8" if "int8" in kinds else "uint8"]
    return kinds[name]
