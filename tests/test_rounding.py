"""Random bits from counters, stochastic rounding, and the packing of moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from fgod.errors import UsageError
from fgod.nvfp4.codec import E4M3_MAX, encode_e2m1, fake_quantise, power_of_two_global_scale, quantise, unpack
from fgod.nvfp4.rounding import (
    Key,
    mix,
    mix_word,
    random_bits,
    step_key,
    stochastic_bf16,
    stochastic_drop,
    stochastic_nvfp4,
    stream,
)
from fgod.train.codecs import (
    block_width,
    decode_eight_bits,
    decode_nvfp4,
    encode_int8,
    encode_nvfp4,
    encode_root_nvfp4,
    encode_root_uint8,
    segment_width,
)
from tests.tiny_model import noise

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = arrays(np.float32, st.integers(1, 40), elements=FLOATS)
SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([16, 48, 96, 1024]))
MOMENTS = arrays(np.float32, SHAPES, elements=st.floats(-(2.0**60), 2.0**60, width=32))
MATRIX_SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([16, 48]))
MATRICES = arrays(np.float32, MATRIX_SHAPES, elements=st.floats(-8, 8, width=32))
KEY = step_key(stream(7, "w"), 3)
FROZEN_STREAM = Key(2031915483, 3823949452)
FROZEN_BITS = [1309949247, 3684897316, 3185551328]


def bits_like(values: Tensor, key: Key = KEY) -> Tensor:
    return random_bits(key, 0, values.shape)


# ---- bits


def test_words_are_the_same_in_python_and_torch() -> None:
    words = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0xDEADBEEF]
    mixed = mix(torch.tensor([w - 2**32 if w >= 2**31 else w for w in words], dtype=torch.int32))
    assert [m & 0xFFFFFFFF for m in mixed.tolist()] == [mix_word(w) for w in words]
    assert len({mix_word(w) for w in range(5000)}) == 5000, "mix is a bijection"
    bits = random_bits(KEY, 5, (4,)).tolist()
    expected = [mix_word(mix_word((5 + i + KEY.k0) & 0xFFFFFFFF) ^ KEY.k1) for i in range(4)]
    assert [b & 0xFFFFFFFF for b in bits] == expected


def test_bits_are_frozen() -> None:
    """Kernels reproduce these; whoever changes them raises NUMERICS_VERSION."""
    assert stream(20260226, "model.norm.weight") == FROZEN_STREAM
    assert [b & 0xFFFFFFFF for b in random_bits(step_key(FROZEN_STREAM, 1), 0, (3,)).tolist()] == FROZEN_BITS


def test_bits_depend_on_seed_name_step_and_place_alone() -> None:
    whole = random_bits(KEY, 0, (8, 16))
    assert torch.equal(whole[3:5], random_bits(KEY, 48, (2, 16)))
    others = [step_key(stream(8, "w"), 3), step_key(stream(7, "v"), 3), step_key(stream(7, "w"), 4)]
    assert all((random_bits(other, 0, (8, 16)) != whole).all() for other in others)
    with pytest.raises(UsageError, match=r"a tensor may have 2\^32 elements"):
        random_bits(KEY, 2**32 - 1, (2,))
    assert random_bits(KEY, 2**32 - 1, (1,)).numel() == 1


def test_bits_look_random() -> None:
    """Each bit is set half the time, and independent of the next element's, the next step's and other bits."""
    count = 1 << 16
    steps = [random_bits(step_key(stream(1, "w"), s), 0, (count,)) for s in range(2)]
    planes = torch.stack([(steps[0] >> b) & 1 for b in range(32)]).double() - 0.5
    limit = 5 * 0.5 / math.sqrt(count)
    assert planes.mean(1).abs().max() < limit
    products = planes @ planes.T / count
    assert (products - torch.diag(products.diag())).abs().max() < limit / 2
    assert ((planes[:, 1:] * planes[:, :-1]).mean(1)).abs().max() < limit / 2
    later = torch.stack([(steps[1] >> b) & 1 for b in range(32)]).double() - 0.5
    assert (planes * later).mean(1).abs().max() < limit / 2


# ---- stochastic rounding


@given(VALUES)
def test_bf16_is_one_of_the_two_neighbours_and_stays_finite(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    rounded = stochastic_bf16(values, bits_like(values)).float()
    assert torch.isfinite(rounded).all()
    down = (values.view(torch.int32) & ~0xFFFF).view(torch.float32)
    up = ((values.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    assert ((rounded == down) | (rounded == up)).all()
    again = stochastic_bf16(rounded, bits_like(values, Key(1, 2))).float()
    assert torch.equal(again.view(torch.int32), rounded.view(torch.int32)), "what is representable stays"


def test_what_is_not_finite_stays_so() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    snan = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    for bits in (torch.zeros(5, dtype=torch.int32), torch.full((5,), -1, dtype=torch.int32)):
        rounded = stochastic_bf16(values, bits).float()
        assert rounded.isnan().tolist() == values.isnan().tolist()
        assert torch.equal(rounded[1:], values[1:])
        assert stochastic_bf16(snan, bits[:3]).isnan().all()
    top = torch.full((2,), torch.finfo(torch.float32).max)
    assert stochastic_bf16(top, torch.full((2,), -1, dtype=torch.int32)).float()[0] == torch.finfo(torch.bfloat16).max


@pytest.mark.parametrize("value", [1 + 2**-10, -(1 + 3 * 2**-10), 1e-3, 1.2345e-39])
def test_bf16_keeps_the_expectation(value: float) -> None:
    count = 1 << 16
    rounded = stochastic_bf16(torch.full((count,), value), random_bits(KEY, 0, (count,))).double()
    exact = torch.tensor(value).double().item()
    step = (rounded.max() - rounded.min()).item()
    assert step > 0
    assert abs(rounded.mean().item() - exact) < 5 * step / 2 / math.sqrt(count)


def grid(values: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    scale = power_of_two_global_scale(values.abs().max().item())
    return stochastic_nvfp4(values, scale, bits_like(values, step_key(KEY, seed))), scale


@given(MATRICES)
def test_nvfp4_lands_on_the_grid_and_stays_there(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    rounded, scale = grid(values)
    assert torch.equal(fake_quantise(rounded, scale), rounded + 0.0), "to nearest changes nothing"
    again = stochastic_nvfp4(rounded, scale, bits_like(values, Key(5, 6)))
    assert torch.equal(again, rounded), "other random bits change nothing"
    own, stored = grid(rounded, 4)
    at_the_end = quantise(values, scale).scales.float() <= 2.0**-5
    assert torch.equal(own.unflatten(1, (-1, 16))[~at_the_end], rounded.unflatten(1, (-1, 16))[~at_the_end])
    assert stored >= scale / 2


@given(MATRICES)
def test_nvfp4_is_never_further_than_a_step(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    rounded, scale = grid(values)
    blocks, ours = values.unflatten(1, (-1, 16)), rounded.unflatten(1, (-1, 16))
    widest = (blocks.abs().amax(-1) / 6 * scale).clamp(2.0**-6, E4M3_MAX) * 1.125 / scale * 2
    assert ((ours - blocks).abs().amax(-1) <= widest * 1.0001).all()


def test_nvfp4_keeps_the_expectation_of_all_but_the_neighbours_of_the_largest() -> None:
    weight = noise((1, 64), 3) * 0.1
    weight[0, ::16] = torch.tensor([0.07, -0.09, 0.061, 0.083])
    scale = power_of_two_global_scale(0.1)
    times = 4096
    draws = stochastic_nvfp4(weight.expand(times, -1).contiguous(), scale, random_bits(KEY, 0, (times, 64))).double()
    spread = draws.std(0).clamp(min=1e-12)
    largest = weight.unflatten(1, (-1, 16)).abs().amax(-1, keepdim=True)
    clear = (weight.unflatten(1, (-1, 16)).abs() < largest * 0.875) | (weight.unflatten(1, (-1, 16)).abs() == largest)
    gap = (draws.mean(0) - weight[0].double()).abs() / (spread / math.sqrt(times))
    assert gap[clear.flatten()].max() < 5
    assert clear.float().mean() > 0.8


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(2, 32)
    assert torch.equal(stochastic_nvfp4(zeros, 1.0, bits_like(zeros)), zeros)
    assert torch.equal(stochastic_drop(zeros, bits_like(zeros), 20), zeros)
    for encode, decode in (
        (encode_int8, decode_eight_bits),
        (encode_root_uint8, decode_eight_bits),
        (encode_nvfp4, decode_nvfp4),
        (encode_root_nvfp4, decode_nvfp4),
    ):
        assert torch.equal(decode(*encode(zeros)), zeros)  # type: ignore[operator]


# ---- moments


@given(MOMENTS)
def test_int8_is_off_by_half_a_scale_at_most_and_keeps_its_codes(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    codes, scales = encode_int8(values)
    back = decode_eight_bits(codes, scales)
    errors = (back - values).abs().unflatten(1, (scales.shape[1], -1)).amax(-1)
    assert (errors <= scales * 0.50001 + 1e-38).all()
    assert torch.equal(encode_int8(back)[0][back != 0], codes[back != 0])


@given(MOMENTS)
def test_no_root_becomes_zero_beside_another_and_none_is_off_by_more_than_a_step(array: np.ndarray) -> None:
    roots = torch.from_numpy(array).abs()
    codes, scales = encode_root_uint8(roots)
    assert codes.min() >= 1
    back = decode_eight_bits(codes, scales).unflatten(1, (scales.shape[1], -1))
    assert ((back > 0) | (scales == 0).unsqueeze(-1)).all()
    errors = (back - roots.unflatten(1, (scales.shape[1], -1))).abs().amax(-1)
    assert (errors <= scales * 1.00001 + 1e-38).all()
    packed, _, segments = encode_root_nvfp4(roots)
    assert ((packed & 0xF) >= 1).all() and ((packed >> 4) >= 1).all() and ((packed & 0x88) == 0).all()
    decoded = decode_nvfp4(*encode_root_nvfp4(roots)).unflatten(1, (segments.shape[1], -1))
    assert ((decoded > 0) | (segments < 1e-37).unsqueeze(-1)).all()


@given(MOMENTS)
def test_nvfp4_moments_are_off_by_a_sixth_of_their_block_at_most(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    back = decode_nvfp4(*encode_nvfp4(values))
    blocks = values.unflatten(1, (-1, 16)).abs().amax(-1)
    segments = values.unflatten(1, (-1, segment_width(values.shape[1]))).abs().amax(-1)
    per_block = segments.repeat_interleave(blocks.shape[1] // segments.shape[1], 1)
    errors = (back - values).unflatten(1, (-1, 16)).abs().amax(-1)
    assert (errors <= blocks * 0.2 + per_block * 2.0**-6 / 448 + 1e-30).all()


@given(MOMENTS)
def test_codes_of_nvfp4_moments_are_those_of_the_definition(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    for encode, given_values in ((encode_nvfp4, values), (encode_root_nvfp4, values.abs())):
        packed, scales, segments = encode(given_values)
        divisors = torch.where(segments > 0, segments, 1.0).unsqueeze(-1)
        steps = (scales.float().unflatten(1, (segments.shape[1], -1)) * divisors).flatten(1).unsqueeze(-1)
        blocks = given_values.unflatten(1, (-1, 16)) / torch.where(steps > 0, steps, 1.0)
        least = int(encode is encode_root_nvfp4)
        assert torch.equal(unpack(packed), encode_e2m1(blocks).flatten(1).clamp(min=least))


@settings(max_examples=20)
@given(MOMENTS)
def test_packing_rows_apart_gives_the_same(array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    for encode in (encode_int8, encode_nvfp4):
        whole = encode(values)
        for row in range(len(values)):
            for part, all_rows in zip(encode(values[row : row + 1]), whole, strict=True):
                assert torch.equal(part.view(torch.uint8), all_rows[row : row + 1].view(torch.uint8))


def test_widths_divide_the_columns() -> None:
    assert [block_width(k) for k in (2560, 9728, 96, 48, 16)] == [64, 64, 32, 16, 16]
    assert [segment_width(k) for k in (2560, 9728, 96, 48, 16)] == [512, 512, 32, 16, 16]
