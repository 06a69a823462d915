"""The calibration error is that of Guo et al., and models whose calibration is known get the value that is known."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelcore.evaluation.calibration import N_BINS, Calibration, count_by_confidence
from modelcore.evaluation.perplexity import evaluate_split, score_tokens


def calibration_of(confidences, correct) -> Calibration:
    return Calibration.from_counts(count_by_confidence(np.array(confidences), np.array(correct, dtype=bool)))


def textbook_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, written down as it stands there."""
    error = 0.0
    for i in range(N_BINS):
        inside = (confidences > i / N_BINS) & (confidences <= (i + 1) / N_BINS)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    return error


@given(st.lists(st.floats(2**-20, 1.0, width=32), min_size=1, max_size=20))
def test_a_confidence_falls_into_the_bin_whose_upper_edge_it_does_not_pass(confidences):
    calibration = calibration_of(confidences, [False] * len(confidences))
    expected = [0] * N_BINS
    for confidence in confidences:
        expected[math.ceil(Fraction(confidence) * N_BINS) - 1] += 1
    assert calibration.tokens == tuple(expected)
    assert sum(calibration.confidence) == pytest.approx(sum(confidences))


def test_the_error_of_a_handful_of_predictions_is_what_the_hand_computes():
    # Two of four right at 0.9 and one of two at 0.3: (4 · |0.5 - 0.9| + 2 · |0.5 - 0.3|) / 6.
    calibration = calibration_of([0.9, 0.9, 0.9, 0.9, 0.3, 0.3], [True, True, False, False, True, False])
    assert calibration.expected_error == pytest.approx((4 * 0.4 + 2 * 0.2) / 6)
    assert calibration.columns() == {
        "confidence": pytest.approx([0.3, 0.9]),
        "accuracy": [0.5, 0.5],
        "tokens": [2, 4],
    }


def test_one_who_is_always_sure_and_always_right_has_no_error_and_always_wrong_all_of_it():
    assert calibration_of([1.0, 1.0], [True, True]).expected_error == 0
    assert calibration_of([1.0, 1.0], [False, False]).expected_error == 1


def test_counts_of_pieces_add_up_to_those_of_the_whole():
    rng = np.random.default_rng(0)
    confidences, correct = rng.random(1000, dtype=np.float32), rng.random(1000) < 0.5
    pieces = zip(np.array_split(confidences, 13), np.array_split(correct, 13), strict=True)
    np.testing.assert_allclose(
        sum(count_by_confidence(*piece) for piece in pieces), count_by_confidence(confidences, correct)
    )


def test_without_a_prediction_or_without_numbers_there_is_no_error_to_tell():
    assert math.isnan(calibration_of([], []).expected_error)
    assert math.isnan(calibration_of([0.5, math.nan], [True, False]).expected_error)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_evaluation_finds_the_textbook_error_of_the_tokens(chain, temperature):
    model, split = chain.model(temperature), chain.sample(3000, seed=1)
    batches = list(score_tokens(model, split))
    confidences = torch.cat([scores.confidences for scores in batches]).double().numpy()
    hits = torch.cat([scores.hits for scores in batches]).numpy()
    assert evaluate_split(model, split).calibration.expected_error == pytest.approx(
        textbook_error(confidences, hits), abs=1e-12
    )


def test_a_model_that_knows_the_true_distribution_errs_by_no_more_than_the_luck_of_the_draw(chain):
    split = chain.sample(20_000, seed=2)
    calibration = evaluate_split(chain.model(), split).calibration
    # A bin's share of right predictions has the standard deviation sqrt(a (1 - a) / n) around its mean confidence.
    luck = sum(
        math.sqrt(n * (sure / n) * (1 - sure / n))
        for n, sure in zip(calibration.tokens, calibration.confidence, strict=True)
        if n
    )
    assert 0 < calibration.expected_error < 2 * luck / split.n_tokens < 0.02


@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_a_distorted_temperature_shows_as_the_error_that_it_makes(chain, temperature):
    """The chain's states, their frequencies and probabilities are known, so the error is too, up to luck."""
    split = chain.sample(20_000, seed=3)
    distorted = chain.table ** (1 / temperature)
    confidence = (distorted / distorted.sum(axis=1, keepdims=True)).max(axis=1)  # (states,)
    truth = chain.table.max(axis=1)
    frequency = np.bincount(split.tokens, minlength=len(truth)) / split.n_tokens
    bins = np.ceil(confidence * N_BINS).astype(int)
    expected = sum(abs((frequency * (truth - confidence))[bins == i].sum()) for i in set(bins))
    assert expected > 0.15
    assert evaluate_split(chain.model(temperature), split).calibration.expected_error == pytest.approx(
        expected, abs=0.01
    )
