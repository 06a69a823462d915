"""What autocast and compilation change in the model, and what they do not."""

import pytest
import torch
import torch.nn.functional as F

from modelcore.gptx import GPT, GPTConfig, transformer
from modelcore.gptx.attention import Attention, AttentionInputs
from modelcore.models import get_config

SIZES = {
    "vocab_size": 53,
    "context_length": 24,
    "n_layers": 3,
    "d_model": 48,
    "n_heads": 6,
    "n_kv_heads": 2,
    "d_ff": 80,
}
KINDS = {
    "gpt2": get_config("gpt2-small").to_dict(),
    "llama": get_config("tinyllama-1.1b").to_dict(),
    "bloom": {"positions": "alibi", "norm": "layernorm", "feedforward": "gelu", "embedding_norm": True},
}


@pytest.fixture(params=KINDS)
def model(request) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig.from_dict(KINDS[request.param] | SIZES))


@pytest.fixture
def tokens():
    return torch.randint(53, (4, 25), generator=torch.Generator().manual_seed(1))


def gradients(model, hidden, tokens):
    loss = F.cross_entropy(model.head(hidden).flatten(0, 1).float(), tokens[:, 1:].flatten())
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def test_under_autocast_the_residual_stream_is_bf16(model, tokens):
    seen = {}
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0].dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        model.hidden(tokens[:, :-1])
    assert {dtype for name, dtype in seen.items() if name != "embedding_norm"} == {torch.bfloat16}


def test_under_autocast_the_gradients_are_those_of_fp32_but_for_rounding(model, tokens):
    expected = gradients(model, model.hidden(tokens[:, :-1]), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, model.hidden(tokens[:, :-1]), tokens)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 0.03 * theirs.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_compute_what_the_others_do(model, tokens, checkpointing, monkeypatch):
    """All but the code generator, which needs a C compiler here and on a GPU is another one anyway."""
    compiled = torch.compile(transformer._run, backend="aot_eager")
    monkeypatch.setattr(transformer, "_compiled_run", lambda: compiled)
    hidden = model.hidden(tokens[:, :-1])
    expected = gradients(model, hidden, tokens)
    model.compiled, model.gradient_checkpointing = True, checkpointing
    try:
        again = model.hidden(tokens[:, :-1])
        found = gradients(model, again, tokens)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(again, hidden, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_one_compilation_serves_all_blocks_but_the_first_which_has_nothing_to_add(model, tokens, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(transformer._run, backend=backend)
    monkeypatch.setattr(transformer, "_compiled_run", lambda: compiled)
    model.compiled = True
    try:
        model.hidden(tokens[:, :-1])
    finally:
        torch._dynamo.reset()
    assert len(graphs) == 3  # the first block, every other block, the last norm


def test_without_gradients_nothing_is_compiled(model, tokens, monkeypatch):
    monkeypatch.setattr(transformer, "_compiled_run", lambda: pytest.fail("compiled"))
    model.compiled = True
    with torch.no_grad():
        model.hidden(tokens[:, :-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sharp_attention_is_as_exact_as_torchs_own_in_every_dtype(dtype):
    """Scores that were rounded to a narrow type before the softmax would be off by more than a half here."""
    generator = torch.Generator().manual_seed(2)
    attention = Attention(GPTConfig(53, 200, 1, 64, 4, 2, 80)).eval().requires_grad_(False)
    attention.qkv.weight.mul_(40.0)
    attention.out.weight.copy_(torch.eye(64))
    x = torch.randn(2, 200, 64, generator=generator)
    plain = AttentionInputs(None, None, None, True, None)
    attention, x = attention.to(dtype), x.to(dtype)
    found = attention(x, plain, None, 0)
    q, k, v = (part.transpose(1, 2) for part in attention.qkv(x).view(2, 200, -1, 16).split(attention.heads, dim=2))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = expected.transpose(1, 2).reshape(2, 200, 64)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 if dtype == torch.float32 else 0.02)
