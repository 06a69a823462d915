"""With the cache, the model says what it says without: same logits, for every position scheme."""

import pytest
import torch

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig, KVCache

CONTEXT = 32
TOLERANCE = {"rtol": 0, "atol": 1e-5}

KINDS = {
    "learned": {"positions": "learned", "norm": "layernorm", "feedforward": "gelu_tanh", "norm_bias": True},
    "rope": {"positions": "rope"},
    "alibi": {"positions": "alibi"},
}


@pytest.fixture(params=KINDS)
def model(request) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(61, CONTEXT, 2, 48, 6, 2, 64, **KINDS[request.param])).eval()
    for parameter in model.parameters():  # far from the small initial values, so that attention is not flat
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(61, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(model: GPT, tokens: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """The logits of ``tokens``, read through a cache in pieces of the sizes given."""
    cache = KVCache(model.config, len(tokens))
    logits = []
    for chunk in tokens.split(chunks, dim=1):
        logits.append(model(chunk, cache))
        cache.advance(chunk.shape[1])
    return torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize(
    "chunks", [[CONTEXT], [1] * CONTEXT, [20] + [1] * 12, [7, 1, 16, 3, 5]], ids=["whole", "single", "prefill", "mixed"]
)
def test_cached_logits_equal_uncached_however_the_text_is_cut(model, tokens, chunks):
    torch.testing.assert_close(read(model, tokens, chunks), model(tokens), **TOLERANCE)


@torch.no_grad()
def test_rows_of_unequal_length_do_not_disturb_each_other(model, tokens):
    """Prompts padded on the right, then one token at a time, against each row alone and without a cache."""
    lengths = [3, 17, 9]
    prompts = tokens[:, :17].clone()
    for row, length in enumerate(lengths):
        prompts[row, length:] = 60  # padding that must not be seen
    cache = KVCache(model.config, 3)
    prefill = model(prompts, cache)
    cache.advance(lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(prefill[row, :length], model(tokens[row : row + 1, :length])[0], **TOLERANCE)
    for step in range(CONTEXT - 17):
        following = torch.stack([tokens[row, length + step] for row, length in enumerate(lengths)])
        logits = model(following[:, None], cache)
        cache.advance(1)
        for row, length in enumerate(lengths):
            alone = model(tokens[row : row + 1, : length + step + 1])
            torch.testing.assert_close(logits[row, 0], alone[0, -1], **TOLERANCE)
    assert cache.lengths.tolist() == [length + CONTEXT - 17 for length in lengths]


@torch.no_grad()
def test_rows_that_leave_take_nothing_with_them(model, tokens):
    cache = KVCache(model.config, 3)
    model(tokens[:, :12], cache)
    cache.advance([12, 5, 8])
    cache.keep([2, 1])
    assert cache.lengths.tolist() == [8, 5]
    assert cache.longest == 8
    logits = model(torch.stack([tokens[2, 8], tokens[1, 5]])[:, None], cache)
    torch.testing.assert_close(logits[0, 0], model(tokens[2:3, :9])[0, -1], **TOLERANCE)
    torch.testing.assert_close(logits[1, 0], model(tokens[1:2, :6])[0, -1], **TOLERANCE)


@torch.no_grad()
def test_a_rewound_row_goes_on_as_if_what_followed_had_never_been(model, tokens):
    cache = KVCache(model.config, 3)
    model(tokens[:, :14], cache)
    cache.advance(14)
    cache.rewind([10, 14, 3])
    assert cache.longest == 14
    following = torch.stack([tokens[0, 20:22], tokens[1, 14:16], tokens[2, 25:27]])
    logits = model(following, cache)
    for row, length in enumerate([10, 14, 3]):
        alone = torch.cat((tokens[row, :length], following[row]))[None]
        torch.testing.assert_close(logits[row], model(alone)[0, -2:], **TOLERANCE)


@pytest.mark.parametrize("lengths", [[5, -1, 5], [6, 5, 5]], ids=["negative", "longer"])
def test_a_row_is_rewound_only_to_what_it_holds(model, lengths):
    cache = KVCache(model.config, 3)
    cache.advance(5)
    with pytest.raises(ValueError, match="cannot be rewound"):
        cache.rewind(lengths)


@torch.no_grad()
def test_tokens_count_only_once_they_are_advanced(model, tokens):
    """A rejected guess is overwritten by what is written next."""
    cache = KVCache(model.config, 3)
    model(tokens[:, :10], cache)
    cache.advance(10)
    model(tokens[:, 20:25], cache)
    assert cache.longest == 10
    torch.testing.assert_close(model(tokens[:, 10:14], cache), model(tokens[:, :14])[:, 10:], **TOLERANCE)


@torch.no_grad()
def test_a_cache_shorter_than_the_context_holds_what_it_says(model, tokens):
    cache = KVCache(model.config, 3, 10)
    assert cache.keys[0].data.shape == cache.values[0].data.shape == (3, 2, 10, 8)
    torch.testing.assert_close(model(tokens[:, :10], cache), model(tokens[:, :10]), **TOLERANCE)


@torch.no_grad()
def test_a_token_past_the_end_is_an_error_and_changes_nothing(model, tokens):
    cache = KVCache(model.config, 3, 10)
    model(tokens[:, :8], cache)
    cache.advance(8)
    with pytest.raises(InputError) as error:
        model(tokens[:, 8:11], cache)
    assert str(error.value) == (
        "8 cached and 3 new tokens exceed the 10 the cache holds; shorten the prompt or ask for fewer tokens"
    )
    torch.testing.assert_close(model(tokens[:, 8:10], cache), model(tokens[:, :10])[:, 8:], **TOLERANCE)


@pytest.mark.parametrize("length", [0, CONTEXT + 1])
def test_a_cache_the_model_cannot_fill_is_refused(model, length):
    with pytest.raises(InputError, match=rf"a cache of {length} tokens does not fit .* choose 1 to {CONTEXT}"):
        KVCache(model.config, 1, length)


@torch.no_grad()
def test_a_cache_of_half_precision_stays_close(model, tokens):
    cache = KVCache(model.config, 3, dtype=torch.bfloat16)
    logits = model(tokens[:, :20], cache)
    assert cache.keys[0].data.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(tokens[:, :20]), rtol=0.05, atol=0.25)
