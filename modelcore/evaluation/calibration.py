"""Whether a model is as often right as it is sure: reliability and expected calibration error (Guo et al. 2017).

A prediction is the most likely token, its confidence the probability that the model gives it. The confidences are
sorted into N_BINS bins of equal width over (0, 1]; a calibrated model is right, in each bin, as often as the mean
confidence there says. The expected calibration error is the distance between the two, averaged over the bins with the
number of predictions as weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

N_BINS = 15
"""Bins of equal width, as many as in the paper's figures."""


@dataclass(frozen=True)
class Calibration:
    """Predictions, counted by bin of their confidence; bin ``i`` holds those in (i / N_BINS, (i + 1) / N_BINS].

    Attributes:
        tokens: Predictions in each bin.
        correct: How many of them were right.
        confidence: The sum of their confidences.
    """

    tokens: tuple[int, ...]
    correct: tuple[int, ...]
    confidence: tuple[float, ...]

    @classmethod
    def from_counts(cls, counts: npt.NDArray[np.float64]) -> Calibration:
        """The calibration of what :func:`count_by_confidence` counted, or of sums of that."""
        tokens, correct, confidence = counts.tolist()
        return cls(tuple(map(int, tokens)), tuple(map(int, correct)), tuple(confidence))

    @property
    def expected_error(self) -> float:
        """The expected calibration error, between 0 and 1; NaN without a prediction."""
        if not (total := sum(self.tokens)):
            return math.nan
        return sum(abs(right - sure) for right, sure in zip(self.correct, self.confidence, strict=True)) / total

    def columns(self) -> dict[str, list[float | int]]:
        """What a reliability diagram shows, a row a bin that is not empty.

        Returns:
            Columns ``confidence`` and ``accuracy`` (means, from 0 to 1) and ``tokens``.
        """
        rows = [row for row in zip(self.tokens, self.correct, self.confidence, strict=True) if row[0]]
        return {
            "confidence": [sure / n for n, _, sure in rows],
            "accuracy": [right / n for n, right, _ in rows],
            "tokens": [n for n, _, _ in rows],
        }


def count_by_confidence(
    confidence: npt.NDArray[np.floating[Any]], correct: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Sorts predictions into bins; the counts of several calls add up.

    Args:
        confidence: (n,) probabilities of the predicted tokens.
        correct: (n,) boolean: whether each prediction was right.

    Returns:
        (3, N_BINS) float64: predictions, right ones, and the sum of the confidences.
    """
    confidence = confidence.astype(np.float64)
    # The upper edge belongs to a bin. NaN, from a broken model, ends up in one of them and makes the error NaN.
    bins = np.ceil(np.nan_to_num(confidence) * N_BINS).astype(np.int64).clip(1, N_BINS) - 1
    return np.stack([np.bincount(bins, weights, N_BINS) for weights in (None, correct, confidence)]).astype(np.float64)
