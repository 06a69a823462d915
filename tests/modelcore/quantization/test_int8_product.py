"""The product with int8 weights for inference: how near it is to the one with the weight made whole, and when it is."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from modelcore.gptx import GPT, GPTConfig, KVCache
from modelcore.gptx.int8 import dequantize_int8, quantize_int8
from modelcore.inference import SamplingConfig, generate
from modelcore.quantization import Int8Linear, int8_product, quantize_model
from modelcore.quantization.int8_product import int8_linear, multiplies_int8_exactly


@pytest.fixture(params=["digits", "pieces"])
def way(request, monkeypatch):
    """Both products, for weights of any size; the digits where this CPU has the instructions."""
    if request.param == "digits" and not multiplies_int8_exactly():
        pytest.skip("this CPU has no VNNI")
    monkeypatch.setattr(int8_product, "_FEWEST_WEIGHTS", 0)
    monkeypatch.setattr(int8_product, "_WEIGHTS_AT_ONCE", 1000)
    monkeypatch.setattr(int8_product, "multiplies_int8_exactly", lambda: request.param == "digits")
    return request.param


def relative_error(x, values, scale, bias=None):
    exact = F.linear(x.double(), dequantize_int8(values, scale).double(), None if bias is None else bias.double())
    y = int8_linear(x, values, scale, bias)
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    return ((y - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("rows", [*range(1, 9), 64, 300])
def test_it_is_the_product_of_the_weight_made_whole(way, rows):
    """Within 5e-5 of its size in fp32: the activations' second digit. The weights' own rounding costs 8e-3."""
    generator = torch.Generator().manual_seed(rows)
    values, scale = quantize_int8(torch.randn(200, 96, generator=generator))
    x = torch.randn(rows, 96, generator=generator)
    for bias in (None, torch.randn(200, generator=generator)):
        assert relative_error(x, values, scale, bias) < (5e-5 if way == "digits" else 1e-6)


@given(
    rows=st.integers(1, 5),
    inputs=st.integers(2, 70),
    outputs=st.integers(1, 40),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    seed=st.integers(0, 2**32),
)
def test_each_output_is_off_by_what_the_digits_allow(rows, inputs, outputs, size, seed):
    """|x| is off by max|x| / 64,516 at most, so a sum by that much of the row's absolute weights."""
    generator = torch.Generator().manual_seed(seed)
    values, scale = quantize_int8(torch.randn(outputs, inputs, generator=generator))
    x = size * torch.randn(rows, inputs, generator=generator)
    weight = dequantize_int8(values, scale).double()
    unit = x.abs().amax(dim=1, keepdim=True) / 127
    y = int8_product._product_of_digits(x, values) * scale.flatten()
    bound = 1.01 * unit / 508 * weight.abs().sum(dim=1) + 1e-6 * x.abs().double() @ weight.abs().t()
    assert ((y - x.double() @ weight.t()).abs() <= bound).all()


def test_a_row_does_not_depend_on_the_rows_beside_it():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (700, 512), dtype=torch.int8, generator=generator)
    x = torch.randn(8, 512, generator=generator) * torch.logspace(-3, 3, 8)[:, None]
    together = int8_product._product_of_digits(x, values)
    assert all(torch.equal(together[row], int8_product._product_of_digits(x[row, None], values)[0]) for row in range(8))


@pytest.mark.parametrize("shape", [(7, 1), (1, 7), (1, 1)])
def test_a_weight_may_be_a_single_row_or_column(way, shape):
    assert relative_error(torch.randn(2, shape[1]), *quantize_int8(torch.randn(shape))) < 5e-5


def test_rows_of_zeros_and_weights_of_zeros_give_zeros(way):
    values, scale = quantize_int8(torch.zeros(7, 5))
    assert torch.equal(int8_linear(torch.randn(3, 5), values, scale), torch.zeros(3, 7))
    values, scale = quantize_int8(torch.randn(7, 5))
    assert torch.equal(int8_linear(torch.zeros(3, 5), values, scale), torch.zeros(3, 7))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_with_a_number_that_is_none_gives_none(way, broken):
    values, scale = quantize_int8(torch.ones(7, 5))
    x = torch.ones(2, 5)
    x[0, 3] = broken
    y = int8_linear(x, values, scale)
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_half_the_width_come_back_as_wide(way, dtype):
    values, scale = quantize_int8(torch.randn(64, 96))
    x, bias = torch.randn(2, 3, 96).to(dtype), torch.randn(64).to(dtype)
    assert relative_error(x, values, scale, bias) < 4e-3


def test_a_large_weight_and_a_small_one_take_the_way_that_is_faster_for_them(monkeypatch):
    taken = []
    monkeypatch.setattr(int8_product, "multiplies_int8_exactly", lambda: True)
    monkeypatch.setattr(
        int8_product, "_product_of_digits", lambda x, values: taken.append(values.shape) or F.linear(x, values.float())
    )
    for shape in ((512, 512), (512, 511)):
        int8_linear(torch.ones(1, shape[1]), *quantize_int8(torch.ones(shape)))
    assert taken == [(512, 512)]


def test_without_the_instructions_the_weight_is_made_whole_piece_by_piece():
    """oneDNN told to use none of a newer CPU's, in a process of its own: sums of its products overflow there."""
    code = """
import torch
from modelcore.gptx.int8 import dequantize_int8, quantize_int8
from modelcore.quantization.int8_product import int8_linear, multiplies_int8_exactly

values, scale = quantize_int8(torch.randn(600, 512))
x = torch.randn(2, 512)
assert not multiplies_int8_exactly()
assert torch.allclose(int8_linear(x, values, scale), x @ dequantize_int8(values, scale).t(), atol=1e-3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"})


def test_with_gradients_the_layer_makes_its_weight_whole_as_ever(monkeypatch):
    """Tuning gets the exact products and the exact gradients, and holds no more than it did."""
    monkeypatch.setattr("modelcore.quantization.linear.int8_linear", None)
    layer = Int8Linear(torch.nn.Linear(600, 500))
    x = torch.randn(4, 600, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    whole = layer.dequantized()
    assert torch.equal(y, F.linear(x, whole) + layer.bias)
    assert torch.equal(x.grad, torch.ones(4, 500) @ whole)


def test_a_trained_model_says_the_same_by_either_way(way, monkeypatch, counting_model):
    """Greedy text of 60 tokens, against layers that make their weight whole at every token."""
    prompts = [[3, 4, 5], [40, 41], [10, 12, 14, 16]]
    greedy = SamplingConfig(temperature=0)
    fast = generate(quantize_model(counting_model(), "int8", head=True), prompts, greedy, 40)
    monkeypatch.setattr(Int8Linear, "_inferred", lambda layer, x: F.linear(x, layer.dequantized(), layer.bias))
    slow = generate(quantize_model(counting_model(), "int8", head=True), prompts, greedy, 40)
    assert fast == slow
    assert fast[0].tokens[:5] == [6, 7, 8, 9, 10]


def test_reading_a_prompt_at_once_or_token_by_token_gives_the_same_logits(way, counting_model):
    model = quantize_model(counting_model(), "int8", head=True)
    tokens = torch.arange(10, 34)[None]
    cache = KVCache(model.config, 1)
    with torch.inference_mode():
        whole, singly = model(tokens), []
        for token in tokens[0]:
            singly.append(model(token[None, None], cache)[:, 0])
            cache.advance(1)
    assert torch.allclose(whole[0], torch.cat(singly), atol=2e-3)


@pytest.fixture(scope="module")
def counting_model():
    """Makes a small model that has learned to count, by ones or by twos."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=64, context_length=48, n_layers=2, d_model=48, n_heads=4, n_kv_heads=2, d_ff=96))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        start, step = torch.randint(64, (16, 1)), torch.randint(1, 3, (16, 1))
        tokens = (start + step * torch.arange(49)) % 64
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = model.eval().state_dict()

    def make():
        fresh = GPT(model.config).eval()
        fresh.load_state_dict(state)
        return fresh

    return make


@pytest.mark.parametrize("shape", [(0, 96), (2, 0, 96), (96,)])
def test_a_batch_may_be_empty_or_a_single_vector(way, shape):
    values, scale = quantize_int8(torch.randn(200, 96, generator=torch.Generator().manual_seed(0)))
    x = torch.ones(shape)
    expected = F.linear(x, dequantize_int8(values, scale))
    torch.testing.assert_close(int8_linear(x, values, scale), expected, rtol=1e-4, atol=1e-4)
