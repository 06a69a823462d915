"""The gate: whether a new model takes the champion's place."""

from __future__ import annotations

import math
from dataclasses import dataclass

MARGIN = 0.005
"""Bits per byte by which a candidate must beat the champion. Less is luck more often than progress."""


@dataclass(frozen=True)
class Score:
    """How well a model predicts a held-out text.

    Attributes:
        bits_per_byte: Bits that the model needs for a byte of the text; lower is better.
        heldout_digest: SHA-256 of the text, in hexadecimal. It is of the text and not of its tokens, for bits
            per byte compare models of different tokenizers.
    """

    bits_per_byte: float
    heldout_digest: str


@dataclass(frozen=True)
class Decision:
    """Whether the candidate becomes champion, and why, in one sentence."""

    promote: bool
    reason: str


def decide(candidate: Score, champion: Score | None) -> Decision:
    """Applies the rule: lower by at least MARGIN bits per byte on the same text, or no champion to beat.

    A score that is not a positive number never wins, and a champion measured on another text, or not at all, stays.
    """
    score = candidate.bits_per_byte
    if not _is_score(score):
        return Decision(
            False, f"the candidate's score is {score} bits per byte, which is no score; look at its training"
        )
    if champion is None:
        return Decision(True, f"first champion, at {score:.4f} bits per byte")
    reigning = champion.bits_per_byte
    if not _is_score(reigning):
        return Decision(
            False, "the champion's score is unknown; evaluate it, or delete the alias @champion to start anew"
        )
    if candidate.heldout_digest != champion.heldout_digest:
        return Decision(
            False,
            f"not comparable: the candidate was measured on another text ({candidate.heldout_digest[:12]}) than the "
            f"champion ({champion.heldout_digest[:12]}); evaluate both on one text, or delete the alias @champion",
        )
    # Rounded, so that a difference of exactly the margin counts whatever the last bits of the floats are.
    gain = round(reigning - score, 9)
    compared = f"{score:.4f} bits per byte against the champion's {reigning:.4f}"
    if gain >= MARGIN:
        return Decision(True, f"better: {compared}")
    if gain > 0:
        return Decision(False, f"not better by the margin of {MARGIN}: {compared}")
    return Decision(False, f"not better: {compared}")


def _is_score(value: float) -> bool:
    return math.isfinite(value) and value > 0
