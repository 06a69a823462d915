"""Cached equals uncached, however the text is cut: for every position scheme and window, rows of any length, chunks of
any size, padding, guesses that are not kept and tokens that are taken back."""

import functools

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcore.gptx import GPT, GPTConfig, KVCache, RopeScaling

CONTEXT, VOCAB = 24, 31

# Dynamic scaling is plain RoPE up to its original context; what it does past it, with a cache, is Hugging Face's to
# say: tests/modelcore/convert/test_huggingface_parity.py.
SCHEMES = {
    "learned": {"positions": "learned", "norm": "layernorm", "feedforward": "gelu_tanh", "norm_bias": True},
    "alibi": {"positions": "alibi", "embedding_norm": True},
    "rope": {},
    "linear": {"rope_scaling": RopeScaling("linear", 3.0)},
    "dynamic": {"rope_scaling": RopeScaling("dynamic", 1.0, CONTEXT)},
    "llama3": {"rope_scaling": RopeScaling("llama3", 2.0, 12), "rope_theta": 50.0},
    "yarn": {"rope_scaling": RopeScaling("yarn", 2.0, 12), "rope_theta": 50.0},
}


@functools.cache
def model(scheme: str, window: int | None) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(VOCAB, CONTEXT, 2, 24, 4, 2, 32, sliding_window=window, **SCHEMES[scheme])).eval()
    for parameter in model.parameters():  # far from the small initial values, so that attention is not flat
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@st.composite
def cases(draw):
    """A model, and passes: how many tokens each row is given, and how many of them count."""
    window = draw(st.none() | st.integers(1, CONTEXT))
    rewind = draw(st.integers(0, 6))
    rows = draw(st.integers(1, 3))
    held, newest, passes = [0] * rows, [0] * rows, []
    while max(held) < CONTEXT and len(passes) < 9:
        time = draw(st.one_of(st.just(1), st.integers(1, CONTEXT - max(held))))
        counts = [draw(st.sampled_from((time, time, draw(st.integers(0, time))))) for _ in held]
        # A ring goes back `rewind` + 1 tokens from the newest that was written to it, if only as a guess.
        written = [n + (time if time <= rewind + 1 else count) for n, count in zip(held, counts, strict=True)]
        newest = [max(pair) for pair in zip(newest, written, strict=True)]
        held = [n + count for n, count in zip(held, counts, strict=True)]
        limits = [max(0, min(n, n + rewind + 1 - new)) for n, new in zip(held, newest, strict=True)]
        back = [draw(st.sampled_from((0, 0, draw(st.integers(0, limit))))) for limit in limits]
        passes.append((time, counts, back))
        held = [n - taken for n, taken in zip(held, back, strict=True)]
    return draw(st.sampled_from(list(SCHEMES))), window, rewind, rows, passes, draw(st.integers(0, 99))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
@torch.no_grad()
def test_cached_logits_equal_uncached_however_the_text_is_cut(case):
    scheme, window, rewind, rows, passes, seed = case
    gpt, generator = model(scheme, window), torch.Generator().manual_seed(seed)
    cache = KVCache(gpt.config, rows, rewind=rewind)
    texts = [torch.zeros(0, dtype=torch.long)] * rows
    for time, counts, back in passes:
        tokens = torch.randint(VOCAB, (rows, time), generator=generator)
        logits = gpt(tokens, cache)
        texts = [torch.cat((text, new)) for text, new in zip(texts, tokens, strict=True)]
        for text, row_logits in zip(texts, logits, strict=True):
            torch.testing.assert_close(row_logits, gpt(text[None])[0, -time:], rtol=0, atol=1e-5)
        cache.advance(counts)
        # Tokens that did not count, and those taken back from the ones that did, have never been.
        if any(back):
            cache.rewind([n - taken for n, taken in zip(cache.lengths.tolist(), back, strict=True)])
        ends = [time - count + taken for count, taken in zip(counts, back, strict=True)]
        texts = [text[: len(text) - end] for text, end in zip(texts, ends, strict=True)]
        assert cache.lengths.tolist() == [len(text) for text in texts]
        assert cache.longest == max(len(text) for text in texts)
