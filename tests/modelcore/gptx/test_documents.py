"""Several documents in one row: each gets the logits, and gives the gradient, that it would by itself."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig, KVCache
from modelcore.gptx.positions import positions_in_documents
from modelcore.gptx.rope_scaling import RopeScaling

CONTEXT = 24
SCHEMES = {
    "learned": {"positions": "learned"},
    "rope": {},
    "alibi": {"positions": "alibi"},
    "linear": {"rope_scaling": RopeScaling("linear", 3.0)},
    "llama3": {"rope_scaling": RopeScaling("llama3", 2.0, 12), "rope_theta": 50.0},
    "yarn": {"rope_scaling": RopeScaling("yarn", 2.0, 12), "rope_theta": 50.0},
    "dynamic, within its original context": {"rope_scaling": RopeScaling("dynamic", 1.0, CONTEXT)},
    "sliding window": {"sliding_window": 3},
    "alibi and sliding window": {"positions": "alibi", "sliding_window": 4},
}


def make_model(**changes):
    torch.manual_seed(1)
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24}
    model = GPT(GPTConfig(vocab_size=19, context_length=CONTEXT, **shape, **changes))
    for parameter in model.parameters():  # larger than at the start, so that attention is not nearly uniform
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def numbered(lengths):
    """The document of each token, for documents of these lengths one after the other."""
    return torch.tensor([number for number, length in enumerate(lengths) for _ in range(length)])


lengths_of_a_row = st.lists(st.integers(1, 10), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) <= CONTEXT)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(lengths_of_a_row, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_each_document_of_a_row_gets_the_logits_it_gets_alone(scheme, rows, seed):
    model = make_model(**SCHEMES[scheme])
    time = max(map(sum, rows))
    documents = torch.full((len(rows), time), -1)  # what is left of a row is a document too
    for row, lengths in enumerate(rows):
        documents[row, : sum(lengths)] = numbered(lengths)
    tokens = torch.randint(19, documents.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        packed = model(tokens, documents=documents)
        for row, lengths in enumerate(rows):
            start = 0
            for length in lengths:
                alone = model(tokens[row : row + 1, start : start + length])
                torch.testing.assert_close(packed[row : row + 1, start : start + length], alone, rtol=0, atol=1e-5)
                start += length


@pytest.mark.parametrize("scheme", ["learned", "rope", "alibi"])
def test_packed_documents_give_the_gradient_they_give_one_by_one(scheme):
    lengths = [5, 1, 9, 3]
    tokens = torch.randint(19, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(1)
    packed, alone = make_model(**SCHEMES[scheme]), make_model(**SCHEMES[scheme])
    logits = packed(tokens, documents=numbered(lengths)[None])
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for own, wanted in zip(tokens.split(lengths, dim=1), targets.split(lengths, dim=1), strict=True):
        F.cross_entropy(alone(own).flatten(0, 1), wanted.flatten(), reduction="sum").backward()
    for ours, theirs in zip(packed.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_positions_begin_anew_in_each_document():
    documents = torch.tensor([[4, 4, 4, 7, 7, 5], [0, 1, 2, 2, 0, 0]])
    assert positions_in_documents(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 0, 1]]


def test_one_document_is_the_plain_row():
    model = make_model()
    tokens = torch.randint(19, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, documents=torch.zeros_like(tokens)), model(tokens), rtol=0, atol=1e-5)


def test_documents_that_do_not_fit_are_refused():
    model, tokens = make_model(), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(InputError, match=r"documents have shape \(2, 3\) and type torch.int64; an integer for each"):
        model(tokens, documents=tokens[:, :3])
    with pytest.raises(InputError, match=r"documents have shape \(2, 4\) and type torch.float32"):
        model(tokens, documents=tokens.float())
    with pytest.raises(InputError, match="documents and a cache were given"):
        model(tokens, KVCache(model.config, 2), tokens)
    stretched = make_model(rope_scaling=RopeScaling("dynamic", 4.0, 6))
    with pytest.raises(InputError, match="whose RoPE scaling depends on the length of the text"):
        stretched(torch.zeros(1, 8, dtype=torch.long), documents=torch.zeros(1, 8, dtype=torch.long))
