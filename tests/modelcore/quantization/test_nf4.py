"""NF4: its numbers are QLoRA's, its error is bounded block by block, two weights share a byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelcore.quantization.nf4 import BLOCK, CODES, dequantize_nf4, quantize_nf4

HALF_A_GAP = 0.152


def round_trip(weight):
    return dequantize_nf4(*quantize_nf4(weight), weight.shape)


def test_the_numbers_are_the_quantiles_of_a_normal_distribution():
    """QLoRA's appendix E: eight steps up to the 0.9677-quantile above zero, seven below, scaled to end at 1."""
    end = 1 - (1 / 32 + 1 / 30) / 2
    above = torch.special.ndtri(torch.linspace(end, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(end, 0.5, 8, dtype=torch.float64)[:-1])
    numbers = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    assert torch.allclose(CODES.double(), numbers / numbers.max(), atol=1e-6)


def test_the_bound_is_half_of_the_widest_gap():
    assert CODES.diff().max() / 2 < HALF_A_GAP < CODES.diff().max() / 2 + 0.001


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        "float32",
        st.tuples(st.integers(1, 5), st.integers(1, 200)),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
    )
)
def test_every_weight_is_off_by_at_most_the_bound_times_the_largest_of_its_block(weight):
    weight = torch.from_numpy(weight)
    error = (round_trip(weight) - weight).abs().flatten()
    for start in range(0, weight.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        assert error[block].max() <= HALF_A_GAP * weight.flatten()[block].abs().max()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(2**-10, 2**10))
def test_every_weight_becomes_the_nearest_number(seed, size):
    weight = torch.randn(3, BLOCK, generator=torch.Generator().manual_seed(seed)) * size
    largest = weight.abs().amax(dim=1, keepdim=True)
    nearest = (weight[..., None] - CODES * largest[..., None]).abs().amin(dim=-1)
    assert torch.allclose((round_trip(weight) - weight).abs(), nearest, atol=1e-6 * size)


def test_what_it_stands_for_is_kept_exactly():
    once = round_trip(torch.randn(7, 100))
    assert torch.equal(round_trip(once), once)


def test_zero_is_exact():
    weight = torch.randn(2, 64)
    weight[0, ::3] = 0
    assert not round_trip(weight)[0, ::3].any()
    assert not round_trip(torch.zeros(2, 64)).any()


def test_two_weights_share_a_byte_the_first_in_its_upper_half():
    packed, largest = quantize_nf4(torch.tensor([[-2.0, 2.0, 0.0, -2.0]]))
    assert packed[0, :2].tolist() == [0x0F, 0x70]
    assert packed.shape == (1, BLOCK // 2)
    assert largest.tolist() == [[2.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_on_normal_weights_is_a_tenth_of_their_size(dtype):
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    error = (round_trip(weight) - weight.float()).norm() / weight.float().norm()
    assert 0.08 < error < 0.1
