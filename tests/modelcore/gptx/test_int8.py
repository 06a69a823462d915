"""Int8: each row has a scale, and no weight is off by more than half of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelcore.gptx.int8 import dequantize_int8, quantize_int8


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        "float32",
        st.tuples(st.integers(1, 5), st.integers(1, 50)),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
    )
)
def test_every_weight_is_off_by_at_most_half_of_its_rows_scale(weight):
    weight = torch.from_numpy(weight)
    values, scale = quantize_int8(weight)
    assert (scale <= weight.abs().amax(dim=1, keepdim=True) / 126.99).all()
    tiny = 2e-36  # what fp32 cannot divide by 127 without loss
    assert ((dequantize_int8(values, scale) - weight).abs() <= 0.50001 * scale + tiny).all()


def test_a_row_and_its_negative_are_alike():
    weight = torch.randn(4, 33)
    values, scale = quantize_int8(weight)
    negative, same = quantize_int8(-weight)
    assert torch.equal(values, -negative)
    assert torch.equal(scale, same)
    assert values.abs().max() == 127


def test_rows_do_not_share_a_scale():
    values, scale = quantize_int8(torch.tensor([[1.0, -0.5], [1000.0, 2.0]]))
    assert scale.flatten().tolist() == pytest.approx([1 / 127, 1000 / 127])
    assert values[0].tolist() in ([127, -63], [127, -64])


def test_a_row_of_zeros_stays_zeros():
    assert not dequantize_int8(*quantize_int8(torch.zeros(2, 8))).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_on_normal_weights_is_under_a_hundredth_of_their_size(dtype):
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    error = (dequantize_int8(*quantize_int8(weight)) - weight.float()).norm() / weight.float().norm()
    assert 0.005 < error < 0.01
