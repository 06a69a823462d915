"""Choosing the next token: each rule a pure function of logits, and the draw from what they leave.

Every rule maps (batch, vocab) logits to the same shape, in their dtype, and forbids a token by setting it to -inf.
Their meaning, and the order in which :func:`adjust` applies them, are those of Hugging Face's logits processors of the
same names: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modelcore.errors import InputError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. The defaults sample from the model's own distribution.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token always (greedy).
        top_k: Only the k most likely tokens remain; 0 turns it off.
        top_p: Only the fewest most likely tokens whose probabilities sum to at least this remain; 1 turns it off.
        min_p: Only tokens at least this share as likely as the most likely one remain; 0 turns it off.
        repetition_penalty: Above 1 makes tokens that the text already holds less likely; 1 turns it off.
        seed: Of the random numbers: the same seed gives the same text.

    Raises:
        InputError: If a field is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.001 <= self.temperature < math.inf:  # below, logits overflow
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or at least 0.001")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}; it must be a whole number, 0 for off")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (off)")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"min_p is {self.min_p}; it must be at least 0 (off) and at most 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0, 1 for off")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1")


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divides the positive and multiplies the negative logits of ``seen`` tokens by ``penalty``.

    This is CTRL's penalty (Keskar et al. 2019), made sign-aware.

    Args:
        logits: (batch, vocab).
        seen: (batch, vocab) boolean: the tokens that a row's prompt or continuation holds.
        penalty: Above 0; 1 changes nothing.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divides the logits by ``temperature``, above 0: below 1 sharpens the distribution, above 1 flattens it."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Forbids every token less likely than the ``k``-th most likely one (Fan et al. 2018); ties with it remain."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the nucleus: the fewest most likely tokens whose probabilities sum to ``p`` (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    # A token goes if those before it reach p already; nothing stands before the first, so it always stays.
    outside = probabilities.cumsum(dim=-1) - probabilities >= p
    return logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Forbids tokens less than ``p`` times as likely as the most likely one (Nguyen et al. 2024)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def adjust(logits: Tensor, sampling: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """The logits after every rule that ``sampling`` turns on.

    Args:
        logits: (batch, vocab).
        sampling: The rules. With temperature 0 only the repetition penalty applies: the others never change
            which token is the most likely.
        seen: (batch, vocab) boolean, as :func:`penalize_repetition` takes it; needed only with that penalty.
    """
    if sampling.repetition_penalty != 1.0 and seen is not None:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits
    if sampling.temperature != 1.0:
        logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1.0:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row, (batch,) int64; of equal ones the first."""
    return logits.argmax(dim=-1)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a row from softmax(logits), by inverting the cumulative distribution.

    A row needs one random number only, so rows can have generators of their own and a row's text does not
    depend on what else is in the batch.

    Args:
        logits: (batch, vocab), -inf where forbidden.
        uniform: (batch,) float64 in [0, 1).

    Returns:
        (batch,) int64 ids; never a forbidden one.
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    # In float64, u < 1 makes u · total smaller than total after rounding too, so the index stays inside; and
    # right=True steps over tokens that add nothing.
    target = uniform.to(cumulative.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
