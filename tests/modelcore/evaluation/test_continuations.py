"""Continuations are scored as one pass over context and continuation scores them, whatever shares a batch."""

import random

import pytest
import torch

from modelcore.evaluation.continuations import score_continuations
from modelcore.gptx import GPT, GPTConfig

VOCAB, CONTEXT = 31, 12


@pytest.fixture(params=["learned", "rope", "alibi", "sliding window"])
def model(request) -> GPT:
    torch.manual_seed(0)
    kind = {"sliding_window": 5} if request.param == "sliding window" else {"positions": request.param}
    model = GPT(GPTConfig(VOCAB, CONTEXT, 2, 24, 4, 2, 32, dropout=0.3, **kind)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def slow_score(model: GPT, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Token by token. Up to CONTEXT tokens are scored in one window that ends with the last of them."""
    tokens, nats, greedy = context + continuation, 0.0, True
    for first in range(0, len(continuation), CONTEXT):
        end = len(context) + min(first + CONTEXT, len(continuation))
        start = max(0, end - CONTEXT - 1)
        for place in range(len(context) + first, end):
            logits = model(torch.tensor([tokens[start:place]]))[0, -1].double()
            nats += logits.log_softmax(-1)[tokens[place]].item()
            greedy = greedy and int(logits.argmax()) == tokens[place]
    return nats, greedy


def random_pairs(n: int, longest: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of many lengths, several of them with the same context."""
    rng = random.Random(0)

    def ids(low: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(rng.randint(low, longest))]

    contexts = [ids(1) for _ in range(n // 3)]
    return [(rng.choice(contexts), ids(0)) for _ in range(n)]


@pytest.mark.parametrize("longest", [6, 12, 40])
def test_scores_are_those_of_a_slow_reference_at_every_length_up_to_and_past_the_context(model, longest):
    pairs = random_pairs(40, longest)
    scores = score_continuations(model, pairs, batch_tokens=64)
    for (context, continuation), (nats, greedy) in zip(pairs, scores, strict=True):
        expected = slow_score(model, context, continuation)
        assert nats == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_the_size_of_the_batches_does_not_change_the_scores(model, batch_tokens):
    pairs = random_pairs(40, 20)
    expected = score_continuations(model, pairs)
    scores = score_continuations(model, pairs, batch_tokens=batch_tokens)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert [nats for nats, _ in scores] == pytest.approx([nats for nats, _ in expected], abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 40, 2048])
def test_a_context_is_read_once_for_all_its_continuations_and_no_batch_is_larger_than_allowed(model, batch_tokens):
    context = list(range(8))
    sizes = []
    hidden = model.hidden

    def count(tokens, cache=None):
        sizes.append(tuple(tokens.shape))
        return hidden(tokens, cache)

    model.hidden = count
    score_continuations(model, [(context, [i, 1, 2]) for i in range(9)], batch_tokens=batch_tokens)
    rows = max(1, batch_tokens // (8 + 3))
    batches = -(-9 // rows)
    assert sizes[::2] == [(1, 8)] * batches
    assert sum(size[0] for size in sizes[1::2]) == 9
    assert max(size[0] for size in sizes[1::2]) <= rows


def test_the_likeliest_continuation_is_known_as_such(model):
    context = [3, 1, 4]
    best = int(model(torch.tensor([context]))[0, -1].argmax())
    [(_, greedy), (_, other)] = score_continuations(model, [(context, [best]), (context, [(best + 1) % VOCAB])])
    assert (greedy, other) == (True, False)


def test_an_empty_continuation_is_certain_and_an_empty_context_an_error(model):
    assert score_continuations(model, [([1], [])]) == [(0.0, True)]
    assert score_continuations(model, []) == []
    with pytest.raises(ValueError, match="needs a context of at least one token"):
        score_continuations(model, [([], [1])])


def test_dropout_is_off_while_scoring_and_back_on_after(model):
    pairs = random_pairs(10, 8)
    expected = score_continuations(model, pairs)
    assert score_continuations(model.train(), pairs) == expected
    assert model.training
