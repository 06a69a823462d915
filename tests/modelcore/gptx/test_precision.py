"""What autocast and compilation change in the model, and what they do not."""

import pytest
import torch
import torch.nn.functional as F

from modelcore.gptx import GPT, GPTConfig, transformer

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
    "bloom": {"positions": "alibi", "norm": "layernorm", "feedforward": "gelu", "embedding_norm": True},
}


@pytest.fixture(params=KINDS)
def model(request) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(53, 24, 3, 48, 6, 2, 80, **KINDS[request.param]))


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
