"""A long prompt is read in pieces of bounded size, and what follows is what follows from reading it whole."""

import pytest
import torch

from modelcore.gptx import KVCache
from modelcore.inference import SamplingConfig, generate, prefill
from modelcore.inference.prefill import read_prompts

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [3, 4, 3], [i * 7 % 61 for i in range(20)]]


@pytest.fixture(params=["learned", "rope", "alibi"])
def model(request, make_model):
    return make_model(request.param)


@torch.no_grad()
def read(model, prompts, rewind=16):
    cache = KVCache(model.config, len(prompts), rewind=rewind)
    return read_prompts(model, prompts, cache), cache


@torch.no_grad()
def uncached(model, prompts):
    """The states at each prompt's end, each read by itself without a cache."""
    return torch.cat([model.hidden(torch.tensor([prompt]))[:, -1] for prompt in prompts])


@pytest.mark.parametrize("tokens_at_once", [1, 4, 12, 28, 44, 80])
def test_pieces_of_any_size_give_the_same_states_and_cache(model, monkeypatch, tokens_at_once):
    whole, cache = read(model, PROMPTS)
    monkeypatch.setattr(prefill, "MAX_TOKENS_AT_ONCE", tokens_at_once)
    found, found_cache = read(model, PROMPTS)
    torch.testing.assert_close(found, uncached(model, PROMPTS), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    assert found_cache.lengths.tolist() == cache.lengths.tolist() == [len(prompt) for prompt in PROMPTS]
    assert found_cache.longest == 20
    for row, prompt in enumerate(PROMPTS):
        for ours, theirs in zip(found_cache.keys + found_cache.values, cache.keys + cache.values, strict=True):
            end = len(prompt)
            torch.testing.assert_close(ours.data[row, :, :end], theirs.data[row, :, :end], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens_at_once", [1, 4, 12, 28, 80])
def test_pieces_of_any_size_give_the_same_states_with_a_sliding_window(make_model, monkeypatch, tokens_at_once):
    """The cache is a ring then, shorter than the longest prompt."""
    model = make_model(window=3)
    monkeypatch.setattr(prefill, "MAX_TOKENS_AT_ONCE", tokens_at_once)
    found, cache = read(model, PROMPTS, rewind=1)
    assert cache.slots == 4
    torch.testing.assert_close(found, uncached(model, PROMPTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_of_any_size_give_the_same_text(model, monkeypatch, temperature):
    sampling = SamplingConfig(temperature=temperature)
    expected = generate(model, PROMPTS, sampling, 12)
    for tokens_at_once in (4, 12, 52):
        monkeypatch.setattr(prefill, "MAX_TOKENS_AT_ONCE", tokens_at_once)
        assert generate(model, PROMPTS, sampling, 12) == expected


@pytest.mark.parametrize("tokens_at_once", [4, 10, 40])
def test_no_pass_reads_more_tokens_of_all_rows_than_the_bound(model, monkeypatch, tokens_at_once):
    sizes = []
    model.embedding.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].numel()))
    monkeypatch.setattr(prefill, "MAX_TOKENS_AT_ONCE", tokens_at_once)
    read(model, PROMPTS)
    assert max(sizes) <= tokens_at_once
    assert sum(sizes) == 20 * len(PROMPTS)
