"""How well a model predicts a text: bits per byte, perplexity, accuracy and calibration by a sliding window.

Every token of the split is predicted exactly once, the end-of-text token after each document included. The texts
are read as they lie in the split, one after the other; before the first stands an end-of-text token, as one stands
before every other. A window holds ``context_length`` tokens and moves by ``stride``: the first window scores all of its
tokens, each later one only those that no window before scored. So a token sees all that comes before it, or at least
``context_length - stride + 1`` tokens; a smaller stride is more exact and slower.

Bits per byte divide by the UTF-8 bytes of the texts alone but count the cost of the end-of-text tokens: they are the
size of a file from which the texts, and where each ends, can be restored. Unlike perplexity, they compare models
whose tokenizers differ, and models with compressors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modelcore.errors import InputError
from modelcore.evaluation.calibration import N_BINS, Calibration, count_by_confidence
from modelcore.evaluation.next_token import score_next
from modelcore.gptx import GPT, evaluating
from modelcore.progress import Progress

BATCH_TOKENS = 8192
BATCH_TOKENS_ON_CPU = 2048  # what the layers make of so many stays in a CPU's last cache


class Tokens(Protocol):
    """What is needed of a split of a token folder; :class:`modelcore.data.shards.TokenSplit` has it."""

    n_tokens: int
    n_bytes: int
    vocab_size: int

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The tokens ``start`` up to and without ``start + length``."""


@dataclass(frozen=True)
class TextScore:
    """How well a model predicted a text.

    Attributes:
        nats: Sum of -ln p over all tokens.
        correct: Tokens that were the most likely one.
        n_tokens: Tokens predicted.
        n_bytes: UTF-8 bytes of the text they stand for.
        calibration: How sure the model was of its most likely tokens, and how often right.
    """

    nats: float
    correct: int
    n_tokens: int
    n_bytes: int
    calibration: Calibration

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for a byte of text."""
        return self.nats / math.log(2) / self.n_bytes

    @property
    def perplexity(self) -> float:
        """The exponential of the mean of -ln p over the tokens; infinite where that is no float any more."""
        mean = self.nats / self.n_tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def token_accuracy(self) -> float:
        """Share of the tokens that were the most likely one."""
        return self.correct / self.n_tokens


class TokenScores(NamedTuple):
    """How well some tokens of a split were predicted, one entry a token, on the CPU.

    Attributes:
        positions: Their places in the split, (n,) int64.
        losses: -ln p of each, (n,) fp32.
        hits: Whether each was the most likely one, (n,) boolean.
        confidences: The probability of the most likely token in its place, (n,) fp32.
    """

    positions: Tensor
    losses: Tensor
    hits: Tensor
    confidences: Tensor


def evaluate_split(
    model: GPT,
    split: Tokens,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    name: str = "evaluate",
) -> TextScore:
    """Scores every token of a split once; how is said at the head of this file.

    Args:
        model: The model; dropout is off meanwhile.
        split: The tokens.
        context_length: Tokens a window holds; the model's context by default.
        stride: Tokens a window moves by; half of ``context_length`` by default.
        batch_size: Windows computed at once; by default as many as make BATCH_TOKENS tokens, on a CPU
            BATCH_TOKENS_ON_CPU. It changes speed and memory, not the result.
        name: What progress is shown as.

    Raises:
        InputError: If the split has another vocabulary, or the window does not fit the model.
    """
    nats, correct = 0.0, 0
    counts = np.zeros((3, N_BINS))
    with Progress(name, split.n_tokens, "token") as progress:
        for scores in score_tokens(model, split, context_length=context_length, stride=stride, batch_size=batch_size):
            nats += scores.losses.double().sum().item()
            correct += int(scores.hits.sum())
            counts += count_by_confidence(scores.confidences.numpy(), scores.hits.numpy())
            progress.update(len(scores.losses))
    return TextScore(nats, correct, split.n_tokens, split.n_bytes, Calibration.from_counts(counts))


def score_tokens(
    model: GPT,
    split: Tokens,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
) -> Iterator[TokenScores]:
    """Yields, batch by batch, what :func:`evaluate_split` adds up; arguments and errors as there.

    Every position of the split comes once.
    """
    if model.config.vocab_size != split.vocab_size:
        raise InputError(
            f"the tokens are of a vocabulary of {split.vocab_size}, the model of {model.config.vocab_size}; "
            "evaluate on tokens of the tokenizer that the model was trained with"
        )
    context = model.config.context_length if context_length is None else context_length
    if not 1 <= context <= model.config.context_length:
        raise InputError(
            f"context_length is {context}; the model was made for 1 to {model.config.context_length} tokens"
        )
    length = min(context, split.n_tokens)
    stride = max(1, length // 2) if stride is None else min(stride, length)
    if stride < 1:
        raise InputError(f"stride is {stride}; a window must move by 1 token or more")
    # The last window ends with the split: it overlaps more with the one before rather than being shorter.
    starts = [*range(0, split.n_tokens - length, stride), split.n_tokens - length]
    ends = [0] + [start + length for start in starts]  # a window scores what lies after the end of the one before
    if batch_size is None:
        batch_size = max(1, (BATCH_TOKENS_ON_CPU if model.device.type == "cpu" else BATCH_TOKENS) // length)
    with evaluating(model):
        for first in range(0, len(starts), batch_size):
            batch = range(first, min(first + batch_size, len(starts)))
            yield _score_windows(model, split, length, [(starts[i], ends[i]) for i in batch])


@torch.inference_mode()
def _score_windows(model: GPT, split: Tokens, length: int, windows: list[tuple[int, int]]) -> TokenScores:
    """Scores windows given as (start, first position to score)."""
    tokens = torch.from_numpy(np.stack([_read(split, start, length) for start, _ in windows])).to(model.device)
    starts, scored_from = torch.tensor(windows, device=model.device).T[:, :, None]  # (B, 1)
    positions = starts + torch.arange(length, device=model.device)  # (B, T)
    wanted = positions >= scored_from
    hidden = model.hidden(tokens[:, :-1])[wanted]  # (n, d_model)
    targets = tokens[:, 1:][wanted]  # (n,)
    scores = score_next(model, hidden, targets)
    return TokenScores(positions[wanted].cpu(), *(values.cpu() for values in scores))


def _read(split: Tokens, start: int, length: int) -> npt.NDArray[np.int64]:
    """A window's tokens and, before them, the one that its first token is predicted from; (length + 1,)."""
    if start:
        return split.window(start - 1, length + 1)
    # A split ends with an end-of-text token, and begins after one.
    return np.concatenate([split.window(split.n_tokens - 1, 1), split.window(0, length)])
