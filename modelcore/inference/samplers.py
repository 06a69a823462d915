"""Choosing the next token: each rule a pure function of logits, and the draw from what they leave.

Every rule maps (batch, vocab) logits to the same shape, in their dtype, and forbids a token by setting it to -inf.
Their meaning, and the order in which :func:`adjust` applies them, are those of Hugging Face's logits processors of the
same names: sequence bias (of single tokens), repetition penalty, temperature, top-k, top-p, min-p, typical. Presence
and frequency penalties, which Hugging Face lacks, are OpenAI's, and stand where its ``generate`` puts a caller's own
processors: after the repetition penalty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modelcore.checks import is_whole
from modelcore.errors import InputError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen. The defaults sample from the model's own distribution.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token always (greedy).
        top_k: Only the k most likely tokens remain; 0 turns it off.
        top_p: Only the fewest most likely tokens whose probabilities sum to at least this remain; 1 turns it off.
        min_p: Only tokens at least this share as likely as the most likely one remain; 0 turns it off.
        typical_p: Only the tokens whose surprise is nearest to the expected one, of at least this probability in all,
            remain; 1 turns it off.
        repetition_penalty: Above 1 makes tokens that the prompt or the continuation holds less likely; 1 turns it off.
        presence_penalty: Taken off the logit of every token that the continuation holds; 0 turns it off.
        frequency_penalty: Taken off a token's logit once for each time that the continuation holds it; 0 turns it off.
        logit_bias: Added to the logits of these tokens, by id; -100 as good as forbids one.
        seed: Of the random numbers: the same seed gives the same text.

    Raises:
        InputError: If a field is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.001 <= self.temperature < math.inf:  # below, logits overflow
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or at least 0.001")
        if not is_whole(self.top_k, 0):
            raise InputError(f"top_k is {self.top_k!r}; it must be a whole number, 0 for off")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (off)")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"min_p is {self.min_p}; it must be at least 0 (off) and at most 1")
        if not 0.0 < self.typical_p <= 1.0:
            raise InputError(f"typical_p is {self.typical_p}; it must be above 0 and at most 1 (off)")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0, 1 for off")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; it must be a finite number, 0 for off")
        for token, bias in self.logit_bias.items():
            if not is_whole(token, 0) or not math.isfinite(bias):
                raise InputError(f"logit_bias holds {token!r}: {bias}; it must map token ids to finite numbers")
        if not is_whole(self.seed, 0) or self.seed >= 2**63:
            raise InputError(f"seed is {self.seed!r}; it must be a whole number from 0 to 2^63 - 1")

    @property
    def reads_history(self) -> bool:
        """Whether the choice depends on the tokens before it in any other way than through the model."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True)
class History:
    """What the penalties know of each row's text.

    Attributes:
        prompt: Whether the prompt holds a token, (batch, vocab) boolean.
        counts: How often the continuation holds it, (batch, vocab) int32.
    """

    prompt: Tensor
    counts: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> History:
        """The history of texts that consist of their prompts yet."""
        prompt = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
        for row, ids in enumerate(prompts):
            prompt[row, torch.tensor(ids, dtype=torch.long)] = True
        return cls(prompt.to(device), torch.zeros(prompt.shape, dtype=torch.int32, device=device))

    def extended(self, tokens: Tensor) -> History:
        """The history after one more token a row, (batch,) int64."""
        one = torch.ones_like(tokens, dtype=torch.int32)
        return History(self.prompt, self.counts.scatter_add(1, tokens[:, None], one[:, None]))

    def rows(self, index: Tensor) -> History:
        """The history of these rows alone."""
        return History(self.prompt[index], self.counts[index])


def bias_vector(logit_bias: Mapping[int, float], vocab_size: int, device: torch.device) -> Tensor | None:
    """What :class:`SamplingConfig` adds to the logits of the vocabulary, (vocab,) fp32; None where it adds nothing.

    Raises:
        InputError: If an id is outside the vocabulary.
    """
    if not logit_bias:
        return None
    if max(logit_bias) >= vocab_size:
        raise InputError(f"logit_bias names id {max(logit_bias)}, the model knows 0 to {vocab_size - 1}")
    bias = torch.zeros(vocab_size)
    bias[torch.tensor(list(logit_bias))] = torch.tensor(list(logit_bias.values()), dtype=torch.float32)
    return bias.to(device)


def penalize_repetition(logits: Tensor, history: History, penalty: float) -> Tensor:
    """Divides the positive and multiplies the negative logits of tokens in prompt or continuation by ``penalty``.

    This is CTRL's penalty (Keskar et al. 2019), made sign-aware.
    """
    seen = history.prompt | (history.counts > 0)
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def penalize_presence(logits: Tensor, history: History, penalty: float) -> Tensor:
    """Takes ``penalty`` off the logits of tokens in the continuation (OpenAI's API reference)."""
    return logits - penalty * (history.counts > 0)


def penalize_frequency(logits: Tensor, history: History, penalty: float) -> Tensor:
    """Takes ``penalty`` off a logit for each time that the continuation holds the token (OpenAI's API reference)."""
    return logits - penalty * history.counts


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divides the logits by ``temperature``, above 0: below 1 sharpens the distribution, above 1 flattens it."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Forbids every token less likely than the ``k``-th most likely one (Fan et al. 2018); ties with it remain."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the nucleus: the fewest most likely tokens whose probabilities sum to ``p`` (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1)
    # Summed from the least likely up, small numbers first: a tail that holds no more than 1 - p in all goes.
    outside = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - p
    outside[..., -1] = False  # the most likely token always stays
    return logits.masked_fill(outside.scatter(-1, order, outside), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Forbids tokens less than ``p`` times as likely as the most likely one (Nguyen et al. 2024)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def keep_typical(logits: Tensor, mass: float) -> Tensor:
    """Keeps the tokens whose surprise is nearest to the entropy, up to ``mass`` in all (Meister et al. 2023)."""
    log_p = logits.log_softmax(dim=-1)
    entropy = -(log_p * log_p.exp()).nansum(dim=-1, keepdim=True)  # forbidden tokens, -inf · 0, add nothing
    deviation = (-log_p - entropy).abs()
    ordered, order = deviation.sort(dim=-1)
    cumulative = logits.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (cumulative < mass).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)  # (B, 1)
    return logits.masked_fill(deviation > ordered.gather(-1, last), float("-inf"))


def adjust(
    logits: Tensor, sampling: SamplingConfig, history: History | None = None, bias: Tensor | None = None
) -> Tensor:
    """The logits after every rule that ``sampling`` turns on.

    Args:
        logits: (batch, vocab).
        sampling: The rules. With temperature 0 only bias and penalties apply: the others never change which token
            is the most likely.
        history: Of the same rows; needed only where ``sampling.reads_history``.
        bias: (vocab,), of ``sampling.logit_bias``, from :func:`bias_vector`.

    Raises:
        ValueError: If a penalty is on and ``history`` is missing.
    """
    if bias is not None:
        logits = logits + bias
    if sampling.reads_history:
        if history is None:
            raise ValueError("penalties need the history of the text")
        if sampling.repetition_penalty != 1.0:
            logits = penalize_repetition(logits, history, sampling.repetition_penalty)
        if sampling.frequency_penalty:
            logits = penalize_frequency(logits, history, sampling.frequency_penalty)
        if sampling.presence_penalty:
            logits = penalize_presence(logits, history, sampling.presence_penalty)
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
    if sampling.typical_p < 1.0:
        logits = keep_typical(logits, sampling.typical_p)
    return logits


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row, (batch,) int64; of equal ones the first."""
    return logits.argmax(dim=-1)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a row from softmax(logits), by the Gumbel-max trick (Gumbel 1954).

    Inverting the cumulative distribution would need one random number a row instead of one a token. But there the
    rounding of any logit moves the borders of all tokens after it; here it can change the choice only where the two
    best scores are as close as the rounding itself.

    Args:
        logits: (batch, vocab), -inf where forbidden.
        uniform: (batch, vocab) float64 in [0, 1), on the logits' device.

    Returns:
        (batch,) int64 ids; never a forbidden one.
    """
    # A uniform number of exactly 0 would make a score infinite; the next one up is 2^-53.
    exponential = -torch.log1p(-uniform.clamp(min=2.0**-54))
    return (logits.double() - exponential.log()).argmax(dim=-1)
