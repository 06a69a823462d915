"""An adapter on a quantized base: it is tuned there, and merged into the full-precision model."""

import pytest
import torch
import torch.nn.functional as F

from modelcore.adapters import LoRAConfig, add_lora, load_adapter, lora_parameters, merge, save_adapter
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.quantization import quantize_model

SIZES = {"vocab_size": 41, "context_length": 16, "n_layers": 2, "d_model": 24, "n_heads": 4, "d_ff": 40}
CONFIGS = {
    "llama": GPTConfig(n_kv_heads=2, **SIZES),
    "gpt2": GPTConfig(
        n_kv_heads=4, positions="learned", norm="layernorm", feedforward="gelu_tanh", attention_bias=True,
        feedforward_bias=True, norm_bias=True, tie_embeddings=True, **SIZES,
    ),
}  # fmt: skip
TOKENS = torch.randint(41, (3, 16), generator=torch.Generator().manual_seed(5))

ARCHITECTURES = pytest.mark.parametrize("name", CONFIGS)
QUANTIZATIONS = pytest.mark.parametrize("quantization", ["int8", "nf4"])
KINDS = pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])


def base_of(name):
    torch.manual_seed(0)
    return GPT(CONFIGS[name]).eval()


def dequantized(name, quantization):
    """The plain model whose weights are those that the quantized one stands for."""
    model, rounded = base_of(name), quantize_model(base_of(name), quantization)
    for layer, module in rounded.named_modules():
        if hasattr(module, "dequantized"):
            model.get_submodule(layer).weight.data = module.dequantized()
    return model


def loss(model):
    return F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten())


def adapted(model, dora):
    torch.manual_seed(1)
    add_lora(model, LoRAConfig(rank=3, alpha=3, dora=dora))
    generator = torch.Generator().manual_seed(2)
    for parameter in lora_parameters(model):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@KINDS
@QUANTIZATIONS
@ARCHITECTURES
def test_logits_and_gradients_are_those_on_the_weights_it_stands_for(name, quantization, dora):
    ours = adapted(quantize_model(base_of(name), quantization), dora)
    plain = adapted(dequantized(name, quantization), dora)
    losses = [loss(model) for model in (ours, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    for each in losses:
        each.backward()
    for got, wanted in zip(lora_parameters(ours), lora_parameters(plain), strict=True):
        assert (got.grad - wanted.grad).abs().max() <= 1e-6
    assert all(parameter.grad is None for parameter in ours.parameters() if not parameter.requires_grad)


@KINDS
@QUANTIZATIONS
@ARCHITECTURES
def test_tuned_on_a_quantized_base_it_serves_the_full_one_and_merges_into_it(name, quantization, dora, tmp_path):
    tuned = add_lora(quantize_model(base_of(name), quantization), LoRAConfig(rank=4, alpha=8, dora=dora))
    optimizer = torch.optim.AdamW(lora_parameters(tuned), lr=2e-2, weight_decay=0.0)
    before = loss(base_of(name)).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss(tuned).backward()
        optimizer.step()
    save_adapter(tmp_path, tuned)
    model = load_adapter(tmp_path, base_of(name))
    with torch.no_grad():
        after, unmerged = loss(tuned).item(), model(TOKENS)
        assert after < before - 0.2
        assert loss(model).item() < after + 0.1 * (before - after)  # the rounding of the base costs a tenth of the gain
        assert (merge(model)(TOKENS) - unmerged).abs().max() <= 1e-4


@QUANTIZATIONS
def test_merging_into_quantized_weights_is_refused_and_changes_nothing(quantization):
    model = adapted(quantize_model(base_of("llama"), quantization), dora=False)
    before = model(TOKENS)
    with pytest.raises(InputError, match="load the model without quantization, then the adapter, and merge them"):
        merge(model)
    assert torch.equal(model(TOKENS), before)


@QUANTIZATIONS
@ARCHITECTURES
def test_it_comes_back_bit_for_bit(name, quantization, tmp_path):
    model = adapted(quantize_model(base_of(name), quantization), dora=False)
    save_adapter(tmp_path, model)
    assert torch.equal(load_adapter(tmp_path, quantize_model(base_of(name), quantization))(TOKENS), model(TOKENS))
