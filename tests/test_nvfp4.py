"""The quantiser: its definitions, its fast path, and agreement with other people's implementations."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import quantize_and_pack_fp4, unpack_fp4_from_uint8
from compressed_tensors.quantization.quant_args import QuantizationArgs
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fgod.errors import UsageError
from fgod.nvfp4.codec import (
    AMAX_MIN,
    BLOCK,
    CHUNK,
    E2M1,
    BadScaleError,
    NonFiniteError,
    Quantised,
    decode_e2m1,
    dequantise,
    encode_e2m1,
    encode_finite,
    fake_quantise,
    pack,
    power_of_two_global_scale,
    quantise,
    shared_global_scale,
    unpack,
)
from fgod.nvfp4.layers import _quantised, prepare
from tests.tiny_model import noise, tiny_model

SHAPES = st.tuples(st.integers(1, 4), st.sampled_from([16, 32, 48]))
ALL = arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
LIMIT = 2.0**126
MATRICES = arrays(np.float32, SHAPES, elements=st.floats(-LIMIT, LIMIT, width=32))
"""Not so near to float32's largest number that rounding up leaves it."""
CODES = arrays(np.uint8, st.tuples(st.integers(1, 4), st.sampled_from([16, 32])), elements=st.integers(0, 15))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


def weights_of_all_sizes() -> torch.Tensor:
    """[64, 512] with row magnitudes from 2⁻⁸ to 2⁴ and heavy tails."""
    rows = torch.exp2(torch.arange(64) % 13 - 8.0).unsqueeze(1)
    return noise((64, 512), 3) ** 3 * rows


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0), (-0.0, 0), (0.25, 0), (-0.25, 0), (0.2500001, 0.5), (0.7499999, 0.5), (0.75, 1), (1.25, 1),
        (1.2500001, 1.5), (1.7499999, 1.5), (1.75, 2), (2.5, 2), (2.5000002, 3), (3.4999998, 3), (3.5, 4), (5.0, 4),
        (5.0000005, 6), (6.4, 6), (1e30, 6), (-0.75, -1), (-5.1, -6),
    ],
)  # fmt: skip
def test_e2m1_rounds_to_nearest_ties_to_even(value: float, expected: float) -> None:
    code = encode_e2m1(torch.tensor([value]))
    assert decode_e2m1(code).item() == expected
    assert code.item() != 8, "negative zero is never written"


def test_e2m1_equals_ml_dtypes_on_every_finite_bf16_value() -> None:
    values = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    values = values[values.isfinite()]
    theirs = values.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert torch.equal(decode_e2m1(encode_e2m1(values)), torch.from_numpy(theirs))


@pytest.mark.parametrize("negative", [False, True])
def test_codes_of_finite_values_are_those_of_the_definition(negative: bool) -> None:
    edges = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0])
    near = [edges, torch.nextafter(edges, torch.tensor(9.0)), torch.nextafter(edges, torch.tensor(-9.0))]
    more = [torch.linspace(0, 8, 100_003), torch.tensor([1e-45, 1e-38, 1e30, torch.finfo(torch.float32).max])]
    values = torch.cat([*near, *more]) * (-1 if negative else 1)
    assert torch.equal(encode_finite(values.clone()), encode_e2m1(values))


def test_e4m3_of_torch_equals_ml_dtypes() -> None:
    values = torch.exp2(torch.linspace(-6, math.log2(448), 20_001))
    theirs = values.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert torch.equal(values.to(torch.float8_e4m3fn).float(), torch.from_numpy(theirs))


@settings(deadline=None)
@given(st.floats(float(np.float32(AMAX_MIN)), float(np.finfo(np.float32).max), width=32))
def test_global_scale_is_the_largest_power_of_two_that_leaves_the_headroom(amax: float) -> None:
    scale = power_of_two_global_scale(amax)
    assert math.frexp(scale)[0] == 0.5
    assert Fraction(scale) * Fraction(amax) <= 1344 < 2 * Fraction(scale) * Fraction(amax)
    assert torch.tensor(scale).item() == scale, "float32 holds it"


def test_global_scale_of_next_to_nothing_is_one() -> None:
    assert power_of_two_global_scale(0.0) == power_of_two_global_scale(9.9e-36) == 1.0


@settings(deadline=None, max_examples=300)
@given(ALL)
def test_the_fast_path_gives_the_bits_of_the_definition(matrix: np.ndarray) -> None:
    weight = torch.from_numpy(matrix)
    quantised = quantise(weight)
    assert same_bits(fake_quantise(weight, quantised.global_scale), dequantise(quantised))


@settings(deadline=None)
@given(MATRICES, st.integers(-20, 20))
def test_the_fast_path_clamps_under_a_foreign_global_scale(matrix: np.ndarray, shift: int) -> None:
    weight = torch.from_numpy(matrix)
    scale = power_of_two_global_scale(weight.abs().max().item()) * 2.0**shift
    assume(2.0**-126 <= scale <= 2.0**126)
    assert same_bits(fake_quantise(weight, scale), dequantise(quantise(weight, scale)))


@settings(deadline=None)
@given(MATRICES)
def test_scales_are_in_range_and_every_weight_is_near_what_it_was(matrix: np.ndarray) -> None:
    weight = torch.from_numpy(matrix)
    quantised = quantise(weight)
    scales = quantised.scales.float()
    assert scales.min() >= 2.0**-6
    assert scales.max() <= 224
    steps = (scales.double() / quantised.global_scale).repeat_interleave(BLOCK, 1)
    assert ((dequantise(quantised).double() - weight.double()).abs() <= steps).all(), "half of the widest gap"


@settings(deadline=None)
@given(MATRICES)
def test_packing_an_unpacked_weight_again_changes_nothing(matrix: np.ndarray) -> None:
    first = quantise(torch.from_numpy(matrix))
    again = quantise(dequantise(first), first.global_scale)
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.scales.view(torch.uint8), again.scales.view(torch.uint8))


def test_a_recomputed_global_scale_changes_nothing_either() -> None:
    for exponent in np.linspace(-6, 3, 37):
        weight = weights_of_all_sizes() * float(2.0**exponent)
        once = dequantise(quantise(weight))
        assert same_bits(once, dequantise(quantise(once)))


def test_only_tiny_blocks_can_move_under_a_recomputed_global_scale() -> None:
    """The known corner: the largest block is rounded to where the power of two doubles, another block is clamped."""
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = 680 / 1024, 4 * 2.0**-6 / 1024
    first = quantise(weight)
    once = dequantise(first)
    again = quantise(once)
    assert again.global_scale == 2 * first.global_scale
    moved = (dequantise(again) - once).abs() / once.abs().clamp(min=1e-9)
    assert moved[0, 0] == 0
    assert 0 < moved[0, 16] < 1 / 16


@settings(deadline=None)
@given(CODES)
def test_pack_and_unpack_are_inverse_and_low_nibbles_are_even_columns(codes: np.ndarray) -> None:
    packed = pack(torch.from_numpy(codes))
    assert np.array_equal(packed.numpy() & 15, codes[:, 0::2])
    assert np.array_equal(unpack(packed).numpy(), codes)


def test_products_are_exact_in_bf16() -> None:
    values = dequantise(quantise(weights_of_all_sizes()))
    assert same_bits(values, values.bfloat16().float())


def test_codes_and_scales_equal_those_of_compressed_tensors() -> None:
    weight = weights_of_all_sizes()
    ours = quantise(weight)
    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=BLOCK, symmetric=True,
        scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    blocks = weight.reshape(64, -1, BLOCK)
    divisor = torch.tensor([ours.global_scale])
    scales, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, divisor)
    normal = blocks.abs().amax(-1) / 6 * ours.global_scale >= 2.0**-6  # theirs go below, and turn zeros into 1/8
    assert normal.float().mean() > 0.8
    assert torch.equal(scales[normal], ours.scales.float()[normal])
    packed = quantize_and_pack_fp4(weight, ours.scales.float(), global_scale=divisor, group_size=BLOCK)
    codes = unpack(packed)
    assert torch.equal(torch.where(codes == 8, 0, codes), ours.codes)
    assert torch.equal(unpack_fp4_from_uint8(pack(ours.codes), *weight.shape), decode_e2m1(ours.codes).bfloat16())


def test_the_bytes_of_a_fixed_weight_are_frozen() -> None:
    """Whoever changes a definition changes every export: raise NUMERICS_VERSION with this digest."""
    quantised = quantise(weights_of_all_sizes())
    stored = pack(quantised.codes).numpy().tobytes() + quantised.scales.view(torch.uint8).numpy().tobytes()
    assert quantised.global_scale == 512.0
    assert hashlib.sha256(stored).hexdigest()[:16] == "70f1cc537e34f9fe"


def test_an_all_zero_block_has_zero_codes_and_the_smallest_scale() -> None:
    weight = noise((2, 32), 1)
    weight[0, 16:] = 0
    quantised = quantise(weight)
    assert not quantised.codes[0, 16:].any()
    assert quantised.scales[0, 1].item() == 2.0**-6
    assert same_bits(dequantise(quantise(torch.zeros(2, 32))), torch.zeros(2, 32))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    weight = noise((2, 32), 1)
    weight[1, 7] = bad
    with pytest.raises(NonFiniteError, match=r"layers\.0\.q_proj"):
        quantise(weight, name="layers.0.q_proj")
    with pytest.raises(NonFiniteError, match="qkv"):
        shared_global_scale([noise((2, 32), 2), weight], "qkv")


@pytest.mark.parametrize("bad", [0.0, math.nan, -1.0])
def test_scales_that_are_not_positive_and_finite_are_refused_by_name(bad: float) -> None:
    quantised = quantise(noise((2, 32), 1))
    scales = quantised.scales.float()
    scales[1, 0] = bad
    with pytest.raises(BadScaleError, match=r"down_proj: block scale \[1, 0\] is"):
        dequantise(Quantised(quantised.codes, scales.to(torch.float8_e4m3fn), 2.0), "down_proj")
    for worse in (bad, math.inf):
        with pytest.raises(BadScaleError, match="down_proj: global scale"):
            dequantise(Quantised(quantised.codes, quantised.scales, worse), "down_proj")
        with pytest.raises(BadScaleError, match="down_proj: global scale"):
            quantise(noise((2, 32), 1), worse, "down_proj")


def test_other_dtypes_and_widths_are_refused() -> None:
    with pytest.raises(TypeError, match=r"head: torch\.bfloat16"):
        quantise(torch.zeros(2, 32, dtype=torch.bfloat16), name="head")
    with pytest.raises(UsageError, match=r"up_proj: shape \(2, 24\).*divisible by 16"):
        quantise(torch.zeros(2, 24), name="up_proj")


def test_gradients_pass_straight_through_to_the_master() -> None:
    model = prepare(tiny_model())
    linear = model.model.layers[0].mlp.down_proj
    x = noise((3, 48), 5)
    linear(x).sum().backward()
    assert torch.allclose(linear.weight.grad, x.sum(0).expand(32, 48))


@pytest.mark.parametrize("block_scales", ["amax", "four-over-six"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_weight_is_quantised_in_chunks_to_the_same_bits(dtype: torch.dtype, block_scales: str) -> None:
    weight = noise((1500, 112), 5) * 0.1
    whole = fake_quantise(weight, 2.0**12, block_scales=block_scales).to(dtype)
    assert weight.numel() > 2 * CHUNK and torch.equal(_quantised(weight, 2.0**12, dtype, block_scales), whole)


def test_forward_uses_one_scale_for_qkv_and_follows_the_weights() -> None:
    model = prepare(tiny_model())
    attention = model.model.layers[0].self_attn
    x = torch.eye(32)
    with torch.no_grad():
        attention.v_proj.weight.mul_(50)
        shared = shared_global_scale([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)], "qkv")
        assert shared < power_of_two_global_scale(attention.k_proj.weight.abs().max().item())
        assert same_bits(attention.k_proj(x), fake_quantise(attention.k_proj.weight, shared).T.contiguous())


def test_masters_of_another_dtype_are_refused() -> None:
    with pytest.raises(UsageError, match=r"q_proj.weight: torch.float16; expected float32"):
        prepare(tiny_model().half())


def test_the_magnitudes_are_those_of_e2m1() -> None:
    theirs = np.arange(8, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert tuple(theirs) == E2M1
