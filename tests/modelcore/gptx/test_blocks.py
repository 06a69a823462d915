"""Shapes at every sub-layer, causality, initialization, and what the model refuses to read."""

import math

import pytest
import torch
import torch.nn.functional as F

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.gptx.feedforward import FeedForward
from modelcore.gptx.norms import build_norm
from modelcore.gptx.positions import apply_rope
from modelcore.gptx.short_attention import short_causal_attention

KINDS = {
    "gpt2": {
        "positions": "learned",
        "norm": "layernorm",
        "feedforward": "gelu_tanh",
        "attention_bias": True,
        "feedforward_bias": True,
        "norm_bias": True,
        "tie_embeddings": True,
    },
    "llama": {},
    "alibi": {"positions": "alibi", "norm": "layernorm", "feedforward": "gelu"},
}


@pytest.fixture(params=KINDS)
def model(request) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(53, 24, 3, 48, 6, 2, 80, **KINDS[request.param])).eval()


@torch.no_grad()
def test_every_sub_layer_has_the_shape_it_says(model):
    outputs = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    model(torch.zeros(2, 7, dtype=torch.long))
    width = 160 if model.config.feedforward == "swiglu" else 80
    x_and_change = [outputs.pop(f"blocks.{layer}") for layer in range(3)]
    shapes = {name: tuple(output.shape) for name, output in outputs.items()}
    for layer in range(3):
        assert shapes[f"blocks.{layer}.attention_norm"] == (2, 7, 48)
        assert shapes[f"blocks.{layer}.attention.qkv"] == (2, 7, 48 + 2 * 2 * 8)
        assert shapes[f"blocks.{layer}.attention.out"] == (2, 7, 48)
        assert shapes[f"blocks.{layer}.attention"] == (2, 7, 48)
        assert shapes[f"blocks.{layer}.feedforward_norm"] == (2, 7, 48)
        assert shapes[f"blocks.{layer}.feedforward.up"] == (2, 7, width)
        assert shapes[f"blocks.{layer}.feedforward.down"] == (2, 7, 48)
        assert [tuple(part.shape) for part in x_and_change[layer]] == [(2, 7, 48), (2, 7, 48)]
    assert shapes["norm"] == (2, 7, 48)
    assert shapes["head"] == shapes[""] == (2, 7, 53)


@torch.no_grad()
def test_a_later_token_never_changes_an_earlier_logit(model):
    tokens = torch.randint(53, (1, 24), generator=torch.Generator().manual_seed(1))
    logits = model(tokens)
    for position in (1, 11, 23):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % 53
        difference = (model(changed) - logits).abs().amax(-1)[0]
        assert difference[:position].max() == 0
        assert difference[position:].min() > 0


@torch.no_grad()
def test_rows_of_a_batch_are_independent(model):
    tokens = torch.randint(53, (4, 24), generator=torch.Generator().manual_seed(2))
    together = model(tokens)
    for row in range(4):
        torch.testing.assert_close(together[row], model(tokens[row : row + 1])[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_attention_equals_the_textbook(model):
    """Scores, scale, position bias, mask and softmax written out, head by head."""
    attention = model.blocks[0].attention
    config = model.config
    x = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(3))
    inputs, _ = model._inputs(torch.zeros(1, 9, dtype=torch.long), None)
    q, k, v = attention.qkv(x)[0].split(config.qkv_sizes, dim=-1)
    heads = []
    for head in range(6):
        shared = head // 3  # six query heads share two key heads
        q_head = q[:, 8 * head : 8 * head + 8]
        k_head, v_head = (part[:, 8 * shared : 8 * shared + 8] for part in (k, v))
        if config.positions == "rope":
            angles = torch.outer(torch.arange(9.0), 10_000 ** (-torch.arange(0, 8, 2) / 8))
            turn = torch.polar(torch.ones_like(angles), angles)
            q_head, k_head = (
                torch.cat([(c := torch.complex(*part.chunk(2, -1)) * turn).real, c.imag], -1)
                for part in (q_head.contiguous(), k_head.contiguous())
            )
        scores = q_head @ k_head.T / math.sqrt(8)
        if config.positions == "alibi":
            scores -= model.slopes[head] * (torch.arange(9)[:, None] - torch.arange(9))
        scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -math.inf)
        heads.append(scores.softmax(-1) @ v_head)
    expected = attention.out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x, inputs, None, 0)[0], expected, rtol=0, atol=1e-5)


def test_swiglu_gates_the_upper_rows_by_the_lower_gradients_too():
    layer = FeedForward(GPTConfig(5, 4, 1, 8, 2, 2, 12))
    x = torch.randn(3, 8, requires_grad=True)
    gate, up = layer.up.weight[:12], layer.up.weight[12:]
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)
    grad = torch.randn(3, 8)
    found, exact = (torch.autograd.grad(y, [x, *layer.parameters()], grad) for y in (layer(x), expected))
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(("norm", "bias"), [("layernorm", True), ("layernorm", False), ("rmsnorm", False)])
def test_norms_follow_their_formulas(norm, bias):
    layer = build_norm(GPTConfig(5, 4, 1, 8, 2, 2, 12, norm=norm, norm_bias=bias))
    x = 3 + torch.randn(5, 8)
    centred = x - x.mean(-1, keepdim=True) if norm == "layernorm" else x
    torch.testing.assert_close(layer(x), centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    assert (getattr(layer, "bias", None) is not None) == bias


@pytest.mark.parametrize("frozen", ["nothing", "weight", "x"])
def test_rms_norms_gradient_is_its_formulas(frozen):
    layer = build_norm(GPTConfig(5, 4, 1, 8, 2, 2, 12))
    x, weight, grad = 3 * torch.randn(2, 5, 8), torch.rand(8) + 0.5, torch.randn(2, 5, 8)
    layer.weight = torch.nn.Parameter(weight, requires_grad=frozen != "weight")
    x_own = x.clone().requires_grad_(frozen != "x")
    layer(x_own).backward(grad)
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    (weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()).backward(grad.double())
    for own, exact in ((x_own, x), (layer.weight, weight)):
        if own.requires_grad:
            torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
        else:
            assert own.grad is None


@pytest.mark.parametrize("time", [1, 7, 130])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("rope", ["no rope", "rope", "rope at rows' own positions"])
def test_short_causal_attention_is_what_rope_and_sdpa_give_gradients_too(time, kv_heads, rope):
    heads = [6, kv_heads, kv_heads]
    qkv, grad = torch.randn(2, time, sum(heads) * 8), torch.randn(2, time, 6 * 8)
    cos = sin = None
    if rope != "no rope":
        angles = torch.rand((time, 4) if rope == "rope" else (2, 1, time, 4)) * 6
        cos, sin = angles.cos(), angles.sin()

    def plain(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.transpose(1, 2) for part in x.unflatten(-1, (-1, 8)).split(heads, dim=2))
        if cos is not None:
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)

    found = []
    for attend in (lambda x: short_causal_attention(x, heads, 8, cos, sin), plain):
        leaf = qkv.clone().requires_grad_()
        y = attend(leaf)
        y.backward(grad)
        found.append([y.detach(), leaf.grad])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=2e-6)


def test_a_model_that_was_first_run_for_inference_can_be_trained():
    model = GPT(GPTConfig(53, 24, 1, 48, 6, 2, 80))
    tokens = torch.arange(23)[None]
    with torch.inference_mode():
        expected = model(tokens)
    model(tokens).sum().backward()
    torch.testing.assert_close(model(tokens).detach(), expected)


def test_a_tied_head_is_the_embedding_itself(model):
    assert (model.head.weight is model.embedding.weight) == model.config.tie_embeddings


def test_initial_weights_are_gpt2s():
    torch.manual_seed(0)
    model = GPT(GPTConfig(1000, 64, 8, 128, 4, 4, 512, attention_bias=True, feedforward_bias=True))
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[3].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[3].attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.blocks[3].feedforward.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.blocks[3].attention.qkv.bias.abs().max() == 0
    loss = F.cross_entropy(model(torch.arange(64)[None]).view(-1, 1000), torch.arange(1, 65))
    assert loss.item() == pytest.approx(math.log(1000), rel=0.03)


def test_the_same_seed_makes_the_same_model():
    config = GPTConfig(11, 8, 1, 8, 2, 1, 16)
    torch.manual_seed(7)
    first = GPT(config).state_dict()
    torch.manual_seed(7)
    second = GPT(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 25, dtype=torch.long), "25 tokens do not fit the model's context of 24"),
        (torch.zeros(1, 0, dtype=torch.long), "0 tokens do not fit the model's context of 24"),
        (torch.zeros(5, dtype=torch.long), r"tokens have shape \(5,\) and type torch.int64; a \(batch, time\) matrix"),
        (torch.zeros(1, 5), r"tokens have shape \(1, 5\) and type torch.float32; a \(batch, time\) matrix"),
    ],
)
def test_tokens_the_model_cannot_read_are_refused(model, tokens, message):
    with pytest.raises(InputError, match=message):
        model(tokens)
