"""The self-tests of `fgod doctor`: all hold here, and each fails where what it tests computes something else."""

from __future__ import annotations

import math

import pytest
import torch

from fgod.nvfp4 import codec, rounding
from fgod.selftest import plain
from fgod.selftest.case import Case, Difference, near, noise, same_bits
from fgod.selftest.torch_ops import torch_cases
from fgod.train import codecs

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", plain.cpu_cases(), ids=str)
def test_the_cpu_computes_what_loops_in_python_do(case: Case) -> None:
    assert not [str(one) for one in case.run(CPU) if not one.ok]


@pytest.mark.parametrize("case", torch_cases(CPU, compiled=True, say=print), ids=str)
def test_torch_computes_what_it_does_in_float64(case: Case) -> None:
    assert not [str(one) for one in case.run(CPU) if not one.ok]


def test_differences_are_shares_of_bits_or_relative_and_nan_is_never_small() -> None:
    ones = torch.ones(2, 4)
    assert same_bits("a", ones, ones.clone()).ok
    other = ones.clone()
    other[0, 1] = torch.nextafter(other[0, 1], torch.tensor(2.0))
    assert same_bits("a", other, ones).found == 1 / 8
    assert not same_bits("a", ones.bfloat16(), ones).ok and not same_bits("a", ones[:1], ones).ok
    assert near("a", ones * 1.5, ones, 0.5).ok and not near("a", ones * 1.6, ones, 0.5).ok
    assert near("a", None, None, 0.0).ok and not near("a", None, ones, 0.5).ok
    poisoned = ones.clone()
    poisoned[1, 1] = math.nan
    assert not near("a", poisoned, ones, 1e9).ok
    assert str(Difference("Q(W)", 0.25, 0.0)) == "Q(W) is off by 0.25, expected at most 0"


def wrong_cases() -> set[str]:
    """The kernels of the cases that fail now."""
    return {case.kernel for case in plain.cpu_cases() if not all(one.ok for one in case.run(CPU))}


def test_a_quantiser_that_rounds_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    to_grid = codec._to_grid
    monkeypatch.setattr(codec, "_to_grid", lambda values: to_grid(values * 1.02))
    assert wrong_cases() == {"NVFP4 quantiser", "product with quantised weights"}


@pytest.mark.parametrize(
    "module, name, kernel",
    [
        (codec, "pack", "NVFP4 codec"), (rounding, "random_bits", "random bits"),
        (rounding, "stochastic_bf16", "stochastic rounding to BF16"), (codecs, "encode_int8", "packed moments"),
    ],
)  # fmt: skip
def test_garbage_is_found(module: object, name: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(module, name)

    def garbage(*args: object) -> object:
        made = right(*args)
        return tuple(part * 0 for part in made) if isinstance(made, tuple) else made * 0

    monkeypatch.setattr(module, name, garbage)
    assert kernel in wrong_cases()


def test_the_references_say_what_is_known() -> None:
    assert [plain.e4m3(byte) for byte in (0x08, 0x38, 0x7E)] == [2.0**-6, 1.0, 448.0]
    assert [plain.code_of(value) for value in (0.25, 0.75, 5.0, -5.1, -0.1, 100.0)] == [0, 2, 6, 15, 0, 7]
    assert plain.global_scale([[1.3125]]) == 1024.0 and plain.global_scale([[0.0]]) == 1.0
    assert plain.quantised(noise((1, 16), 1) * 0, "amax")[2] == [[0x08]]
