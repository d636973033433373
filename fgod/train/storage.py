"""What is kept of a tensor between steps, in each number format: master weights, and the optimizer's states.

A matrix is [N, K]. A vector (a norm's gain) is one row, and is kept in float32 in every format: all vectors together
are under 10⁻⁴ of a model. What is here is stateless but for `State.tensors`, and asks the device for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fgod.nvfp4.codec import BLOCK, device_global_scale, fake_quantise
from fgod.nvfp4.rounding import random_words, stochastic_bf16, stochastic_nvfp4
from fgod.plugins import Registry
from fgod.train import codecs
from fgod.train.recipe import MEAN_FORMATS, OPTIMIZERS, SQUARE_FORMATS, TrainRecipe

Shape = torch.Size | tuple[int, ...]

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


def master_format(name: str, shape: Shape) -> str:
    """The format of a tensor of this shape: float32 for vectors, BF16 for matrices that NVFP4 cannot block."""
    if len(shape) == 1:
        return "fp32"
    return name.replace("nvfp4", "bf16") if name.startswith("nvfp4") and shape[1] % BLOCK else name


def master_kind(name: str, shape: Shape) -> type[Master]:
    """How a tensor of this shape is kept."""
    return MASTERS[master_format(name, shape)]


# -------------------------------------------------------------------------------------------------------------- states


class StateFormat:
    """How a running mean [N, K] is kept. This one keeps float32: `decode` gives the memory itself, so that nothing is
    left to be copied back.

    A format has no state of its own. To add one, derive from this class and register an instance of it, here or in a
    plugin file, in `MEAN_FORMATS` (numbers of either sign) or `SQUARE_FORMATS` (numbers of at least zero).
    """

    in_place = True
    """Whether `decode` gives the memory itself."""
    otherwise = ""
    """The format, by name, of matrices that this one cannot hold."""

    def holds(self, columns: int) -> bool:
        """Whether matrices with so many columns can be kept in it."""
        return True

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """All that is kept, holding zeros: tensors of N rows, no block of which is wider than `segment_width(K)`."""
        return (torch.zeros(shape, device=device),)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        """float32 of some rows of what is kept, which may be changed and handed to `encode`."""
        return parts[0]

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """What is kept of float32 values, which may be changed by this."""
        return (values,)

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes of a matrix."""
        return sum(tensor.nbytes for tensor in self.allocate(shape, _META))


_META = torch.device("meta")


class Bf16(StateFormat):
    """BF16, to nearest."""

    in_place = False

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        return (torch.zeros(shape, dtype=torch.bfloat16, device=device),)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float()

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return (values.bfloat16(),)


class Int8(StateFormat):
    """int8 codes and float32 scales."""

    in_place = False
    codes = torch.int8

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        rows, columns = shape
        scales = torch.zeros(rows, columns // codecs.block_width(columns), device=device)
        return torch.zeros(shape, dtype=self.codes, device=device), scales

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_eight_bits(*parts)

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_int8(values)


class Nvfp4(StateFormat):
    """E2M1 codes, E4M3 block scales, float32 segment scales."""

    in_place = False
    otherwise = "int8"

    def holds(self, columns: int) -> bool:
        return columns % BLOCK == 0

    def allocate(self, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        rows, columns = shape
        return (
            torch.zeros(rows, columns // 2, dtype=torch.uint8, device=device),
            torch.ones(rows, columns // BLOCK, device=device).to(torch.float8_e4m3fn),
            torch.zeros(rows, columns // codecs.segment_width(columns), device=device),
        )

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_nvfp4(*parts)

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_nvfp4(values)


class Bf16Root(Bf16):
    """√v in BF16. Both directions speak of v, here and below."""

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float().square_()

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return (values.sqrt_().bfloat16(),)


class Uint8Root(Int8):
    """√v as uint8 codes, 1 to 255, and float32 scales."""

    codes = torch.uint8

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_eight_bits(*parts).square_()

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_root_uint8(values.sqrt_())


class Nvfp4Root(Nvfp4):
    """√v as E2M1 codes 1 to 7 with NVFP4's scales."""

    otherwise = "uint8"

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return codecs.decode_nvfp4(*parts).square_()

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_root_nvfp4(values.sqrt_())


FP32 = "fp32"
for _name, _format in {FP32: StateFormat(), "bf16": Bf16(), "int8": Int8(), "nvfp4": Nvfp4()}.items():
    MEAN_FORMATS.register(_name, _format)
for _name, _format in {FP32: StateFormat(), "bf16": Bf16Root(), "uint8": Uint8Root(), "nvfp4": Nvfp4Root()}.items():
    SQUARE_FORMATS.register(_name, _format)  # float32 reaches down to 10⁻³⁸ and keeps v itself, all others √v


@dataclass(frozen=True)
class StateKind:
    """What an optimizer keeps of each trained tensor: the recipe's key of its format, the formats, and what it is."""

    key: str
    formats: Registry[StateFormat]
    words: str

    def format_of(self, recipe: TrainRecipe, shape: Shape) -> str:
        """The name of the format for a tensor of this shape: float32 for vectors.

        Raises:
            UsageError: no format is registered under the recipe's name.
        """
        name = getattr(recipe, self.key)
        if len(shape) == 1:
            return FP32
        found = self.formats[name]
        return name if found.holds(shape[1]) else found.otherwise


def states_of(recipe: TrainRecipe) -> Mapping[str, StateKind]:
    """What the recipe's optimizer keeps, by name."""
    return OPTIMIZERS[recipe.optimizer].states


@dataclass
class State:
    """One of them, of one tensor."""

    format: StateFormat
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def values(self) -> Tensor:
        """float32 of all that is kept; perhaps the memory itself."""
        return self.format.decode(self.tensors)


def new_state(format: StateFormat, shape: tuple[int, int], device: torch.device, pinned: bool = False) -> State:
    """A state that holds zeros. Pinned: in page-locked host memory, which kernels on a GPU read and write in place."""
    if not pinned:
        return State(format, format.allocate(shape, device))
    return State(format, tuple(tensor.pin_memory() for tensor in format.allocate(shape, torch.device("cpu"))))


def state_dtypes(recipe: TrainRecipe) -> dict[str, str]:
    """The names of the recipe's formats, by state."""
    return {name: getattr(recipe, kept.key) for name, kept in states_of(recipe).items()}


def state_bytes(recipe: TrainRecipe, shapes: Iterable[Shape]) -> dict[str, int]:
    """Bytes of each state of tensors of these shapes, together."""
    counts = Counter(map(tuple, shapes))  # layers have the same
    return {
        name: sum(
            count * kept.formats[kept.format_of(recipe, shape)].nbytes(as_matrix_shape(shape))
            for shape, count in counts.items()
        )
        for name, kept in states_of(recipe).items()
    }


def as_matrix_shape(shape: Shape) -> tuple[int, int]:
    """[N, K] of a matrix; a vector is one row."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
