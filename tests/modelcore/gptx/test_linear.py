"""The linear layer: few rows on a CPU get a product of the same precision, and everybody else gets torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelcore.gptx import GPT, GPTConfig
from modelcore.gptx import linear as module
from modelcore.gptx.linear import Linear

SHAPES = [(640, 512, True), (768, 1000, False), (2048, 129, True)]  # (inputs, outputs, bias), of 2^18 weights or more


def seeded(inputs, outputs, bias):
    torch.manual_seed(0)
    return Linear(inputs, outputs, bias=bias)


@pytest.fixture
def products_of_onednn(monkeypatch):
    """Counts the products that are not torch's own."""
    calls = []
    original = module._is_for_onednn

    def spy(x, weight):
        if is_so := original(x, weight):
            calls.append(x.shape)
        return is_so

    monkeypatch.setattr(module, "_is_for_onednn", spy)
    return calls


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [(1,), (2,), (8,), (64,), (1, 1), (3, 5)])
def test_few_rows_are_multiplied_by_onednn_within_the_rounding_of_fp32(products_of_onednn, shape, rows):
    layer = seeded(*shape)
    x = torch.randn(*rows, shape[0])
    bias = None if layer.bias is None else layer.bias.double()
    exact = F.linear(x.double(), layer.weight.double(), bias)
    with torch.inference_mode():
        ours = layer(x)
    assert products_of_onednn == [(*rows, shape[0])]
    assert ours.shape == exact.shape
    assert (ours - exact).abs().max() <= 2e-6 * exact.abs().max()


def test_rows_that_do_not_lie_one_after_the_other_are_multiplied_too(products_of_onednn):
    layer = seeded(640, 512, True)
    x = torch.randn(640, 7).t()[::2]
    with torch.no_grad():
        assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5)
    assert len(products_of_onednn) == 1


@pytest.mark.parametrize(
    "case", ["gradients", "many rows", "no rows", "few weights", "bfloat16", "autocast", "no library"]
)
def test_everything_else_is_torchs_own_product(products_of_onednn, monkeypatch, case):
    shape = (64, 64, True) if case == "few weights" else (640, 512, True)
    layer, x = seeded(*shape), torch.randn({"many rows": 65, "no rows": 0}.get(case, 1), shape[0])
    if case == "bfloat16":
        layer, x = layer.bfloat16(), x.bfloat16()
    if case == "no library":
        monkeypatch.setattr(module, "_HAS_BOTH", False)
    with torch.set_grad_enabled(case == "gradients"), torch.autocast("cpu", enabled=case == "autocast"):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not products_of_onednn


def test_every_layer_of_a_model_is_one(products_of_onednn):
    model = GPT(
        GPTConfig(vocab_size=1024, context_length=8, n_layers=1, d_model=512, n_heads=4, n_kv_heads=4, d_ff=512)
    )
    assert all(type(layer) is Linear for layer in model.modules() if isinstance(layer, nn.Linear))
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 1, dtype=torch.long))
    assert len(products_of_onednn) == 5  # qkv, out, up, down, head
