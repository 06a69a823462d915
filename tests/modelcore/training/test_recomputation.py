"""What compiled blocks keep for the backward pass."""

import pytest
import torch

from modelcore.gptx import GPT, GPTConfig, transformer
from modelcore.training.recomputation import cheap_recomputation


def kept_by(model, tokens, monkeypatch):
    """The shapes that the forward pass keeps in bf16, parameters aside, and the gradients, with blocks compiled."""
    compiled = torch.compile(transformer._run, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(transformer, "_compiled_run", lambda: compiled)
    kept = []

    def pack(tensor):
        if tensor.dtype == torch.bfloat16:
            kept.append(tuple(tensor.shape))
        return tensor

    model.compiled = True
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden(tokens)
        return kept, torch.autograd.grad(hidden.float().square().sum(), list(model.blocks.parameters()))
    finally:
        torch._dynamo.reset()


def test_norms_activations_and_casts_are_made_anew_and_the_gradients_are_the_same(monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(53, 24, 3, 48, 6, 2, 80))
    tokens = torch.randint(53, (4, 24), generator=torch.Generator().manual_seed(1))
    everything, expected = kept_by(model, tokens, monkeypatch)
    with cheap_recomputation():
        less, found = kept_by(model, tokens, monkeypatch)

    weights = {tuple(parameter.shape) for parameter in model.blocks.parameters() if parameter.ndim == 2}
    transposed = {shape[::-1] for shape in weights}
    assert (weights | transposed) & set(everything)
    assert not (weights | transposed) & set(less)
    into_second_product, out_of_first = (96, 80), (96, 160)  # of the feed-forward
    assert {into_second_product, out_of_first} <= set(everything)
    assert out_of_first in less
    assert into_second_product not in less
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("outside", [True, False])
def test_afterwards_the_setting_is_what_it_was(outside):
    import torch._functorch.config as partitioner

    with partitioner.patch(ban_recompute_materialized_backward=outside):
        with cheap_recomputation():
            assert not partitioner.ban_recompute_materialized_backward
        assert partitioner.ban_recompute_materialized_backward == outside
