"""Quantized layers in a model: which ones, how far the logits move, which gradients flow, what is held in memory."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import modelcore.gptx
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.gptx.vocab_padding import pad_vocabulary
from modelcore.quantization import Int8Linear, NF4Linear, QuantizedLinear, quantize_model

CONFIG = GPTConfig(
    vocab_size=101, context_length=32, n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, d_ff=176, attention_bias=True
)
TOKENS = torch.randint(101, (4, 32), generator=torch.Generator().manual_seed(5))
LAYERS = pytest.mark.parametrize("layer", [Int8Linear, NF4Linear])


def seeded():
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    for parameter in model.parameters():  # biases and norms that matter
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


@LAYERS
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_computes_with_the_weight_it_stands_for(layer, bias):
    linear = nn.Linear(48, 20, bias=bias)
    quantized = layer(linear)
    x = torch.randn(2, 5, 48)
    wanted = nn.functional.linear(x, quantized.dequantized(), linear.bias)
    assert torch.allclose(quantized(x), wanted, atol=1e-6)


@LAYERS
def test_the_inputs_gradient_is_that_of_the_weight_it_stands_for(layer):
    quantized = layer(nn.Linear(12, 9)).double()
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    out = torch.randn(3, 9, dtype=torch.float64)
    quantized(x).backward(out)
    assert torch.allclose(x.grad, out @ quantized.dequantized().double(), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


@LAYERS
def test_between_the_passes_only_bytes_are_held(layer):
    """What autograd saves for the backward pass, by its own hook: no weight, no input."""
    quantized, saved = layer(nn.Linear(64, 64, bias=False)), []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        quantized(x)
    assert saved == []


@pytest.mark.parametrize(("kind", "layer", "bits"), [("int8", Int8Linear, 8.6), ("nf4", NF4Linear, 4.5)])
def test_the_blocks_linear_layers_are_quantized_and_nothing_else(kind, layer, bits):
    model, plain = quantize_model(seeded(), kind), seeded()
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert set(kinds.values()) == {layer}
    assert len(kinds) == 3 * 4
    assert all(name.startswith("blocks.") for name in kinds)
    for name, tensor in model.state_dict().items():
        if name in plain.state_dict():
            assert torch.equal(tensor, plain.state_dict()[name]), name
    weights = sum(module.weight.numel() for name, module in plain.named_modules() if name in kinds)
    held = sum(b.numel() * b.element_size() for name in kinds for b in model.get_submodule(name).buffers())
    assert held * 8 / weights <= bits


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.02), ("nf4", 0.2)])
def test_the_logits_move_by_a_bounded_part_of_their_size(kind, bound, head):
    with torch.no_grad():
        exact, rounded = seeded()(TOKENS), quantize_model(seeded(), kind, head=head)(TOKENS)
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < bound


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("multiple", [1, 64])
def test_the_head_is_quantized_where_it_is_asked_for_and_the_embedding_never(tied, multiple):
    """A head that is padded for speed loses its padding."""
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(CONFIG, tie_embeddings=tied)).eval()
    weight, embedding = model.head.weight.clone(), model.embedding.weight.clone()
    quantize_model(pad_vocabulary(model, multiple), "int8", head=True)
    assert type(model.head) is Int8Linear
    assert model.head.values.shape == weight.shape
    assert torch.allclose(model.head.dequantized(), weight, atol=1e-3)
    assert torch.equal(model.embedding.weight[:101], embedding)
    with torch.no_grad():
        assert model(TOKENS).shape == (4, 32, 101)


def test_none_leaves_the_model_as_it_is():
    model = quantize_model(seeded(), "none", head=True)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="quantization is 'int4'; it must be one of: none, int8, nf4"):
        quantize_model(seeded(), "int4")


def test_the_decoder_does_not_know_of_quantization():
    sources = [path.read_text(encoding="utf-8") for path in Path(modelcore.gptx.__file__).parent.glob("*.py")]
    assert sources
    assert not any("quantization" in source for source in sources)
