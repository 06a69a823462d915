"""The product with int8 weights for inference: how near it is to the one with the weight made whole, and when it is."""

import concurrent.futures
import copy
import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from modelcore.gptx import GPT, GPTConfig, KVCache
from modelcore.gptx.int8 import dequantize_int8, quantize_int8
from modelcore.inference import SamplingConfig, generate
from modelcore.quantization import Int8Linear, int8_product, quantize_model
from modelcore.quantization.int8_product import int8_linear, multiplies_int8_exactly, pack, packed_linear

needs_vnni = pytest.mark.skipif(not multiplies_int8_exactly(), reason="this CPU has no VNNI")


@pytest.fixture(params=["digits", "pieces"])
def way(request, monkeypatch):
    """Both products, for weights of any size; the digits where this CPU has the instructions."""
    if request.param == "digits" and not multiplies_int8_exactly():
        pytest.skip("this CPU has no VNNI")
    monkeypatch.setattr(int8_product, "_FEWEST_WEIGHTS", 0)
    monkeypatch.setattr(int8_product, "_WEIGHTS_AT_ONCE", 1000)
    monkeypatch.setattr(int8_product, "multiplies_int8_exactly", lambda: request.param == "digits")
    return request.param


def product(way, x, values, scale, bias=None):
    if way == "digits":
        return packed_linear(x, pack(values, scale), bias)
    return int8_linear(x, values, scale, bias)


def relative_error(way, x, values, scale, bias=None):
    exact = F.linear(x.double(), dequantize_int8(values, scale).double(), None if bias is None else bias.double())
    y = product(way, x, values, scale, bias)
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
        assert relative_error(way, x, values, scale, bias) < (5e-5 if way == "digits" else 1e-6)


@needs_vnni
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
    y = packed_linear(x, pack(values, scale))
    bound = 1.01 * unit / 508 * weight.abs().sum(dim=1) + 1e-6 * x.abs().double() @ weight.abs().t()
    assert ((y - x.double() @ weight.t()).abs() <= bound).all()


@needs_vnni
def test_a_row_does_not_depend_on_the_rows_beside_it():
    generator = torch.Generator().manual_seed(0)
    packed = pack(*quantize_int8(torch.randn(701, 512, generator=generator)))
    bias = torch.randn(701, generator=generator)
    x = torch.randn(130, 512, generator=generator) * torch.logspace(-3, 3, 130)[:, None]
    alone = torch.cat([packed_linear(x[row, None], packed, bias) for row in range(130)])
    for rows in (2, 3, 8, 130):
        assert torch.equal(packed_linear(x[:rows], packed, bias), alone[:rows])


@needs_vnni
def test_an_activation_halfway_between_two_digits_gets_a_low_digit_that_fits_the_high_one():
    """Where a sum with 127 rounds another way than the number itself, the digits must not take different ways."""
    halves = torch.arange(-126, 127).float() + 0.5
    x = torch.cat((torch.tensor([127.0]), halves, halves.nextafter(halves + 1), halves.nextafter(halves - 1)))
    values, scale = torch.full((1, len(x)), 127, dtype=torch.int8), torch.tensor([[1 / 127]])
    for number in range(len(x)):
        one = torch.zeros_like(x)
        one[0], one[number] = 127.0, x[number]
        y = packed_linear(one[None], pack(values, scale))
        assert abs(y.item() - one.sum().item()) < 1 / 254


@pytest.mark.parametrize("shape", [(7, 1), (1, 7), (1, 1)])
def test_a_weight_may_be_a_single_row_or_column(way, shape):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=generator), torch.randn(2, shape[1], generator=generator)
    assert relative_error(way, x, *quantize_int8(weight)) < 5e-5


def test_rows_of_zeros_and_weights_of_zeros_give_zeros(way):
    values, scale = quantize_int8(torch.zeros(7, 5))
    assert torch.equal(product(way, torch.randn(3, 5), values, scale), torch.zeros(3, 7))
    values, scale = quantize_int8(torch.randn(7, 5))
    assert torch.equal(product(way, torch.zeros(3, 5), values, scale), torch.zeros(3, 7))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_with_a_number_that_is_none_gives_none(way, broken):
    values, scale = quantize_int8(torch.ones(7, 5))
    x = torch.ones(2, 5)
    x[0, 3] = broken
    y = product(way, x, values, scale)
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_half_the_width_come_back_as_wide(way, dtype):
    values, scale = quantize_int8(torch.randn(64, 96))
    x, bias = torch.randn(2, 3, 96).to(dtype), torch.randn(64).to(dtype)
    assert relative_error(way, x, values, scale, bias) < 4e-3


@needs_vnni
def test_a_large_weight_is_packed_and_a_small_one_is_not():
    for outputs, packed in ((512, True), (511, False)):
        layer = Int8Linear(torch.nn.Linear(512, outputs))
        assert int8_product.packs(layer.values) is packed


@needs_vnni
def test_a_layer_holds_its_weight_once_packed_or_not():
    layer = Int8Linear(torch.nn.Linear(600, 500))
    values = layer.values.clone()
    assert sum(buffer.nbytes for buffer in layer.buffers()) == 600 * 500 + 4 * 500
    with torch.inference_mode():
        layer(torch.ones(1, 600))
    assert sum(buffer.nbytes for buffer in layer.buffers()) == 4 * 500
    assert torch.equal(layer.values, values)
    layer(torch.ones(1, 600, requires_grad=True)).sum().backward()  # tuning goes on after a measurement
    assert sum(buffer.nbytes for buffer in layer.buffers()) == 600 * 500 + 4 * 500
    assert torch.equal(layer.values, values)


@needs_vnni
@pytest.mark.parametrize(
    "again",
    [
        copy.deepcopy,
        lambda layer: layer.to(torch.float32),
        lambda layer: layer.load_state_dict(layer.state_dict()) and layer,
    ],
    ids=["copied", "moved", "saved and loaded"],
)
def test_a_layer_that_has_multiplied_can_be(again):
    layer, x = Int8Linear(torch.nn.Linear(600, 500)), torch.randn(3, 600)
    with torch.inference_mode():
        before = layer(x)
        after = again(layer)(x)
    assert torch.equal(before, after)


@needs_vnni
def test_threads_may_ask_for_the_first_product_at_once():
    for _ in range(20):
        layer, x = Int8Linear(torch.nn.Linear(600, 500)), torch.randn(1, 600)
        start = threading.Barrier(4)

        def first(layer=layer, x=x, start=start):
            start.wait()
            with torch.inference_mode():
                return layer(x)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            made = [each.result() for each in [pool.submit(first) for _ in range(4)]]
        assert all(torch.equal(each, made[0]) for each in made)


def test_without_the_instructions_the_weight_is_made_whole_piece_by_piece():
    """FBGEMM told to use none of a newer CPU's, in a process of its own: sums of its products overflow there."""
    code = """
import torch
from modelcore.quantization import Int8Linear
from modelcore.quantization.int8_product import multiplies_int8_exactly

layer = Int8Linear(torch.nn.Linear(512, 600))
x = torch.randn(2, 512)
assert not multiplies_int8_exactly()
with torch.inference_mode():
    assert torch.allclose(layer(x), x @ layer.dequantized().t() + layer.bias, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"})


def test_with_gradients_the_layer_makes_its_weight_whole_as_ever(monkeypatch):
    """Tuning gets the exact products and the exact gradients, and holds no more than it did."""
    for name in ("int8_linear", "packed_linear"):
        monkeypatch.setattr(f"modelcore.quantization.linear.{name}", None)
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
    torch.testing.assert_close(product(way, x, values, scale), expected, rtol=1e-4, atol=1e-4)
