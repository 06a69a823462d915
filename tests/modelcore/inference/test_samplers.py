"""Each sampling rule equals Hugging Face's of the same name, and draws follow the distribution they are given."""

import dataclasses

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modelcore.errors import InputError
from modelcore.inference.samplers import (
    SamplingConfig,
    adjust,
    apply_temperature,
    draw,
    greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)

VOCAB = 97


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(VOCAB, (16, 20), generator=torch.Generator().manual_seed(1))


def seen_in(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(ids.shape[0], VOCAB, dtype=torch.bool).scatter(1, ids, True)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 1.9])
def test_temperature_equals_hugging_face(logits, ids, temperature):
    expected = TemperatureLogitsWarper(temperature)(ids, logits)
    torch.testing.assert_close(apply_temperature(logits, temperature), expected, rtol=0, atol=0)


@pytest.mark.parametrize("k", [1, 2, 40, VOCAB, VOCAB + 50])
def test_top_k_equals_hugging_face(logits, ids, k):
    torch.testing.assert_close(keep_top_k(logits, k), TopKLogitsWarper(k)(ids, logits), rtol=0, atol=0)


def test_top_k_keeps_ties_as_hugging_face_does(ids):
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(keep_top_k(logits, 2), TopKLogitsWarper(2)(ids, logits), rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.99])
def test_top_p_equals_hugging_face(logits, ids, p):
    torch.testing.assert_close(keep_top_p(logits, p), TopPLogitsWarper(p)(ids, logits), rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 1.0])
def test_min_p_equals_hugging_face(logits, ids, p):
    torch.testing.assert_close(keep_min_p(logits, p), MinPLogitsWarper(p)(ids, logits), rtol=0, atol=0)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_repetition_penalty_equals_hugging_face(logits, ids, penalty):
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(penalize_repetition(logits, seen_in(ids), penalty), expected, rtol=0, atol=0)


def test_all_rules_together_apply_in_hugging_faces_order(logits, ids):
    expected = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(30),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ]
    )(ids, logits.clone())
    sampling = SamplingConfig(temperature=0.8, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    torch.testing.assert_close(adjust(logits, sampling, seen_in(ids)), expected, rtol=0, atol=0)


def test_rules_that_are_off_leave_the_logits_alone(logits):
    assert adjust(logits, SamplingConfig()) is logits


def test_rules_leave_their_input_alone(logits, ids):
    before = logits.clone()
    adjust(logits, SamplingConfig(0.8, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=2.0), seen_in(ids))
    assert torch.equal(logits, before)


def test_greedy_is_what_every_rule_keeps(logits):
    for rule in (lambda x: keep_top_k(x, 1), lambda x: keep_top_p(x, 1e-6), lambda x: keep_min_p(x, 1.0)):
        kept = rule(logits)
        assert (kept > float("-inf")).sum(-1).tolist() == [1] * len(logits)
        assert torch.equal(greedy(kept), greedy(logits))


def test_greedy_obeys_the_repetition_penalty():
    logits = torch.tensor([[3.0, 2.0, -1.0]])
    seen = torch.tensor([[True, False, False]])
    assert greedy(adjust(logits, SamplingConfig(temperature=0.0, repetition_penalty=2.0), seen)).tolist() == [1]


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(), SamplingConfig(temperature=0.6), SamplingConfig(top_k=5), SamplingConfig(top_p=0.8, min_p=0.05)],
)
def test_draws_follow_the_distribution(sampling):
    """Pearson's chi-square stays below the 99.9 % quantile (Wilson and Hilferty's approximation)."""
    draws = 40_000
    generator = torch.Generator().manual_seed(3)
    logits = adjust(1.5 * torch.randn(1, 12, generator=generator), sampling)
    chosen = draw(logits.expand(draws, -1), torch.rand(draws, generator=generator, dtype=torch.float64))
    counts = chosen.bincount(minlength=12).double()
    expected = draws * logits.double().softmax(-1)[0]
    allowed = expected > 0
    assert counts[~allowed].sum() == 0
    chi_square = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum().item()
    freedom = int(allowed.sum()) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert chi_square < quantile


def test_a_draw_at_either_end_of_the_unit_interval_is_never_a_forbidden_token():
    logits = torch.full((2, 1000), float("-inf"))
    logits[:, 400:403] = torch.tensor([0.1, 0.2, 0.3])
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert draw(logits, ends).tolist() == [400, 402]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.5, "temperature is -0.5; it must be 0 (greedy) or at least 0.001"),
        ("temperature", 1e-9, "temperature is 1e-09; it must be 0 (greedy) or at least 0.001"),
        ("temperature", float("nan"), "temperature is nan; it must be 0 (greedy) or at least 0.001"),
        ("top_k", -1, "top_k is -1; it must be a whole number, 0 for off"),
        ("top_p", 0.0, "top_p is 0.0; it must be above 0 and at most 1 (off)"),
        ("top_p", 1.5, "top_p is 1.5; it must be above 0 and at most 1 (off)"),
        ("min_p", -0.1, "min_p is -0.1; it must be at least 0 (off) and at most 1"),
        ("repetition_penalty", 0.0, "repetition_penalty is 0.0; it must be above 0, 1 for off"),
        ("seed", -1, "seed is -1; it must be a whole number from 0 to 2^63 - 1"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    with pytest.raises(InputError) as error:
        dataclasses.replace(SamplingConfig(), **{field: value})
    assert str(error.value) == message
