"""The sliding window scores every token once, with the context that is promised, and adds up to exact figures."""

import math

import numpy as np
import pytest
import torch

from modelcore.errors import InputError
from modelcore.evaluation.perplexity import evaluate_split, score_tokens
from modelcore.gptx import GPT, GPTConfig

VOCAB, CONTEXT, EOS = 29, 16, 2


class Split:
    """A split of random tokens in memory, ending with an end-of-text token as every split does."""

    vocab_size = VOCAB

    def __init__(self, n_tokens: int) -> None:
        self.tokens = np.random.default_rng(0).integers(3, VOCAB, n_tokens)
        self.tokens[-1] = EOS
        self.n_tokens, self.n_bytes = n_tokens, 3 * n_tokens

    def window(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start <= start + length <= self.n_tokens
        return self.tokens[start : start + length].copy()


@pytest.fixture(params=["learned", "rope", "alibi"])
def model(request) -> GPT:
    return make_model(request.param)


def make_model(positions: str = "rope") -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(VOCAB, CONTEXT, 2, 24, 4, 2, 32, positions=positions, dropout=0.3)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("stride", [1, 16, 32])
def test_a_model_of_a_markov_chain_scores_what_the_chains_table_says(chain, stride):
    """Only the token before matters to it, so its exact figures follow from a table of counts."""
    model, split = chain.model(), chain.sample(2000, seed=0)
    before = np.roll(split.tokens, 1)  # the first token follows the end-of-text token that ends the split
    nats = -np.log(chain.table[before, split.tokens]).sum()
    score = evaluate_split(model, split, stride=stride)
    assert score.nats == pytest.approx(nats, rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(nats / 2000), rel=1e-6)
    assert score.correct == (chain.table[before].argmax(axis=1) == split.tokens).sum()


@torch.no_grad()
def slow_scores(model: GPT, split: Split, context: int, stride: int) -> list[tuple[float, bool]]:
    """Token by token: the window that scores a token is the first, in the order of the windows, that holds it."""
    before = [EOS, *split.tokens[:-1].tolist()]  # what each token is predicted from
    starts, start = [], 0
    while start + context < split.n_tokens:
        starts.append(start)
        start += stride
    starts.append(max(0, split.n_tokens - context))
    scores = []
    for position, target in enumerate(split.tokens.tolist()):
        start = next(s for s in starts if s <= position < s + context)
        logits = model(torch.tensor([before[start : position + 1]]))[0, -1].double()
        scores.append((-logits.log_softmax(-1)[target].item(), int(logits.argmax()) == target))
    return scores


@pytest.mark.parametrize("n_tokens", [1, 5, CONTEXT, CONTEXT + 1, 45, 64])
@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 16), (16, 1), (7, 3)])
def test_every_token_is_scored_once_as_a_slow_reference_scores_it(n_tokens, context, stride):
    model, split = make_model(), Split(n_tokens)
    expected = slow_scores(model, split, context, stride)
    losses, hits, times = np.zeros(n_tokens), np.zeros(n_tokens, dtype=bool), np.zeros(n_tokens, dtype=int)
    for scores in score_tokens(model, split, context_length=context, stride=stride, batch_size=3):
        losses[scores.positions], hits[scores.positions] = scores.losses, scores.hits
        np.add.at(times, scores.positions.numpy(), 1)
    assert times.tolist() == [1] * n_tokens
    np.testing.assert_allclose(losses, [loss for loss, _ in expected], atol=2e-5)
    assert hits.tolist() == [hit for _, hit in expected]


def test_the_totals_are_those_of_the_tokens(model):
    split = Split(50)
    expected = slow_scores(model, split, CONTEXT, CONTEXT // 2)
    score = evaluate_split(model, split)
    nats = sum(loss for loss, _ in expected)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 150, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / 50), rel=1e-4)
    assert score.token_accuracy == sum(hit for _, hit in expected) / 50


def test_the_batch_size_does_not_change_the_score(model):
    split = Split(200)
    scores = [evaluate_split(model, split, batch_size=size) for size in (1, 2, 7, 100)]
    for score in scores:
        assert score.nats == pytest.approx(scores[0].nats, rel=1e-6)
        assert score.correct == scores[0].correct


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_a_token():
    model = make_model()
    torch.nn.init.zeros_(model.head.weight)
    score = evaluate_split(model, Split(100))
    assert score.bits_per_byte * 3 == pytest.approx(math.log2(VOCAB), rel=1e-6)
    assert score.perplexity == pytest.approx(VOCAB, rel=1e-5)


def test_every_token_counts_the_end_of_text_included():
    """A model that is certain of one token, and right only at the last, the end-of-text token."""
    model, split = make_model(), Split(10)
    torch.nn.init.zeros_(model.norm.weight)  # the head sees zeros, so all tokens are equally likely and the first wins
    split.tokens[:] = 5
    split.tokens[-1] = 0
    score = evaluate_split(model, split)
    assert (score.n_tokens, score.correct) == (10, 1)


def test_dropout_is_off_while_measuring_and_back_on_after():
    model, split = make_model(), Split(60)
    expected = evaluate_split(model, split)
    assert evaluate_split(model.train(), split) == expected
    assert model.training


def test_a_broken_model_scores_nan():
    model = make_model()
    torch.nn.init.constant_(model.norm.weight, math.nan)
    score = evaluate_split(model, Split(30))
    assert math.isnan(score.bits_per_byte)
    assert score.correct == 0


def test_a_hopeless_model_scores_infinity_rather_than_overflowing():
    model = make_model()
    model.head.weight.data *= 1e5
    assert evaluate_split(model, Split(30)).perplexity == math.inf


def test_tokens_of_another_vocabulary_are_refused():
    split = Split(30)
    split.vocab_size = 31
    with pytest.raises(
        InputError, match="the tokens are of a vocabulary of 31, the model of 29; evaluate on tokens of"
    ):
        evaluate_split(make_model(), split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 17}, "context_length is 17; the model was made for 1 to 16 tokens"),
        ({"context_length": 0}, "context_length is 0; the model was made for 1 to 16 tokens"),
        ({"stride": 0}, "stride is 0; a window must move by 1 token or more"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError) as error:
        evaluate_split(make_model(), Split(30), **options)
    assert str(error.value) == message
